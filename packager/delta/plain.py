"""Packs bytes that no tensor of the base predicts: windows of zstd, and planes of floats."""

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np

from edge_delta.elements import Array, Kind
from edge_delta.limits import WINDOW_BYTES_MAX
from edge_delta.operations import Again, Copy, Moves, Planes, Window
from edge_delta.wire import Packer
from packager.delta.gather import gather
from packager.delta.opaque import LARGEST, Known, Piece, Sizes, pieces

Plain = Copy | Window | Again | Moves

_WINDOW_LOG: Final = 23
_LEVEL: Final = 19
_FAST_LEVEL: Final = 12
_QUICK: Final = Packer(1, 20)
_LOOKING: Final = Packer(5, 20)
_LOOKS: Final = 6
_LOOK_BYTES: Final = 32 * 1024
_LOOK_AROUND: Final = 64 * 1024
_PLANES_SHARE: Final = 2
"""Planes are taken apart and put together in memory several times over."""
_HEAD_BYTES: Final = 7
_FEW: Final = 0.002
"""Share of some bytes below which what is left of them is not looked at again."""
_WORTH: Final = 0.985
_FAST_BYTES: Final = 64 * 1024 * 1024
"""More bytes than these are packed at the faster level."""


def pack_gap(known: Known, new: Array, place: int, near: int, sizes: Sizes = LARGEST) -> Iterator[tuple[Plain, bytes]]:
    """Operations for bytes without known structure, each with what it reads of the body.

    Args:
        known: All of the base.
        new: The bytes, uint8.
        place: Where they begin in the new file.
        near: Where in the base similar ones are likely.
        sizes: Bounds of windows.
    """
    pack = Packer(_LEVEL if new.size <= _FAST_BYTES else _FAST_LEVEL, _WINDOW_LOG)
    for group in _groups(pieces(known, new, near, sizes), sizes.window):
        start, end = group[0].start, group[-1].start + group[-1].length
        is_open = not any(piece.is_again for piece in group) and (len(group) > 1 or not group[0].is_equal)
        runs = known.short_runs(new[start:end]) if is_open else []
        moves = gather(known.base, new[start:end], runs, group[0].base, pack)
        if moves and bytes_of(moves) < _FEW * (end - start):
            yield from moves  # zstd takes long over what repeats, for nothing
            continue
        found = [_packed_piece(known, new, piece, place, pack) for piece in group]
        yield from moves if moves and bytes_of(moves) < bytes_of(found) else found


def bytes_of(found: Iterable[tuple[Plain, bytes]]) -> int:
    """About how long some operations come out, with their place in the head."""
    return sum(len(frame) + _HEAD_BYTES for _, frame in found)


def _groups(found: Iterable[Piece], longest: int) -> Iterator[list[Piece]]:
    """Pieces that one operation could make instead; long copies stand alone."""
    group: list[Piece] = []
    for piece in found:
        if group and (piece.start + piece.length - group[0].start > longest or piece.length > longest // 2):
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _packed_piece(known: Known, new: Array, piece: Piece, place: int, pack: Packer) -> tuple[Plain, bytes]:
    if piece.is_again:
        return Again(place + piece.base, piece.length), b""
    if piece.is_equal:
        return Copy(piece.base, piece.length), b""
    content = new[piece.start : piece.start + piece.length].tobytes()
    frame = pack(content, known.base[piece.base : piece.base + piece.dictionary].tobytes())
    return Window(piece.base, piece.dictionary, piece.length, len(frame)), frame


def share_as_bytes(base: Array, new: Array) -> float:
    """About what share of some bytes zstd leaves with the base as its dictionary, from a few looks; 0 to 1.

    Args:
        base: Bytes that they may come from, of about the same length.
        new: The bytes.
    """
    packed = length = 0
    step = max(_LOOK_BYTES, new.size // _LOOKS)
    for place in range(0, new.size, step):
        some = new[place : place + _LOOK_BYTES].tobytes()
        about = base[max(0, place - _LOOK_AROUND) : place + _LOOK_BYTES + _LOOK_AROUND].tobytes()
        packed, length = packed + len(_LOOKING(some, about)), length + len(some)
    return packed / max(1, length)


def pack_planes(kind: Kind, new: Array) -> Iterator[tuple[Planes, bytes]]:
    """Operations for floats without a base, each with what it reads of the body.

    Args:
        kind: Their type.
        new: Bit patterns, `kind.unsigned`, one dimension.
    """
    pack = Packer(_LEVEL, 21)
    count = WINDOW_BYTES_MAX // _PLANES_SHARE // kind.bytes
    top = kind.unsigned.type(kind.bits - 1)
    one = kind.unsigned.type(1)
    for start in range(0, new.size, count):
        bits = new[start : start + count]
        turned = (bits << one) | (bits >> top)
        planes = np.ascontiguousarray(turned).view(np.uint8).reshape(-1, kind.bytes)
        frames = [_packed(pack, np.ascontiguousarray(planes[:, number]).tobytes()) for number in range(kind.bytes)]
        yield Planes(kind.bytes, bits.size, True, tuple(len(frame) for frame in frames)), b"".join(frames)


def _packed(pack: Packer, plane: bytes) -> bytes:
    """A plane's frame; the bits of a significand are noise, which a look at some of them tells."""
    some = plane[: len(plane) // 8]
    return pack(plane) if len(_QUICK(some)) < _WORTH * len(some) else plane
