"""Frames: the binary protocol between a client on a module's unix socket and its worker. Format: docs/frames.md.

Both sides use this module; it is pure and knows no numpy. A tensor is a datatype, a shape and bytes here, in the byte
form of the Open Inference Protocol's binary tensor data. Names do not travel: request and answer follow the model's
signature, which the client has asked for once and names by a key in every request.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from edge_contract.errors import EdgeError
from edge_contract.jsonio import dump
from edge_contract.limits import KIB, MIB
from edge_contract.tensors import ITEM_BYTES, TensorSpec

FIRST_BYTE: Final = 0xF5
"""No request of HTTP, and no UTF-8 text, begins with it."""
VERSION: Final = 1
PREFIX: Final = int.from_bytes(bytes((FIRST_BYTE, 0x4C, 0x4D, VERSION)), "little")

DESCRIBE: Final = 0x01
INFER: Final = 0x02
DESCRIPTION: Final = 0x81
TENSORS: Final = 0x82
STALE: Final = 0x83
ERROR: Final = 0x8F

NAMED: Final = 0x01
"""Flag of an answer: its tensors do not follow the signature, so a list of them comes first."""
LAST: Final = 0x02
"""Flag of an answer: the connection ends after it."""

REQUEST: Final = struct.Struct("<IBBHIIQQQ")
"""Prefix, kind, flags, bytes of the id, bytes of the payload, deadline in ms, number, key, wanted outputs."""
ANSWER: Final = struct.Struct("<IBBHIIQQ32s")
"""Prefix, kind, flags, 0, bytes of the payload, 0, number, version of the model, digest of the manifest."""

ID_BYTES_MAX: Final = 1 * KIB
DEADLINE_MS_MAX: Final = 24 * 3600 * 1000
ANSWER_BYTES_MAX: Final = 1024 * MIB
NAMED_BYTES_MAX: Final = 1 * MIB
"""Of the list in an answer whose tensors come with names."""
WANTED_MAX: Final = 64
"""Outputs that can be asked for one by one; of a model with more all come."""

_PLANS_MAX: Final = 64
"""Shapes of one signature that are remembered."""
_ALIGNMENT: Final = 8
_SIZE_MAX: Final = 2**31
_ELEMENTS_MAX: Final = 2**40


def invalid(detail: str, hint: str = "") -> EdgeError:
    """A frame that does not fit."""
    return EdgeError("model.input-invalid", detail, hint)


def padded(size: int) -> int:
    """The next multiple of 8, where a tensor may begin."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def signature_key(name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> int:
    """The key of a model: equal for two bundles exactly when name and signature are."""
    document = [name, [spec.to_json() for spec in inputs], [spec.to_json() for spec in outputs]]
    digest = hashlib.sha256(dump({"signature": document})).digest()
    return int.from_bytes(digest[:8], "little") or 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where one tensor lies in a payload.

    Attributes:
        name: As the model names it.
        datatype: A key of `ITEM_BYTES`.
        shape: Row-major dimensions.
        count: Elements.
        start: Offset of its first byte from the start of the payload.
        end: Offset behind its last byte.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    count: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One payload's layout.

    Attributes:
        table: What it begins with: sizes of free dimensions and lengths of BYTES tensors.
        places: Its tensors in the order of the signature.
        size: Bytes in all.
    """

    table: bytes
    places: tuple[Place, ...]
    size: int

    def join(self, parts: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
        """The payload's pieces, given the bytes of each tensor."""
        pieces: list[bytes | memoryview] = [self.table] if self.table else []
        end = len(self.table)
        for place, part in zip(self.places, parts, strict=True):
            if place.start > end:
                pieces.append(bytes(place.start - end))
            pieces.append(part)
            end = place.end
        return pieces


class Layout:
    """How the tensors of one signature lie in a payload. Any thread.

    The table holds, as u32 and in the order of the signature, for each tensor the sizes of its free dimensions and, for
    BYTES, the length of its data; it is padded to 8 bytes. Each tensor begins at a multiple of 8.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        """Lay out these tensors."""
        self.specs = tuple(specs)
        self.names = tuple(spec.name for spec in specs)
        words = sum(spec.shape.count(-1) + (spec.datatype == "BYTES") for spec in specs)
        self._words = struct.Struct(f"<{words}I")
        self.table_bytes = padded(self._words.size)
        self._has_bytes = any(spec.datatype == "BYTES" for spec in specs)
        self._by_table: dict[bytes, Plan] = {}
        self._by_shapes: dict[tuple[tuple[int, ...], ...], Plan] = {}

    def find(self, payload: bytes | bytearray | memoryview) -> Plan:
        """The layout of a payload that came; whether its length is right is for the caller to see.

        Raises:
            EdgeError: `model.input-invalid`.
        """
        table = bytes(payload[: self.table_bytes])
        plan = self._by_table.get(table)
        if plan is None:
            if len(table) < self.table_bytes:
                raise invalid(f"the payload has {len(table)} bytes, its table of sizes {self.table_bytes}")
            if any(table[self._words.size :]):
                raise invalid("the padding of a table of sizes is zero")
            plan = self._plan(self._words.unpack_from(table))
            if self._room(self._by_table):
                self._by_table[table] = plan
        return plan

    def make(self, shapes: tuple[tuple[int, ...], ...], lengths: Sequence[int] = ()) -> Plan:
        """The layout for tensors of these shapes.

        Args:
            shapes: In the order of the signature.
            lengths: Bytes of each tensor of BYTES, in order.

        Raises:
            EdgeError: `model.input-invalid` when they do not fit the signature.
        """
        plan = self._by_shapes.get(shapes)
        if plan is None:
            words: list[int] = []
            rest = iter(lengths)
            for spec, shape in zip(self.specs, shapes, strict=True):
                if not spec.fits(spec.datatype, shape):
                    raise invalid(f"{spec.name!r} has the shape {list(shape)}", f"Wanted: {list(spec.shape)}.")
                words += (have for want, have in zip(spec.shape, shape, strict=True) if want == -1)
                if spec.datatype == "BYTES":
                    words.append(next(rest))
            if max(words, default=0) >= _SIZE_MAX:
                raise invalid("a tensor is too large")
            plan = self._plan(tuple(words))
            if self._room(self._by_shapes):
                self._by_shapes[shapes] = plan
        return plan

    def _plan(self, words: tuple[int, ...]) -> Plan:
        rest = iter(words)
        end = self.table_bytes
        places: list[Place] = []
        for spec in self.specs:
            shape = tuple(next(rest) if size == -1 else size for size in spec.shape)
            count = prod(shape)
            if max(shape, default=0) >= _SIZE_MAX or count >= _ELEMENTS_MAX:
                raise invalid(f"the shape of {spec.name!r} has a size that is not one")
            length = next(rest) if spec.datatype == "BYTES" else count * ITEM_BYTES[spec.datatype]
            start = padded(end)
            end = start + length
            places.append(Place(spec.name, spec.datatype, shape, count, start, end))
        table = self._words.pack(*words)
        return Plan(table.ljust(self.table_bytes, b"\0"), tuple(places), end)

    def _room(self, plans: dict[Any, Plan]) -> bool:
        """Whether to remember a plan; with BYTES in it hardly two are alike."""
        if len(plans) >= _PLANS_MAX:
            plans.clear()
        return not self._has_bytes
