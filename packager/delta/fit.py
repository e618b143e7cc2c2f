"""Finds the prediction of one tensor from its base: scales, a low-rank part, a grid; and how large residuals will be.

All of this is estimates in floating point; nothing of it has to be the same twice. What travels are whole numbers, and
both sides predict from those with `edge_delta.predict`.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from edge_delta.elements import Array, Kind, exponents, ordered, values, wrapped
from edge_delta.limits import SIDE_BYTES_MAX
from edge_delta.operations import Flag, Predicted
from edge_delta.predict import Prediction, Side
from edge_delta.symbols import LEVELS_PER_OCTAVE
from packager.delta.factors import ROUND_SEEN, Factors, find_factors, hidden, residual_bits

_SAMPLE: Final = 2**18
"""Elements that costs are estimated on."""
_MEAN_TO_SIGMA: Final = 1.2533
"""Deviation of a Gaussian against its mean magnitude: sqrt(pi / 2)."""
_MAGNITUDE_MAX: Final = 1e20
"""Infinities and NaNs lie this far from what was predicted, so that sums stay numbers."""
_CLASS_ROUNDS: Final = 3
_SIDE_BITS: Final = 4.0
"""Bits that a byte of side information takes, once compressed."""
_SCALE_BITS_MAX: Final = 30
_STEP_EXPONENT_MIN: Final = -120
_SCALES_BYTES_MAX: Final = SIDE_BYTES_MAX // 2
_FACTORS_BYTES_MAX: Final = SIDE_BYTES_MAX // 3
_GRID_ROWS_MAX: Final = SIDE_BYTES_MAX // 8
_GRID_NUMBERS_MAX: Final = 2**12
_GRID_SAMPLE: Final = 64
_GAIN_MIN: Final = 0.002
"""Share of the cost that a part of the prediction has to save."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A base tensor and a new one as matrices of bit patterns.

    Attributes:
        kind: Type of the elements.
        base: `kind.unsigned`, (rows, columns).
        new: Likewise.
    """

    kind: Kind
    base: Array
    new: Array

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.base.shape[0], self.base.shape[1]


@dataclass(frozen=True, slots=True)
class Fit:
    """A prediction: what travels, and what it is estimated to cost.

    Attributes:
        tensor: As it will be written, but for `packed`.
        side: Its side information.
        bits: Estimated size of the residuals and the side information.
    """

    tensor: Predicted
    side: Side
    bits: float


def fit(pair: Pair, offset: int, effort: int = 1, *, has_grid: bool = True) -> Fit:
    """The best prediction that is found.

    Args:
        pair: The tensors.
        offset: Where the base tensor begins in the base.
        effort: 0 tries scales alone, 1 a low-rank part too, 2 looks longer.
        has_grid: Whether to look for a grid.
    """
    rows, columns = pair.shape
    bare = Predicted(pair.kind, Flag(0), offset, rows, columns, 0)
    steps = _find_grid(pair) if has_grid and pair.kind.is_float else None
    estimate = _Estimate(pair, steps)
    best, best_bits = (Flag(0), Side(), 0), estimate.bits(estimate.base)
    for flag, count in ((Flag.ROW_SCALE, rows), (Flag.COLUMN_SCALE, columns)):
        scaled = estimate.scaled(flag) if 4 * count <= _SCALES_BYTES_MAX else None
        if scaled is not None and scaled[2] < best_bits * (1 - _GAIN_MIN):
            best, best_bits = (flag, scaled[0], scaled[1]), scaled[2]
    flags, side, scale_bits = best
    if effort > 0 and min(rows, columns) >= 4:
        guess = estimate.guess(side, scale_bits)
        found = find_factors(estimate.new - guess, estimate.ulps(guess), _FACTORS_BYTES_MAX // 4, effort)
        if found is not None:
            flags, side = flags | Flag.LOW_RANK, _with_factors(side, found)
            bare = replace(bare, rank=found.left.shape[1], shift=found.shift)
    if steps is not None:
        flags, side = flags | Flag.GRID, replace(side, steps=steps)
    return _with_classes(pair, replace(bare, flags=flags, scale_bits=scale_bits), side)


def _with_factors(side: Side, factors: Factors) -> Side:
    return replace(side, left=factors.left, right=factors.right)


class _Estimate:
    """Numbers of a pair as float64, and what residuals would cost."""

    def __init__(self, pair: Pair, steps: Array | None) -> None:
        self._pair = pair
        self._steps = None if steps is None else np.ldexp(1.0, steps.astype(np.int32))
        self.base = values(pair.kind, pair.base)
        self.new = values(pair.kind, pair.new)
        rows, columns = pair.shape
        step = max(1, rows * columns // _SAMPLE)
        self._rows = slice(None, None, min(step, max(1, rows // 16)))

    def ulps(self, guess: Array, rows: slice = slice(None)) -> Array:
        """Distance between neighbouring numbers that are possible at each prediction; float64."""
        if self._steps is None:
            return ulps(self._pair.kind, guess)
        return np.broadcast_to(self._steps[rows, None], guess.shape)

    def bits(self, guess: Array) -> float:
        """Estimated size of all residuals of a prediction, in bits."""
        some = guess[self._rows]
        residual = np.abs(self.new[self._rows] - some)
        ulp = self.ulps(some, self._rows)
        sigma = fitted_sizes(residual) * _MEAN_TO_SIGMA
        return float(residual_bits(hidden(sigma, ulp, ROUND_SEEN)).mean()) * guess.size

    def scaled(self, flag: Flag) -> tuple[Side, int, float] | None:
        """The best scale of each row or column: side information, its scale bits, and the estimated cost."""
        axis = 1 if flag is Flag.ROW_SCALE else 0
        squares = (self.base * self.base).sum(axis=axis)
        scale = np.divide((self.base * self.new).sum(axis=axis), squares, out=np.ones_like(squares), where=squares > 0)
        scale = np.copysign(np.clip(np.abs(scale), 0.125, 8.0), scale)
        # Numbers travel as int32.
        room = 30 - int(np.frexp(np.abs(scale - 1.0).max(initial=0.0))[1])
        bits_each = min(self._scale_bits(scale, axis), room)
        numbers = np.rint((scale - 1.0) * 2.0**bits_each).astype(np.int32)
        if not numbers.any():
            return None
        side = Side(row_scales=numbers) if axis == 1 else Side(column_scales=numbers)
        width = np.log2(1 + np.abs(numbers).astype(np.float64)).mean() + 1.5
        return side, bits_each, self.bits(self.guess(side, bits_each)) + float(width) * numbers.size

    def _scale_bits(self, scale: Array, axis: int) -> int:
        """Bits behind the point that a scale needs, so that its rounding disappears in the residual."""
        shaped = scale[:, None] if axis == 1 else scale[None, :]
        residual = np.abs(self.new - self.base * shaped)[self._rows]
        ulp = self.ulps(self.new[self._rows], self._rows)
        size = max(float(np.median(residual)), float(np.median(ulp)) / 4, 1e-300)
        largest = float(np.abs(self.base).mean()) + 1e-300
        return int(np.clip(np.ceil(np.log2(largest / size)) + 3, 4, _SCALE_BITS_MAX))

    def guess(self, side: Side, scale_bits: int) -> Array:
        """The base, scaled."""
        if side.row_scales is not None:
            return np.asarray(self.base * (1.0 + side.row_scales * 2.0**-scale_bits)[:, None])
        if side.column_scales is not None:
            return np.asarray(self.base * (1.0 + side.column_scales * 2.0**-scale_bits)[None, :])
        return self.base


def ulps(kind: Kind, value: Array) -> Array:
    """Distance between neighbouring numbers of a type at float64 values."""
    if not kind.is_float:
        return np.ones_like(value)
    exponent = np.frexp(value)[1] - 1
    lowest = 2 - 2 ** (kind.exponent - 1)
    return np.asarray(np.ldexp(1.0, np.maximum(exponent, lowest) - kind.mantissa))


def fitted_sizes(magnitude: Array) -> Array:
    """Mean magnitudes as a product of row and column sizes.

    Args:
        magnitude: float64, (rows, columns), not negative.

    Returns:
        Same shape: r_i c_j, found by scaling rows and columns in turn.
    """
    rows, columns = _sizes(magnitude)
    return np.outer(rows, columns)


def _sizes(magnitude: Array) -> tuple[Array, Array]:
    columns = np.ones(magnitude.shape[1])
    rows = np.ones(magnitude.shape[0])
    for _ in range(_CLASS_ROUNDS):
        shares = np.divide(1.0, columns, out=np.zeros_like(columns), where=columns > 0)
        rows = magnitude @ shares / max(1, np.count_nonzero(columns))
        shares = np.divide(1.0, rows, out=np.zeros_like(rows), where=rows > 0)
        columns = shares @ magnitude / max(1, np.count_nonzero(rows))
    return rows, columns


# -- classes ---------------------------------------------------------------------------------------------------------


def _with_classes(pair: Pair, tensor: Predicted, side: Side) -> Fit:
    """Add how large the residuals of rows and columns are, which makes the contexts."""
    prediction = Prediction(tensor, side)
    rows, columns = pair.shape
    magnitude = np.empty((rows, columns), np.float32)
    small = total = 0.0
    step = max(1, 2**18 // columns)
    for first in range(0, rows, step):
        part = slice(first, min(rows, first + step))
        if side.steps is not None:
            guess, _ = prediction.steps_of(pair.base[part], part, slice(0, columns))
            difference = grid_numbers(pair, side, part) - guess
        else:
            guess, _ = prediction.block(pair.base[part], part, slice(0, columns))
            difference = wrapped(pair.kind, ordered(pair.kind, pair.new[part]) - ordered(pair.kind, guess))
        size = np.abs(difference.astype(np.float64))
        small += float((size <= 2).sum())
        total += size.size
        if pair.kind.is_float and side.steps is None:
            bias = 2 ** (pair.kind.exponent - 1) - 1 + pair.kind.mantissa
            size = np.ldexp(size, exponents(pair.kind, guess) - bias)
        magnitude[part] = np.minimum(size, _MAGNITUDE_MAX)
    flags = tensor.flags
    if not prediction.is_plain and small > 0.3 * total:
        flags |= Flag.FINE
    some = slice(None, None, max(1, rows * columns // _SAMPLE))
    steps = np.ones((1, 1)) if side.steps is not None else ulps(pair.kind, values(pair.kind, pair.new[some]))
    return _classified(tensor, side, flags, magnitude, steps, some)


def _classified(tensor: Predicted, side: Side, flags: Flag, magnitude: Array, steps: Array, some: slice) -> Fit:
    """Add classes from mean magnitudes; `steps` are the distances between numbers in `some` of the rows."""
    row_sizes, column_sizes = _sizes(np.asarray(magnitude, np.float64))
    center, row_levels = _levels(row_sizes, row_sizes <= 0)
    column_center, column_levels = _levels(column_sizes, column_sizes <= 0)
    center = int(np.clip(center + column_center, -(2**14) + 1, 2**14 - 1))
    room = SIDE_BYTES_MAX - replace(tensor, flags=flags).side_bytes
    if row_levels.any() and row_levels.size <= room:
        room -= row_levels.size
        flags, side = flags | Flag.ROW_CLASSES, replace(side, row_classes=row_levels)
    if column_levels.any() and column_levels.size <= room:
        flags, side = flags | Flag.COLUMN_CLASSES, replace(side, column_classes=column_levels)
    found = replace(tensor, flags=flags, center=center)
    sigma = np.outer(row_sizes[some], column_sizes) * _MEAN_TO_SIGMA
    bits = float(residual_bits(sigma / steps).mean()) * tensor.rows * tensor.columns
    return Fit(found, side, bits + _SIDE_BITS * found.side_bytes)


def _levels(sizes: Array, still: Array) -> tuple[int, Array]:
    """Sizes as int8 levels around a center; -128 where nothing changed."""
    moved = sizes[~still]
    if not moved.size:
        return 0, np.full(sizes.size, -128, np.int8)
    exact = LEVELS_PER_OCTAVE * np.log2(np.where(still, 1.0, sizes * _MEAN_TO_SIGMA))
    center = int(np.rint(np.median(exact[~still])))
    levels = np.clip(np.rint(exact - center), -127, 127)
    return center, np.where(still, -128, levels).astype(np.int8)


# -- grids -----------------------------------------------------------------------------------------------------------


def _find_grid(pair: Pair) -> Array | None:
    """Exponents of the steps of a tensor that was snapped to a grid around its base, int8, or none."""
    rows, columns = pair.shape
    if rows > _GRID_ROWS_MAX:
        return None
    base, new = values(pair.kind, pair.base), values(pair.kind, pair.new)
    distance = new - base
    largest = np.abs(distance).max(axis=1)
    moved = largest > 0
    # A row whose numbers did not move may still hold another zero, denormal or NaN, which no step makes.
    if not moved.any() or (pair.base[~moved] != pair.new[~moved]).any():
        return None
    top = np.where(moved, np.frexp(np.where(moved, largest, 1.0))[1], 0)
    some = slice(None, None, max(1, columns // _GRID_SAMPLE))
    steps = np.full(rows, -128, np.int64)
    for down in range(_GRID_NUMBERS_MAX.bit_length()):
        open_rows = np.flatnonzero(moved & (steps == -128))
        if not open_rows.size:
            break
        part = _on_grid(pair, base, open_rows, top[open_rows] - down, some)
        rest = open_rows[part]
        whole = _on_grid(pair, base, rest, top[rest] - down, slice(None))
        steps[rest[whole]] = top[rest[whole]] - down
    if (moved & (steps == -128)).any() or (steps[moved] < _STEP_EXPONENT_MIN).any() or (steps > 127).any():
        return None
    return np.where(moved, steps, 0).astype(np.int8)


def _on_grid(pair: Pair, base: Array, rows: Array, exponent: Array, columns: slice) -> Array:
    """Which rows a step of 2 ** exponent reproduces, in some columns."""
    if not rows.size:
        return np.zeros(0, bool)
    bits, new = pair.base[rows][:, columns], pair.new[rows][:, columns]
    part = base[rows][:, columns]
    steps = np.clip(exponent, -127, 127).astype(np.int8)
    distance = values(pair.kind, new) - part
    numbers = np.rint(np.ldexp(distance, -steps.astype(np.int32)[:, None]))
    if np.abs(numbers).max(initial=0) > _GRID_NUMBERS_MAX * 2:
        numbers = np.clip(numbers, -_GRID_NUMBERS_MAX * 2, _GRID_NUMBERS_MAX * 2)
    tensor = Predicted(pair.kind, Flag.GRID, 0, len(rows), part.shape[1], 0)
    made = Prediction(tensor, Side(steps=steps)).on_grid(bits, slice(0, len(rows)), numbers.astype(np.int32))
    return np.asarray((made == new).all(axis=1))


def grid_numbers(pair: Pair, side: Side, rows: slice) -> Array:
    """How many steps each element of some rows lies from its base; int32."""
    if side.steps is None:
        raise AssertionError("a grid without steps")
    distance = values(pair.kind, pair.new[rows]) - values(pair.kind, pair.base[rows])
    return np.asarray(np.rint(np.ldexp(distance, -side.steps[rows].astype(np.int32)[:, None]))).astype(np.int32)
