"""Predicts the elements of a tensor from a range of the base; encoder and decoder run this same code (ADR 0037)."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from edge_delta.elements import Array, rounded, values
from edge_delta.errors import DeltaError
from edge_delta.limits import FACTOR_BITS_MAX
from edge_delta.operations import Flag, Predicted
from edge_delta.symbols import UNCHANGED_CLASS

_STILL: Final = -128
_NUMBERS_MAX: Final = 2.0**30


@dataclass(frozen=True, slots=True)
class Side:
    """What a tensor's prediction needs beside the base; all of it as it travels, shape by shape.

    Attributes:
        row_classes: int8, (rows,), against the tensor's center; -128 for a row in which nothing changed. None: all 0.
        column_classes: int8, (columns,), likewise.
        steps: int8, (rows,): the step of a row is 2 ** step. None without a grid.
        row_scales: int32, (rows,). None without.
        column_scales: int32, (columns,). None without.
        left: int32, (rows, rank), magnitudes below 2 ** `FACTOR_BITS_MAX`. None without a low-rank part.
        right: int32, (rank, columns), likewise.
    """

    row_classes: Array | None = None
    column_classes: Array | None = None
    steps: Array | None = None
    row_scales: Array | None = None
    column_scales: Array | None = None
    left: Array | None = None
    right: Array | None = None

    def to_bytes(self) -> bytes:
        """The bytes that `read_side` reads, before compression."""
        parts = [part.astype(np.int8).tobytes() for part in (self.row_classes, self.column_classes) if part is not None]
        parts += [] if self.steps is None else [self.steps.astype(np.int8).tobytes()]
        parts += [_planes(part) for part in (self.row_scales, self.column_scales, self.left) if part is not None]
        # Columns of the right factor beside each other, like rows of the left one.
        parts += [] if self.right is None else [_planes(self.right.T)]
        return b"".join(parts)


def _planes(numbers: Array) -> bytes:
    flat = np.ascontiguousarray(numbers).ravel().astype(np.int32)
    wide = ((flat << np.int32(1)) ^ (flat >> np.int32(31))).view(np.uint32).astype("<u4")
    return wide.view(np.uint8).reshape(-1, 4).T.tobytes()


def read_side(tensor: Predicted, data: bytes) -> Side:
    """Read a tensor's side information.

    Args:
        tensor: What it belongs to.
        data: `tensor.side_bytes` bytes.

    Raises:
        DeltaError: For factors whose products a float64 might round.
    """
    place = 0
    rows, columns, rank, flags = tensor.rows, tensor.columns, tensor.rank, tensor.flags

    def small(count: int, flag: Flag) -> Array | None:
        nonlocal place
        if flag not in flags:
            return None
        place += count
        return np.frombuffer(data, np.int8, count, place - count)

    def wide(count: int, flag: Flag) -> Array | None:
        nonlocal place
        if flag not in flags:
            return None
        place += 4 * count
        planes = np.frombuffer(data, np.uint8, 4 * count, place - 4 * count).reshape(4, count)
        numbers = np.ascontiguousarray(planes.T).view("<u4").ravel().astype(np.uint32)
        return (numbers >> np.uint32(1)).view(np.int32) ^ -(numbers & np.uint32(1)).view(np.int32)

    row_classes, column_classes = small(rows, Flag.ROW_CLASSES), small(columns, Flag.COLUMN_CLASSES)
    steps = small(rows, Flag.GRID)
    row_scales, column_scales = wide(rows, Flag.ROW_SCALE), wide(columns, Flag.COLUMN_SCALE)
    left, right = wide(rows * rank, Flag.LOW_RANK), wide(columns * rank, Flag.LOW_RANK)
    if left is not None and right is not None:
        largest = max(int(np.abs(factor.astype(np.int64)).max()) for factor in (left, right))
        if largest >= 2**FACTOR_BITS_MAX or largest * largest * rank > 2**53:
            raise DeltaError("the factors of a tensor are larger than they may be")
        left, right = left.reshape(rows, rank), right.reshape(columns, rank).T
    return Side(row_classes, column_classes, steps, row_scales, column_scales, left, right)


class Prediction:
    """Predicts one tensor, block by block. Used by one thread."""

    def __init__(self, tensor: Predicted, side: Side) -> None:
        """Prepare.

        Args:
            tensor: What to predict.
            side: Its side information.
        """
        self._tensor = tensor
        self._side = side
        self._right = None if side.right is None else np.ascontiguousarray(side.right).astype(np.float64)
        unit = np.float64(2.0) ** -tensor.scale_bits
        self._row_scales = None if side.row_scales is None else 1.0 + side.row_scales.astype(np.float64) * unit
        self._column_scales = None if side.column_scales is None else 1.0 + side.column_scales.astype(np.float64) * unit
        self._shrink = np.float64(2.0) ** -tensor.shift

    @property
    def is_plain(self) -> bool:
        """Whether the prediction is the base itself."""
        return not self._tensor.flags & (Flag.ROW_SCALE | Flag.COLUMN_SCALE | Flag.LOW_RANK)

    def classes(self, rows: slice, columns: slice) -> tuple[Array, Array]:
        """Classes of the rows and columns of a block, int32, shapes (rows, 1) and (1, columns)."""
        tensor, side = self._tensor, self._side
        of_rows = np.full(rows.stop - rows.start, tensor.center, np.int32)
        of_columns = np.zeros(columns.stop - columns.start, np.int32)
        if side.row_classes is not None:
            of_rows = _classes(side.row_classes[rows], tensor.center)
        if side.column_classes is not None:
            of_columns = _classes(side.column_classes[columns], 0)
        return of_rows.reshape(-1, 1), of_columns.reshape(1, -1)

    def block(self, bits: Array, rows: slice, columns: slice) -> tuple[Array, Array | None]:
        """Predict a block.

        Args:
            bits: The base's elements as bit patterns, shape (rows, columns) of the block.
            rows: Where it lies.
            columns: Where it lies.

        Returns:
            Predictions as bit patterns, and before rounding as float64, or none when they were not rounded.
        """
        if self.is_plain:
            return bits, None
        exact = self._exact(bits, rows, columns)
        return rounded(self._tensor.kind, exact), exact

    def _exact(self, bits: Array, rows: slice, columns: slice) -> Array:
        """Predictions before rounding."""
        exact = values(self._tensor.kind, bits)
        if self._row_scales is not None:
            exact *= self._row_scales[rows].reshape(-1, 1)
        if self._column_scales is not None:
            exact *= self._column_scales[columns].reshape(1, -1)
        if self._side.left is not None and self._right is not None:
            product = self._side.left[rows].astype(np.float64) @ self._right[:, columns]
            exact += product * self._shrink
        return exact

    def steps_of(self, bits: Array, rows: slice, columns: slice) -> tuple[Array, Array | None]:
        """Predict how many steps the elements of a tensor on a grid lie from their base.

        Args:
            bits: As `block` takes them.
            rows: Where the block lies.
            columns: Where it lies.

        Returns:
            int32, and before rounding as float64, or none when nothing but the base is known: then all are 0.
        """
        if self.is_plain:
            return np.zeros(bits.shape, np.int32), None
        distance = self._exact(bits, rows, columns) - values(self._tensor.kind, bits)
        exact = np.ldexp(distance, -self._exponents(rows))
        exact = np.clip(exact, -_NUMBERS_MAX, _NUMBERS_MAX)
        return np.rint(exact).astype(np.int32), exact

    def _exponents(self, rows: slice) -> Array:
        if self._side.steps is None:
            raise AssertionError("a grid without steps")
        return self._side.steps[rows].astype(np.int32).reshape(-1, 1)

    def on_grid(self, bits: Array, rows: slice, numbers: Array) -> Array:
        """Elements of a tensor on a grid.

        Args:
            bits: The base's elements, shape (rows, columns) of the block.
            rows: Where it lies.
            numbers: int32, how many steps each lies from its base; none is the base itself, whatever it is.

        Returns:
            Bit patterns.
        """
        exact = values(self._tensor.kind, bits) + np.ldexp(numbers.astype(np.float64), self._exponents(rows))
        return np.where(numbers == 0, bits, rounded(self._tensor.kind, exact))


def _classes(stored: Array, center: int) -> Array:
    wide = stored.astype(np.int32)
    return np.where(wide == _STILL, np.int32(UNCHANGED_CLASS), wide + np.int32(center))
