"""The table of `operations.Moves`: where each run lies in the base, how long it is, and what comes before it.

A column for each byte of the numbers, one behind the other, so that columns of nothing but zeros cost nothing and those
of noise cost no more than they are.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from edge_delta.elements import Array
from edge_delta.errors import DeltaError
from edge_delta.limits import MOVE_BYTES_MIN

_LENGTH_BYTES: Final = 3
_OFFSET_BYTES: Final = 6
MOVE_BYTES: Final = 2 * _LENGTH_BYTES + _OFFSET_BYTES
"""Bytes of the table for each run."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs in the order of the output.

    Attributes:
        literals: int64, (n,): how many bytes come before each that are not of the base.
        lengths: int64, (n,): bytes of each.
        offsets: int64, (n,): where in the base each begins.
    """

    literals: Array
    lengths: Array
    offsets: Array


def write_runs(runs: Runs) -> bytes:
    """The table that `read_runs` reads."""
    distance = runs.offsets - _expected(runs)
    zigzag = (distance << np.int64(1)) ^ (distance >> np.int64(63))
    columns = [
        number.astype("<u8").view(np.uint8).reshape(-1, 8).T[:width]
        for number, width in ((runs.literals, _LENGTH_BYTES), (runs.lengths, _LENGTH_BYTES), (zigzag, _OFFSET_BYTES))
    ]
    return np.concatenate(columns).tobytes()


def read_runs(data: bytes, count: int, *, literals: int, length: int, base_bytes: int) -> Runs:
    """Read a table.

    Args:
        data: `MOVE_BYTES * count` bytes.
        count: Runs, at least one.
        literals: Bytes that are not of the base, those behind the last run too.
        length: Bytes of output.
        base_bytes: Length of the base.

    Raises:
        DeltaError: When runs are too short, reach beyond the base, or do not add up to `length`.
    """
    columns = np.frombuffer(data, np.uint8).reshape(MOVE_BYTES, count)

    def number(first: int, width: int) -> Array:
        wide = np.zeros((count, 8), np.uint8)
        wide[:, :width] = columns[first : first + width].T
        return wide.view("<i8").ravel()

    zigzag = number(2 * _LENGTH_BYTES, _OFFSET_BYTES)
    runs = Runs(number(0, _LENGTH_BYTES), number(_LENGTH_BYTES, _LENGTH_BYTES), np.zeros(count, np.int64))
    # Below 2**48 each and 2**14 of them: no sum leaves 63 bits.
    distance = (zigzag >> np.int64(1)) ^ -(zigzag & np.int64(1))
    steps = _steps(runs)
    offsets = np.cumsum(distance + steps)
    if int(runs.lengths.min()) < MOVE_BYTES_MIN or int(runs.literals.sum()) > literals:
        raise DeltaError("a table of runs has one that is too short, or more between them than there is")
    if int(runs.lengths.sum()) + literals != length:
        raise DeltaError(f"runs and what lies between them do not make {length} bytes")
    if int(offsets.min()) < 0 or int((offsets + runs.lengths).max()) > base_bytes:
        raise DeltaError(f"a run reaches beyond the base of {base_bytes} bytes")
    return Runs(runs.literals, runs.lengths, offsets)


def _steps(runs: Runs) -> Array:
    """How far each run is expected behind the start of the one before: as far as the output is."""
    return np.concatenate([np.zeros(1, np.int64), runs.lengths[:-1]]) + runs.literals


def _expected(runs: Runs) -> Array:
    before = np.concatenate([np.zeros(1, np.int64), runs.offsets[:-1]])
    return np.asarray(before + _steps(runs))
