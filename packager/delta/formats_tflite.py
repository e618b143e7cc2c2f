"""Tensors of a TensorFlow Lite file: a flatbuffer whose tensors name buffers, inside it or behind it.

Read without the schema's generated code, by field numbers of TensorFlow's `schema.fbs`: Model {2 subgraphs, 4 buffers},
SubGraph {0 tensors}, Tensor {0 shape, 1 type, 2 buffer, 3 name}, Buffer {0 data, 1 offset, 2 size}. Offsets are those
of FlatBuffers (https://flatbuffers.dev/internals/): a table points back to its vtable, which says where fields lie.
"""

import struct
from collections.abc import Iterator
from mmap import mmap
from typing import Final

from packager.delta.formats import RANK_MAX, TENSORS_MAX, Tensor

_NAME_BYTES_MAX: Final = 1_024
_NAMES_BYTES_MAX: Final = 16 * 1024 * 1024
"""Of all names together, which may be one name many times. Tensors that come later have none."""
_TYPES: Final = {
    0: "f32", 1: "f16", 2: "i32", 3: "u8", 4: "i64", 6: "bool", 7: "i16", 9: "i8", 10: "f64", 12: "u64", 15: "u32",
    16: "u16", 18: "bf16",
}  # fmt: skip


def tflite_tensors(data: mmap) -> Iterator[Tensor]:
    """Every tensor with numbers of its own; the first tensor of a buffer that several share.

    Args:
        data: The file.
    """
    try:
        yield from _Reader(data).tensors()
    except struct.error:
        return  # an offset that points behind the end


class _Reader:
    """Follows offsets; each read is checked against the file by `struct`."""

    def __init__(self, data: mmap) -> None:
        self._data = data
        self._names_left = _NAMES_BYTES_MAX

    def _number(self, form: str, place: int) -> int:
        if place < 0:
            raise struct.error("before the beginning")
        return int(struct.unpack_from(form, self._data, place)[0])

    def _field(self, table: int, number: int) -> int | None:
        """Where a field of a table lies; none when it has its default."""
        vtable = table - self._number("<i", table)
        if 4 + 2 * number >= self._number("<H", vtable):
            return None
        offset = self._number("<H", vtable + 4 + 2 * number)
        return table + offset if offset else None

    def _vector(self, table: int, number: int) -> tuple[int, int]:
        """Where the items of a vector begin, and how many there are."""
        place = self._field(table, number)
        if place is None:
            return 0, 0
        start = place + self._number("<I", place)
        return start + 4, self._number("<I", start)

    def _tables(self, table: int, number: int) -> Iterator[int]:
        start, count = self._vector(table, number)
        for place in range(start, start + 4 * min(count, TENSORS_MAX), 4):
            yield place + self._number("<I", place)

    def _scalar(self, table: int, number: int, form: str) -> int:
        place = self._field(table, number)
        return 0 if place is None else self._number(form, place)

    def tensors(self) -> Iterator[Tensor]:
        model = self._number("<I", 0)
        buffers = [self._range(buffer) for buffer in self._tables(model, 4)]
        taken = set()
        left = TENSORS_MAX  # of all graphs together, which may be one graph many times
        for graph in self._tables(model, 2):
            for tensor in self._tables(graph, 0):
                left -= 1
                if left < 0:
                    return
                buffer = self._scalar(tensor, 2, "<I")
                dtype = _TYPES.get(self._scalar(tensor, 1, "<b"))
                if dtype is None or buffer in taken or buffer >= len(buffers):
                    continue
                start, end = buffers[buffer]
                if end > start:
                    taken.add(buffer)
                    yield Tensor(self._name(tensor), dtype, self._shape(tensor), start, end)

    def _range(self, buffer: int) -> tuple[int, int]:
        start, count = self._vector(buffer, 0)
        if count:
            return start, start + count
        # Files above 2 GB keep the numbers behind the flatbuffer; an offset of 0 or 1 means that there are none.
        offset, size = self._scalar(buffer, 1, "<Q"), self._scalar(buffer, 2, "<Q")
        return (offset, offset + size) if offset > 1 else (0, 0)

    def _shape(self, tensor: int) -> tuple[int, ...]:
        start, count = self._vector(tensor, 0)
        return tuple(self._number("<i", start + 4 * index) for index in range(min(count, RANK_MAX + 1)))

    def _name(self, tensor: int) -> str:
        start, count = self._vector(tensor, 3)
        size = min(count, _NAME_BYTES_MAX, self._names_left)
        self._names_left -= size
        return bytes(self._data[start : start + size]).decode("utf-8", "replace")
