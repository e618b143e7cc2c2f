"""Builds a bundle: reads and proves the models, then writes an OCI layout with one manifest for each platform.

The same inputs give the same bytes: nothing of the time, the machine or the folder goes in. A time of creation is
stated only where `SOURCE_DATE_EPOCH` gives one (https://reproducible-builds.org/specs/source-date-epoch/).
"""

import platform as system
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from edge_contract.bindings import check_bindings
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.manifest import (
    CODE_RAW,
    CODE_TAR,
    CONFIG_TYPE,
    DATASET_RAW,
    DOC_RAW,
    FILEPATH,
    MANIFEST_TYPE,
    MODEL,
    PLATFORM,
    ROLE,
    TITLE,
    VERSION,
    WEIGHT_CONFIG_RAW,
    WEIGHT_RAW,
    Descriptor,
    Index,
    Manifest,
    Role,
)
from edge_contract.runtime import GOLDEN_PATH, RUNTIME_PATH, WHEELS_FOLDER, Golden, Member, Probation, Runtime
from packager import golden
from packager.bundle import HARDWARE_IDS, RELEASE_COUNTER
from packager.layout import LayoutWriter, building
from packager.modelpack import config_bytes
from packager.pipelines import make_pipeline
from packager.progress import Reporter
from packager.signature import ModelFacts, merged_signature, read_facts
from packager.spec import MemberSpec, SourceFile, Spec
from packager.trial import Trial, run_trial
from packager.wheels import MACHINES, Wheel, for_platform, read_wheel, resolve_requirements


@dataclass(frozen=True, slots=True)
class BuiltBundle:
    """What a build made.

    Attributes:
        folder: The layout.
        name: Name of the model.
        version: Its version.
        index: Digest of the bundle's index.
        manifests: Digest of the manifest by platform.
        bytes: Bytes of all blobs, each once.
        golden_vectors: Golden vectors by member; empty without any.
        golden_error: Largest difference from given golden outputs; none when nothing was compared.
        load_peak_bytes: Memory that loading took here; 0 when nothing was run.
        warnings: For people.
    """

    folder: Path
    name: str
    version: int
    index: Digest
    manifests: dict[str, Digest]
    bytes: int
    golden_vectors: dict[str, int]
    golden_error: float | None
    load_peak_bytes: int
    warnings: tuple[str, ...]

    def to_json(self) -> JsonObject:
        """For `--json`."""
        return {
            "layout": str(self.folder),
            "model": self.name,
            "version": self.version,
            "index": str(self.index),
            "manifests": {platform: str(digest) for platform, digest in self.manifests.items()},
            "bytes": self.bytes,
            "golden_vectors": self.golden_vectors,
            "golden_error": self.golden_error,
            "load_peak_bytes": self.load_peak_bytes,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, slots=True)
class Material:
    """Everything that was read and proved, before a byte is written.

    Attributes:
        spec: The description, with the files that the models brought along.
        facts: What was read of each member.
        members: Members with their tensor signatures.
        wheels: Wheels that were looked through.
        golden: Bytes of the golden file, or none.
        vectors: Golden vectors by member.
        error: Largest difference from given golden outputs, or none.
        trial: What running the models here showed, or none.
    """

    spec: Spec
    facts: tuple[ModelFacts, ...]
    members: tuple[Member, ...]
    wheels: tuple[Wheel, ...]
    golden: bytes | None
    vectors: dict[str, int]
    error: float | None
    trial: Trial | None


def build(spec: Spec, out: Path, reporter: Reporter, created_s: int | None = None) -> BuiltBundle:
    """Build a bundle.

    Args:
        spec: What to build; has a version.
        out: Folder for the layout; replaced when it holds one, made when it does not exist.
        reporter: Shows progress.
        created_s: Time of creation to state, seconds since 1970.

    Raises:
        EdgeError: `config.*`, `artifact.*`, `model.*` (the model does not meet its golden vectors), `device.*`.
    """
    if spec.version < 1:
        raise EdgeError("config.invalid", "the bundle has no version", "Give --version, or register the model first.")
    with ExitStack() as stack:
        return assemble(prepare(spec, reporter, stack), spec.version, out, reporter, created_s)


def assemble(
    material: Material, version: int, out: Path, reporter: Reporter, created_s: int | None = None
) -> BuiltBundle:
    """Write what was prepared as a bundle of this version; see `build`."""
    material = replace(material, spec=replace(material.spec, version=version))
    with building(out) as folder:
        return _write(material, folder, out, reporter, created_s)


def prepare(spec: Spec, reporter: Reporter, stack: ExitStack) -> Material:
    """Read and prove the models; needs no version yet.

    Args:
        spec: What to build.
        reporter: Shows progress.
        stack: Keeps downloaded wheels until it is closed.

    Raises:
        EdgeError: as `build`.
    """
    facts = tuple(read_facts(member.entry.source, member.engine) for member in spec.members)
    spec = replace(
        spec,
        members=tuple(with_extra_files(member, fact) for member, fact in zip(spec.members, facts, strict=True)),
    )
    models = tuple(_member(member, fact) for member, fact in zip(spec.members, facts, strict=True))
    where = spec.origin or "the command line"
    members = (*models, *(make_pipeline(pipeline, models, where) for pipeline in spec.pipelines))
    check_bindings(
        spec.bindings,
        {member.name: (member.inputs, member.outputs) for member in members},
        "config.invalid",
        takes_json=[member.name for member in members if member.engine == "script" and not member.inputs],
    )
    wheels = _wheels(spec, reporter, stack)
    material = Material(spec, facts, members, wheels, None, {}, None, None)
    return _prove(material, reporter)


def with_extra_files(member: MemberSpec, facts: ModelFacts) -> MemberSpec:
    """External data keep their place beside the model."""
    folder = member.entry.path.rpartition("/")[0]
    known = {file.path for file in member.files}
    extra = [
        SourceFile(member.entry.source.parent / name, f"{folder}/{name}" if folder else name)
        for name in facts.extra_files
    ]
    return replace(member, files=member.files + tuple(file for file in extra if file.path not in known))


def _member(member: MemberSpec, facts: ModelFacts) -> Member:
    where = f"member {member.name!r}:"
    inputs = merged_signature(member.inputs, facts.inputs, f"{where} inputs")
    outputs = merged_signature(member.outputs, facts.outputs, f"{where} outputs")
    if member.engine != "script" and not (inputs and outputs):
        raise EdgeError(
            "config.invalid",
            f"{where} the tensor signature cannot be read here",
            "Declare inputs and outputs in lighterman.toml, or install ai-edge-litert.",
        )
    if member.batching and not all(item.shape and item.shape[0] == -1 for item in (*inputs, *outputs)):
        raise EdgeError("config.invalid", f"{where} it is to be batched, and the first size of its tensors is not free")
    options = dict(member.options)
    return Member(member.name, member.engine, member.entry.path, inputs, outputs, options, batching=member.batching)


def _wheels(spec: Spec, reporter: Reporter, stack: ExitStack) -> tuple[Wheel, ...]:
    paths = list(spec.dependencies.wheels)
    if spec.dependencies.requirements is not None and spec.dependencies.is_resolved:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lighterman-wheels-")))
        with reporter.task("resolving requirements"):
            paths += resolve_requirements(
                spec.dependencies.requirements, spec.dependencies.python, spec.platforms, folder
            )
    wheels = tuple(read_wheel(path) for path in paths)
    for platform in spec.platforms:
        for_platform(wheels, platform)
    return wheels


def _prove(material: Material, reporter: Reporter) -> Material:
    """Meet the golden vectors, or make them, by running the models here."""
    spec = material.spec
    given: golden.Tensors = {}
    if spec.golden is not None:
        given = golden.fit(golden.load_tensors(spec.golden.source), material.members)
    inputs, wanted = golden.inputs_of(given), golden.outputs_of(given)
    is_trusted = spec.golden is not None and spec.golden.is_trusted
    if is_trusted and not wanted:
        raise EdgeError("artifact.golden-invalid", "golden vectors without outputs cannot be trusted: run the model")
    if is_trusted or not (inputs or spec.serving.is_peak_measured):
        return replace(material, golden=golden.to_safetensors(given) if given else None, vectors=_vectors(given))
    with reporter.task("running the model on its golden vectors"):
        trial = run_trial(
            _sources(material),
            inputs,
            _staged(spec),
            [wheel.source for wheel in _wheels_here(material.wheels)],
            spec.serving.config,
            spec.serving.allow_pickle,
        )
    if spec.golden is None:
        return replace(material, trial=trial)
    comparison = golden.compare(wanted, trial.outputs, spec.golden.rtol, spec.golden.atol)
    # Outputs that were not given come from the run; those that were stay as they were given.
    whole = golden.fit(inputs | trial.outputs | wanted, material.members)
    return replace(
        material,
        golden=golden.to_safetensors(whole),
        vectors=_vectors(whole),
        error=comparison.max_error if wanted else None,
        trial=trial,
    )


def _vectors(tensors: golden.Tensors) -> dict[str, int]:
    return {name.split("/", 1)[0]: (array.shape[0] if array.ndim else 1) for name, array in tensors.items()}


def _sources(material: Material) -> list[tuple[Member, Path | None]]:
    """Members with their model file; a pipeline has none."""
    sources = {member.name: member.entry.source for member in material.spec.members}
    return [(member, sources.get(member.name)) for member in material.members]


def _staged(spec: Spec) -> list[SourceFile]:
    files = [file for member in spec.members for file in (member.entry, *member.files)]
    return [*files, *spec.code]


def _wheels_here(wheels: Sequence[Wheel]) -> Sequence[Wheel]:
    """The wheels this machine can import from; where there are none for it, the script says what it lacks."""
    mine = MACHINES.get(system.machine(), "")
    return [wheel for wheel in wheels if wheel.platforms is None or mine in wheel.platforms]


def _runtime(material: Material) -> Runtime:
    spec, serving = material.spec, material.spec.serving
    peak = serving.load_peak_bytes
    if serving.is_peak_measured and material.trial is not None:
        peak = material.trial.load_peak_bytes
    vectors = None
    if material.golden is not None and spec.golden is not None:
        vectors = Golden(GOLDEN_PATH, spec.golden.rtol, spec.golden.atol)
    return Runtime(
        model=spec.name,
        version=spec.version,
        members=material.members,
        golden=vectors,
        probation=Probation(
            serving.probation_ms,
            serving.failure_ratio_max,
            serving.nonfinite_ratio_max,
            serving.latency_ratio_max,
            serving.drift_max,
        ),
        load_peak_bytes=peak,
        sampling_ratio=serving.sampling_ratio,
        allow_pickle=serving.allow_pickle,
        config=dict(serving.config),
        bindings=spec.bindings,
    )


class _Writer:
    """Turns material into blobs and descriptors."""

    def __init__(self, material: Material, layout: LayoutWriter, reporter: Reporter) -> None:
        self._material = material
        self._layout = layout
        self._reporter = reporter
        self.sizes: dict[Digest, int] = {}

    def _descriptor(self, media_type: str, blob: tuple[Digest, int], path: str, role: str) -> Descriptor:
        digest, size = blob
        self.sizes[digest] = size
        title = path.rpartition("/")[2]
        return Descriptor(media_type, digest, size, {FILEPATH: path, TITLE: title, ROLE: role})

    def _file(self, media_type: str, file: SourceFile, role: str) -> Descriptor:
        size = file.source.stat().st_size
        with self._reporter.task(f"writing {file.path}", size) as advance:
            return self._descriptor(media_type, self._layout.add_file(file.source, advance), file.path, role)

    def common_layers(self) -> list[Descriptor]:
        """The layers that every platform has, in order of role and path."""
        material, spec = self._material, self._material.spec
        layers: list[Descriptor] = []
        for member in spec.members:
            is_script = member.engine == "script"
            first = (CODE_RAW, Role.CODE) if is_script else (WEIGHT_RAW, Role.MODEL)
            layers.append(self._file(first[0], member.entry, first[1]))
            for file in sorted(member.files, key=lambda item: item.path):
                is_code = file.path.endswith(".py")
                media_type, role = (CODE_RAW, Role.CODE) if is_code else (WEIGHT_RAW, Role.MODEL)
                layers.append(self._file(media_type, file, role))
        for folder in sorted(spec.code, key=lambda item: item.path):
            with self._reporter.task(f"packing {folder.path}"):
                blob = self._layout.add_folder(folder.source)
            layers.append(self._descriptor(CODE_TAR, blob, folder.path, Role.CODE))
        if material.golden is not None:
            blob = self._layout.add_bytes(material.golden)
            layers.append(self._descriptor(DATASET_RAW, blob, GOLDEN_PATH, Role.GOLDEN))
        blob = self._layout.add_bytes(_runtime(material).to_bytes())
        layers.append(self._descriptor(WEIGHT_CONFIG_RAW, blob, RUNTIME_PATH, Role.RUNTIME))
        layers += [self._file(DOC_RAW, file, Role.DOC) for file in sorted(spec.about.docs, key=lambda item: item.path)]
        return layers

    def wheel_layers(self) -> dict[Path, Descriptor]:
        """A layer for every wheel."""
        result = {}
        for wheel in self._material.wheels:
            file = SourceFile(wheel.source, f"{WHEELS_FOLDER}/{wheel.source.name}")
            result[wheel.source] = self._file(CODE_RAW, file, Role.WHEEL)
        return result

    def manifest(self, platform: str, layers: Sequence[Descriptor], created_s: int | None) -> Descriptor:
        """Configuration and manifest of one platform."""
        spec = self._material.spec
        config = config_bytes(spec, self._material.facts, [layer.digest for layer in layers], created_s)
        digest, size = self._layout.add_bytes(config)
        self.sizes[digest] = size
        # The platform is said in the manifest too, so that two platforms with the same layers have different digests.
        notes = {MODEL: spec.name, VERSION: str(spec.version), PLATFORM: platform}
        manifest = Manifest(Descriptor(CONFIG_TYPE, digest, size), tuple(layers), notes)
        manifest.check()
        digest, size = self._layout.add_bytes(manifest.to_bytes())
        return Descriptor(MANIFEST_TYPE, digest, size, platform=platform)


def _write(material: Material, folder: Path, out: Path, reporter: Reporter, created_s: int | None) -> BuiltBundle:
    spec = material.spec
    layout = LayoutWriter(folder)
    writer = _Writer(material, layout, reporter)
    common, wheels = writer.common_layers(), writer.wheel_layers()
    manifests = []
    for platform in spec.platforms:
        mine = [wheels[wheel.source] for wheel in for_platform(material.wheels, platform)]
        manifests.append(writer.manifest(platform, [*common, *mine], created_s))
    notes = {MODEL: spec.name, VERSION: str(spec.version)}
    notes |= {HARDWARE_IDS: ",".join(sorted(spec.hardware_ids))} if spec.hardware_ids else {}
    notes |= {RELEASE_COUNTER: str(spec.release_counter)} if spec.release_counter else {}
    index = Index(tuple(manifests), notes)
    digest = layout.finish(index.to_bytes(), str(spec.version), spec.name)
    return BuiltBundle(
        folder=out,
        name=spec.name,
        version=spec.version,
        index=digest,
        manifests={item.platform or "": item.digest for item in manifests},
        bytes=sum(writer.sizes.values()),
        golden_vectors=material.vectors,
        golden_error=material.error,
        load_peak_bytes=material.trial.load_peak_bytes if material.trial else 0,
        warnings=_warnings(material),
    )


def _warnings(material: Material) -> tuple[str, ...]:
    warnings = []
    if material.golden is None:
        warnings.append("no golden vectors: devices can only check that the model loads and gives finite numbers")
    elif material.error is None and material.trial is None:
        warnings.append("golden vectors were trusted: the model was not run here")
    return tuple(warnings)
