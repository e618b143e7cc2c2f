"""As which numbers two tensors are compared: FP32 that holds nothing more than FP16 or BF16, or a type made another."""

from math import prod
from typing import Final

from edge_delta.elements import BF16, BY_NAME, F16, F32, Array, Kind, narrowed, widened
from edge_delta.operations import Flag
from packager.delta.fit import Pair
from packager.delta.plan import Changed

_FEW: Final = 4
_PART: Final = 2**20


def cast_of(part: Changed, base: Array, new: Array) -> tuple[Pair, Flag] | None:
    """A pair of tensors as matrices of one type.

    Weights that were trained in half precision and kept as FP32 are predicted as what they were.

    Args:
        part: The tensors.
        base: The bytes of the base.
        new: The bytes of the new file.

    Returns:
        The pair and how the decoder comes to it; none for types that are not made from each other.
    """
    kinds = BY_NAME[part.base.dtype], BY_NAME[part.new.dtype]
    before = base[part.base.start : part.base.end].view(kinds[0].unsigned)
    after = new[part.new.start : part.new.end].view(kinds[1].unsigned)
    shape = _matrix(part.new.shape)
    kind, flags = kinds[1], Flag(0)
    if kinds[1] is F32 and kinds[0].is_float:
        half = next((half for half in (BF16, F16) if _holds(half, after)), None)
        if half is not None and kinds[0] in (F32, half):
            kind, flags, after = half, flags | Flag.TO_SINGLE, narrowed(half, after)
    if kinds[0] is F32 and kind in (F16, BF16):
        flags, before = flags | Flag.FROM_SINGLE, narrowed(kind, before)
    elif kinds[0] is not kind:
        return None
    return Pair(kind, before.reshape(shape), after.reshape(shape)), flags


def _holds(kind: Kind, bits: Array) -> bool:
    """Whether every float32 is one of a smaller type, exactly."""
    return all(
        bool((widened(kind, narrowed(kind, part)) == part).all())
        for part in (bits[place : place + _PART] for place in range(0, bits.size, _PART))
    )


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """The matrix that a tensor is seen as: channels of output are its rows, or its columns in depthwise kernels."""
    size = prod(shape)
    if len(shape) < 2 or not size:
        return 1, size
    if len(shape) > 2 and shape[0] < _FEW and shape[-1] > shape[0]:
        return size // shape[-1], shape[-1]
    return shape[0], size // shape[0]
