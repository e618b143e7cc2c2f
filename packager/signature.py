"""What a model file says of itself: tensor signature, files that belong to it, and facts for catalogues."""

import ast
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edge_contract.errors import ContractError, EdgeError
from edge_contract.limits import TENSOR_RANK_MAX, TENSORS_MAX
from edge_contract.names import relative_path
from edge_contract.tensors import TensorSpec
from packager.limits import SCRIPT_BYTES_MAX
from packager.protoscan import read_skeleton

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

ENGINE_BY_SUFFIX: Final = {".onnx": "onnx", ".ort": "onnx", ".tflite": "litert", ".py": "script"}
FORMAT_BY_ENGINE: Final = {"onnx": "onnx", "litert": "tflite", "script": "script"}

# TensorProto.DataType of onnx.proto by number, as far as requests can carry it.
_ONNX_TYPES: Final = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "BYTES", 9: "BOOL",
    10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64",
}  # fmt: skip
_PRECISIONS: Final = {
    "FP16": "float16", "FP32": "float32", "FP64": "float64", "INT8": "int8", "INT16": "int16", "INT32": "int32",
    "INT64": "int64", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "BOOL": "bool",
}  # fmt: skip
_LITERT_TYPES: Final = {
    "float16": "FP16", "float32": "FP32", "float64": "FP64", "int8": "INT8", "int16": "INT16", "int32": "INT32",
    "int64": "INT64", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "bool": "BOOL",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What was read from a model file.

    Attributes:
        inputs: Tensor signature of the inputs; empty when the file does not say.
        outputs: Tensor signature of the outputs.
        extra_files: Files beside it that belong to it, relative to its folder (external data), sorted.
        parameters: Numbers in its constant tensors; 0 when unknown.
        precision: ModelPack names of the datatypes of those tensors, sorted.
        notes: Free facts, for example the operator set.
    """

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    extra_files: tuple[str, ...] = ()
    parameters: int = 0
    precision: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)


def engine_for(path: Path) -> str:
    """The engine that a file's name asks for.

    Raises:
        EdgeError: `config.invalid` when the ending says nothing.
    """
    engine = ENGINE_BY_SUFFIX.get(path.suffix.lower())
    if engine is None:
        raise EdgeError(
            "config.invalid",
            f"{path.name} has an ending that names no engine",
            f"Known endings: {', '.join(sorted(ENGINE_BY_SUFFIX))}; or give the engine; other formats need a score.py.",
        )
    return engine


def read_facts(path: Path, engine: str) -> ModelFacts:
    """Read a model file, without bringing its weights into memory.

    Args:
        path: The model file, or the entry script.
        engine: One of `edge_contract.engines.ENTRIES`.

    Raises:
        EdgeError: `artifact.not-a-model`, `config.file-missing`, `config.invalid`.
    """
    if not path.is_file():
        raise EdgeError("config.file-missing", f"there is no file {path}")
    if engine == "onnx":
        return _onnx_facts(path)
    if engine == "litert":
        return _litert_facts(path)
    check_script(path)
    return ModelFacts()


def check_script(path: Path) -> None:
    """Require a Python file that defines `run`, without running it.

    Raises:
        EdgeError: `artifact.not-a-model` or `config.file-missing`.
    """
    with path.open("rb") as file:
        source = file.read(SCRIPT_BYTES_MAX + 1)
    if len(source) > SCRIPT_BYTES_MAX:
        raise EdgeError("artifact.not-a-model", f"{path} has more than {SCRIPT_BYTES_MAX} bytes; is it a script?")
    try:
        tree = ast.parse(source, filename=path.name)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise EdgeError("artifact.not-a-model", f"{path} is not a Python script: {error}") from None
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    if "run" not in names:
        raise EdgeError(
            "artifact.not-a-model",
            f"{path} defines no function run",
            "An entry script has init(), called once, and run(data), called for every request.",
        )


def _onnx_facts(path: Path) -> ModelFacts:
    import onnx
    from google.protobuf.message import DecodeError

    skeleton = read_skeleton(path)
    try:
        model = onnx.ModelProto.FromString(skeleton)
    except DecodeError as error:
        raise EdgeError("artifact.not-a-model", f"{path} is not an ONNX file: {error}") from None
    if not model.graph.output or not model.opset_import:
        raise EdgeError(
            "artifact.not-a-model", f"{path} is not an ONNX model: it has no outputs or names no operator set"
        )
    constants = {item.name for item in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in constants]
    tensors = list(_tensors(model.graph))
    for function in model.functions:
        tensors.extend(item for node in function.node for item in _node_tensors(node))
    counts = [_count(item.dims) for item in tensors]
    # Scalars and shapes say nothing of the precision that the weights were trained or quantised to.
    kinds = {
        _PRECISIONS.get(_ONNX_TYPES.get(item.data_type, ""), "")
        for item, count in zip(tensors, counts, strict=True)
        if count > 1 and item.dims
    }
    return ModelFacts(
        inputs=_signature(path, inputs),
        outputs=_signature(path, model.graph.output, skip_others=True),
        extra_files=_external_files(path, tensors),
        parameters=sum(counts),
        precision=tuple(sorted(kinds - {""})),
        notes={
            "ir_version": str(model.ir_version),
            "opset": ",".join(sorted(f"{item.domain or 'ai.onnx'}:{item.version}" for item in model.opset_import)),
        },
    )


def _count(dims: Any) -> int:
    total = 1
    for dim in dims:
        total *= max(dim, 0)
    return total


def _tensors(graph: "onnx.GraphProto") -> "Iterator[onnx.TensorProto]":
    """Every constant tensor of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: "onnx.NodeProto") -> "Iterator[onnx.TensorProto]":
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("g"):
            yield from _tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _tensors(graph)


def _signature(path: Path, values: Any, skip_others: bool = False) -> tuple[TensorSpec, ...]:
    if len(values) > TENSORS_MAX:
        raise EdgeError(
            "config.invalid", f"{path} has {len(values)} inputs or outputs, at most {TENSORS_MAX} can be served"
        )
    result = []
    for value in values:
        if not value.type.HasField("tensor_type"):
            if skip_others:
                continue
            raise EdgeError(
                "config.invalid",
                f"{path}: {value.name!r} is not a tensor",
                "Export the model with tensors only; for scikit-learn classifiers switch ZipMap off.",
            )
        tensor = value.type.tensor_type
        datatype = _ONNX_TYPES.get(tensor.elem_type)
        if datatype is None:
            raise EdgeError("config.invalid", f"{path}: {value.name!r} has a datatype that requests cannot carry")
        if len(tensor.shape.dim) > TENSOR_RANK_MAX:
            raise EdgeError("config.invalid", f"{path}: {value.name!r} has more than {TENSOR_RANK_MAX} dimensions")
        shape = tuple(dim.dim_value if 0 < dim.dim_value < 2**31 else -1 for dim in tensor.shape.dim)
        result.append(TensorSpec(value.name, datatype, shape))
    return tuple(result)


def _external_files(path: Path, tensors: "list[onnx.TensorProto]") -> tuple[str, ...]:
    """Files that hold weights; each has to be there, long enough, and below the model's folder."""
    needed: dict[str, int] = {}
    for tensor in tensors:
        if tensor.data_location != 1:
            continue
        entry = {item.key: item.value for item in tensor.external_data}
        try:
            location = relative_path(entry.get("location", ""))
            end = int(entry.get("offset", "0")) + int(entry.get("length", "0"))
        except ContractError as error:
            raise EdgeError(
                "artifact.path-unsafe",
                f"{path}: tensor {tensor.name!r} names external data outside its folder: {error.detail}",
                "Save the external data beside the model.",
            ) from None
        except ValueError:
            raise EdgeError("artifact.not-a-model", f"{path}: tensor {tensor.name!r} has no readable place") from None
        needed[location] = max(needed.get(location, 0), end)
    for location, end in needed.items():
        source = path.parent / location
        if not source.is_file():
            raise EdgeError("config.file-missing", f"{path} keeps weights in {location}, which is not there")
        if source.stat().st_size < end:
            raise EdgeError(
                "artifact.not-a-model", f"{source} has {source.stat().st_size} bytes and {path.name} needs {end} of it"
            )
    return tuple(sorted(needed))


def _litert_facts(path: Path) -> ModelFacts:
    with path.open("rb") as file:
        head = file.read(8)
    if head[4:8] != b"TFL3":
        raise EdgeError(
            "artifact.not-a-model", f"{path} is not a TensorFlow Lite file: it lacks the mark TFL3", "Convert it again."
        )
    if importlib.util.find_spec("ai_edge_litert") is None:
        return ModelFacts(notes={"signature": "not read: ai-edge-litert is not installed"})
    from packager.probe import litert_signature

    details = litert_signature(path)
    return ModelFacts(inputs=_litert_specs(path, details[0]), outputs=_litert_specs(path, details[1]))


def _litert_specs(path: Path, rows: list[tuple[str, str, tuple[int, ...]]]) -> tuple[TensorSpec, ...]:
    result = []
    for name, numpy_name, shape in rows:
        if numpy_name not in _LITERT_TYPES:
            raise EdgeError(
                "config.invalid", f"{path}: {name!r} has the datatype {numpy_name}, which requests cannot carry"
            )
        result.append(TensorSpec(name, _LITERT_TYPES[numpy_name], shape))
    return tuple(result)


def merged_signature(
    declared: tuple[TensorSpec, ...], read: tuple[TensorSpec, ...], where: str
) -> tuple[TensorSpec, ...]:
    """The declared signature if there is one, which has to agree with what the model says of itself.

    A declaration may fix a dimension that the model leaves free, and may name the tensors in any order; nothing else.

    Raises:
        EdgeError: `config.invalid`.
    """
    if not declared or not read:
        return declared or read
    known = {item.name: item for item in read}
    if {item.name for item in declared} != set(known):
        ours, theirs = ", ".join(sorted(item.name for item in declared)), ", ".join(sorted(known))
        raise EdgeError("config.invalid", f"{where} declares {ours}, the model has {theirs}")
    for item in declared:
        model = known[item.name]
        dims_agree = len(item.shape) == len(model.shape) and all(
            have in (-1, want) for want, have in zip(item.shape, model.shape, strict=True)
        )
        if item.datatype != model.datatype or not dims_agree:
            raise EdgeError(
                "config.invalid",
                f"{where} declares {item.name!r} as {item.datatype} {list(item.shape)}, "
                f"the model says {model.datatype} {list(model.shape)}",
            )
    by_name = {item.name: item for item in declared}
    return tuple(by_name[item.name] for item in read)
