"""Elements of tensors as ordered integers, and the prediction of one from another, bit for bit the same everywhere.

Every step is an integer operation, or one IEEE 754 operation on float64 values that no mode of the processor changes:
numbers whose exponent is all zeros or all ones are mapped to zero before arithmetic sees them, so that flushing
denormals or the bits of a NaN can make no difference. Matrix products are of whole numbers below 2**53, so that no
order of summing and no fused multiplication changes them (ADR 0037).
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """One type of elements.

    Attributes:
        name: As `packager.delta.formats` names it.
        number: On the wire.
        bytes: Bytes of one element.
        mantissa: Explicit bits of the significand; 0 for integers.
        exponent: Bits of the exponent; 0 for integers.
        is_signed: Whether an integer has a sign; true for floats.
    """

    name: str
    number: int
    bytes: int
    mantissa: int
    exponent: int
    is_signed: bool = True

    @property
    def bits(self) -> int:
        """Bits of one element."""
        return 8 * self.bytes

    @property
    def is_float(self) -> bool:
        """Whether elements have an exponent."""
        return self.exponent > 0

    @property
    def unsigned(self) -> np.dtype[Any]:
        """Little-endian unsigned integers of the same width."""
        return np.dtype(f"<u{self.bytes}")

    @property
    def signed(self) -> np.dtype[Any]:
        """Little-endian signed integers of the same width."""
        return np.dtype(f"<i{self.bytes}")


F32: Final = Kind("f32", 0, 4, 23, 8)
F16: Final = Kind("f16", 1, 2, 10, 5)
BF16: Final = Kind("bf16", 2, 2, 7, 8)
I8: Final = Kind("i8", 3, 1, 0, 0)
U8: Final = Kind("u8", 4, 1, 0, 0, is_signed=False)
I16: Final = Kind("i16", 5, 2, 0, 0)
I32: Final = Kind("i32", 6, 4, 0, 0)
KINDS: Final = (F32, F16, BF16, I8, U8, I16, I32)
BY_NAME: Final = {kind.name: kind for kind in KINDS}
BY_NUMBER: Final = {kind.number: kind for kind in KINDS}

_U32: Final = np.uint32
_SMALLEST: Final = np.float64(2.0**-126)
"""Of float32 and bfloat16; a float16 that small is 0 anyway."""
_ONE: Final = np.uint32(1)
_INV_ULP: Final = {
    # ulp of a float with the biased exponent e is 2 ** (e - bias - mantissa), and that of e = 0 is that of e = 1.
    kind.number: np.ldexp(
        1.0, np.array([2 ** (kind.exponent - 1) - 1 + kind.mantissa - max(e, 1) for e in range(2**kind.exponent)])
    )
    for kind in (F32, F16, BF16)
}
"""1 / ulp by biased exponent: powers of two, exact."""


def ordered(kind: Kind, bits: Array) -> Array:
    """Bit patterns as integers in the order of the numbers they stand for.

    Args:
        kind: Their type.
        bits: Unsigned integers of `kind.unsigned`, any shape.

    Returns:
        int32 of the same shape: -0.0 is -1 and 0.0 is 0. Unsigned integers stay what they are.
    """
    if not kind.is_float:
        return bits.view(kind.signed).astype(np.int32) if kind.is_signed else bits.astype(np.int32)
    signed = bits.view(kind.signed)
    flip = (signed >> kind.signed.type(kind.bits - 1)) & kind.signed.type(2 ** (kind.bits - 1) - 1)
    found: Array = (signed ^ flip).astype(np.int32)
    return found


def unordered(kind: Kind, order: Array) -> Array:
    """The bit patterns that `ordered` made integers of; higher bits are cut off.

    Args:
        kind: Their type.
        order: int32.

    Returns:
        Unsigned integers of `kind.unsigned`.
    """
    signed = order.astype(kind.signed)
    if kind.is_float:
        flip = (signed >> kind.signed.type(kind.bits - 1)) & kind.signed.type(2 ** (kind.bits - 1) - 1)
        signed = signed ^ flip
    found: Array = signed.view(kind.unsigned)
    return found


def signed_zero(kind: Kind, bits: Array) -> Array:
    """Zeros with the signs of some floats; of integers, zeros. Same type and shape."""
    sign = kind.unsigned.type(2 ** (kind.bits - 1) if kind.is_float else 0)
    return np.asarray(bits & sign)


def exponents(kind: Kind, bits: Array) -> Array:
    """Biased exponents of floats, at least 1.

    Args:
        kind: A float type.
        bits: `kind.unsigned`.

    Returns:
        int32, `1..2**exponent - 1`.
    """
    found = (bits >> kind.unsigned.type(kind.mantissa)).astype(np.int32) & np.int32(2**kind.exponent - 1)
    result: Array = np.maximum(found, np.int32(1))
    return result


def values(kind: Kind, bits: Array) -> Array:
    """Elements as float64; denormals, infinities and NaNs count as 0.

    Args:
        kind: Their type.
        bits: `kind.unsigned`.
    """
    if not kind.is_float:
        return ordered(kind, bits).astype(np.float64)
    top = kind.unsigned.type(2**kind.exponent - 1)
    found = (bits >> kind.unsigned.type(kind.mantissa)) & top
    clean = np.where((found == top) | (found == 0), kind.unsigned.type(0), bits)
    if kind is F32:
        return clean.view(np.float32).astype(np.float64)
    if kind is F16:
        return clean.view(np.float16).astype(np.float32).astype(np.float64)
    return (clean.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)


def rounded(kind: Kind, value: Array) -> Array:
    """float64 numbers as bit patterns of a type, to the nearest; what would be a denormal is 0.

    Args:
        kind: The type.
        value: float64, finite or infinite.

    Returns:
        `kind.unsigned`.
    """
    if not kind.is_float:
        low, high = (-(2 ** (kind.bits - 1)), 2 ** (kind.bits - 1) - 1) if kind.is_signed else (0, 2**kind.bits - 1)
        return np.clip(np.rint(value), float(low), float(high)).astype(np.int64).astype(kind.unsigned)
    # Just below the smallest normal number, where flushing denormals would decide on which side it comes to lie.
    single = np.where(np.abs(value) < _SMALLEST, 0.0, value).astype(np.float32)
    if kind is F32:
        bits = single.view(np.uint32)
    elif kind is F16:
        bits = single.astype(np.float16).view(np.uint16)
    else:
        wide = single.view(np.uint32)
        bits = ((wide + _U32(0x7FFF) + ((wide >> _U32(16)) & _ONE)) >> _U32(16)).astype(np.uint16)
    found = bits & kind.unsigned.type((2**kind.exponent - 1) << kind.mantissa)
    return np.where(found == 0, kind.unsigned.type(0), bits)


def narrowed(kind: Kind, bits: Array) -> Array:
    """float32 bit patterns rounded to a smaller type, to the nearest even, by whole numbers alone.

    Args:
        kind: `F16` or `BF16`.
        bits: uint32; denormals, infinities and NaNs too, of which the lower bits are cut off.

    Returns:
        uint16.
    """
    sign, rest = (bits >> np.uint32(16)) & np.uint32(0x8000), bits & np.uint32(0x7FFFFFFF)
    exponent = rest >> np.uint32(23)
    if kind is BF16:
        near = (rest + np.uint32(0x7FFF) + ((rest >> np.uint32(16)) & _ONE)) >> np.uint32(16)
        return (sign | np.where(exponent == 255, rest >> np.uint32(16), near)).astype(np.uint16)
    moved = rest - np.uint32(112 << 23)
    normal = np.minimum(
        (moved + np.uint32(0xFFF) + ((moved >> np.uint32(13)) & _ONE)) >> np.uint32(13), np.uint32(0x7C00)
    )
    special = np.uint32(0x7C00) | ((rest & np.uint32(0x7FFFFF)) >> np.uint32(13))
    # A denormal half has its ones at fixed places, so that more bits fall off the smaller the number is.
    shift = np.clip(126 - exponent.astype(np.int32), 1, 25).astype(np.uint32)
    whole = (rest & np.uint32(0x7FFFFF)) | np.uint32(0x800000)
    kept = whole >> shift
    lost, half = whole - (kept << shift), _ONE << (shift - _ONE)
    small = kept + ((lost > half) | ((lost == half) & ((kept & _ONE) == _ONE)))
    found = np.where(exponent == 255, special, np.where(exponent < 113, small, normal))
    return (sign | found).astype(np.uint16)


def widened(kind: Kind, bits: Array) -> Array:
    """The float32 bit patterns of the same numbers, by whole numbers alone, whatever they are.

    Args:
        kind: `F16` or `BF16`.
        bits: uint16.

    Returns:
        uint32.
    """
    wide = bits.astype(np.uint32)
    if kind is BF16:
        return np.asarray(wide << np.uint32(16))
    sign, rest = (wide & np.uint32(0x8000)) << np.uint32(16), wide & np.uint32(0x7FFF)
    exponent, mantissa = rest >> np.uint32(10), rest & np.uint32(0x3FF)
    normal = (rest << np.uint32(13)) + np.uint32(112 << 23)
    special = np.uint32(0x7F800000) | (mantissa << np.uint32(13))
    # A denormal half is a whole number of 2**-24, which no single is too small for.
    small = (mantissa.astype(np.float32) * np.float32(2.0**-24)).view(np.uint32)
    return sign | np.where(exponent == 31, special, np.where(exponent == 0, small, normal))


def inverse_ulp(kind: Kind, exponent: Array) -> Array:
    """1 / (distance between neighbouring floats) for exponents that `exponents` gave; float64 powers of two."""
    found: Array = _INV_ULP[kind.number][exponent]
    return found


def zigzag(difference: Array) -> Array:
    """int32 differences as uint32 of small magnitude: 0, -1, 1, -2 are 0, 1, 2, 3."""
    return ((difference << np.int32(1)) ^ (difference >> np.int32(31))).view(np.uint32)


def unzigzag(number: Array) -> Array:
    """What `zigzag` took; int32."""
    return (number >> _ONE).view(np.int32) ^ -(number & _ONE).view(np.int32)


def wrapped(kind: Kind, difference: Array) -> Array:
    """Differences of ordered integers modulo the width of the type, as int32 around zero."""
    if kind.bits == 32:
        return difference
    spare = np.int32(32 - kind.bits)
    return (difference << spare) >> spare
