"""The structure of an ONNX file without its weights, read in one pass with small memory.

An ONNX file is one protobuf message, and a parser would bring all of it into memory: a gigabyte of weights for a few
kilobytes of signature. This walks the message by its tags (https://protobuf.dev/programming-guides/encoding/), keeps
what describes the model and seeks over what holds numbers. What comes out is again a valid `ModelProto`, only that its
tensors are empty. A length that points behind its parent's end means a truncated or foreign file.

Field numbers are those of onnx.proto3 (https://github.com/onnx/onnx).
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from edge_contract.errors import EdgeError
from edge_contract.limits import CHUNK_BYTES
from packager.limits import (
    PROTO_DEPTH_MAX,
    PROTO_FIELD_KEPT_BYTES_MAX,
    PROTO_KEPT_BYTES_MAX,
    PROTO_VARINT_BYTES_MAX,
)

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class _Shape:
    """What to do with the fields of a message: descend, drop, end there; others are kept when they are short."""

    into: dict[int, str]
    drop: frozenset[int] = frozenset()
    end: frozenset[int] = frozenset()


_SHAPES: Final[dict[str, _Shape]] = {
    "model": _Shape({7: "graph", 20: "training", 25: "function"}),
    "graph": _Shape({1: "node", 5: "tensor", 15: "sparse"}, frozenset({13, 14})),
    "training": _Shape({1: "graph", 2: "graph"}),
    "function": _Shape({7: "node"}, frozenset({11, 12})),
    "node": _Shape({5: "attribute"}),
    # An attribute has one value. Long lists (the nodes of a forest) are written number by number, so at the first
    # number the rest of the attribute is left out.
    "attribute": _Shape(
        {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
        drop=frozenset({4}),
        end=frozenset({7, 8, 9}),
    ),
    "sparse": _Shape({1: "tensor", 2: "tensor"}),
    # float, int32, string, int64, raw, double and uint64 data: the numbers themselves.
    "tensor": _Shape({}, frozenset({4, 5, 6, 7, 9, 10, 11})),
}


def read_skeleton(path: Path) -> bytes:
    """The file as an ONNX `ModelProto` whose tensors hold no numbers.

    Args:
        path: An ONNX file of any size.

    Returns:
        Serialised `ModelProto`, at most about `PROTO_KEPT_BYTES_MAX` bytes.

    Raises:
        EdgeError: `artifact.not-a-model` when the bytes are not such a message or end early, `config.file-missing`.
    """
    try:
        with path.open("rb", buffering=CHUNK_BYTES) as file:
            size = os.fstat(file.fileno()).st_size
            return _Scanner(file, path).message("model", size, 0)
    except OSError as error:
        raise EdgeError("config.file-missing", f"cannot read {path}: {error.strerror}") from None


class _Scanner:
    """One pass over one file; `_seen` counts the bytes that were read and not skipped."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._place = 0
        self._seen = 0

    def _bad(self, why: str) -> EdgeError:
        return EdgeError(
            "artifact.not-a-model",
            f"{self._path} is not a whole ONNX file: {why} (at byte {self._place})",
            "Export the model again, or say which engine it is for.",
        )

    def _take(self, count: int) -> bytes:
        data = self._file.read(count)
        self._place += len(data)
        self._seen += len(data)
        if len(data) != count:
            raise self._bad("it ends early")
        if self._seen > PROTO_KEPT_BYTES_MAX:
            raise self._bad(f"its structure alone takes more than {PROTO_KEPT_BYTES_MAX} bytes")
        return data

    def _varint(self, end: int) -> tuple[int, bytes]:
        value, raw = 0, b""
        while len(raw) < PROTO_VARINT_BYTES_MAX and self._place < end:
            byte = self._take(1)
            value |= (byte[0] & 0x7F) << (7 * len(raw))
            raw += byte
            if byte[0] < 0x80:
                return value, raw
        raise self._bad("a number does not end")

    def message(self, kind: str, end: int, depth: int) -> bytes:
        """Read one message that ends at the offset `end`; gives its kept fields, serialised."""
        if depth > PROTO_DEPTH_MAX:
            raise self._bad("it is nested too deeply")
        shape = _SHAPES[kind]
        kept = bytearray()
        while self._place < end:
            tag, raw_tag = self._varint(end)
            number, wire = tag >> 3, tag & 7
            if number == 0:
                raise self._bad("no field has the number 0")
            if number in shape.end:
                self._place = self._file.seek(end)
                break
            if wire == _BYTES:
                kept += self._bytes_field(shape, number, raw_tag, end, depth)
            elif wire == _VARINT:
                kept += raw_tag + self._varint(end)[1]
            elif wire in (_FIXED32, _FIXED64):
                width = 4 if wire == _FIXED32 else 8
                if self._place + width > end:
                    raise self._bad("a field is longer than its message")
                kept += raw_tag + self._take(width)
            else:
                raise self._bad(f"ONNX has no wire type {wire}")
        return bytes(kept)

    def _bytes_field(self, shape: _Shape, number: int, raw_tag: bytes, end: int, depth: int) -> bytes:
        length = self._varint(end)[0]
        if length > end - self._place:
            raise self._bad(f"a field claims {length} bytes where {end - self._place} are left")
        if number in shape.into:
            content = self.message(shape.into[number], self._place + length, depth + 1)
        elif number not in shape.drop and length <= PROTO_FIELD_KEPT_BYTES_MAX:
            content = self._take(length)
        else:
            self._place = self._file.seek(self._place + length)
            return b""
        return raw_tag + _encode(len(content)) + content


def _encode(value: int) -> bytes:
    raw = bytearray()
    while value > 0x7F:
        raw.append(value & 0x7F | 0x80)
        value >>= 7
    raw.append(value)
    return bytes(raw)
