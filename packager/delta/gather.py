"""Many short runs of the base in one operation: weights whose rows changed places, or lost some."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from edge_delta.elements import Array
from edge_delta.limits import DICTIONARY_TIMES_MAX, MOVES_MAX, SHORT_DICTIONARY_BYTES
from edge_delta.moves import Runs, write_runs
from edge_delta.operations import Moves
from edge_delta.wire import Packer

_DICTIONARY_BYTES: Final = 512 * 1024
"""So that the operation keeps within the decoder's memory beside its table and the bytes between."""
_COVER_MIN: Final = 0.1
"""Share of the bytes that has to be in runs for a table of them to be tried."""

Found = Sequence[tuple[int, int, int]]


def gather(base: Array, new: Array, runs: Found, near: int, pack: Packer) -> list[tuple[Moves, bytes]]:
    """Make some bytes of runs and of what lies between them.

    Args:
        base: All of the base, uint8.
        new: The new bytes, uint8; at most a window.
        runs: Start in `new`, length, start in the base; in order, apart.
        near: Where in the base a dictionary for the bytes between begins.
        pack: Compresses.

    Returns:
        Operations and what each reads of the body; nothing when runs are few.
    """
    if sum(length for _, length, _ in runs) < max(1, _COVER_MIN * new.size):
        return []
    starts = [0, *(begin for begin, _, _ in runs[MOVES_MAX::MOVES_MAX]), new.size]
    made = []
    for number, start, end in zip(range(0, len(runs), MOVES_MAX), starts, starts[1:], strict=False):
        some = [(begin - start, length, at) for begin, length, at in runs[number : number + MOVES_MAX]]
        made.append(_gathered(base, new[start:end], some, near, pack))
    return made


def _gathered(base: Array, new: Array, runs: Found, near: int, pack: Packer) -> tuple[Moves, bytes]:
    starts, lengths, offsets = np.array(runs, np.int64).T
    ends = starts + lengths
    literals = starts - np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    edges = zip([0, *ends.tolist()], [*starts.tolist(), new.size], strict=True)
    between = b"".join(new[start:end].tobytes() for start, end in edges)
    table = write_runs(Runs(literals, lengths, offsets))
    size = min(_DICTIONARY_BYTES, max(SHORT_DICTIONARY_BYTES, DICTIONARY_TIMES_MAX * len(between)), base.size)
    first = min(near, base.size - size)
    frames = (pack(table), pack(between, base[first : first + size].tobytes()) if between else b"")
    if len(frames[1]) == len(between):
        first = size = 0
    packed = (len(frames[0]), len(frames[1]))
    return Moves(len(runs), new.size, first, size, len(between), packed), b"".join(frames)
