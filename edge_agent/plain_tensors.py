"""Tensors as lists of Python values, and their bytes on a wire. For clients without numpy; standard library only.

The bytes are those of the Open Inference Protocol's binary tensor data: little-endian, row-major, BOOL one byte, each
element of BYTES a four-byte length and its bytes.
"""

import struct
from itertools import chain
from math import prod
from typing import Any, Final

from edge_contract.errors import EdgeError

_FORMATS: Final[dict[str, str]] = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i",
    "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
_LENGTH: Final = struct.Struct("<I")


def pack_elements(name: str, datatype: str, shape: tuple[int, ...], data: list[Any]) -> bytes:
    """The bytes of a tensor whose elements are a list, flat or nested.

    Raises:
        EdgeError: `model.input-invalid`.
    """
    flat: list[Any] = data
    while flat and isinstance(flat[0], list):
        if not all(isinstance(item, list) for item in flat):
            raise _invalid(f"the data of {name!r} is nested here and not nested there")
        flat = list(chain.from_iterable(flat))
    if len(flat) != prod(shape):
        raise _invalid(f"the shape of {name!r} wants {prod(shape)} elements, {len(flat)} came")
    try:
        if datatype == "BYTES":
            items = [item.encode("utf-8") if isinstance(item, str) else bytes(item) for item in flat]
            return b"".join(_LENGTH.pack(len(item)) + item for item in items)
        if datatype == "BOOL" and not all(isinstance(item, bool) for item in flat):
            raise _invalid(f"the data of {name!r} has values that are not BOOL")
        return struct.pack(f"<{len(flat)}{_FORMATS[datatype]}", *flat)
    except KeyError:
        raise _invalid(f"the input {name!r} has the unknown datatype {datatype!r}") from None
    except (struct.error, OverflowError, TypeError, ValueError) as error:
        raise _invalid(f"the data of {name!r} has a value that is not {datatype}: {error}") from None


def unpack_elements(datatype: str, count: int, data: bytes | bytearray | memoryview) -> list[Any]:
    """The elements of a tensor, flat; those of BYTES as text, with replacement characters where it is not UTF-8.

    Raises:
        ValueError: When the bytes are not `count` elements.
    """
    if datatype == "BYTES":
        return [item.decode("utf-8", "replace") for item in unpack_bytes(count, data)]
    try:
        return list(struct.unpack(f"<{count}{_FORMATS[datatype]}", data))
    except (KeyError, struct.error) as error:
        raise ValueError(f"not {count} elements of {datatype}") from error


def unpack_bytes(count: int, data: bytes | bytearray | memoryview) -> list[bytes]:
    """The elements of a BYTES tensor.

    Raises:
        ValueError: When the bytes are not `count` elements.
    """
    items: list[bytes] = []
    place = 0
    while place + _LENGTH.size <= len(data) and len(items) < count:
        (size,) = _LENGTH.unpack_from(data, place)
        place += _LENGTH.size
        items.append(bytes(data[place : place + size]))
        place += size
    if len(items) != count or place != len(data):
        raise ValueError(f"not {count} elements of BYTES")
    return items


def _invalid(detail: str) -> EdgeError:
    return EdgeError("model.input-invalid", detail)
