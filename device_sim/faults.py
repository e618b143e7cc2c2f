"""The fault menu: what can go wrong in a world, and how often, drawn from the seed.

Each kind of fault is left out altogether in some worlds, because faults hide each other: a device that restarts all the
time never shows what a lost message does.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

_LEFT_OUT = 0.3


@dataclass(frozen=True, slots=True)
class Faults:
    """Ratios are `0..1` for each try; means are milliseconds between two faults of one device, 0 for never.

    Attributes:
        loss: A message or a request between device and cloud is lost.
        slow: One is late by up to `slow_ms_max`, and messages overtake each other.
        slow_ms_max: See `slow`.
        repeat: A message comes twice.
        cut: A download breaks off.
        hostile: The metadata that comes is not what the cloud signed.
        disk_error: The disk refuses an operation, or has damaged a blob.
        disk_full: There is no space when a bundle is resolved.
        activate_failure: A candidate dies when it should begin to answer, or a fallback does not come up.
        restart_mean_ms: The device loses power.
        offline_mean_ms: The device loses its network for a while.
        crash_mean_ms: The live worker ends by itself.
        rollback_mean_ms: An operator asks for the fallback.
        postponed: The device's hook asks to wait.
        memory_short: The live worker has to end before a candidate loads.
        rot_mean_ms: The slot of what is live is damaged on disk.
        hold_mean_ms: An operator holds updates back for a while.
    """

    loss: float = 0.0
    slow: float = 0.0
    slow_ms_max: int = 1
    repeat: float = 0.0
    cut: float = 0.0
    hostile: float = 0.0
    disk_error: float = 0.0
    disk_full: float = 0.0
    activate_failure: float = 0.0
    restart_mean_ms: float = 0.0
    offline_mean_ms: float = 0.0
    crash_mean_ms: float = 0.0
    rollback_mean_ms: float = 0.0
    postponed: float = 0.0
    memory_short: float = 0.0
    rot_mean_ms: float = 0.0
    hold_mean_ms: float = 0.0


NO_FAULTS = Faults()


def draw_faults(draw: random.Random) -> Faults:
    """Faults of one world: each kind left out in some worlds, of drawn strength in the others."""
    full = Faults(
        loss=draw.uniform(0.02, 0.4),
        slow=draw.uniform(0.05, 0.5),
        slow_ms_max=draw.randint(500, 20_000),
        repeat=draw.uniform(0.02, 0.3),
        cut=draw.uniform(0.05, 0.4),
        hostile=draw.uniform(0.02, 0.2),
        disk_error=draw.uniform(0.01, 0.1),
        disk_full=draw.uniform(0.02, 0.2),
        activate_failure=draw.uniform(0.05, 0.3),
        restart_mean_ms=draw.uniform(20_000, 300_000),
        offline_mean_ms=draw.uniform(60_000, 600_000),
        crash_mean_ms=draw.uniform(60_000, 600_000),
        rollback_mean_ms=draw.uniform(200_000, 900_000),
        postponed=draw.uniform(0.05, 0.5),
        memory_short=draw.uniform(0.1, 0.9),
        rot_mean_ms=draw.uniform(200_000, 900_000),
        hold_mean_ms=draw.uniform(200_000, 900_000),
    )
    chosen = {
        item.name: getattr(full, item.name)
        for item in fields(Faults)
        if item.name == "slow_ms_max" or draw.random() > _LEFT_OUT
    }
    return Faults(**chosen)
