"""Residuals as symbols of a small alphabet with raw low bits, and the context that each is coded in.

A residual's zigzag number below 16 is a symbol of its own; a larger one is (bit length, next three bits) and the bits
below raw, because those are noise. `ZERO` stands for the residual that makes the new number zero, whatever it is.
`ESCAPE` stands for a symbol that the tables have no room for; all its bits are raw.

The context says how large the residual is expected to be: the size of its row and of its column against the distance
between neighbouring numbers at the prediction, in half octaves. Where that is small, what decides is whether the
prediction lies near the middle between two numbers: how far from it, in units of the expected size, makes a finer
context. Contexts come from numbers that the decoder has anyway, so they cost nothing.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from edge_delta.elements import (
    Array,
    Kind,
    exponents,
    inverse_ulp,
    ordered,
    signed_zero,
    values,
    wrapped,
    zigzag,
)
from edge_delta.errors import DeltaError

DIRECT: Final = 16
MANTISSA_BITS: Final = 3
_FIRST_BITS: Final = 5
"""Bit length of the first number that is no symbol of its own."""
_LONGEST: Final = 32
ZERO: Final = DIRECT + (_LONGEST - _FIRST_BITS + 1) * 2**MANTISSA_BITS
ESCAPE: Final = ZERO + 1
SYMBOLS: Final = ESCAPE + 1

LEVELS_PER_OCTAVE: Final = 2
LEVEL_LOW: Final = -24
"""Level of the smallest expected size: 2**-12 of the distance between neighbouring numbers."""
LEVELS: Final = 80
FINE_LEVELS: Final = 26
"""Levels, from the lowest, that are divided by how near the prediction lies to the middle."""
NEARNESS: Final = 6
UNCHANGED: Final = FINE_LEVELS * NEARNESS + LEVELS
"""Context of rows and columns in which nothing changed."""
PRUNED: Final = UNCHANGED + 1
"""From here on the same contexts again, of tensors in which `ZERO` occurs."""
CONTEXTS: Final = 2 * PRUNED

UNCHANGED_CLASS: Final = -32768
"""The class of such a row or column."""

_THRESHOLDS: Final = tuple(np.float64(value) for value in (0.4, 0.8, 1.4, 2.2, 3.5))
_INVERSE_SIGMA: Final = np.array(
    # The square root of two is correctly rounded in IEEE 754, and powers of two are exact: the same everywhere.
    [
        np.ldexp(1.0 if number % 2 == 0 else float(np.sqrt(np.float64(2.0))), -((number + 1) // 2))
        for number in range(LEVEL_LOW, LEVEL_LOW + LEVELS)
    ]
)
_RAW_BITS: Final = np.array(
    [0] * DIRECT + [1 + (number - DIRECT) // 8 for number in range(DIRECT, ZERO)] + [0, 0], dtype=np.uint8
)
_BASE: Final = np.array(
    list(range(DIRECT))
    + [(8 + (number - DIRECT) % 8) << (1 + (number - DIRECT) // 8) for number in range(DIRECT, ZERO)]
    + [0, 0],
    dtype=np.uint64,
).astype(np.uint32)


@dataclass(frozen=True, slots=True)
class Places:
    """Contexts of some elements, and where their sign is turned round.

    Attributes:
        contexts: uint16, `0..CONTEXTS - 1`.
        is_turned: bool, or none: the prediction was rounded up, so the residual's sign is turned.
    """

    contexts: Array
    is_turned: Array | None


def places(
    kind: Kind, bits: Array, exact: Array | None, rows: Array, columns: Array, *, is_pruned: bool = False
) -> Places:
    """Contexts of the elements of a chunk.

    Args:
        kind: Their type.
        bits: The predictions as bit patterns, `kind.unsigned`, shape (rows, columns).
        exact: The predictions before rounding, float64, same shape; none when they were not rounded.
        rows: int32, shape (rows, 1): class of each row, or `UNCHANGED_CLASS`. Classes are levels against 1.0.
        columns: int32, shape (1, columns); likewise.
        is_pruned: Whether small numbers may have become zero: contexts then tell how small they are.
    """
    level = rows + columns
    if is_pruned:
        level = level - _smallness(kind, bits)
    exponent = exponents(kind, bits) if kind.is_float else None
    if exponent is not None:
        bias = 2 ** (kind.exponent - 1) - 1 + kind.mantissa
        level = level - (exponent - np.int32(bias)) * np.int32(LEVELS_PER_OCTAVE)
    index = np.clip(level - np.int32(LEVEL_LOW), 0, LEVELS - 1)
    if exact is None:
        contexts = index + np.int32(FINE_LEVELS * NEARNESS)
        turned = None
    else:
        offset = exact - values(kind, bits)
        if exponent is not None:
            offset *= inverse_ulp(kind, exponent)
        turned = offset < 0.0
        middle = np.float64(0.5) - np.abs(offset)
        middle *= _INVERSE_SIGMA[index]
        near = np.zeros(index.shape, np.int32)
        for threshold in _THRESHOLDS:
            near += middle > threshold
        is_fine = index < FINE_LEVELS
        contexts = np.where(is_fine, index * np.int32(NEARNESS) + near, index + np.int32(FINE_LEVELS * NEARNESS))
    is_still = (rows == UNCHANGED_CLASS) | (columns == UNCHANGED_CLASS)
    if is_still.any():
        contexts = np.where(is_still, np.int32(UNCHANGED), contexts)
    if is_pruned:
        contexts = contexts + np.int32(PRUNED)
    return Places(contexts.astype(np.uint16), turned)


def _smallness(kind: Kind, bits: Array) -> Array:
    """What `places` does not ask of a number otherwise: the lower half of an octave, or an integer's length; int32."""
    if kind.is_float:
        return np.asarray((bits >> kind.unsigned.type(kind.mantissa - 1)).astype(np.int32) & np.int32(1))
    length = np.frexp(np.abs(values(kind, bits)))[1].astype(np.int32)
    return length * np.int32(LEVELS_PER_OCTAVE)


def zero_numbers(kind: Kind, guess: Array, base: Array, found: Places, *, is_signed: bool) -> Array:
    """The zigzag numbers by which predictions become zero.

    Args:
        kind: Type of the elements.
        guess: Predictions, `kind.unsigned`.
        base: What they were made from, same shape; its signs are kept if `is_signed`.
        found: Places of these elements.
        is_signed: Whether a negative number becomes -0.0.

    Returns:
        uint32, one dimension; 0 where a prediction is zero already, which needs no symbol of its own.
    """
    target = signed_zero(kind, base) if is_signed else np.zeros_like(base)
    difference = wrapped(kind, ordered(kind, target) - ordered(kind, guess))
    if found.is_turned is not None:
        difference = wrapped(kind, np.where(found.is_turned, -difference, difference))
    return zigzag(difference).ravel()


def raw_widths(kind: Kind, symbols: Array) -> Array:
    """How many raw bits follow each symbol; uint8 of the same shape."""
    widths = _RAW_BITS[symbols]
    escaped = symbols == ESCAPE
    if escaped.any():
        widths = np.where(escaped, np.uint8(kind.bits), widths)
    return widths


def numbers_of(symbols: Array, raw: Array, zeros: Array | None = None) -> Array:
    """The zigzag numbers that symbols and raw bits stand for; uint32.

    Args:
        symbols: uint8.
        raw: uint32, the raw bits of each.
        zeros: What `ZERO` stands for, `zero_numbers`; none where it cannot occur.

    Raises:
        DeltaError: When it occurs there.
    """
    numbers = np.asarray(_BASE[symbols] + raw)
    is_zero = symbols == ZERO
    if not is_zero.any():
        return numbers
    if zeros is None:
        raise DeltaError("a tensor has the symbol of pruned weights and is not pruned")
    return np.where(is_zero, zeros, numbers)


def to_symbols(numbers: Array, zeros: Array | None = None) -> Array:
    """The symbol of each zigzag number.

    Args:
        numbers: uint32.
        zeros: `zero_numbers` of the same elements, in pruned tensors.

    Returns:
        uint8, never `ESCAPE`.
    """
    # float64 holds every uint32, so its exponent is the exact bit length.
    length = np.frexp(numbers.astype(np.float64))[1].astype(np.int32)
    shift = np.maximum(length - np.int32(1 + MANTISSA_BITS), 0).astype(np.uint32)
    large = DIRECT + (length - np.int32(_FIRST_BITS)) * 8 + ((numbers >> shift) & np.uint32(7)).astype(np.int32)
    symbols = np.where(numbers < DIRECT, numbers.astype(np.int32), large).astype(np.uint8)
    return symbols if zeros is None else np.where((numbers == zeros) & (zeros > 0), np.uint8(ZERO), symbols)
