"""Chance from one seed: each part draws from a stream of its own, so a new draw in one moves nothing in another."""

from __future__ import annotations

import hashlib
import random


def stream(seed: int, *names: object) -> random.Random:
    """The random generator that belongs to these names under this seed."""
    text = "\x00".join(str(name) for name in (seed, *names))
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


def spell_ms(draw: random.Random, mean_ms: float, most: float = 6.0) -> int:
    """A waiting time with this mean as chance events have them, cut at `most` times the mean; at least 1."""
    return max(1, int(min(draw.expovariate(1 / mean_ms), most * mean_ms)))
