"""Output drift: how far the outputs of live requests lie from those that the author saw on the golden inputs.

The outputs of a model are looked at column by column: an output whose last dimension has at most `DRIFT_COLUMNS_MAX`
elements has that many columns (the classes of a classifier), any other is one column. For each column the golden
outputs give a mean and a standard deviation; live outputs give a mean. The drift of an output is the root mean square,
over its columns, of (live mean - golden mean) / golden deviation; the drift of a worker is the largest of its outputs.
A model that goes on as its author saw it is near 0; one whose outputs all moved by a deviation is at 1.

Nothing is said (0) before `DRIFT_ROWS_MIN` golden and as many live rows, and of columns that do not vary in the golden
outputs. Not every request is looked at: one every `DRIFT_INTERVAL_MS`, and of it at most `DRIFT_ELEMENTS_MAX` elements.
"""

import threading
from collections.abc import Mapping
from typing import Final

import numpy as np

from edge_agent.worker.arrays import Array
from edge_agent.worker.limits import DRIFT_COLUMNS_MAX, DRIFT_ELEMENTS_MAX, DRIFT_INTERVAL_MS, DRIFT_ROWS_MIN

_INTERVAL_NS: Final = DRIFT_INTERVAL_MS * 1_000_000
_FLAT: Final = 1e-6
"""A column that varies by less than this share of its magnitude does not vary."""


class _Output:
    """One output: what golden says, and the sums of what was seen."""

    def __init__(self, golden: Array) -> None:
        rows = _rows(golden)
        self.columns = rows.shape[1]
        self.mean = rows.mean(axis=0)
        deviation = rows.std(axis=0)
        self.varies = (deviation > _FLAT * np.maximum(1e-12, np.abs(self.mean))) & np.isfinite(deviation)
        self.deviation = np.where(self.varies, deviation, 1.0)
        self.sums = np.zeros(self.columns)
        self.count = 0

    def add(self, array: Array) -> None:
        rows = _rows(array)
        rows = rows[: max(1, DRIFT_ELEMENTS_MAX // max(1, rows.shape[1]))]
        if rows.shape[1] == self.columns and rows.size and np.isfinite(sums := rows.sum(axis=0)).all():
            self.sums += sums
            self.count += rows.shape[0]

    @property
    def drift(self) -> float:
        if self.count < DRIFT_ROWS_MIN:
            return 0.0
        distance = ((self.sums / self.count - self.mean) / self.deviation)[self.varies]
        return float(np.sqrt(np.mean(distance**2)))


def _rows(array: Array) -> Array:
    """A matrix of at most a bounded number of columns; float64."""
    columns = array.shape[-1] if array.ndim > 1 and 0 < array.shape[-1] <= DRIFT_COLUMNS_MAX else 1
    rows: Array = array.reshape(-1, columns)
    if rows.size > DRIFT_ELEMENTS_MAX * columns:
        rows = rows[:DRIFT_ELEMENTS_MAX]
    return rows.astype(np.float64)


class Drift:
    """The drift of one model. Any thread; what two threads see in the same moment may be counted once."""

    def __init__(self, golden: Mapping[str, Array] | None = None) -> None:
        """Compare with these golden outputs by name; without them nothing is known, and nothing looked at."""
        self._outputs: dict[str, _Output] = {}
        for name, array in (golden or {}).items():
            if array.dtype.kind in "fiu" and _rows(array).shape[0] >= DRIFT_ROWS_MIN:
                output = _Output(array)
                if output.varies.any():
                    self._outputs[name] = output
        self._next_ns = 0 if self._outputs else 1 << 63
        self._lock = threading.Lock()

    def look(self, outputs: Mapping[str, Array], now_ns: int) -> None:
        """Look at the outputs of a request, unless another one was looked at a moment ago.

        Args:
            outputs: Arrays by output name; others than golden has are left out.
            now_ns: Monotonic clock.
        """
        if now_ns < self._next_ns:
            return
        self._next_ns = now_ns + _INTERVAL_NS
        with self._lock:
            for name, output in self._outputs.items():
                array = outputs.get(name)
                if array is not None and array.dtype.kind in "fiu":
                    output.add(array)

    @property
    def value(self) -> float:
        """The drift, in standard deviations of the golden outputs; 0 when unknown."""
        with self._lock:
            return max((output.drift for output in self._outputs.values()), default=0.0)
