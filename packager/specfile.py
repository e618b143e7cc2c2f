"""Reads `lighterman.toml` and the flags into a `Spec`. Keys are documented in docs/packager.md."""

import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

from edge_contract.bindings import Binding, read_binding
from edge_contract.engines import ENTRIES
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import Fields
from edge_contract.limits import (
    BINDINGS_MAX,
    MANIFEST_LAYERS_MAX,
    MEMBERS_MAX,
    PROBATION_MS_DEFAULT,
    PROBATION_MS_MAX,
    RATIO_MAX,
    STEPS_MAX,
    TAGS_MAX,
    TENSORS_MAX,
)
from edge_contract.names import model_name, platform_name, relative_path, tags
from edge_contract.pipeline import Batching, Step, read_batching, read_step
from edge_contract.runtime import WHEELS_FOLDER
from edge_contract.tensors import TensorSpec
from packager.limits import GLOB_FILES_MAX, SPEC_BYTES_MAX
from packager.signature import engine_for
from packager.spec import (
    PLATFORMS_DEFAULT,
    About,
    Dependencies,
    GoldenSpec,
    MemberSpec,
    PipelineSpec,
    Serving,
    SourceFile,
    Spec,
)

_RESERVED: Final = ("lighterman", WHEELS_FOLDER)
_LINEAGE: Final = ("run_id", "git_commit", "dataset")
_T = TypeVar("_T")


def read_spec_file(file: Path, root: Path | None) -> Spec:
    """Read a description file; see `packager.specload.load_spec`."""
    return _SpecFile(file, root).read()


def _read_step(value: Any) -> Step:
    return read_step(value, "config.invalid")


class _SpecFile:
    """One description file; `_where` is the place that messages name."""

    def __init__(self, file: Path, root: Path | None) -> None:
        self._file = file
        self._folder = file.parent.resolve()
        self._root = (root or file.parent).resolve()

    def _fail(self, key: str, why: str, hint: str = "", code: str = "config.invalid") -> EdgeError:
        return EdgeError(code, f"{self._file}: {key}: {why}", hint)

    def _fields(self, value: Any, key: str) -> Fields:
        return Fields(value, f"{self._file}: {key}", "config.invalid")

    def _checked(self, key: str, check: Callable[[Any], _T], value: Any) -> _T:
        try:
            return check(value)
        except ContractError as error:
            raise self._fail(key, error.detail, error.hint, error.code) from None

    def read(self) -> Spec:
        """The description; translates what the strict reader says into configuration errors."""
        try:
            return self._spec(self._document())
        except ContractError as error:
            code = "config.invalid" if error.code == "artifact.unknown-field" else error.code
            raise EdgeError(code, error.detail, error.hint or "Known keys are in docs/packager.md.") from None

    def _document(self) -> dict[str, Any]:
        try:
            with self._file.open("rb") as stream:
                data = stream.read(SPEC_BYTES_MAX + 1)
        except OSError as error:
            raise EdgeError(
                "config.file-missing",
                f"cannot read {self._file}: {error.strerror}",
                "Name it with --spec, or use flags.",
            ) from None
        if len(data) > SPEC_BYTES_MAX:
            raise EdgeError("config.invalid", f"{self._file} is larger than {SPEC_BYTES_MAX} bytes")
        try:
            return tomllib.loads(data.decode("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeError, RecursionError) as error:
            raise EdgeError("config.invalid", f"{self._file} is not valid TOML: {error}") from None

    def _spec(self, document: dict[str, Any]) -> Spec:
        top = self._fields(document, "the file")
        model = self._fields(top.take("model"), "model")
        about = self._about(model, top.take("docs", {}))
        members = top.take("members", {})
        if not isinstance(members, dict) or not 0 < len(members) <= MEMBERS_MAX:
            raise self._fail("members", f"has to hold 1 to {MEMBERS_MAX} tables, [members.NAME]")
        pipelines = top.take("pipelines", {})
        if not isinstance(pipelines, dict) or len(members) + len(pipelines) > MEMBERS_MAX:
            raise self._fail("pipelines", f"and members hold at most {MEMBERS_MAX} tables together, [pipelines.NAME]")
        if twice := sorted(set(members) & set(pipelines)):
            raise self._fail(f"pipelines.{twice[0]}", "has the name of a member")
        spec = Spec(
            name=self._checked("model.name", model_name, model.text("name")),
            version=model.integer("version", 0),
            members=tuple(self._member(name, value, len(members) == 1) for name, value in members.items()),
            platforms=tuple(
                sorted({self._checked("platforms", platform_name, item) for item in top.texts("platforms", 64)})
            )
            or PLATFORMS_DEFAULT,
            hardware_ids=model.texts("hardware_ids", 64, 128),
            release_counter=model.integer("release_counter", 0),
            code=self._code(top.take("code", {})),
            golden=self._golden(top.take("golden")),
            dependencies=self._dependencies(top.take("dependencies", {})),
            serving=self._serving(top.take("serving", {})),
            about=about,
            bindings=self._bindings(top.items("bindings", BINDINGS_MAX), (*members, *pipelines)),
            pipelines=tuple(self._pipeline(name, value) for name, value in pipelines.items()),
            origin=str(self._file),
        )
        model.close()
        top.close()
        return spec

    # --- paths ---

    def _path(self, key: str, text: Any) -> Path:
        """A path of the file that exists below the root, after every symbolic link."""
        if not isinstance(text, str) or not text or "\0" in text:
            raise self._fail(key, "has to be a path")
        if Path(text).is_absolute():
            raise self._fail(key, f"{text!r} is absolute", "Write it relative to the file.", "artifact.path-unsafe")
        path = (self._folder / text).resolve()
        if not path.is_relative_to(self._root):
            hint = "Allow a wider folder with --root, if you know the file."
            raise self._fail(key, f"{text!r} leaves {self._root}", hint, "artifact.path-unsafe")
        if not path.exists():
            raise self._fail(key, f"there is no {text!r}", "", "config.file-missing")
        return path

    def _regular(self, key: str, text: Any) -> Path:
        path = self._path(key, text)
        if not path.is_file():
            raise self._fail(key, f"{text!r} is not a regular file")
        return path

    def _source(self, key: str, value: Any, prefix: str = "", flat: bool = False) -> SourceFile:
        """A file given as a text, or as `{source, path}`."""
        if isinstance(value, dict):
            fields = self._fields(value, key)
            source, path = self._regular(f"{key}.source", fields.text("source")), fields.text("path")
            fields.close()
            return SourceFile(source, self._bundle_path(f"{key}.path", path))
        source = self._regular(key, value)
        place = source.name if flat else PurePosixPath(str(value)).as_posix()
        return SourceFile(source, self._bundle_path(key, prefix + place))

    def _bundle_path(self, key: str, path: str) -> str:
        self._checked(key, relative_path, path)
        if path.split("/", 1)[0].casefold() in _RESERVED:
            raise self._fail(key, f"{path!r} lies in a folder that the packager fills itself")
        return path

    # --- tables ---

    def _about(self, model: Fields, docs: Any) -> About:
        lineage = model.mapping("lineage", len(_LINEAGE))
        for key in lineage:
            if key not in _LINEAGE:
                raise self._fail(f"model.lineage.{key}", "is not known", f"Known: {', '.join(_LINEAGE)}.")
        table = self._fields(docs, "docs")
        files = tuple(self._source("docs.files", item, flat=True) for item in table.items("files", MANIFEST_LAYERS_MAX))
        table.close()
        return About(
            description=model.text("description", "", 4096),
            tags=self._checked("model.tags", tags, model.mapping("tags", TAGS_MAX)),
            properties=self._checked("model.properties", tags, model.mapping("properties", TAGS_MAX)),
            lineage=lineage,
            authors=model.texts("authors", 64, 256),
            licenses=model.texts("licenses", 16, 128),
            family=model.text("family", "", 128),
            vendor=model.text("vendor", "", 128),
            architecture=model.text("architecture", "", 128),
            docs=files,
        )

    def _member(self, name: str, value: Any, is_only: bool) -> MemberSpec:
        key = f"members.{name}"
        self._checked(key, model_name, name)
        fields = self._fields(value, key)
        source = self._regular(f"{key}.file", fields.text("file"))
        prefix = "" if is_only else f"{name}/"
        path = self._bundle_path(f"{key}.path", fields.text("path", prefix + source.name))
        engine = fields.text("engine", "") or self._checked(f"{key}.file", engine_for, source)
        if engine not in ENTRIES:
            hint = "A pipeline is a table of its own, [pipelines.NAME]." if engine == "pipeline" else ""
            raise self._fail(f"{key}.engine", f"{engine!r} is not known; known: {', '.join(ENTRIES)}", hint)
        member = MemberSpec(
            name=name,
            engine=engine,
            entry=SourceFile(source, path),
            files=tuple(
                self._source(f"{key}.files", item, prefix) for item in fields.items("files", MANIFEST_LAYERS_MAX)
            ),
            inputs=self._tensors(f"{key}.inputs", fields.items("inputs", TENSORS_MAX)),
            outputs=self._tensors(f"{key}.outputs", fields.items("outputs", TENSORS_MAX)),
            options=fields.mapping("options", 64),
            batching=self._batching(key, fields.take("batching")),
        )
        fields.close()
        return member

    def _batching(self, key: str, value: Any) -> Batching | None:
        return self._checked(f"{key}.batching", lambda item: read_batching(item, "config.invalid"), value)

    def _pipeline(self, name: str, value: Any) -> PipelineSpec:
        """A table [pipelines.NAME]; its steps are tables, or the names of models in a chain."""
        key = f"pipelines.{name}"
        self._checked(key, model_name, name)
        fields = self._fields(value, key)
        steps = fields.items("steps", STEPS_MAX, required=True)
        is_chain = all(isinstance(step, str) for step in steps)
        if not steps or (not is_chain and any(isinstance(step, str) for step in steps)):
            raise self._fail(f"{key}.steps", "are tables, or the names of models, and at least one")
        result = PipelineSpec(
            name=name,
            steps=() if is_chain else tuple(self._checked(f"{key}.steps", _read_step, step) for step in steps),
            chain=tuple(steps) if is_chain else (),
            inputs=self._tensors(f"{key}.inputs", fields.items("inputs", TENSORS_MAX)),
            outputs=self._tensors(f"{key}.outputs", fields.items("outputs", TENSORS_MAX)),
            options=fields.mapping("options", 64),
            batching=self._batching(key, fields.take("batching")),
        )
        fields.close()
        return result

    def _tensors(self, key: str, items: Iterable[Any]) -> tuple[TensorSpec, ...]:
        def read(item: Any) -> TensorSpec:
            return TensorSpec.from_json(item, "config.invalid")

        return tuple(self._checked(key, read, item) for item in items)

    def _code(self, value: Any) -> tuple[SourceFile, ...]:
        fields = self._fields(value, "code")
        result = []
        for item in fields.items("folders", 64):
            folder = self._path("code.folders", item)
            if not folder.is_dir():
                raise self._fail("code.folders", f"{item!r} is not a folder")
            result.append(SourceFile(folder, self._bundle_path("code.folders", folder.name)))
        fields.close()
        return tuple(result)

    def _golden(self, value: Any) -> GoldenSpec | None:
        if value is None:
            return None
        fields = self._fields(value, "golden")
        golden = GoldenSpec(
            source=self._regular("golden.file", fields.text("file")),
            rtol=fields.number("rtol", 1e-3),
            atol=fields.number("atol", 1e-4),
            is_trusted=fields.flag("trust", False),
        )
        fields.close()
        return golden

    def _dependencies(self, value: Any) -> Dependencies:
        fields = self._fields(value, "dependencies")
        wheels: list[Path] = []
        for pattern in fields.texts("wheels", GLOB_FILES_MAX, 4096):
            wheels += self._globbed("dependencies.wheels", pattern)
        requirements = fields.text("requirements", "")
        result = Dependencies(
            wheels=tuple(wheels),
            requirements=self._regular("dependencies.requirements", requirements) if requirements else None,
            is_resolved=fields.flag("resolve", False),
            python=fields.text("python", "3.11", 16),
        )
        fields.close()
        return result

    def _globbed(self, key: str, pattern: str) -> list[Path]:
        if not any(mark in pattern for mark in "*?["):
            return [self._regular(key, pattern)]
        if Path(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
            raise self._fail(key, f"{pattern!r} leaves the file's folder", "", "artifact.path-unsafe")
        found = sorted(self._folder.glob(pattern))
        if not 0 < len(found) <= GLOB_FILES_MAX:
            raise self._fail(key, f"{pattern!r} matches {len(found)} files, 1 to {GLOB_FILES_MAX} are allowed")
        return [self._regular(key, str(path.relative_to(self._folder))) for path in found]

    def _bindings(self, items: list[Any], members: tuple[str, ...]) -> tuple[Binding, ...]:
        """The tables [[bindings]]; an only member need not be named, and an only binding is called like its member."""
        result = []
        for number, item in enumerate(items, 1):
            key = f"bindings[{number}]"
            if not isinstance(item, dict):
                raise self._fail(key, "has to be a table, [[bindings]]")
            item = {**item}
            if len(members) == 1:
                item.setdefault("member", members[0])
            if len(items) == 1:
                item.setdefault("name", item.get("member"))
            try:
                result.append(read_binding(item, "config.invalid"))
            except ContractError as error:
                raise self._fail(key, error.detail, error.hint) from None
        return tuple(result)

    def _serving(self, value: Any) -> Serving:
        fields = self._fields(value, "serving")
        peak = fields.take("load_peak_bytes", 0)
        is_measured = peak == "measure"
        result = Serving(
            probation_ms=fields.integer("probation_ms", PROBATION_MS_DEFAULT, high=PROBATION_MS_MAX),
            failure_ratio_max=fields.number("failure_ratio_max", 0.05, high=1.0),
            nonfinite_ratio_max=fields.number("nonfinite_ratio_max", 0.01, high=1.0),
            latency_ratio_max=fields.number("latency_ratio_max", 0.0, high=RATIO_MAX),
            drift_max=fields.number("drift_max", 0.0, high=RATIO_MAX),
            sampling_ratio=fields.number("sampling_ratio", 1.0, high=1.0),
            load_peak_bytes=0 if is_measured else fields.integer("load_peak_bytes", 0),
            is_peak_measured=is_measured,
            allow_pickle=fields.flag("allow_pickle", False),
            config=fields.mapping("config", 256),
        )
        fields.close()
        return result
