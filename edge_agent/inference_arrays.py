"""numpy arrays to and from the tensors of an inference client. The only part of it that needs numpy.

Arrays go as they are: another type than the model's is refused, not cast, because a cast may lose digits. What is no
array (a list, a number) becomes one of the model's type.
"""

import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.frame_client import Answer, Encoded, FrameClient, Signature
from edge_agent.frames import INFER, PREFIX, REQUEST, TENSORS, Place
from edge_agent.inference import Prediction, Tensor
from edge_agent.plain_tensors import unpack_bytes
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError

Array = NDArray[Any]

_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"), "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"), "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"), "INT8": np.dtype("i1"), "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"), "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}  # fmt: skip
_LENGTH: Final = struct.Struct("<I")
_SMALL_BYTES: Final = 16 * 1024
_SHAPES_MAX: Final = 64
_NUMBER: Final = 0xFFFF_FFFF_FFFF_FFFF
"""Of requests made before: one thread asks and waits, so an answer cannot be another's."""


class Outputs(dict[str, Array]):
    """Output arrays by name, and who computed them.

    Attributes:
        version: Version of the model.
        model: Name of the model.
    """

    __slots__ = ("_manifest", "model", "version")

    def __init__(self, manifest: bytes, version: int, model: str) -> None:
        """Begin without arrays; `manifest` is the digest's 32 bytes."""
        super().__init__()
        self._manifest = manifest
        self.version = version
        self.model = model

    @property
    def manifest(self) -> Digest:
        """Digest of the manifest of the bundle that computed them."""
        return Digest.from_hex(self._manifest.hex())


class _Kept:
    """What is remembered of a model: the types of its inputs, and requests that were sent before but for their data."""

    __slots__ = ("dtypes", "name", "requests")

    def __init__(self, signature: Signature) -> None:
        self.dtypes = tuple(_DTYPES[spec.datatype] for spec in signature.inputs.specs)
        self.name = signature.inputs.names[0]
        self.requests: dict[tuple[int, ...], bytes] = {}


def ask_as_before(frames: FrameClient, model: str, inputs: Mapping[str, Any]) -> Outputs | None:
    """Ask a model with one input again, with a small array of a shape that it had before.

    Returns:
        Its outputs; none when this is something else, or the signature is another one by now.

    Raises:
        EdgeError: What the worker answered, `network.cut`.
        NoFramesError, CutError, OSError: As `FrameClient.exchange`.
    """
    signature = frames.known(model)
    if signature is None or signature.kept is None:
        return None
    kept: _Kept = signature.kept
    array = inputs.get(kept.name)
    if type(array) is not np.ndarray or array.dtype != kept.dtypes[0]:
        return None
    request = kept.requests.get(array.shape)
    if request is None or len(inputs) != 1:
        return None
    head, payload = frames.exchange(request + array.tobytes(), _NUMBER)
    if head[1] != TENSORS:
        return None
    outputs = Outputs(head[8], head[7], signature.name)
    _decode(payload, frames.places(head, signature.outputs, payload), outputs)
    return outputs


def encode_arrays(inputs: Mapping[str, Any], signature: Signature) -> Encoded:
    """The payload for arrays by input name.

    Raises:
        EdgeError: `model.input-invalid`.
    """
    kept: _Kept | None = signature.kept
    if kept is None:
        kept = signature.kept = _Kept(signature)
    names = signature.inputs.names
    if len(inputs) != len(names):
        raise _misnamed(inputs, names)
    shapes: list[tuple[int, ...]] = []
    parts: list[bytes | memoryview] = []
    lengths: list[int] = []
    for name, dtype in zip(names, kept.dtypes, strict=True):
        try:
            array = inputs[name]
        except KeyError:
            raise _misnamed(inputs, names) from None
        if type(array) is not np.ndarray or array.dtype != dtype:
            array = as_array(name, array, dtype)
        shapes.append(array.shape)
        part = to_bytes(array)
        if array.dtype.kind == "O":
            lengths.append(len(part))
        parts.append(part)
    plan = signature.inputs.make(tuple(shapes), lengths)
    if len(parts) == 1 and plan.size <= _SMALL_BYTES and not lengths:
        if len(kept.requests) >= _SHAPES_MAX:
            kept.requests.clear()
        head = REQUEST.pack(PREFIX, INFER, 0, 0, plan.size, 0, _NUMBER, signature.key, 0)
        kept.requests[shapes[0]] = head + plan.table
    return (parts if len(parts) == 1 and not plan.table else plan.join(parts)), plan.size


def decode_arrays(answer: Answer) -> Outputs:
    """The arrays of an answer; writable, the caller's own.

    Raises:
        EdgeError: `network.cut`.
    """
    outputs = Outputs(answer.manifest, answer.version, answer.model)
    _decode(answer.payload, answer.places, outputs)
    return outputs


def _decode(payload: bytearray, places: Sequence[Place], outputs: Outputs) -> None:
    for place in places:
        if place.datatype == "BYTES":
            outputs[place.name] = _texts(payload[place.start : place.end], place.shape, place.count)
        else:
            numbers: Array = np.frombuffer(payload, _DTYPES[place.datatype], place.count, place.start)
            outputs[place.name] = numbers.reshape(place.shape)


def as_tensors(inputs: Mapping[str, Any], signature: list[Any]) -> list[Tensor]:
    """Tensors of bytes for HTTP, given the inputs that the model's metadata lists.

    Raises:
        EdgeError: `model.input-invalid`.
    """
    names = [str(item["name"]) for item in signature]
    if set(names) != set(inputs):
        raise _misnamed(inputs, names)
    tensors: list[Tensor] = []
    for item in signature:
        name, datatype = str(item["name"]), str(item["datatype"])
        array = as_array(name, inputs[name], _DTYPES[datatype])
        tensors.append(Tensor(name, datatype, array.shape, bytes(to_bytes(array))))
    return tensors


def from_prediction(prediction: Prediction) -> Outputs:
    """The arrays of an answer that came over HTTP as bytes.

    Raises:
        EdgeError: `network.cut`.
    """
    outputs = Outputs(bytes.fromhex(prediction.manifest.hex), prediction.version, prediction.model)
    for name, tensor in prediction.outputs.items():
        if not isinstance(tensor.data, bytes) or tensor.datatype not in _DTYPES:
            raise EdgeError("network.cut", f"the output {name!r} did not come as bytes")
        data = bytearray(tensor.data)
        try:
            if tensor.datatype == "BYTES":
                outputs[name] = _texts(data, tensor.shape, int(np.prod(tensor.shape, dtype=np.int64)))
            else:
                numbers: Array = np.frombuffer(data, _DTYPES[tensor.datatype])
                outputs[name] = numbers.reshape(tensor.shape)
        except ValueError as error:
            raise EdgeError("network.cut", f"the output {name!r} is not what its shape says: {error}") from None
    return outputs


def as_array(name: str, value: Any, dtype: np.dtype[Any]) -> Array:
    """An array of this type: the same one, or one made of what is none.

    Raises:
        EdgeError: `model.input-invalid`.
    """
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.newbyteorder("=") == dtype.newbyteorder("="):
            return array.astype(dtype, copy=False)
        if dtype.kind == "O" and array.dtype.kind in "SU":
            return array.astype(object)
        raise EdgeError(
            "model.input-invalid",
            f"the input {name!r} is an array of {array.dtype}, the model takes {dtype}",
            f"If that is meant: array.astype({str(dtype)!r}).",
        )
    try:
        made: Array = np.array(value, dtype=dtype)
        if dtype.kind in "biu" and not np.array_equal(made, np.array(value)):
            raise ValueError("a value would change")
        return made
    except (TypeError, ValueError, OverflowError) as error:
        raise EdgeError("model.input-invalid", f"the input {name!r} is no array of {dtype}: {error}") from None


def to_bytes(array: Array) -> bytes | memoryview:
    """The bytes of a tensor; not copied where it is large and contiguous."""
    if array.dtype.kind == "O":
        items = [item if isinstance(item, bytes) else str(item).encode() for item in array.ravel().tolist()]
        return b"".join(_LENGTH.pack(len(item)) + item for item in items)
    if array.nbytes < 32 * 1024:
        return array.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _texts(data: bytearray, shape: tuple[int, ...], count: int) -> Array:
    try:
        items = unpack_bytes(count, data)
    except ValueError as error:
        raise EdgeError("network.cut", f"an output of BYTES is {error}") from None
    array = np.empty(count, dtype=object)
    array[:] = items
    return array.reshape(shape)


def _misnamed(inputs: Mapping[str, Any], names: Any) -> EdgeError:
    return EdgeError(
        "model.input-invalid", f"the inputs given are {sorted(inputs)}", f"The model's inputs are: {', '.join(names)}."
    )


def load_arrays(path: Path, bytes_max: int) -> dict[str, Array]:
    """Read a file of numpy's: one array (`.npy`) under the name "", or arrays by name (`.npz`). No pickles.

    Raises:
        EdgeError: `config.invalid`.
    """
    try:
        if path.stat().st_size > bytes_max:
            raise EdgeError("config.invalid", f"{path} has more than {bytes_max} bytes")
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {"": found}
        with found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise EdgeError("config.invalid", f"{path} is not an array of numpy's that can be read: {error}") from None


def save_arrays(path: Path, outputs: Mapping[str, Any]) -> None:
    """Write outputs, each with `datatype`, `shape` and flat `data`, as `.npz`, or one of them as `.npy`.

    Raises:
        EdgeError: `config.invalid`.
    """
    arrays: dict[str, Array] = {}
    for name, output in outputs.items():
        dtype = _DTYPES[output["datatype"]]
        if dtype.kind == "O":
            arrays[name] = np.array(output["data"], dtype=str).reshape(output["shape"])
        else:
            data = [np.nan if item is None else item for item in output["data"]]
            arrays[name] = np.array(data, dtype=dtype).reshape(output["shape"])
    try:
        if path.suffix == ".npz":
            np.savez(path, **arrays)  # type: ignore[arg-type]  # its stub takes every name for its own option
        elif len(arrays) == 1:
            np.save(path, next(iter(arrays.values())), allow_pickle=False)
        else:
            raise EdgeError("config.invalid", f"{len(arrays)} outputs do not fit in one array", "Write them to .npz.")
    except OSError as error:
        raise EdgeError("config.invalid", f"{path} cannot be written: {error.strerror}") from error
