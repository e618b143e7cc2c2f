"""What a model version of MLflow or Azure ML becomes here: files, a member, tags, properties, lineage (ADR 36). Pure
but for writing one folder; the registry is read by `packager.mlflowread`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from edge_contract.errors import ContractError, EdgeError
from edge_contract.limits import TAG_CHARS_MAX, TAGS_MAX
from edge_contract.names import model_name
from edge_contract.tensors import TensorSpec
from packager.limits import MLFLOW_PROPERTIES_MAX
from packager.spec import SPEC_FILE

_STAGES: Final = ("latest", "none", "staging", "production", "archived")
_SUFFIXES: Final = {".onnx": "onnx", ".ort": "onnx", ".tflite": "litert"}
_PICKLES: Final = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".skops", ".cloudpickle")
_NOT_WEIGHTS: Final = (*_PICKLES, ".yaml", ".yml", ".txt", ".json", ".py", ".md")
_KEY_PART: Final = re.compile(r"[^A-Za-z0-9_-]")
_DATATYPES: Final = {
    "float16": "FP16", "float32": "FP32", "float64": "FP64", "int8": "INT8", "int16": "INT16", "int32": "INT32",
    "int64": "INT64", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "bool": "BOOL",
    "object": "BYTES", "str": "BYTES", "bytes": "BYTES",
}  # fmt: skip
DOCUMENT: Final = "MLmodel"
NOTES_FILE: Final = "imported.json"
WRITTEN: Final = (SPEC_FILE, NOTES_FILE)
"""Files that an import writes beside those of the version."""


@dataclass(frozen=True, slots=True)
class Selector:
    """Which version: by number, by alias, or the newest of a stage (`latest`: of all). One of the three is given."""

    name: str
    version: str = ""
    alias: str = ""
    stage: str = ""

    def __str__(self) -> str:
        """As users write it."""
        return f"{self.name}@{self.alias}" if self.alias else f"{self.name}/{self.version or self.stage}"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file of a version: its path in it, and the bytes that were announced, when they were."""

    path: str
    size: int | None


@dataclass(frozen=True, slots=True)
class Source:
    """What a registry says of a version; empty where it says nothing."""

    registry: str
    name: str
    version: str
    location: str
    description: str = ""
    run_id: str = ""
    stage: str = ""
    aliases: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    run_tags: dict[str, str] = field(default_factory=dict)
    dataset: str = ""
    created_ms: int = 0

    def __str__(self) -> str:
        """Name and version."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class Signature:
    """Tensors of an `MLmodel` document; a name may be empty. None for columns of a table, or for nothing."""

    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """Which files of a version become the member."""

    engine: str
    entry: str
    files: tuple[Artifact, ...]


def parse_selector(text: str) -> Selector:
    """`NAME`, `NAME/VERSION`, `NAME/STAGE`, `NAME/latest` or `NAME@ALIAS`, with or without `models:/`.

    Raises:
        EdgeError: `config.invalid`.
    """
    plain = text.removeprefix("models:/")
    name, mark, rest = plain.partition("@")
    if mark:
        selector = Selector(name, alias=rest)
    else:
        name, mark, rest = plain.partition("/")
        if mark and not rest:
            name = ""
        selector = Selector(name, version=rest) if rest.isdecimal() else Selector(name, stage=rest or "latest")
    is_odd = any(mark in selector.name + selector.alias for mark in "/@'\"\\") or not plain.isprintable()
    is_stage_known = not selector.stage or selector.stage.casefold() in _STAGES
    if not name or is_odd or not is_stage_known or (mark == "@" and not rest):
        hint = "Write NAME, NAME/VERSION, NAME/latest, NAME/Production or NAME@ALIAS."
        raise EdgeError("config.invalid", f"{text!r} names no version of a model", hint)
    return selector


def choose(source: Source, flavors: Mapping[str, Any], artifacts: tuple[Artifact, ...], wanted: str = "") -> Choice:
    """The model file that devices can run, with what lies beside it.

    Args:
        source: For messages.
        flavors: Of the `MLmodel` document; empty without one.
        artifacts: All files.
        wanted: A path that the user named, or empty.

    Raises:
        EdgeError: `config.invalid` for an unclear choice or a path that is not there; `artifact.not-a-model` when
            there is nothing that devices can run without code.
    """
    paths = [item.path for item in artifacts]
    onnx = flavors.get("onnx")
    data = onnx.get("data") if isinstance(onnx, dict) else None
    named = wanted or (data if isinstance(data, str) else "")
    if named and named not in paths:
        raise EdgeError("config.invalid", f"{source} has no file {named!r}", f"It has: {', '.join(paths[:20])}.")
    models = [named] if named else [path for path in paths if PurePosixPath(path).suffix.lower() in _SUFFIXES]
    if len(models) > 1:
        raise EdgeError(
            "config.invalid", f"{source} has several models: {', '.join(models[:20])}", "Choose with --file."
        )
    engine = _SUFFIXES.get(PurePosixPath(models[0]).suffix.lower()) if models else None
    if engine is None:
        has = ", ".join(sorted(map(str, flavors))) or "files without an MLmodel document"
        raise EdgeError(
            "artifact.not-a-model",
            f"{source} holds {has}: nothing that devices run as it is",
            "Log the model as ONNX (mlflow.onnx) or TensorFlow Lite, or give --script score.py, which loads the "
            "version's files itself. What is pickled is never opened here.",
        )
    folder = models[0].rpartition("/")[0]
    beside = [
        item
        for item in artifacts
        if engine == "onnx"
        and item.path != models[0]
        and item.path.startswith(f"{folder}/" if folder else "")
        and PurePosixPath(item.path).name != DOCUMENT
        and PurePosixPath(item.path).suffix.lower() not in (*_NOT_WEIGHTS, *_SUFFIXES)
    ]
    entry = next(item for item in artifacts if item.path == models[0])
    return Choice(engine, models[0], (entry, *beside))


def choose_for_script(source: Source, artifacts: tuple[Artifact, ...], script: str, allow_pickle: bool) -> Choice:
    """Every file of the version, for a script of the user's that loads them.

    Raises:
        EdgeError: `model.pickle-refused` for pickled files that were not permitted; `config.invalid`.
    """
    pickled = [item.path for item in artifacts if PurePosixPath(item.path).suffix.lower() in _PICKLES]
    if pickled and not allow_pickle:
        raise EdgeError(
            "model.pickle-refused",
            f"{source} holds {', '.join(pickled[:5])}, which run code when they are loaded",
            "Convert the model to ONNX; or permit it on the devices with --allow-pickle.",
        )
    for path in sorted({item.path for item in artifacts} & {script, *WRITTEN}):
        raise EdgeError("config.invalid", f"{source} has a file {path!r} of its own", "Give the script another name.")
    if script in WRITTEN:
        raise EdgeError("config.invalid", f"{script!r} is written by the import", "Give the script another name.")
    return Choice("script", script, artifacts)


def read_signature(source: Source, document: Mapping[str, Any]) -> Signature:
    """The tensor signature of an `MLmodel` document.

    Raises:
        EdgeError: `artifact.document-invalid`.
    """
    value = document.get("signature")
    if not isinstance(value, dict):
        return Signature()
    try:
        return Signature(_tensors(value.get("inputs")), _tensors(value.get("outputs")))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ContractError) as error:
        raise EdgeError(
            "artifact.document-invalid", f"{source}: the signature in MLmodel cannot be read: {error}"
        ) from None


def _tensors(text: Any) -> tuple[TensorSpec, ...] | None:
    items = json.loads(text) if isinstance(text, str) else text
    if not isinstance(items, list) or any(item.get("type") != "tensor" for item in items):
        return None
    result = []
    for item in items:
        spec = item["tensor-spec"]
        shape = tuple(int(dim) for dim in spec["shape"])
        result.append(TensorSpec(str(item.get("name") or ""), _DATATYPES[str(spec["dtype"])], shape))
    return tuple(result)


def compare(source: Source, side: str, stated: tuple[TensorSpec, ...] | None, own: tuple[TensorSpec, ...]) -> None:
    """Refuse a version whose stated tensors contradict those of its model file.

    A dimension that either side leaves free agrees with anything, because MLflow reads shapes off an example. Names
    agree when MLflow left out the one name there is.

    Raises:
        EdgeError: `config.invalid`.
    """
    if not stated or not own:
        return
    known = {item.name: item for item in own}
    if len(stated) == 1 and not stated[0].name and len(own) == 1:
        pairs = [(stated[0], own[0])]
    elif side == "outputs" and any(not item.name for item in stated):
        return
    else:
        pairs = [(item, known[item.name]) for item in stated if item.name in known]
    is_whole = len(pairs) == len(stated) and (side == "outputs" or len(stated) == len(own))
    for item, model in pairs:
        dims = zip(item.shape, model.shape, strict=False)
        is_same_rank = len(item.shape) == len(model.shape)
        is_whole &= item.datatype == model.datatype and is_same_rank and all(a == b or -1 in (a, b) for a, b in dims)
    if not is_whole:
        raise EdgeError(
            "config.invalid",
            f"{source}: the registry states the {side} {_shown(stated)}, the model file has {_shown(own)}",
            "Log the model again with a signature of its own; or take the file's word with --ignore-signature.",
        )


def _shown(tensors: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{item.name or 'unnamed'} {item.datatype} {list(item.shape)}" for item in tensors)


def safe_key(text: str) -> str:
    """A key as our tags have it: dotted parts, other characters replaced."""
    parts = [_KEY_PART.sub("_", part) for part in re.split(r"[./]", text) if part]
    return (
        ".".join(part if part[0].isalpha() or part[0] == "_" else f"_{part}" for part in parts)[:64].rstrip(".") or "_"
    )


def name_for(source: Source, given: str) -> str:
    """The name here: as given, or the registry's in our letters.

    Raises:
        EdgeError: `cloud.name-invalid`.
    """
    return model_name(given or re.sub(r"[^a-z0-9]+", "-", source.name.lower()).strip("-"))


def tags_of(source: Source) -> dict[str, str]:
    """The registry's tags; those that MLflow writes for itself are left out, and so is what is over the bound."""
    found = {safe_key(key): text[:TAG_CHARS_MAX] for key, text in sorted(source.tags.items()) if not _is_own(key)}
    return dict(list(found.items())[:TAGS_MAX])


def _is_own(key: str) -> bool:
    return key.startswith(("mlflow.", "azureml.internal"))


def identity_of(source: Source) -> dict[str, str]:
    """The properties that tell one version of one registry from every other."""
    return {
        "mlflow.registry": source.registry[:TAG_CHARS_MAX],
        "mlflow.model": source.name[:TAG_CHARS_MAX],
        "mlflow.version": source.version,
    }


def properties_of(source: Source, flavors: Mapping[str, Any]) -> dict[str, str]:
    """Where the version comes from, then metrics, then parameters, as many as fit; says how many did not."""
    facts = {
        "mlflow.location": source.location,
        "mlflow.run_id": source.run_id,
        "mlflow.source": source.run_tags.get("mlflow.source.name", ""),
        "mlflow.user": source.run_tags.get("mlflow.user", ""),
        "mlflow.aliases": ",".join(source.aliases),
        "mlflow.stage": "" if source.stage == "None" else source.stage,
        "mlflow.created_ms": str(source.created_ms or ""),
        "mlflow.flavors": ",".join(sorted(map(str, flavors))),
    }
    result = identity_of(source) | {key: text[:TAG_CHARS_MAX] for key, text in facts.items() if text}
    free = {safe_key(f"metric.{key}"): text for key, text in sorted(source.metrics.items())}
    free |= {safe_key(f"param.{key}"): text for key, text in sorted(source.params.items())}
    room = MLFLOW_PROPERTIES_MAX - len(result) - 1
    result |= {key: text[:TAG_CHARS_MAX] for key, text in list(free.items())[:room]}
    if len(free) > room:
        result["mlflow.left_out"] = str(len(free) - room)
    return result


def lineage_of(source: Source) -> dict[str, str]:
    """Run, commit and data set, as far as they are known."""
    commit = source.run_tags.get("mlflow.source.git.commit", "")
    found = {"run_id": source.run_id, "git_commit": commit, "dataset": source.dataset}
    return {key: text[:TAG_CHARS_MAX] for key, text in found.items() if text}


def description_file(name: str, choice: Choice, about: Mapping[str, Any], extra: list[str], allow_pickle: bool) -> str:
    """The text of a `lighterman.toml` for a folder that holds the files at their paths.

    Args:
        name: Of the model, and of its one member.
        choice: Engine and entry.
        about: `description`, `tags`, `properties`, `lineage`, and optionally `inputs` and `outputs` (tensors).
        extra: Paths beside the entry.
        allow_pickle: Whether scripts may load pickles.
    """
    lines = ["[model]", f"name = {_toml(name)}", f"description = {_toml(about['description'][:4096])}", ""]
    for table in ("tags", "properties", "lineage"):
        lines += [f"[model.{table}]", *(f"{_toml(key)} = {_toml(text)}" for key, text in about[table].items()), ""]
    lines += [f"[members.{_toml(name)}]", f"file = {_toml(choice.entry)}", f"path = {_toml(choice.entry)}"]
    lines += [f"engine = {_toml(choice.engine)}", f"files = [{', '.join(_toml(path) for path in extra)}]"]
    for side in ("inputs", "outputs"):
        tensors = [item.to_json() for item in about.get(side) or ()]
        shown = ("{" + ", ".join(f"{key} = {_toml(value)}" for key, value in item.items()) + "}" for item in tensors)
        lines += [f"{side} = [{', '.join(shown)}]"] if tensors else []
    if allow_pickle:
        lines += ["", "[serving]", "allow_pickle = true"]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A text, or a list of numbers, in TOML's form, which is JSON's but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def is_ours(folder: Path) -> bool:
    """Whether an import wrote a folder, so that another may replace it."""
    return not folder.exists() or not any(folder.iterdir()) or (folder / NOTES_FILE).is_file()
