"""numpy arrays and the tensors of the Open Inference Protocol v2: datatypes, JSON data, binary data.

Binary data is little-endian, row-major and without padding; BOOL is one byte; a BYTES element is a four-byte length and
its bytes (Open Inference Protocol, "Binary Tensor Data Extension"). Pure functions, any thread.
"""

import struct
import sys
from collections.abc import Sequence
from itertools import chain
from math import isfinite, prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.worker.limits import BYTES_ELEMENT_BYTES_MAX
from edge_contract.errors import EdgeError
from edge_contract.limits import TENSOR_RANK_MAX
from edge_contract.tensors import ITEM_BYTES

Array = NDArray[Any]

_JSON_TYPES: Final[dict[str, set[type]]] = {"b": {bool}, "f": {int, float}}

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"), "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"), "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"), "INT8": np.dtype("i1"), "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"), "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}  # fmt: skip
"""numpy type by datatype. BYTES is an array of `bytes` objects."""

_FEW: Final = 32
_COPIED_BYTES_MAX: Final = 4_096
_IS_LITTLE: Final = sys.byteorder == "little"
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


def invalid(detail: str, hint: str = "") -> EdgeError:
    """A request that does not fit."""
    return EdgeError("model.input-invalid", detail, hint)


def datatype_of(array: Array) -> str:
    """The datatype of an array.

    Raises:
        EdgeError: `model.output-invalid` for a type that the protocol does not have.
    """
    return datatype_of_dtype(array.dtype)


def datatype_of_dtype(dtype: np.dtype[Any]) -> str:
    """The same for the type alone."""
    name = _NAMES.get(dtype.newbyteorder("<"))
    if name is None:
        if dtype.kind in "SU":
            return "BYTES"
        raise EdgeError("model.output-invalid", f"a tensor of type {dtype} cannot be sent")
    return name


def check_shape(name: str, value: Any) -> tuple[int, ...]:
    """Check a shape as it stands in a request.

    Raises:
        EdgeError: `model.input-invalid`.
    """
    if not isinstance(value, list) or len(value) > TENSOR_RANK_MAX:
        raise invalid(f"the shape of {name!r} is not an array of at most {TENSOR_RANK_MAX} sizes")
    if not all(type(size) is int and 0 <= size < 2**31 for size in value) or prod(value) >= 2**40:
        raise invalid(f"the shape of {name!r} has a size that is not one")
    return tuple(value)


def from_json_data(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> Array:
    """Make an array from the field `data`, flat or nested.

    Args:
        name: Name of the tensor, for messages.
        datatype: A key of `DTYPES`.
        shape: Checked shape.
        data: Parsed JSON.

    Returns:
        Array of `DTYPES[datatype]` and `shape`.

    Raises:
        EdgeError: `model.input-invalid`.
    """
    flat = _flat(name, shape, data)
    kinds = set(map(type, flat))
    if datatype == "BYTES":
        if not kinds <= {str}:
            raise invalid(f"the data of {name!r} has to be strings")
        array = np.empty(len(flat), dtype=object)
        array[:] = [text.encode("utf-8") for text in flat]
        return array.reshape(shape)
    dtype = DTYPES[datatype]
    wanted = _JSON_TYPES.get(dtype.kind, {int})
    if not kinds <= wanted:
        raise invalid(f"the data of {name!r} has values that are not {datatype}")
    try:
        with np.errstate(over="ignore"):
            numbers: Array = np.array(flat, dtype=dtype)
    except (OverflowError, ValueError):
        raise invalid(f"the data of {name!r} has a value outside {datatype}") from None
    # numpy before 2, which 32-bit ARM has, lets whole numbers wrap around.
    is_other = numbers.tolist() != flat if dtype.kind in "iu" else not is_finite(numbers)
    if is_other:
        raise invalid(f"the data of {name!r} has a value outside {datatype}")
    return numbers.reshape(shape)


def _flat(name: str, shape: tuple[int, ...], data: Any) -> list[Any]:
    """The elements in row-major order, after checking that nesting, if there is any, agrees with the shape."""
    if not isinstance(data, list):
        raise invalid(f"the data of {name!r} has to be an array")
    flat: list[Any] = data
    if flat and type(flat[0]) is list:
        if len(flat) != (*shape, 0)[0]:
            raise invalid(f"the data of {name!r} is nested otherwise than its shape says")
        for size in shape[1:]:
            if set(map(type, flat)) != {list} or set(map(len, flat)) != {size}:
                raise invalid(f"the data of {name!r} is nested otherwise than its shape says")
            flat = list(chain.from_iterable(flat))
    if len(flat) != prod(shape):
        raise invalid(f"the shape of {name!r} wants {prod(shape)} elements, {len(flat)} came")
    return flat


def from_bytes(name: str, datatype: str, shape: tuple[int, ...], data: memoryview) -> Array:
    """Make an array from binary data without copying (BYTES and unaligned data are copied).

    Args:
        name: Name of the tensor, for messages.
        datatype: A key of `DTYPES`.
        shape: Checked shape.
        data: Exactly the tensor's bytes.

    Returns:
        Array of `DTYPES[datatype]` and `shape`, perhaps read-only.

    Raises:
        EdgeError: `model.input-invalid`.
    """
    count = prod(shape)
    if datatype == "BYTES":
        elements = _elements(name, count, data)  # before there is room for as many as the shape claims
        array = np.empty(count, dtype=object)
        array[:] = elements
        return array.reshape(shape)
    if count * ITEM_BYTES[datatype] != len(data):
        raise invalid(f"{name!r} of shape {list(shape)} wants {count * ITEM_BYTES[datatype]} bytes, {len(data)} came")
    numbers: Array = np.frombuffer(data, dtype=np.uint8 if datatype == "BOOL" else DTYPES[datatype], count=count)
    if datatype == "BOOL":
        if count and numbers.max() > 1:
            raise invalid(f"{name!r} has a BOOL byte that is neither 0 nor 1")
        numbers = numbers.view(np.bool_)
    if not numbers.flags.aligned:
        numbers = numbers.copy()
    return numbers.reshape(shape)


def _elements(name: str, count: int, data: memoryview) -> list[bytes]:
    if count * 4 > len(data):
        raise invalid(f"{name!r} wants {count} BYTES elements, which do not fit in {len(data)} bytes")
    elements: list[bytes] = []
    place = 0
    while place + 4 <= len(data) and len(elements) < count:
        (size,) = struct.unpack_from("<I", data, place)
        place += 4
        if size > min(BYTES_ELEMENT_BYTES_MAX, len(data) - place):
            raise invalid(f"{name!r} has a BYTES element that is longer than what is left")
        elements.append(bytes(data[place : place + size]))
        place += size
    if len(elements) != count or place != len(data):
        raise invalid(f"{name!r} wants {count} BYTES elements, other bytes came")
    return elements


def to_bytes(array: Array) -> bytes | memoryview:
    """The binary data of a tensor; not copied where it is little-endian and contiguous already."""
    if array.dtype.kind in "OSU":
        return b"".join(struct.pack("<I", len(item)) + item for item in map(_as_bytes, array.ravel().tolist()))
    if array.nbytes <= _COPIED_BYTES_MAX and array.dtype.isnative and _IS_LITTLE:
        return array.tobytes()
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return plain.reshape(-1).view(np.uint8).data if plain.size else b""


def to_json_data(array: Array) -> list[Any]:
    """The flat field `data` of a tensor; BYTES that are not UTF-8 get replacement characters (ask for binary data)."""
    if array.dtype.kind in "OSU":
        return [_as_bytes(item).decode("utf-8", "replace") for item in array.ravel().tolist()]
    values: list[Any] = array.ravel().tolist()
    return values


def _as_bytes(item: Any) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode("utf-8")


def is_finite(array: Array) -> bool:
    """Whether no element is NaN or infinite; true for whole numbers and BYTES."""
    if array.dtype.kind != "f":
        return True
    # A sum that is finite has finite terms; of a few numbers Python finds it sooner than numpy calls a function.
    if array.size <= _FEW and isfinite(sum(array.ravel().tolist())):
        return True
    return bool(np.isfinite(array).all())


def split_rows(arrays: Sequence[Array], rows: int) -> int | None:
    """How many pieces of `rows` rows the arrays have along their first dimension, or none when they do not divide."""
    counts = {array.shape[0] if array.ndim else -1 for array in arrays}
    if len(counts) != 1 or rows < 1:
        return None
    (count,) = counts
    return count // rows if count >= rows and count % rows == 0 else None
