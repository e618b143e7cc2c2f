"""Tensors of an ONNX file, found by walking its protobuf tags (https://protobuf.dev/programming-guides/encoding/).

Numbers lie as they are in `raw_data`, in packed `float_data` and `double_data`, and in files beside the model. Those in
lists of variable-length integers have no fixed place and are left to the bytes between. Field numbers: onnx.proto3.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from mmap import mmap
from typing import Final

from packager.delta.formats import ELEMENT_BYTES, RANK_MAX, Tensor

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES_MAX: Final = 10
_DEPTH_MAX: Final = 64
_NAME_BYTES_MAX: Final = 1_024
_TEXT_BYTES_MAX: Final = 4_096
_FIELDS_MAX: Final = 10_000_000
"""Fields that are walked, of two bytes at least: those of the largest models are some hundred thousand."""
_EXTERNAL: Final = 1
_TYPES: Final = {
    1: "f32", 2: "u8", 3: "i8", 4: "u16", 5: "i16", 6: "i32", 7: "i64", 9: "bool", 10: "f16", 11: "f64", 12: "u32",
    13: "u64", 16: "bf16", 17: "f8e4m3", 19: "f8e5m2",
}  # fmt: skip
# Which fields of a message lead to tensors, and as what.
_INTO: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}


class _DamagedError(Exception):
    """The bytes are no protobuf message of this kind."""


@dataclass(slots=True)
class _Found:
    """What a TensorProto says."""

    name: str = ""
    number: int = 0
    shape: list[int] = field(default_factory=list)
    start: int = 0
    end: int = 0
    is_outside: bool = False
    location: str = ""
    offset: int = 0
    length: int = -1


def onnx_tensors(data: mmap) -> Iterator[Tensor]:
    """Every tensor whose numbers lie in the file itself.

    Args:
        data: The file.
    """
    for found in _Walk(data).tensors():
        dtype = _TYPES.get(found.number)
        if dtype is not None and not found.is_outside and found.end > found.start:
            yield Tensor(found.name, dtype, tuple(found.shape), found.start, found.end)


def onnx_external(data: mmap) -> Iterator[tuple[str, Tensor]]:
    """Every tensor whose numbers lie in another file, with that file's location as it is written.

    Args:
        data: The ONNX file.
    """
    for found in _Walk(data).tensors():
        dtype = _TYPES.get(found.number)
        if dtype is None or not found.is_outside or not found.location or len(found.shape) > RANK_MAX:
            continue
        size = ELEMENT_BYTES[dtype]
        for dimension in found.shape:
            size *= dimension
        length = size if found.length < 0 else found.length
        if length > 0:
            end = found.offset + length
            yield found.location, Tensor(found.name, dtype, tuple(found.shape), found.offset, end)


class _Walk:
    """One way through the tags of a file, of bounded length."""

    def __init__(self, data: mmap) -> None:
        self._data = data
        self._left = _FIELDS_MAX

    def tensors(self) -> Iterator[_Found]:
        """Every tensor before the first bytes that make no sense."""
        try:
            yield from self._message("model", 0, len(self._data), 0)
        except _DamagedError:
            return

    def _message(self, kind: str, place: int, end: int, depth: int) -> Iterator[_Found]:
        if depth > _DEPTH_MAX:
            raise _DamagedError
        into = _INTO[kind]
        for number, start, stop, _ in self._fields(place, end):
            inner = into.get(number)
            if inner == "tensor":
                yield self._tensor(start, stop)
            elif inner is not None:
                yield from self._message(inner, start, stop, depth + 1)

    def _fields(self, place: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Fields of a message: number, where its bytes begin and end, and its value if it is a number (else -1)."""
        while place < end:
            self._left -= 1
            if self._left < 0:
                raise _DamagedError
            tag, place = _varint(self._data, place, end)
            number, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                value, place = _varint(self._data, place, end)
                yield number, place, place, value
            elif wire == _BYTES:
                length, place = _varint(self._data, place, end)
                if length > end - place:
                    raise _DamagedError
                yield number, place, place + length, -1
                place += length
            elif wire in (_FIXED32, _FIXED64):
                place += 4 if wire == _FIXED32 else 8
            else:
                raise _DamagedError

    def _tensor(self, place: int, end: int) -> _Found:
        found = _Found()
        for number, start, stop, value in self._fields(place, end):
            if number == 1:
                self._dimensions(start, stop, value, found.shape)
            elif number == 2 and value >= 0:
                found.number = value
            elif number == 8:
                found.name = self._text(start, stop, _NAME_BYTES_MAX).decode("utf-8", "replace")
            elif number in (4, 9, 10) and value < 0 and stop > start:
                found.start, found.end = start, stop
            elif number == 13 and value < 0:
                self._external(start, stop, found)
            elif number == 14 and value >= 0:
                found.is_outside = value == _EXTERNAL
        return found

    def _dimensions(self, place: int, end: int, value: int, shape: list[int]) -> None:
        """One more, or as many as are packed together; up to one more than a tensor can have."""
        if value >= 0 and len(shape) <= RANK_MAX:
            shape.append(value)
        while place < end and len(shape) <= RANK_MAX:
            value, place = _varint(self._data, place, end)
            shape.append(value)

    def _external(self, place: int, end: int, found: _Found) -> None:
        """One key and value of what an external tensor says of itself."""
        texts = {
            number: self._text(start, stop, _TEXT_BYTES_MAX) for number, start, stop, _ in self._fields(place, end)
        }
        key, value = texts.get(1, b""), texts.get(2, b"")
        if key == b"location":
            found.location = value.decode("utf-8", "replace")
        elif key in (b"offset", b"length") and value.isdigit() and len(value) < 16:
            setattr(found, key.decode(), int(value))

    def _text(self, start: int, stop: int, bytes_max: int) -> bytes:
        return bytes(self._data[start : min(stop, start + bytes_max)])


def _varint(data: mmap, place: int, end: int) -> tuple[int, int]:
    value = 0
    for count in range(min(_VARINT_BYTES_MAX, end - place)):
        byte = data[place + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, place + count + 1
    raise _DamagedError
