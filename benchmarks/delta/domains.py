"""What the networks learn from: scanned digits and synthetic waves, as they are in the factory and in the field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TRAINED = 900
_FIELD = 421
_NOISE = 0.18
_SHIFTED = 0.3
_LAB_NOISE = 0.12
_WAVES = 3_000
_WINDOW = 256


@dataclass(frozen=True)
class Split:
    """Inputs, and classes of digits or the windows themselves."""

    x: NDArray[np.float32]
    y: NDArray[Any]


@dataclass(frozen=True)
class Domain:
    """One kind of data.

    Attributes:
        factory: What the first model learns from.
        lab: The same, and once more with a little noise.
        field: What it is tuned on later: other samples, noisy, of another gain, shifted.
        test: Of the field, for judging.
    """

    factory: Split
    lab: Split
    field: Split
    test: Split


def _shuffled() -> Split:
    from sklearn.datasets import load_digits

    loaded = load_digits()
    order = np.random.default_rng(11).permutation(len(loaded.target))
    return Split((loaded.images[order] / 16).astype(np.float32)[:, None], loaded.target[order].astype(np.int64))


def digits() -> Domain:
    """The 1,797 digits bundled with scikit-learn: 8x8 pixels from 0 to 1."""
    every, unseen = _shuffled(), unseen_digits()
    field = slice(_TRAINED, _TRAINED + _FIELD)
    factory = Split(every.x[:_TRAINED], every.y[:_TRAINED])
    return Domain(
        factory,
        _noisier(factory, _LAB_NOISE, 17),
        Split(worn(every.x[field], 12), every.y[field]),
        Split(worn(unseen.x, 13), unseen.y),
    )


def unseen_digits() -> Split:
    """Those that no network learns from, as they were scanned."""
    every = _shuffled()
    return Split(every.x[_TRAINED + _FIELD :], every.y[_TRAINED + _FIELD :])


def worn(x: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Images as a worn camera sees them: gain that drifts, some moved by a pixel, noise."""
    numbers = np.random.default_rng(seed)
    gain = numbers.uniform(0.6, 1.3, (len(x), 1, 1, 1))
    shifts = numbers.integers(-1, 2, (len(x), 2)) * (numbers.random((len(x), 1)) < _SHIFTED)
    moved = np.stack([np.roll(image, tuple(shift), (1, 2)) for image, shift in zip(x, shifts, strict=True)])
    return (moved * gain + numbers.normal(0, _NOISE, x.shape)).astype(np.float32)


def _noisier(split: Split, noise: float, seed: int) -> Split:
    noisy = (split.x + np.random.default_rng(seed).normal(0, noise, split.x.shape)).astype(np.float32)
    return Split(np.concatenate([split.x, noisy]), np.concatenate([split.y, split.y]))


def more_classes(split: Split, seed: int) -> Split:
    """The same with two classes more: digits that are negatives, and digits of which half is hidden."""
    numbers = np.random.default_rng(seed)
    negative, hidden = (split.x[numbers.permutation(len(split.x))[: len(split.x) // 8]] for _ in range(2))
    hidden = hidden.copy()
    hidden[:, :, :, 4:] = 0
    x = np.concatenate([split.x, 1 - negative, hidden])
    y = np.concatenate([split.y, np.full(len(negative), 10), np.full(len(hidden), 11)])
    order = numbers.permutation(len(x))
    return Split(x[order], y[order].astype(np.int64))


def waves() -> Domain:
    """Windows of 256 readings of a machine that turns: harmonics, a beat, noise; later another speed and gain."""
    factory = _turning(21, _WAVES, 1.0, 1.0)
    return Domain(
        factory,
        factory,
        _turning(22, _WAVES, 1.08, 1.15),
        _turning(23, _WAVES // 4, 1.08, 1.15),
    )


def _turning(seed: int, count: int, speed: float, gain: float) -> Split:
    numbers = np.random.default_rng(seed)
    time = np.arange(_WINDOW) / _WINDOW
    base = numbers.uniform(3, 9, (count, 1)) * speed
    x = np.zeros((count, _WINDOW))
    for harmonic in (1, 2, 3, 5):
        size = numbers.uniform(0.2, 1.0, (count, 1)) / harmonic
        x += size * np.sin(2 * np.pi * (base * harmonic * time + numbers.uniform(0, 1, (count, 1))))
    x *= 1 + 0.3 * np.sin(2 * np.pi * numbers.uniform(0.5, 2, (count, 1)) * time)
    noisy = (x * gain + numbers.normal(0, 0.05, x.shape)).astype(np.float32)
    return Split(noisy, noisy)
