"""Many short runs of the base in one operation: weights whose rows changed places, or lost some."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

import numpy as np

from edge_delta.elements import Array
from edge_delta.limits import DICTIONARY_TIMES_MAX, MOVE_BYTES_MIN, MOVES_MAX, SHORT_DICTIONARY_BYTES
from edge_delta.moves import Runs, write_runs
from edge_delta.operations import Moves
from edge_delta.wire import Packer

_DICTIONARY_BYTES: Final = 512 * 1024
"""So that the operation keeps within the decoder's memory beside its table and the bytes between."""
_COVER_MIN: Final = 0.1
"""Share of the bytes that has to be in runs for a table of them to be tried."""

Found = Sequence[tuple[int, int, int]]


def gather(
    base: Array, new: Array, runs: Found, start: int, end: int, near: int, pack: Packer
) -> list[tuple[Moves, bytes]]:
    """Make some bytes of runs and of what lies between them.

    Args:
        base: All of the base, uint8.
        new: The new bytes, uint8.
        runs: Start in `new`, length, start in the base; in order, apart.
        start: Where in `new` these bytes begin.
        end: Where they end; at most a window behind.
        near: Where in the base a dictionary for the bytes between begins.
        pack: Compresses.

    Returns:
        Operations and what each reads of the body; nothing when runs are few.
    """
    cut = _cut(runs, start, end)
    if sum(length for _, length, _ in cut) < max(1, _COVER_MIN * (end - start)):
        return []
    made = []
    for number in range(0, len(cut), MOVES_MAX):
        some = cut[number : number + MOVES_MAX]
        place = start if not number else some[0][0]
        until = cut[number + MOVES_MAX][0] if number + MOVES_MAX < len(cut) else end
        made.append(_gathered(base, new, some, place, until, near, pack))
    return made


def _gathered(
    base: Array, new: Array, runs: Found, start: int, end: int, near: int, pack: Packer
) -> tuple[Moves, bytes]:
    literals, lengths, pieces, place = [], [], [], start
    for begin, length, _ in runs:
        pieces.append(new[place:begin])
        literals.append(begin - place)
        lengths.append(length)
        place = begin + length
    pieces.append(new[place:end])
    between = np.concatenate(pieces).tobytes()
    offsets = np.array([at for _, _, at in runs], np.int64)
    table = write_runs(Runs(np.array(literals, np.int64), np.array(lengths, np.int64), offsets))
    size = min(_DICTIONARY_BYTES, max(SHORT_DICTIONARY_BYTES, DICTIONARY_TIMES_MAX * len(between)), base.size)
    first = min(near, base.size - size)
    frames = (pack(table), pack(between, base[first : first + size].tobytes()) if between else b"")
    if len(frames[1]) == len(between):
        first = size = 0
    packed = (len(frames[0]), len(frames[1]))
    return Moves(len(runs), end - start, first, size, len(between), packed), b"".join(frames)


def _cut(runs: Found, start: int, end: int) -> list[tuple[int, int, int]]:
    """Runs within a part."""
    cut = []
    for number in range(max(0, bisect_left(runs, (start,)) - 1), len(runs)):
        begin, length, at = runs[number]
        if begin >= end:
            break
        skipped = max(0, start - begin)
        length = min(length - skipped, end - begin - skipped)
        if length >= MOVE_BYTES_MIN:
            cut.append((begin + skipped, length, at + skipped))
    return cut
