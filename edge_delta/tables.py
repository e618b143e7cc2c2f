"""Frequencies that encoder and decoder learn alike from what was coded so far: no table travels.

All of it is whole numbers, so both sides hold the same tables whatever machine they run on. A context begins with a
guess from the size that it expects (a two-sided exponential), worth a few dozen symbols, and counts from there; counts
are halved from time to time, because tensors differ.
"""

from functools import cache
from itertools import pairwise
from typing import Final

import numpy as np

from edge_delta.elements import Array
from edge_delta.symbols import (
    CONTEXTS,
    DIRECT,
    ESCAPE,
    FINE_LEVELS,
    LEVEL_LOW,
    LEVELS,
    NEARNESS,
    PRUNED,
    SYMBOLS,
    UNCHANGED,
    ZERO,
)

PROBABILITY_BITS: Final = 12
TOTAL: Final = 2**PROBABILITY_BITS
_GUESS: Final = 24
"""How many symbols the first guess is worth."""
_COUNT_SCALE: Final = 256
_LIMIT: Final = 2**19
"""Symbols of a context after which its counts are halved."""
_FIRST_UPDATE: Final = 2_048
_LAST_UPDATE: Final = 2**17
_FILL: Final = 16
_PART: Final = 64
_FIXED: Final = 2**40
_ROOT_HALF: Final = 1_518_500_250
"""The square root of one half, times 2**31."""
_NEAR: Final = (450, 300, 150, 60, 10, 1)
"""Of a thousand residuals, how many go over the middle that lies as near as `symbols.NEARNESS` says."""
_UP: Final = 2
"""The symbol of a residual of one upwards."""


class Tables:
    """Frequencies of every symbol in every context, and the counts they come from. Used by one thread."""

    def __init__(self) -> None:
        """Begin with the first guess."""
        self.counts = np.zeros((CONTEXTS, SYMBOLS), np.int32)
        self._new = np.zeros(CONTEXTS * SYMBOLS, np.int32)
        self._pending = 0
        self._seen = 0
        self.frequencies = _all_frequencies(self.counts)

    @property
    def pending(self) -> int:
        """Symbols taken in since the frequencies last changed."""
        return self._pending

    def chunk_elements(self, elements_max: int) -> int:
        """How many elements to code before counting again: few at first, when there is much to learn."""
        return min(elements_max, max(_FIRST_UPDATE, self._seen))

    def take(self, contexts: Array, symbols: Array) -> Array | None:
        """Count symbols that were coded.

        Args:
            contexts: uint16, at least one; all of them below `symbols.PRUNED`, or none.
            symbols: uint8, same length; the symbols that were meant where they had to be escaped.

        Returns:
            The contexts whose frequencies changed, or none when none did yet.
        """
        first = PRUNED if contexts[0] >= PRUNED else 0
        mixed = (contexts - np.uint16(first)).astype(np.int32) * np.int32(SYMBOLS) + symbols
        new = self._new[first * SYMBOLS : (first + PRUNED) * SYMBOLS]
        np.add(new, np.bincount(mixed, minlength=new.size), out=new, casting="same_kind")
        self._pending += symbols.size
        if self._pending < min(max(_FIRST_UPDATE, self._seen // 8), _LAST_UPDATE):
            return None
        return self._update()

    def _update(self) -> Array:
        new = self._new.reshape(CONTEXTS, SYMBOLS)
        touched = np.flatnonzero(new.any(axis=1))
        counts = self.counts[touched] + new[touched]
        counts = np.where(counts.sum(axis=1, keepdims=True) > _LIMIT, counts >> 1, counts)
        self.counts[touched] = counts
        self.frequencies[touched] = _frequencies(counts, touched)
        self._seen += self._pending
        self._pending = 0
        self._new[:] = 0
        return touched

    def save(self) -> list[tuple[str, Array]]:
        """Everything a later `load` needs."""
        return [
            ("counts", self.counts.astype(np.uint32)),
            ("new", self._new.astype(np.uint32)),
            ("seen", np.array([self._pending, self._seen], np.int64)),
        ]

    def load(self, counts: Array, new: Array, seen: Array) -> None:
        """Go on where `save` was called."""
        self.counts = counts.astype(np.int32).reshape(CONTEXTS, SYMBOLS)
        self._new = new.astype(np.int32)
        self._pending, self._seen = int(seen[0]), int(seen[1])
        self.frequencies = _all_frequencies(self.counts)


def _all_frequencies(counts: Array) -> Array:
    """`_frequencies` of every context, a part at a time, so that it takes little memory."""
    found = np.empty((CONTEXTS, SYMBOLS), np.int32)
    for start in range(0, CONTEXTS, _PART):
        some = np.arange(start, min(start + _PART, CONTEXTS))
        found[some] = _frequencies(counts[some], some)
    return found


def _frequencies(counts: Array, contexts: Array) -> Array:
    """Counts as frequencies that sum to `TOTAL`; symbols that are too rare get none and are escaped.

    Args:
        counts: int32, shape (n, SYMBOLS).
        contexts: Which contexts they are, for the first guess.

    Returns:
        int32, same shape; `ESCAPE` has 1 at least.
    """
    weights = counts.astype(np.int64) * _COUNT_SCALE + _guesses()[contexts]
    total = weights.sum(axis=1, keepdims=True)
    found = (weights * (2 * TOTAL) + total) // (2 * total)
    rare = np.where(found == 0, weights, 0).sum(axis=1)
    found[:, ESCAPE] = np.maximum((rare * (2 * TOTAL) + total[:, 0]) // (2 * total[:, 0]), 1)
    for row, spare in zip(found, TOTAL - found.sum(axis=1), strict=True):
        left = int(spare)
        while left:  # each turn settles all of it, or half of the largest
            top = int(row[:ESCAPE].argmax())
            step = max(left, -(int(row[top]) // 2)) if left < 0 else left
            row[top] += step
            left -= step
    result: Array = found.astype(np.int32)
    return result


def fill(table: Array, contexts: Array, frequencies: Array, first: int = 0) -> None:
    """Write `lookup` of some contexts into a table of all, a few at a time, so that it takes little memory.

    Args:
        table: uint32, shape (n, TOTAL).
        contexts: Which, from `first` to below `first + n`.
        frequencies: int32, shape (CONTEXTS, SYMBOLS).
        first: The context of the table's first row.
    """
    for start in range(0, len(contexts), _FILL):
        some = contexts[start : start + _FILL]
        table[some - first] = lookup(frequencies[some])


def lookup(frequencies: Array) -> Array:
    """For each context, which symbol every slot of `TOTAL` belongs to.

    Args:
        frequencies: int32, shape (n, SYMBOLS), rows that sum to `TOTAL`.

    Returns:
        uint32, shape (n, TOTAL): symbol << 24 | (frequency - 1) << 12 | place of the slot within the symbol.
    """
    count = frequencies.shape[0]
    flat = frequencies.ravel()
    starts = (np.cumsum(frequencies, axis=1) - frequencies).ravel()
    names = np.tile(np.arange(SYMBOLS, dtype=np.uint32) << np.uint32(24), count)
    packed = names | ((np.maximum(flat, 1) - 1).astype(np.uint32) << np.uint32(PROBABILITY_BITS))
    # place = slot - start: the start is taken away once for the whole run of slots.
    slots = np.tile(np.arange(TOTAL, dtype=np.uint32), count)
    return (np.repeat(packed - starts.astype(np.uint32), flat) + slots).reshape(count, TOTAL)


@cache
def _guesses() -> Array:
    """First weights of every context: int32, shape (CONTEXTS, SYMBOLS), in units of 1 / `_COUNT_SCALE` symbols."""
    result = np.zeros((CONTEXTS, SYMBOLS), np.int32)
    for level in range(LEVELS):
        row = _guess(level + LEVEL_LOW)
        result[FINE_LEVELS * NEARNESS + level] = row
        if level < FINE_LEVELS:
            for near, share in enumerate(_NEAR):
                fine = row * (1000 - share) // 1000
                fine[_UP] += _GUESS * _COUNT_SCALE * share // 1000
                result[level * NEARNESS + near] = fine
    result[UNCHANGED, 0] = _GUESS * _COUNT_SCALE * 64
    result[PRUNED:] = result[:PRUNED] // 2
    result[PRUNED:, ZERO] = _GUESS * _COUNT_SCALE // 2
    return result


def _guess(level: int) -> Array:
    """Weights of the symbols when the expected size is 2 ** (level / 2) of the distance between numbers."""
    edges = [2 * k for k in range(DIRECT // 2 + 1)]  # zigzag: 0 | -1 1 | -2 2 | ...
    tails = [_FIXED] + [_tail(2 * k - 1, level) for k in range(1, len(edges))]
    row = [0] * SYMBOLS
    row[0] = _FIXED - tails[1]
    for k in range(1, DIRECT // 2):
        row[2 * k - 1] = row[2 * k] = (tails[k] - tails[k + 1]) // 2
    row[DIRECT - 1] = (tails[DIRECT // 2] - _tail(DIRECT + 1, level)) // 2
    # zigzag number n is the magnitude n / 2; `_tail` wants twice the magnitude.
    starts = [(8 + (n - DIRECT) % 8) << (1 + (n - DIRECT) // 8) for n in range(DIRECT, ZERO + 1)]
    beyond = [_tail(start, level) for start in starts]
    row[DIRECT:ZERO] = [this - following for this, following in pairwise(beyond)]
    weights = [max(value, 0) * _GUESS * _COUNT_SCALE // _FIXED for value in row]
    return np.array(weights, np.int32)


def _tail(twice: int, level: int) -> int:
    """Share of residuals of magnitude above `twice` / 2, in `_FIXED`: exp(-magnitude / size), in whole numbers."""
    # 1.25 * magnitude / size in units of 2**-32: an exponential's mean is less than its deviation.
    scaled = (twice << 31) * 5 // 4
    octaves, half = divmod(level, 2)
    scaled = scaled >> octaves if octaves >= 0 else scaled << -octaves
    if half:
        scaled = (scaled * _ROOT_HALF) >> 31
    return _decayed(scaled) if scaled < 28 << 32 else 0


@cache
def _decayed(scaled: int) -> int:
    """exp(-scaled / 2**32) in `_FIXED`. Levels an octave apart ask for the same."""
    base = _FIXED - ((scaled * _FIXED) >> (32 + 16))
    for _ in range(16):
        base = (base * base) // _FIXED
    return base
