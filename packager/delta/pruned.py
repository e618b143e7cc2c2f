"""Weights that became zero: whether a tensor has enough of them, and its prediction where it has.

Which weights are pruned is told by a symbol of its own, in contexts that know how small each is. The rest is predicted
as if nothing had been pruned.
"""

from dataclasses import replace
from typing import Final

import numpy as np

from edge_delta.elements import Array, exponents
from edge_delta.operations import Flag
from edge_delta.symbols import LEVEL_LOW, LEVELS_PER_OCTAVE
from packager.delta.fit import Fit, Pair, fit

_FLOATS_MIN: Final = 0.005
"""Share of floats that have to become zero; none does by training."""
_INTEGERS_MIN: Final = 0.1
_MOVED_MIN: Final = 0.1
"""Share of the other weights that have to change for classes to tell anything."""
_STILL: Final = -128
_FIRST_LEVEL: Final = 2


def fit_pruned(pair: Pair, offset: int, effort: int) -> Fit | None:
    """The best prediction of a pruned tensor, or none when it is not pruned.

    Args:
        pair: The tensors.
        offset: Where the base tensor begins in the base.
        effort: As `fit` takes it.
    """
    kind = pair.kind
    signs = kind.unsigned.type(2 ** (kind.bits - 1) if kind.is_float else 0)
    is_pruned = ((pair.new & ~signs) == 0) & ((pair.base & ~signs) != 0)
    share = float(is_pruned.mean())
    if share < (_FLOATS_MIN if kind.is_float else _INTEGERS_MIN):
        return None
    found = fit(replace(pair, new=np.where(is_pruned, pair.base, pair.new)), offset, effort, has_grid=False)
    flags = found.tensor.flags | Flag.ZEROS
    is_negative = is_pruned & ((pair.base & signs) != 0)
    if 2 * np.count_nonzero(pair.new[is_negative]) > np.count_nonzero(is_negative):
        flags |= Flag.SIGNED_ZEROS
    mask_bits = -share * np.log2(share) - (1 - share) * np.log2(1 - share) if share < 1 else 0.0
    bits = found.bits + float(mask_bits) * is_pruned.size
    if ((pair.new != pair.base) & ~is_pruned).mean() < _MOVED_MIN:
        # Classes would say of every row that hardly anything changed, whatever the magnitudes.
        flags &= ~(Flag.ROW_CLASSES | Flag.COLUMN_CLASSES)
        side = replace(found.side, row_classes=None, column_classes=None)
        return Fit(replace(found.tensor, flags=flags, center=_center(pair)), side, bits)
    side = found.side
    rows, columns = _without_still(side.row_classes), _without_still(side.column_classes)
    return Fit(replace(found.tensor, flags=flags), replace(side, row_classes=rows, column_classes=columns), bits)


def _center(pair: Pair) -> int:
    """The class of rows in which nothing else changed, so that contexts tell the magnitudes apart."""
    if not pair.kind.is_float:
        return 0
    bias = 2 ** (pair.kind.exponent - 1) - 1 + pair.kind.mantissa
    largest = int(np.percentile(exponents(pair.kind, pair.base), 99.9)) - bias
    return int(LEVELS_PER_OCTAVE * largest + LEVEL_LOW + _FIRST_LEVEL)


def _without_still(classes: Array | None) -> Array | None:
    """In rows and columns in which nothing else changed weights may have been pruned."""
    return None if classes is None else np.where(classes == _STILL, np.int8(0), classes)
