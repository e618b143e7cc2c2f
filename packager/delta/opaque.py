"""Bytes without known structure: long equal runs are copied; the rest is zstd with the likeliest part of the base."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from edge_delta.elements import Array
from edge_delta.limits import (
    DICTIONARY_TIMES_MAX,
    SHORT_DICTIONARY_BYTES,
    WINDOW_BYTES_MAX,
)

_BLOCK: Final = 64
"""Bytes that have to be equal for a place in the base to be found."""
_STRIDE: Final = 32
_SHORT_BLOCK: Final = 32
_SHORT_STRIDE: Final = 16
_SHORT_SHARE_MIN: Final = 0.02
_FILTER_SHARE: Final = 3
"""Bits by which the filter of an index is larger than what it holds: one wrong answer in eight."""
_FILTER_BITS_MAX: Final = 27
_RUN_MIN: Final = 16_384
"""Equal bytes that are worth an operation of their own; zstd finds shorter ones."""
_FAR_RUN_MIN: Final = 512
_FAR_RUN_MIN_OF_LARGE: Final = 4_096
"""Those that are, where they stand too far off for a dictionary; large files take long to search."""
_LARGE: Final = 64 * 1024 * 1024
_RUNS_MAX: Final = 24_576
"""Copies of one gap: each takes a decoder memory."""
_MOVED: Final = 0.9
_BASE: Final = np.uint64(0x9E3779B97F4A7C15 | 1)
_PART: Final = 4 * 1024 * 1024
_LOOK: Final = 1_024
_HITS_MIN: Final = 8
_SHARE_SAMPLES: Final = 256


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the new bytes.

    Attributes:
        start: Where it begins.
        length: Bytes.
        base: Where in the base equal bytes begin (`is_equal`), or where the dictionary does.
        dictionary: Length of the dictionary; 0 for a copy.
        is_equal: Whether it is a copy.
        is_again: Whether it is a copy of the new bytes themselves, from where `base` says, beyond any window's reach.
    """

    start: int
    length: int
    base: int
    dictionary: int
    is_equal: bool
    is_again: bool = False


class Known:
    """A base, and an index of what stands where in it, made when it is first asked for. Used by one thread."""

    def __init__(self, base: Array) -> None:
        """Look in `base`, uint8."""
        self.base = base

    @cached_property
    def index(self) -> "_Index | None":
        """None for a base that is too short to look in; of a long one it knows longer runs only."""
        if self.base.size < _BLOCK:
            return None
        return _Index(self.base, _SHORT_BLOCK, _SHORT_STRIDE) if self.base.size <= _LARGE else _Index(self.base)

    def short_runs(self, new: Array) -> list[tuple[int, int, int]]:
        """Runs that one of many moves may be: start in `new`, length, start in the base; in order, apart.

        None are looked for where little of `new` stands in the base.
        """
        if self.index is None or self.share(new) < _SHORT_SHARE_MIN:
            return []
        return self.index.all_runs(new, self.index.shortest + 1)

    def share(self, new: Array) -> float:
        """The share of some bytes that stands in the base somewhere, looked at in a few hundred places; 0 to 1."""
        if self.index is None or new.size < _BLOCK:
            return 0.0
        length = self.index.shortest
        every = max(length // 2, new.size // _SHARE_SAMPLES)
        looked = range(0, new.size - length + 1, every)
        hits = sum(self.index.has(new[place : place + length]) for place in looked)
        return hits / len(looked) if looked else 0.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large windows and their dictionaries may be: a decoder holds them, beside whatever else it holds.

    Attributes:
        window: Bytes of output, at most `WINDOW_BYTES_MAX`.
        dictionary: Bytes of the base.
    """

    window: int
    dictionary: int


LARGEST: Final = Sizes(WINDOW_BYTES_MAX, 3 * 1024 * 1024)
"""With which a decoder keeps within its memory, where it decodes nothing else."""


def pieces(known: Known, new: Array, near: int, sizes: Sizes = LARGEST) -> list[Piece]:
    """Cut some bytes into copies and windows.

    Args:
        known: All of the base.
        new: What is to be made, uint8.
        near: Where in the base similar bytes are likely, when nothing tells better.
        sizes: Bounds of windows.

    Returns:
        Pieces that follow each other and cover `new`.
    """
    index, base = known.index if new.size >= _BLOCK else None, known.base
    result: list[Piece] = []
    place, again = 0, _repeats(new, sizes.window)
    for start, length, where in [] if index is None else index.runs(new, near, sizes.dictionary // 2):
        result += _between(index, base.size, new, place, start, near, sizes, again)
        result.append(Piece(start, length, where, 0, True))
        place, near = start + length, where + length
    return result + _between(index, base.size, new, place, new.size, near, sizes, again)


def _between(
    index: "_Index | None",
    base_bytes: int,
    new: Array,
    start: int,
    end: int,
    near: int,
    sizes: Sizes,
    again: list[tuple[int, int, int]],
) -> list[Piece]:
    """What is no copy of the base: windows, and copies of what stands in the new bytes before."""
    result: list[Piece] = []
    place = start
    for begin, length, where in again:
        first, last = max(begin, place), min(begin + length, end)
        if last - first >= _RUN_MIN:
            result += _windows(index, base_bytes, new, place, first, near + place - start, sizes)
            result.append(Piece(first, last - first, where + first - begin, 0, True, True))
            place = last
    return result + _windows(index, base_bytes, new, place, end, near + place - start, sizes)


def _repeats(new: Array, window: int) -> list[tuple[int, int, int]]:
    """Long runs that stand in the bytes before, further off than a window is long: start, length, first start."""
    if new.size <= window:
        return []
    index = _Index(new)
    found: list[tuple[int, int, int]] = []
    end = 0
    for part in range(0, new.size, _PART):
        places, where = index.find(new[part : part + _PART + _BLOCK], _RUN_MIN // 4)
        for place, at in zip((places + part).tolist(), where.tolist(), strict=True):
            if place < end or place - at <= window:
                continue
            back = index.equal_before(new, place, at, end)
            length = min(back + index.equal(new, place, at), place - at)
            if length >= _RUN_MIN:
                found.append((place - back, length, at - back))
                end = place - back + length
    return found


def _windows(
    index: "_Index | None", base_bytes: int, new: Array, start: int, end: int, near: int, sizes: Sizes
) -> list[Piece]:
    result = []
    for place in range(start, end, sizes.window):
        length = min(sizes.window, end - place)
        centre = None if index is None else index.likely(new[place : place + length])
        if centre is None:
            centre = near + (place - start) + length // 2
        size = min(sizes.dictionary, base_bytes, max(SHORT_DICTIONARY_BYTES, DICTIONARY_TIMES_MAX * length))
        begin = int(np.clip(centre - size // 2, 0, base_bytes - size))
        result.append(Piece(place, length, begin, size, False))
    return result


class _Index:
    """Places of the base by the hash of what stands there."""

    def __init__(self, base: Array, block: int = _BLOCK, stride: int = _STRIDE) -> None:
        self._base = base
        self._block, self._stride = block, stride
        hashes = np.concatenate(
            [
                _hashes(base[start : start + _PART + block - 1], block)[::stride][: _PART // stride]
                for start in range(0, base.size - block + 1, _PART)
            ]
        )
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]
        bits = min(hashes.size.bit_length() + _FILTER_SHARE, _FILTER_BITS_MAX)
        self._shift = np.uint64(64 - bits)
        self._filter = np.zeros(2**bits, bool)
        self._filter[hashes >> self._shift] = True

    @property
    def shortest(self) -> int:
        """Length of equal runs that are surely found."""
        return self._block + self._stride - 1

    def find(self, new: Array, every: int) -> tuple[Array, Array]:
        """Places of `new` that stand in the base: where in `new`, and where in the base.

        Args:
            new: Some bytes.
            every: Of so many places the first few, a stride, are looked up, one of which the index knows in an equal
                run.
        """
        if new.size < self._block:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        hashes = _hashes(new, self._block)
        places = np.flatnonzero(self._filter[hashes >> self._shift])
        places = places[places % every < self._stride]
        wanted = hashes[places]
        at = np.minimum(np.searchsorted(self._sorted, wanted), self._sorted.size - 1)
        hit = np.flatnonzero(self._sorted[at] == wanted)
        return places[hit], self._order[at[hit]].astype(np.int64) * self._stride

    def has(self, new: Array) -> bool:
        """Whether one of the first places of `new`, a stride of them, stands in the base."""
        return bool(self.find(new, self._stride)[0].size)

    def likely(self, new: Array) -> int | None:
        """The middle of the part of the base that most of these bytes come from, or none."""
        _, where = self.find(new, _LOOK)
        return None if where.size < _HITS_MIN else int(np.median(where))

    def runs(self, new: Array, near: int, far: int) -> list[tuple[int, int, int]]:
        """Equal runs that are worth a copy: start in `new`, length, start in the base; in order, apart.

        Args:
            new: Some bytes.
            near: Where in the base their beginning is likely to stand.
            far: How far from where it is likely a run lies out of a dictionary's reach.
        """
        every = self.all_runs(new, _FAR_RUN_MIN if new.size <= _LARGE else _FAR_RUN_MIN_OF_LARGE)
        if len(every) > _RUNS_MAX:
            longest = sorted(range(len(every)), key=lambda number: -every[number][1])[:_RUNS_MAX]
            every = [every[number] for number in sorted(longest)]
        if sum(length for _, length, _ in every) >= _MOVED * new.size:
            return every  # nothing but moved; dictionaries have nothing left to say
        found: list[tuple[int, int, int]] = []
        ahead = near
        for place, length, at in every:
            start = found[-1][0] + found[-1][1] if found else 0
            if length >= _RUN_MIN or abs(at - (ahead + place - start)) > far:
                found.append((place, length, at))
                ahead = at + length
        return found

    def all_runs(self, new: Array, shortest: int) -> list[tuple[int, int, int]]:
        """All of so many bytes or more: start in `new`, length, start in the base; in order, apart."""
        found: list[tuple[int, int, int]] = []
        end = looked = 0
        every = max(self._stride, shortest // 4)
        for part in range(0, new.size, _PART):
            places, where = self.find(new[part : part + _PART + self._block], every)
            for place, at in zip((places + part).tolist(), where.tolist(), strict=True):
                if place < looked:
                    continue
                back = self.equal_before(new, place, at, end)
                while found and place - back == end and self._covers(found[-1], new, place, at):
                    # What repeats everywhere, like zeros, was found first; all of it belongs to this run.
                    found.pop()
                    end = found[-1][0] + found[-1][1] if found else 0
                    back = self.equal_before(new, place, at, end)
                length = back + self.equal(new, place, at)
                if length >= shortest:
                    found.append((place - back, length, at - back))
                    end = looked = place - back + length
                else:
                    looked = place - back + length - self._block + 1  # the same run again
        return found

    def _covers(self, run: tuple[int, int, int], new: Array, place: int, at: int) -> bool:
        """Whether what is equal before two places reaches back over all of the last run."""
        return place - self.equal_before(new, place, at, run[0]) == run[0]

    def equal_before(self, new: Array, place: int, at: int, end: int) -> int:
        """How many bytes before both places are the same, back to `end` in the new ones."""
        count = min(place - end, at, _RUN_MIN)
        differs = np.flatnonzero(new[place - count : place] != self._base[at - count : at])
        return count - 1 - int(differs[-1]) if differs.size else count

    def equal(self, new: Array, place: int, at: int) -> int:
        """How many bytes from both places on are the same."""
        total = 0
        size = _BLOCK * 4
        while True:
            count = min(size, new.size - place - total, self._base.size - at - total)
            if count <= 0:
                return total
            differs = np.flatnonzero(
                new[place + total : place + total + count] != self._base[at + total : at + total + count]
            )
            if differs.size:
                return total + int(differs[0])
            total += count
            size = min(size * 4, 2**22)


def _hashes(data: Array, block: int) -> Array:
    """A rolling hash of every `block` bytes, a power of two: uint64, `len(data) - block + 1` of them, modulo 2**64."""
    hashes = data.astype(np.uint64)
    width = 1
    power = _BASE
    # Doubling: hash(2w) at i = hash(w) at i * base**w + hash(w) at i + w.
    while width < block:
        hashes = hashes[:-width] * power + hashes[width:]
        power = power * power
        width *= 2
    return hashes
