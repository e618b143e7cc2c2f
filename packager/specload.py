"""Brings a description file and the command line together into one checked `Spec`."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from edge_contract.bindings import Binding, read_binding
from edge_contract.engines import ENTRIES, check_options
from edge_contract.errors import EdgeError
from edge_contract.names import model_name, platform_name, relative_path, tags
from edge_contract.pipeline import Batching, read_batching
from packager.pipelines import pipeline_of_flag
from packager.signature import engine_for
from packager.spec import Flags, GoldenSpec, MemberSpec, PipelineSpec, SourceFile, Spec
from packager.specfile import read_spec_file

_T = TypeVar("_T")
_HARDWARE_ID: Final = re.compile(r"[A-Za-z0-9._:/-]{1,128}")


def load_spec(file: Path | None, flags: Flags, root: Path | None = None, base: Spec | None = None) -> Spec:
    """Bring a description file and flags together.

    Args:
        file: A `lighterman.toml`, or none when flags say everything.
        flags: From the command line.
        root: Folder that paths of the file may not leave; its own folder when none.
        base: What flags complete when there is no file, for example a version from a registry.

    Returns:
        The checked description; every file it names exists.

    Raises:
        EdgeError: `config.invalid`, `config.file-missing`, `artifact.path-unsafe`, `cloud.name-invalid`.
    """
    base = read_spec_file(file, root) if file is not None else base
    spec = _with_flags(base, flags)
    _check(spec)
    return spec


def _with_flags(base: Spec | None, flags: Flags) -> Spec:
    members = _members_of_flags(flags)
    if base is None:
        if not members:
            raise EdgeError(
                "config.invalid", "nothing says what to build", "Name a model file, or a description with --spec."
            )
        if not flags.name:
            raise EdgeError("config.invalid", "the model has no name", "Give one with --name (--model in build).")
        base = Spec(name=model_name(flags.name), members=members)
    spec = replace(
        base,
        name=model_name(flags.name) if flags.name else base.name,
        version=flags.version or base.version,
        members=members or base.members,
        platforms=tuple(sorted({platform_name(item) for item in flags.platforms})) or base.platforms,
        hardware_ids=flags.hardware_ids or base.hardware_ids,
        release_counter=flags.release_counter or base.release_counter,
        code=tuple(_flag_folder(item) for item in flags.code) or base.code,
        golden=_golden_of_flags(base.golden, flags),
        dependencies=_given(
            base.dependencies,
            wheels=tuple(_flag_file("--wheel", item) for item in flags.wheels) or None,
            requirements=flags.requirements,
            is_resolved=flags.is_resolved,
        ),
        serving=_given(
            base.serving,
            probation_ms=flags.probation_ms,
            sampling_ratio=flags.sampling_ratio,
            is_peak_measured=flags.is_peak_measured,
            config=base.serving.config | flags.config,
        ),
        about=_given(
            base.about,
            description=flags.description or None,
            tags=tags(base.about.tags | flags.tags),
            properties=tags(base.about.properties | flags.properties),
            lineage=base.about.lineage | flags.lineage,
            docs=tuple(SourceFile(_flag_file("--doc", item), item.name) for item in flags.docs) or None,
        ),
    )
    if flags.bindings:
        spec = replace(spec, bindings=_bindings_of_flags(spec.members, flags.bindings))
    if flags.engine:
        spec = replace(spec, members=tuple(replace(member, engine=flags.engine) for member in spec.members))
    if flags.pipelines:
        spec = replace(spec, pipelines=tuple(pipeline_of_flag(text) for text in flags.pipelines))
    return _with_knobs(spec, flags)


def _with_knobs(spec: Spec, flags: Flags) -> Spec:
    """Engine options and batching of models and pipelines, as flags say them."""
    items: list[MemberSpec | PipelineSpec] = [*spec.members, *spec.pipelines]
    for name, text in flags.options:
        key, mark, value = text.partition("=")
        if not mark or not key:
            raise EdgeError("config.invalid", f"--option {text!r} is not of the form [MEMBER.]KEY=VALUE")
        place = _place(items, "--option", name)
        items[place] = replace(items[place], options=items[place].options | {key: value})
    for name, text in flags.batching:
        place = _place(items, "--batch", name)
        items[place] = replace(items[place], batching=_batching(text))
    return replace(
        spec,
        members=tuple(item for item in items if isinstance(item, MemberSpec)),
        pipelines=tuple(item for item in items if isinstance(item, PipelineSpec)),
    )


def _place(items: Sequence[MemberSpec | PipelineSpec], flag: str, name: str) -> int:
    """Which model or pipeline a flag means; the name may be left out for an only one."""
    names = [item.name for item in items]
    if not name and len(names) == 1:
        return 0
    if name not in names:
        raise EdgeError("config.invalid", f"{flag} has to name one of {', '.join(names)}; {name!r} is none of them")
    return names.index(name)


def _batching(text: str) -> Batching | None:
    rows, mark, wait_us = text.partition(":")
    if not mark or not rows.isdecimal() or not wait_us.isdecimal():
        raise EdgeError("config.invalid", f"--batch {text!r} is not of the form [MEMBER=]ROWS:WAIT_US")
    return read_batching({"rows_max": int(rows), "wait_us": int(wait_us)}, "config.invalid")


def _given(base: _T, **changes: Any) -> _T:
    """The value with those changes that say something."""
    given = {key: value for key, value in changes.items() if value is not None}
    return replace(base, **given)  # type: ignore[type-var]  # every caller passes a dataclass


def _flag_file(flag: str, path: Path) -> Path:
    if not path.is_file():
        raise EdgeError("config.file-missing", f"{flag}: there is no file {path}")
    return path.resolve()


def _flag_folder(path: Path) -> SourceFile:
    if not path.is_dir():
        raise EdgeError("config.file-missing", f"--code: there is no folder {path}")
    return SourceFile(path.resolve(), relative_path(path.resolve().name))


def _members_of_flags(flags: Flags) -> tuple[MemberSpec, ...]:
    result: list[MemberSpec] = []
    for name, path in flags.members:
        source = _flag_file("model file", path)
        member = model_name(name or flags.name or source.stem.lower())
        if member in {other.name for other in result}:
            raise EdgeError("config.invalid", f"two members have the name {member!r}", "Name them: NAME=FILE.")
        prefix = "" if len(flags.members) == 1 else f"{member}/"
        engine = flags.engine or engine_for(source)
        if engine not in ENTRIES:
            raise EdgeError("config.invalid", f"--engine: {engine!r} is not known", f"Known: {', '.join(ENTRIES)}.")
        result.append(MemberSpec(member, engine, SourceFile(source, relative_path(prefix + path.name))))
    if flags.extra_files:
        if len(result) != 1:
            raise EdgeError("config.invalid", "--extra-file needs exactly one model file", "Use a description file.")
        extra = tuple(SourceFile(_flag_file("--extra-file", item), item.name) for item in flags.extra_files)
        result[0] = replace(result[0], files=extra)
    return tuple(result)


def _bindings_of_flags(members: tuple[MemberSpec, ...], topics: tuple[tuple[str, str], ...]) -> tuple[Binding, ...]:
    if len(members) != 1:
        raise EdgeError(
            "config.invalid", "--bind is for a bundle with one model", "Write [[bindings]] in a description file."
        )
    name = members[0].name
    return tuple(
        read_binding(
            {
                "name": name if len(topics) == 1 else f"{name}-{number}",
                "member": name,
                "input_topic": source,
                "output_topic": target,
            },
            "config.invalid",
        )
        for number, (source, target) in enumerate(topics, 1)
    )


def _golden_of_flags(base: GoldenSpec | None, flags: Flags) -> GoldenSpec | None:
    if flags.golden is not None:
        source = _flag_file("--golden", flags.golden)
        base = replace(base, source=source) if base else GoldenSpec(source)
    if base is None:
        if flags.rtol is not None or flags.atol is not None or flags.is_golden_trusted:
            raise EdgeError("config.invalid", "a tolerance was given without golden vectors", "Add --golden FILE.")
        return None
    return _given(base, rtol=flags.rtol, atol=flags.atol, is_trusted=flags.is_golden_trusted)


def _check(spec: Spec) -> None:
    """What neither file nor flags can say alone."""
    where = spec.origin or "the command line"
    paths: dict[str, str] = {}
    for what, path in _all_paths(spec):
        folded = path.casefold()
        if folded in paths:
            raise EdgeError(
                "config.invalid", f"{where}: {what} and {paths[folded]} would both be {path!r} in the bundle"
            )
        paths[folded] = what
    if len(set(spec.hardware_ids)) != len(spec.hardware_ids):
        raise EdgeError("config.invalid", f"{where}: a hardware id stands twice")
    for item in spec.hardware_ids:
        if not _HARDWARE_ID.fullmatch(item):
            hint = "Use 1 to 128 letters, digits, '.', '_', '-', ':' and '/'."
            raise EdgeError("config.invalid", f"{where}: {item!r} is not a hardware id", hint)
    for member in spec.members:
        check_options(member.engine, member.options, "config.invalid", f"{where}: member {member.name!r}")
    names = [*(member.name for member in spec.members), *(pipeline.name for pipeline in spec.pipelines)]
    if len(set(names)) != len(names):
        raise EdgeError("config.invalid", f"{where}: two models or pipelines have the same name")
    dependencies = spec.dependencies
    if dependencies.requirements and not dependencies.is_resolved:
        raise EdgeError(
            "config.invalid",
            f"{where}: dependencies.requirements names packages that are not in the bundle",
            "Allow pip to download them with --resolve (dependencies.resolve = true), or list wheel files.",
        )
    if not any(member.engine == "script" for member in spec.members) and (dependencies.wheels or spec.code):
        raise EdgeError("config.invalid", f"{where}: code and wheels are for scripts, and no member is one")


def _all_paths(spec: Spec) -> Iterable[tuple[str, str]]:
    for member in spec.members:
        for file in (member.entry, *member.files):
            yield str(file.source), file.path
    for item in (*spec.code, *spec.about.docs):
        yield str(item.source), item.path
