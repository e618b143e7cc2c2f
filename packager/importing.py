"""Brings a model version from an MLflow or Azure ML registry into a folder that `packager build` takes, and registers
it (ADR 36).
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_registry.client import RegistryClient
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from packager.azureml import (
    DOCUMENT,
    NOTES_FILE,
    Choice,
    Source,
    choose,
    choose_for_script,
    compare,
    description_file,
    identity_of,
    is_ours,
    lineage_of,
    name_for,
    parse_selector,
    properties_of,
    read_signature,
    tags_of,
)
from packager.files import digest_of, disk_errors, replace_folder, write_durably
from packager.limits import IMPORTED_PAGES_MAX
from packager.progress import Reporter
from packager.register import register
from packager.signature import ModelFacts, check_script, read_facts
from packager.spec import SPEC_FILE, Flags, Spec
from packager.specload import load_spec

if TYPE_CHECKING:
    from packager.mlflowread import MlflowReader


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for.

    Attributes:
        selector: As `packager.azureml.parse_selector` reads it.
        bytes_max: Most bytes to download.
        name: Name here; the registry's in our letters when empty.
        file: Which file is the model, when there are several.
        script: A `score.py` that loads the version's files, or none.
        allow_pickle: Whether that script may load pickles on devices.
        is_signature_ignored: Whether the model file's own tensors stand where the registry states others.
    """

    selector: str
    bytes_max: int
    name: str = ""
    file: str = ""
    script: Path | None = None
    allow_pickle: bool = False
    is_signature_ignored: bool = False


def fetch(reader: "MlflowReader", request: Request, folder: Path) -> JsonObject:
    """Make a folder of the version: its files, `lighterman.toml`, and `imported.json` with all that was said of it.

    The folder appears whole or not at all; one that an earlier import made is replaced, others are refused. The same
    version gives the same bytes.

    Returns:
        What is in `imported.json`, with `warnings`.

    Raises:
        EdgeError: as `packager.mlflowread.MlflowReader`, `packager.azureml` and `packager.signature.read_facts`;
            `config.invalid` for a folder that holds something else.
    """
    if not is_ours(folder):
        raise EdgeError("config.invalid", f"{folder} holds something that no import made", "Name another folder.")
    if request.script is not None:
        check_script(request.script)
    source = reader.source(parse_selector(request.selector))
    name = name_for(source, request.name)
    artifacts = reader.artifacts(source)
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.partial-") as temporary:
        room = Path(temporary)
        document = _document(reader, source, artifacts, room)
        flavors = document.get("flavors")
        flavors = flavors if isinstance(flavors, dict) else {}
        if request.script is not None:
            choice = choose_for_script(source, artifacts, request.script.name, request.allow_pickle)
        else:
            choice = choose(source, flavors, artifacts, request.file)
        built = room / "built"
        built.mkdir()
        reader.download(source, choice.files, built, request.bytes_max)
        if request.script is not None:
            shutil.copyfile(request.script, built / request.script.name)
        notes = _describe(source, name, document, flavors, choice, built, request)
        # The folder came with the modes of temporary files, which would keep others from building it.
        built.chmod(0o755)
        replace_folder(built, folder)
    return notes


def _document(reader: "MlflowReader", source: Source, artifacts: tuple[Any, ...], room: Path) -> dict[str, Any]:
    found = next((item for item in artifacts if item.path == DOCUMENT), None)
    if found is None:
        return {}
    place = room / "document"
    place.mkdir()
    return reader.document(source, found, place)


def _describe(
    source: Source,
    name: str,
    document: Mapping[str, Any],
    flavors: Mapping[str, Any],
    choice: Choice,
    built: Path,
    request: Request,
) -> JsonObject:
    """Compare what is stated with what the files say, and write the two documents."""
    signature = read_signature(source, document)
    facts = ModelFacts() if choice.engine == "script" else read_facts(built / choice.entry, choice.engine)
    warnings = []
    about: dict[str, Any] = {
        "description": source.description,
        "tags": tags_of(source),
        "properties": properties_of(source, flavors),
        "lineage": lineage_of(source),
    }
    for side, stated, own in (
        ("inputs", signature.inputs, facts.inputs),
        ("outputs", signature.outputs, facts.outputs),
    ):
        if not request.is_signature_ignored:
            compare(source, side, stated, own)
        if choice.engine == "script":
            about[side] = stated if stated and all(item.name for item in stated) else ()
            if not about[side]:
                warnings.append(f"the registry names no {side} as tensors; say them in {SPEC_FILE}")
        elif stated is None:
            warnings.append(f"the registry states no {side} as tensors; those of the model file stand")
    if choice.engine == "script":
        extra = [item.path for item in choice.files]
    else:
        base = choice.entry.rpartition("/")[0]
        extra = [f"{base}/{path}" if base else path for path in facts.extra_files]
        for item in choice.files:
            if item.path not in (choice.entry, *extra):
                (built / item.path).unlink()
    text = description_file(name, choice, about, _listed(choice, extra), request.allow_pickle)
    files = {path: digest_of(built / path) for path in sorted({choice.entry, *extra})}
    notes: JsonObject = {
        "registry": source.registry,
        "model": source.name,
        "version": source.version,
        "name": name,
        "engine": choice.engine,
        "aliases": list(source.aliases),
        "flavors": sorted(str(key) for key in flavors),
        "files": [{"path": path, "digest": str(digest), "size": size} for path, (digest, size) in files.items()],
        "params": source.params,
        "metrics": source.metrics,
        "tags": source.tags,
        "run_id": source.run_id,
        "warnings": warnings,
    }
    write_durably(built / SPEC_FILE, text.encode())
    write_durably(built / NOTES_FILE, (json.dumps(notes, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())
    return notes


def _listed(choice: Choice, extra: list[str]) -> list[str]:
    """The files to name beside the entry; external data of an ONNX file are found by who reads it."""
    return extra if choice.engine == "script" else []


def registered(client: RegistryClient, folder: Path, notes: Mapping[str, Any], reporter: Reporter) -> JsonObject:
    """Register an imported folder, unless the same version with the same files is registered already.

    Tags and properties of a version that is there are brought up to date: metrics and aliases move.

    Returns:
        The version as our registry describes it, with `is_new`.

    Raises:
        EdgeError: as `packager.register.register`.
    """
    spec = load_spec(folder / SPEC_FILE, Flags())
    before = _imported_before(client, spec, notes)
    if before is None:
        return register(client, spec, reporter) | {"is_new": True}
    changes = {"description": spec.about.description, "tags": spec.about.tags}
    changes["properties"] = before["properties"] | spec.about.properties
    if any(before.get(key) != value for key, value in changes.items()):
        before = client.update_version(spec.name, int(before["version"]), changes)
    return before | {"is_new": False}


def _imported_before(client: RegistryClient, spec: Spec, notes: Mapping[str, Any]) -> JsonObject | None:
    source = Source(str(notes["registry"]), str(notes["model"]), str(notes["version"]), "")
    wanted = identity_of(source).items()
    digests = {(item["path"], item["digest"]) for item in notes["files"]}
    cursor = ""
    for _ in range(IMPORTED_PAGES_MAX):
        try:
            page = client.versions(spec.name, cursor=cursor)
        except EdgeError as error:
            if error.code == "cloud.not-found":
                return None
            raise
        for version in page["items"]:
            held = {(item["path"], item["digest"]) for item in version["files"]}
            if wanted <= version["properties"].items() and held == digests:
                return dict(version)
        cursor = page["next"] or ""
        if not cursor:
            return None
    return None
