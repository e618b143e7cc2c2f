"""How weights are trained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """How to train.

    Attributes:
        rate: Learning rate.
        steps: Batches.
        optimiser: ``adamw`` or ``sgd`` (with momentum).
        seed: Of the order of samples.
        is_decaying: Whether the rate falls to nothing along a cosine.
        only: Prefix of the weights that are trained; everything else, running statistics too, stays.
        rank: Of adapters that are trained instead of the weights and merged afterwards; none.
    """

    rate: float
    steps: int
    optimiser: str = "adamw"
    seed: int = 1
    is_decaying: bool = False
    only: str = ""
    rank: int = 0
