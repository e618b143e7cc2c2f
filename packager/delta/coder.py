"""The encoder's half of entropy coding: takes chunks in order, and codes them backwards once all are there.

rANS is last in, first out. What each chunk needs waits in a temporary file, so that memory does not grow with the
model; what every update replaced in the tables is kept, because the decoder learns forwards.
"""

from dataclasses import dataclass
from typing import BinaryIO, Final

import numpy as np

from edge_delta.bits import pack
from edge_delta.elements import Array, Kind
from edge_delta.limits import CHUNK_ELEMENTS, LANES_MAX
from edge_delta.rans import LOWEST
from edge_delta.symbols import ESCAPE, SYMBOLS, raw_widths, to_symbols
from edge_delta.tables import PROBABILITY_BITS, TOTAL, Tables

_LANE_BYTES: Final = 1_000
"""Coded bytes that pay for a lane, whose state takes four."""
_LANES_LIKED: Final = 192
"""Fewer lanes make decoding slow, so that sparse changes get these where they have the symbols."""
_LANE_SYMBOLS: Final = 256
_BITS: Final = np.uint32(PROBABILITY_BITS)
_WORD: Final = np.uint32(16)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Where a chunk waits in the temporary file: contexts, symbols, raw bytes; which tables it is coded with."""

    place: int
    elements: int
    raw_bytes: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Coded:
    """Where the words of a chunk are in the temporary file, and its raw bytes."""

    words: tuple[int, int]
    raw: tuple[int, int]


class Coder:
    """Used by one thread."""

    def __init__(self, spill: BinaryIO) -> None:
        """Keep what waits in `spill`, a temporary file."""
        self._spill = spill
        self._tables = Tables()
        self._replaced: list[tuple[Array, Array]] = []  # by each update: contexts, and their frequencies before
        self._chunks: list[_Chunk] = []
        self._bits = 0.0
        self._elements = 0

    @property
    def bytes(self) -> int:
        """About how many bytes everything that was added takes."""
        return int(self._bits / 8) + sum(chunk.raw_bytes for chunk in self._chunks)

    def chunk_elements(self) -> int:
        """How many elements the next chunk may have."""
        return self._tables.chunk_elements(CHUNK_ELEMENTS)

    def add(self, kind: Kind, contexts: Array, numbers: Array, zeros: Array | None = None) -> int:
        """Take the next chunk.

        Args:
            kind: Type of its elements.
            contexts: uint16, one for each element.
            numbers: uint32 zigzag numbers.
            zeros: `zero_numbers` of the same elements, in pruned tensors.

        Returns:
            The chunk's number, from 0.
        """
        meant = to_symbols(numbers, zeros)
        symbols = np.where(self._tables.frequencies[contexts, meant] == 0, np.uint8(ESCAPE), meant)
        widths = raw_widths(kind, symbols)
        # The top bits of a large number are its symbol; all of an escaped one are raw.
        masks = ((np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1)).astype(np.uint32)
        raw = pack(numbers & masks, widths)
        place = self._spill.seek(0, 2)
        self._spill.write(contexts.astype("<u2").tobytes())
        self._spill.write(symbols.tobytes())
        self._spill.write(raw)
        self._chunks.append(_Chunk(place, contexts.size, len(raw), len(self._replaced)))
        self._elements += contexts.size
        self._bits -= float(np.log2(self._tables.frequencies[contexts, symbols] / TOTAL).sum())
        before = self._tables.frequencies.astype(np.uint16)
        changed = self._tables.take(contexts, meant)
        if changed is not None:
            self._replaced.append((changed, before[changed]))
        return len(self._chunks) - 1

    def finish(self) -> tuple[Array, list[Coded]]:
        """Code everything.

        Returns:
            The states that the decoder begins with, uint32, and where each chunk's words and raw bytes are.
        """
        liked = min(_LANES_LIKED, 1 + self._elements // _LANE_SYMBOLS)
        lanes = min(LANES_MAX, max(int(self._bits / 8) // _LANE_BYTES, liked)) if self._elements else 0
        states = np.full(lanes, LOWEST, np.uint32)
        table = self._tables.frequencies.astype(np.uint16)
        starts = _starts(table)
        coded = []
        for chunk in reversed(self._chunks):
            while len(self._replaced) > chunk.epoch:
                contexts, frequencies = self._replaced.pop()
                table[contexts], starts[contexts] = frequencies, _starts(frequencies)
            coded.append(self._code(chunk, states, table, starts))
        return states, coded[::-1]

    def _code(self, chunk: _Chunk, states: Array, table: Array, starts: Array) -> Coded:
        self._spill.seek(chunk.place)
        contexts = np.frombuffer(self._spill.read(2 * chunk.elements), "<u2")
        symbols = np.frombuffer(self._spill.read(chunk.elements), np.uint8)
        flat = contexts.astype(np.int32) * np.int32(SYMBOLS) + symbols
        frequency, start = table.ravel()[flat].astype(np.uint32), starts.ravel()[flat].astype(np.uint32)
        emitted = []
        for first in range((chunk.elements - 1) // states.size * states.size, -1, -states.size):
            f, c = frequency[first : first + states.size], start[first : first + states.size]
            x = states[: f.size]
            # A state that would leave 32 bits gives its low word away first.
            full = np.flatnonzero((x >> np.uint32(32 - PROBABILITY_BITS)) >= f)
            emitted.append((x[full] & np.uint32(0xFFFF)).astype("<u2"))
            x[full] >>= _WORD
            quotient = x // f
            states[: f.size] = (quotient << _BITS) + (x - quotient * f) + c
        words = np.concatenate(emitted[::-1]).tobytes()
        place = self._spill.seek(0, 2)
        self._spill.write(words)
        raw_place = chunk.place + 3 * chunk.elements
        return Coded((place, len(words)), (raw_place, chunk.raw_bytes))


def _starts(table: Array) -> Array:
    """Where the slots of each symbol begin; uint16, as `table`."""
    return np.asarray((np.cumsum(table, axis=1, dtype=np.uint32) - table).astype(np.uint16))
