"""Range asymmetric numeral systems with many states side by side, so that numpy does the work.

32-bit states, 16-bit words, 12-bit frequencies: at most one word a state and symbol. The states run through the whole
file, so that what they cost, four bytes each, is paid once. A state begins (for the encoder) and ends (for the decoder)
at `LOWEST`, which is one more check that everything was read as it was written.

Source: J. Duda, "Asymmetric numeral systems", arXiv:1311.2540; interleaving: F. Giesen, arXiv:1402.3392.
"""

from typing import Final

import numpy as np

from edge_delta.elements import Array
from edge_delta.errors import DeltaError
from edge_delta.symbols import CONTEXTS, PRUNED
from edge_delta.tables import PROBABILITY_BITS, TOTAL, Tables, fill

LOWEST: Final = 2**16
WORD: Final = np.dtype("<u2")
_SLOT: Final = np.uint32(TOTAL - 1)
_BITS: Final = np.uint32(PROBABILITY_BITS)
_WORD_BITS: Final = np.uint32(16)
_SYMBOL_SHIFT: Final = np.uint32(24)
_LOWEST: Final = np.uint32(LOWEST)
_ONE: Final = np.uint32(1)


class Lanes:
    """The decoder's states, its tables and their lookup. Used by one thread."""

    def __init__(self, states: Array) -> None:
        """Begin with the states that the encoder ended with.

        Args:
            states: uint32, one a lane, each `LOWEST` or more.

        Raises:
            DeltaError: When a state is impossible.
        """
        if states.size and int(states.min()) < LOWEST:
            raise DeltaError("a rANS state is below its lowest value")
        self.states = states.astype(np.uint32)
        self.tables = Tables()
        # Rows are filled when their context first comes up: most files use few, and the others take no memory. One
        # table for each kind of tensors: numpy asks for huge pages from 4 MiB on, which are memory at once.
        self._lookups: dict[int, Array] = {}
        self._is_filled = np.zeros(CONTEXTS, bool)

    def decode(self, contexts: Array, words: Array) -> tuple[Array, int]:
        """Decode a chunk.

        Args:
            contexts: uint16, of each element; all of them below `symbols.PRUNED`, or none.
            words: uint16, what follows in the file; it may be more than is needed.

        Returns:
            uint8 symbols, and how many words were used.

        Raises:
            DeltaError: When the words run out.
        """
        count, lanes = contexts.size, self.states.size
        if not lanes:
            raise DeltaError("tensors without a rANS state")
        first = PRUNED if contexts[0] >= PRUNED else 0
        if first not in self._lookups:
            self._lookups[first] = np.empty((PRUNED, TOTAL), np.uint32)
        lookup = self._lookups[first]
        wanted = np.flatnonzero((np.bincount(contexts, minlength=CONTEXTS) > 0) & ~self._is_filled)
        if wanted.size:
            fill(lookup, wanted, self.tables.frequencies, first)
            self._is_filled[wanted] = True
        starts = (contexts - np.uint16(first)).astype(np.uint32) << _BITS
        table, entries = lookup.ravel(), np.empty(count, np.uint32)
        used = 0
        for start in range(0, count, lanes):
            place = starts[start : start + lanes]
            x = self.states[: place.size]
            place |= x & _SLOT
            entry = table.take(place)
            entries[start : start + lanes] = entry
            x >>= _BITS
            x *= ((entry >> _BITS) & _SLOT) + _ONE
            x += entry & _SLOT
            (low,) = (x < _LOWEST).nonzero()
            if low.size:
                if used + low.size > words.size:
                    raise DeltaError("the words of a tensor run out")
                x[low] = (x[low] << _WORD_BITS) | words[used : used + low.size]
                used += low.size
        symbols = (entries >> _SYMBOL_SHIFT).astype(np.uint8)
        return symbols, used

    def learn(self, contexts: Array, symbols: Array) -> None:
        """Count a chunk's symbols; see `Tables.take`."""
        changed = self.tables.take(contexts, symbols)
        if changed is not None:
            self._is_filled[changed] = False

    def finish(self) -> None:
        """Require that every state is back where the encoder began.

        Raises:
            DeltaError: When one is not.
        """
        if (self.states != LOWEST).any():
            raise DeltaError("the entropy-coded data do not end where they should")
