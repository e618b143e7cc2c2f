"""The Open Inference Protocol v2 with its binary tensor data extension: reading requests, writing answers.

Pure functions, any thread. See https://github.com/kserve/open-inference-protocol, `specification/protocol/`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from edge_agent.worker.arrays import (
    DTYPES,
    Array,
    check_shape,
    datatype_of,
    datatype_of_dtype,
    from_bytes,
    from_json_data,
    invalid,
    to_bytes,
    to_json_data,
)
from edge_agent.worker.limits import KNOWN_BYTES_MAX, KNOWN_MAX, REQUEST_ID_CHARS_MAX, TIMEOUT_US_MAX
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.limits import TENSORS_MAX
from edge_contract.tensors import TensorSpec


@dataclass(slots=True)
class InferRequest:
    """One inference request, read and checked.

    Attributes:
        id: As the client named it, empty when it did not.
        inputs: Arrays by name, of the signature's datatypes and shapes.
        outputs: Names of the outputs that are wanted, in order; empty for all.
        binary: For each wanted output whether it is sent as binary data, where the request says so.
        is_binary: Whether the other outputs are.
        timeout_us: Microseconds after which the client has no use for the answer; 0 when it does not say.
    """

    id: str
    inputs: dict[str, Array]
    outputs: tuple[str, ...] = ()
    binary: dict[str, bool] = field(default_factory=dict)
    is_binary: bool = False
    timeout_us: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of an answer.

    Attributes:
        parts: Pieces of the body in order.
        json_bytes: Length of the JSON at the start, or none when there is no binary data behind it.
    """

    parts: list[bytes | memoryview]
    json_bytes: int | None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> JsonObject:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise invalid("an object of the request names the same key twice")
    return value


def _no_constants(name: str) -> Any:
    raise invalid(f"{name} is not a JSON number")


# Made once: json.loads and json.dumps make new ones for each call with options, which costs as much as a tiny model.
_DECODER: Final = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def read_json(data: bytes | bytearray | memoryview) -> Any:
    """Parse a request's JSON strictly.

    The contract's own reader walks over every byte of a deeply bracketed document to bound its depth, which a nested
    image would make slow; here the parser's own recursion limit bounds it.

    Raises:
        EdgeError: `model.input-invalid`.
    """
    try:
        text = str(data, "utf-8")
        value = _DECODER.decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair fails here and not in an answer
        return value
    except RecursionError:
        raise invalid("the request is nested too deep") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both
        raise invalid(f"the request is not valid JSON: {error}") from None


def read_request(
    body: bytes | bytearray | memoryview,
    json_bytes: int | None,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> InferRequest:
    """Read an inference request.

    Args:
        body: The body of the HTTP request.
        json_bytes: Value of the header `Inference-Header-Content-Length`, none when it is absent.
        inputs: Signature that the inputs have to fit; all of them are required.
        outputs: Outputs that can be asked for; empty when they are not known before.

    Raises:
        EdgeError: `model.input-invalid`.
    """
    binary = memoryview(b"")
    document: bytes | bytearray | memoryview = body
    if json_bytes is not None:
        if not 0 < json_bytes <= len(body):
            raise invalid(f"the header Inference-Header-Content-Length does not fit a body of {len(body)} bytes")
        binary = memoryview(body)[json_bytes:]
        document = memoryview(body)[:json_bytes]
        if json_bytes <= KNOWN_BYTES_MAX:
            document = bytes(document)
            if (known := _KNOWN.get(document)) is not None and known.is_for(inputs, outputs, len(binary)):
                return known.read(binary)
    value = read_json(document)
    if not isinstance(value, dict):
        raise invalid("an inference request is a JSON object")
    request_id = _request_id(value)
    arrays = _read_inputs(value.get("inputs"), binary, {spec.name: spec for spec in inputs})
    parameters = _parameters(value, _OF_REQUEST)
    request = InferRequest(request_id, arrays, timeout_us=_timeout_us(parameters))
    request.is_binary = _flag(parameters, "binary_data_output", False)
    _read_outputs(value.get("outputs"), request, {spec.name for spec in outputs})
    if json_bytes is not None and json_bytes <= KNOWN_BYTES_MAX and not request_id:
        _remember(bytes(document), request, inputs, outputs, len(binary))
    return request


@dataclass(frozen=True, slots=True)
class _Known:
    """What the JSON of a request says, all of whose tensors follow it as bytes: the same JSON says the same again.

    Attributes:
        inputs: Signature it was checked against; that very one.
        outputs: The same of the outputs.
        binary_bytes: How much follows the JSON.
        steps: Name, datatype, shape and bytes of each tensor that does.
        request: The request, without its inputs.
    """

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    binary_bytes: int
    steps: tuple[tuple[str, str, tuple[int, ...], int], ...]
    request: InferRequest

    def is_for(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], binary_bytes: int) -> bool:
        return self.inputs is inputs and self.outputs is outputs and self.binary_bytes == binary_bytes

    def read(self, binary: memoryview) -> InferRequest:
        arrays: dict[str, Array] = {}
        place = 0
        for name, datatype, shape, size in self.steps:
            arrays[name] = from_bytes(name, datatype, shape, binary[place : place + size])
            place += size
        like = self.request
        return InferRequest("", arrays, like.outputs, like.binary, like.is_binary, like.timeout_us)


_KNOWN: Final[dict[bytes, _Known]] = {}


def _remember(
    document: bytes,
    request: InferRequest,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    binary_bytes: int,
) -> None:
    """Keep what was read, unless some of it was data in the JSON itself, or bytes whose lengths stand among them."""
    arrays = request.inputs
    if sum(array.nbytes for array in arrays.values()) != binary_bytes or any(
        array.dtype.kind == "O" for array in arrays.values()
    ):
        return
    steps = tuple((name, datatype_of(array), array.shape, array.nbytes) for name, array in arrays.items())
    empty = InferRequest("", {}, request.outputs, request.binary, request.is_binary, request.timeout_us)
    if len(_KNOWN) >= KNOWN_MAX:
        _KNOWN.clear()
    _KNOWN[document] = _Known(inputs, outputs, binary_bytes, steps, empty)


def _request_id(value: JsonObject) -> str:
    request_id = value.get("id", "")
    if not isinstance(request_id, str) or len(request_id) > REQUEST_ID_CHARS_MAX:
        raise invalid(f"the id of a request is a string of at most {REQUEST_ID_CHARS_MAX} characters")
    return request_id


_OF_REQUEST: Final = frozenset({"binary_data_output", "timeout"})
_OF_INPUT: Final = frozenset({"binary_data_size", "content_type"})
_OF_OUTPUT: Final = frozenset({"binary_data", "content_type"})
"""Parameters that are understood. `content_type` is what clients of MLServer say of a tensor for its codecs; here it is
a tensor in any case."""
_NOT_OFFERED: Final = {
    "shared_memory_region": "shared memory",
    "shared_memory_byte_size": "shared memory",
    "shared_memory_offset": "shared memory",
    "sequence_id": "sequences",
    "sequence_start": "sequences",
    "sequence_end": "sequences",
    "priority": "priorities",
    "classification": "classification",
}
_NOTHING: Final[JsonObject] = {}


def _parameters(value: JsonObject, known: frozenset[str]) -> JsonObject:
    """The parameters of a request, an input or an output. One that would change nothing is refused: its sender relies
    on it.
    """
    parameters = value.get("parameters")
    if parameters is None:
        return _NOTHING
    if not isinstance(parameters, dict):
        raise invalid("parameters are an object")
    for name in parameters:
        if name in known:
            continue
        if name in _NOT_OFFERED:
            raise EdgeError("model.not-offered", f"{_NOT_OFFERED[name]}: the parameter {name!r} is not offered here")
        raise invalid(f"the parameter {name[:64]!r} is not known here", f"Known: {', '.join(sorted(known))}.")
    return parameters


def _flag(parameters: JsonObject, name: str, default: bool) -> bool:
    flag = parameters.get(name, default)
    if flag is True or flag is False:
        return bool(flag)
    raise invalid(f"the parameter {name!r} has to be true or false")


def _timeout_us(parameters: JsonObject) -> int:
    timeout = parameters.get("timeout", 0)
    if type(timeout) is not int or not 0 <= timeout <= TIMEOUT_US_MAX:
        raise invalid(f"the parameter 'timeout' is a number of microseconds, 0 to {TIMEOUT_US_MAX}")
    return timeout


def _read_inputs(value: Any, binary: memoryview, specs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    if not isinstance(value, list) or not 0 < len(value) <= TENSORS_MAX:
        raise invalid(f"an inference request has 1 to {TENSORS_MAX} inputs")
    arrays: dict[str, Array] = {}
    place = 0
    for item in value:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise invalid("every input is an object with a name")
        if name in arrays:
            raise invalid(f"the input {name!r} comes twice")
        spec = specs.get(name)
        if specs and spec is None:
            raise invalid(f"the model has no input {name[:64]!r}", f"Its inputs: {', '.join(sorted(specs))}.")
        datatype, shape = item.get("datatype"), check_shape(name, item.get("shape"))
        if not isinstance(datatype, str) or datatype not in DTYPES:
            raise _unknown_datatype(name, datatype)
        if spec is not None and not spec.fits(datatype, shape):
            raise invalid(
                f"the input {name!r} came as {datatype} {list(shape)}", f"Wanted: {spec.datatype} {list(spec.shape)}."
            )
        size = _binary_size(item, name)
        if size is None:
            arrays[name] = from_json_data(name, datatype, shape, item.get("data"))
        else:
            if size > len(binary) - place:
                raise invalid(f"the binary data of {name!r} is longer than the body")
            arrays[name] = from_bytes(name, datatype, shape, binary[place : place + size])
            place += size
    if place != len(binary):
        raise invalid(f"{len(binary) - place} bytes of binary data belong to no input")
    if missing := sorted(set(specs) - set(arrays)):
        raise invalid(f"the input {missing[0]!r} is missing")
    return arrays


def _unknown_datatype(name: str, datatype: Any) -> EdgeError:
    if datatype == "BF16":
        return invalid(f"the input {name!r} came as BF16, which is not spoken here", "Send FP32, or FP16.")
    return invalid(f"the input {name!r} has the unknown datatype {str(datatype)[:32]!r}")


def _binary_size(item: JsonObject, name: str) -> int | None:
    size = _parameters(item, _OF_INPUT).get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0 or "data" in item:
        raise invalid(f"the input {name!r} has either data or a parameter binary_data_size that is a size")
    return size


def _read_outputs(value: Any, request: InferRequest, known: set[str]) -> None:
    if value is None:
        return
    if not isinstance(value, list) or len(value) > TENSORS_MAX:
        raise invalid(f"the wanted outputs are an array of at most {TENSORS_MAX} objects")
    names: list[str] = []
    for item in value:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or name in names:
            raise invalid("every wanted output is an object with a name, each name once")
        if known and name not in known:
            raise invalid(f"the model has no output {name[:64]!r}", f"Its outputs: {', '.join(sorted(known))}.")
        names.append(name)
        request.binary[name] = _flag(_parameters(item, _OF_OUTPUT), "binary_data", request.is_binary)
    request.outputs = tuple(names)


def write_answer(request: InferRequest, model: str, version: str, outputs: Mapping[str, Array]) -> Answer:
    """Write the answer to a request.

    Args:
        request: What was asked.
        model: Name of the model.
        version: Its version.
        outputs: The arrays to send, in order; finite where they are sent as JSON.

    Raises:
        EdgeError: `model.output-invalid` when an array has a type that cannot be sent, or NaN would go into JSON.
    """
    if request.is_binary and not request.binary and not request.id:
        return _write_binary(model, version, outputs)
    tensors: list[JsonObject] = []
    parts: list[bytes | memoryview] = []
    for name, array in outputs.items():
        tensor: JsonObject = {"name": name, "shape": list(array.shape), "datatype": datatype_of(array)}
        if request.binary.get(name, request.is_binary):
            data = to_bytes(array)
            tensor["parameters"] = {"binary_data_size": len(data)}
            parts.append(data)
        else:
            tensor["data"] = to_json_data(array)
        tensors.append(tensor)
    document: JsonObject = {"model_name": model, "model_version": version, "outputs": tensors}
    if request.id:
        document["id"] = request.id
    head = write_json(document)
    return Answer([head, *parts], len(head) if parts else None)


def _write_binary(model: str, version: str, outputs: Mapping[str, Array]) -> Answer:
    """The answer whose tensors all follow it as bytes; the JSON of tensors of the same shapes is the same."""
    parts: list[bytes | memoryview] = [to_bytes(array) for array in outputs.values()]
    rows = tuple(
        (name, array.shape, array.dtype, len(data)) for (name, array), data in zip(outputs.items(), parts, strict=True)
    )
    head = _binary_head(model, version, rows)
    return Answer([head, *parts], len(head) if parts else None)


@lru_cache(KNOWN_MAX)
def _binary_head(model: str, version: str, rows: tuple[tuple[str, tuple[int, ...], Any, int], ...]) -> bytes:
    tensors = [
        {
            "name": name,
            "shape": list(shape),
            "datatype": datatype_of_dtype(dtype),
            "parameters": {"binary_data_size": size},
        }
        for name, shape, dtype, size in rows
    ]
    return write_json({"model_name": model, "model_version": version, "outputs": tensors})


def write_json(document: Any, default: Callable[[Any], Any] | None = None) -> bytes:
    """Write an answer's JSON.

    Args:
        document: What to write.
        default: Turns values that JSON does not know into ones that it does.

    Raises:
        EdgeError: `model.output-invalid` for NaN, infinities and what is not JSON.
    """
    try:
        return json.dumps(
            document, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=default
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise EdgeError(
            "model.output-invalid",
            f"the model's answer cannot be written as JSON: {error}",
            "NaN and infinities travel as binary data only.",
        ) from None
