"""A low-rank part of an update, as factors of whole numbers: LoRA merges are one, and most trainings have some.

Weighted by how well each element can be known at all: the residual's own size in its row and column, and not below the
distance between neighbouring numbers, which rounding hides.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from edge_delta.elements import Array
from edge_delta.limits import FACTOR_BITS_MAX, RANK_MAX, SHIFT_MAX

_RANKS: Final = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)
_COST_SAMPLE: Final = 2**17
_OVERSAMPLING: Final = 8
_EXACT_SIZE_MAX: Final = 512
_AROUND: Final = (0.67, 1.0, 1.5, 2.2)
_ALS_RANK_MAX: Final = 32
_HIDDEN_MIN: Final = 4e-4
ROUND_SEEN: Final = 0.098
"""The square of what rounding shows when a deviation is taken from the mean magnitude."""
_ROUND: Final = 0.2887
"""Deviation of an error that is even within one step: 1 / sqrt(12)."""


@dataclass(frozen=True, slots=True)
class Factors:
    """left @ right / 2 ** shift.

    Attributes:
        left: int32, (rows, rank).
        right: int32, (rank, columns).
        shift: Power of two.
    """

    left: Array
    right: Array
    shift: int


def hidden(sigma: Array | float, steps: Array, share: float = _ROUND**2) -> Array:
    """Deviation of a prediction's error, in steps, from that of what is seen: the new numbers were rounded themselves.

    Args:
        sigma: Deviation of new minus prediction.
        steps: Distance between neighbouring numbers.
        share: What rounding alone shows of the square of a step.
    """
    squared = (sigma / steps) ** 2 - share
    return np.asarray(np.sqrt(np.maximum(squared, _HIDDEN_MIN)))


def residual_bits(size: Array) -> Array:
    """Bits that a residual takes, by its deviation in steps between neighbouring numbers.

    A Gaussian of deviation s takes log2(4.13 s) bits where s is large. Where it is small, it is known how near the
    prediction lies to the middle between two numbers, and what is left is about 1.8 s.
    """
    return np.asarray(0.5 * np.log2(1 + 2.5 * size + 17.08 * size * size))


def find_factors(residual: Array, ulp: Array, numbers_max: int, effort: int) -> Factors | None:
    """Factors that save more than they cost, or none.

    Args:
        residual: float64, (rows, columns): new minus prediction.
        ulp: Distance between neighbouring numbers at each element.
        numbers_max: How many numbers both factors may have together.
        effort: 2 looks longer.
    """
    rows, columns = residual.shape
    rank_max = min(RANK_MAX, numbers_max // (rows + columns), min(rows, columns) // 2)
    if rank_max < 1 or not residual.any():
        return None
    row_scale, column_scale = _noise(residual, ulp)
    weighted = residual / row_scale[:, None] / column_scale[None, :]
    try:
        left, strength, right = _decompose(weighted, rank_max)
    except np.linalg.LinAlgError:
        return None
    likely = _choose_rank(weighted, strength, ulp / np.outer(row_scale, column_scale), rank_max)
    best: tuple[float, Factors] | None = None
    # The choice rests on estimates: what lies around it is tried as it would travel.
    for rank in sorted({min(rank_max, max(1, round(likely * share))) for share in _AROUND}) if likely else ():
        root = np.sqrt(strength[:rank])
        u, v = left[:, :rank] * root * row_scale[:, None], right[:rank] * root[:, None] * column_scale[None, :]
        u, v = _balanced(u, v)
        after = residual - u @ v
        is_fine = float(np.median(np.abs(after[:: max(1, rows // 64)]))) < 4 * float(
            np.median(ulp[:: max(1, rows // 64)])
        )
        if is_fine and rank <= _ALS_RANK_MAX and effort > 0:
            u, v = _balanced(*_refined(residual, ulp, u, v, effort))
        found = _quantised(residual, ulp, u, v)
        if found is not None and (best is None or found[0] < best[0]):
            best = found
    return None if best is None else best[1]


def _noise(residual: Array, ulp: Array) -> tuple[Array, Array]:
    """Row and column sizes of what rounding and training leave; their product weighs the elements."""
    size = np.abs(residual) + 0.3 * ulp
    rows = size.mean(axis=1)
    columns = (size / rows[:, None]).mean(axis=0)
    return rows, columns


def _decompose(matrix: Array, rank_max: int) -> tuple[Array, Array, Array]:
    """Singular vectors and values; by random projection where the matrix is large (Halko et al., arXiv:0909.4061)."""
    rows, columns = matrix.shape
    if min(rows, columns) <= _EXACT_SIZE_MAX:
        gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
        found, vectors = np.linalg.eigh(gram)
        order = np.argsort(found)[::-1][:rank_max]
        strength = np.sqrt(np.maximum(found[order], 1e-300))
        if rows <= columns:
            left = vectors[:, order]
            return left, strength, (left.T @ matrix) / strength[:, None]
        right = vectors[:, order].T
        return (matrix @ right.T) / strength, strength, right
    random = np.random.default_rng(0)
    sketch = matrix @ random.standard_normal((columns, rank_max + _OVERSAMPLING))
    for _ in range(2):
        sketch, _ = np.linalg.qr(matrix @ (matrix.T @ sketch))
    small = sketch.T @ matrix
    u, strength, right = np.linalg.svd(small, full_matrices=False)
    return sketch @ u[:, :rank_max], strength[:rank_max], right[:rank_max]


def _choose_rank(weighted: Array, strength: Array, ulp: Array, rank_max: int) -> int:
    """The rank whose factors and residuals cost least together; 0 for none."""
    rows, columns = weighted.shape
    energy = float((weighted * weighted).sum())
    step = max(1, weighted.size // _COST_SAMPLE)
    steps = ulp.ravel()[::step]
    numbers = weighted.size

    def cost(left_energy: float) -> float:
        sigma = np.sqrt(max(left_energy, 1e-9 * energy) / numbers)
        return float(residual_bits(hidden(sigma, steps)).mean()) * numbers

    best, best_cost = 0, cost(energy)
    left = energy - np.cumsum(strength**2)
    for rank in (*(rank for rank in _RANKS if rank < rank_max), rank_max):
        after = max(float(left[rank - 1]), 0.0)
        sigma = np.sqrt(max(after, 1e-9 * energy) / numbers)
        # A factor's numbers need to be exact to a fraction of the noise that is left.
        spread = np.log2(1 + strength[:rank] / np.sqrt(max(rows, columns)) / max(sigma, float(np.median(steps)) / 4))
        price = (rows + columns) * float((spread + 1.5).sum())
        total = cost(after) + price
        if total < best_cost:
            best, best_cost = rank, total
    return best


def _balanced(u: Array, v: Array) -> tuple[Array, Array]:
    """The same product, with every component equally large in both factors."""
    ratio = np.sqrt(np.sqrt((v * v).mean(axis=1)) / np.maximum(np.sqrt((u * u).mean(axis=0)), 1e-300))
    ratio = np.where(ratio > 0, ratio, 1.0)
    return u * ratio, v / ratio[:, None]


def _refined(residual: Array, ulp: Array, u: Array, v: Array, rounds: int) -> tuple[Array, Array]:
    """Weighted least squares in turn for both factors."""
    for _ in range(rounds):
        weight = _weights(residual - u @ v, ulp)
        u = _solved(residual, weight, v)
        weight = _weights(residual - u @ v, ulp)
        v = _solved(residual.T, weight.T, u.T).T
    return u, v


def _weights(after: Array, ulp: Array) -> Array:
    size = np.abs(after)
    local = np.outer(size.mean(axis=1), size.mean(axis=0)) / max(float(size.mean()), 1e-300)
    spread = np.maximum(_ROUND * ulp, local)
    weight = 1.0 / (spread * spread)
    return np.asarray(weight / weight.mean())


def _solved(target: Array, weight: Array, basis: Array) -> Array:
    """For each row: the combination of the basis' rows that fits it best under its weights."""
    rank = basis.shape[0]
    pairs = (basis[:, None, :] * basis[None, :, :]).reshape(rank * rank, -1)
    normal = (weight @ pairs.T).reshape(-1, rank, rank)
    right = (weight * target) @ basis.T
    trace = np.trace(normal, axis1=1, axis2=2)[:, None, None]
    normal = normal + (1e-12 * trace + 1e-300) * np.eye(rank)
    return np.asarray(np.linalg.solve(normal, right[:, :, None])[:, :, 0])


def _quantised(residual: Array, ulp: Array, u: Array, v: Array) -> tuple[float, Factors] | None:
    """Whole numbers, as few bits as the noise that is left allows; with what they and the residuals cost, in bits."""
    rows, columns = residual.shape
    rank = u.shape[1]
    step = max(1, rows // 128)
    after = residual[::step] - u[::step] @ v
    steps = ulp[::step]
    seen = hidden(float(np.abs(after).mean()) * 1.2533, steps, ROUND_SEEN)
    largest = max(float(np.abs(u).max()), float(np.abs(v).max()), 1e-300)
    best: tuple[float, int] | None = None
    for bits in range(4, FACTOR_BITS_MAX + 1):
        half = int(np.floor(bits - 1 - np.log2(largest)))
        if not 0 <= 2 * half <= SHIFT_MAX or largest * 2.0**half >= 2 ** (FACTOR_BITS_MAX - 1):
            continue
        if rank * (largest * 2.0**half + 1) ** 2 > 2**53:
            continue
        unit = 2.0**-half
        error = unit * _ROUND * np.sqrt((v * v).sum(axis=0).mean() + (u * u).sum(axis=1).mean())
        sigma = np.sqrt(seen**2 + (error / steps) ** 2)
        cost = float(residual_bits(sigma).mean()) * rows * columns
        widths = np.log2(1 + np.abs(u) / unit).sum() + np.log2(1 + np.abs(v) / unit).sum()
        total = cost + float(widths) + 2.0 * rank * (rows + columns)
        if best is None or total < best[0]:
            best = (total, half)
    if best is None:
        return None
    scale = 2.0 ** best[1]
    left, right = np.rint(u * scale).astype(np.int32), np.rint(v * scale).astype(np.int32)
    if not left.any() or not right.any():
        return None
    return best[0], Factors(left, right, 2 * best[1])
