"""How a decoder gives way beyond its low priority. Pure, but for `Pace`, which reads the machine's load and sleeps.

The kernel lets a process of the lowest priority run whenever a processor is free for an instant, between two requests
of a busy model, and then that model's threads wake on processors that are not idle: on two cores a loop that does
nothing takes a sixth of a closed loop's throughput that way. So where the rest of the machine is busy, decoding runs a
part of the time only. docs/benchmarks.md has what that costs and gains.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from edge_agent.delta.limits import BURST_S, BUSY_SHARE, DUTY_BESIDE_OTHERS, PAUSE_S_MAX

_STAT_BYTES = 512
_IDLE_FIELDS = (3, 4)  # idle, iowait
_FIELDS = 8  # guests are counted in user and nice already


@dataclass(frozen=True, slots=True)
class Load:
    """What the processors did since the machine started.

    Attributes:
        total: Ticks of all processors together.
        idle: Of these, in which they had nothing to do.
    """

    total: int
    idle: int


def parse_load(stat: bytes) -> Load | None:
    """Read the first line of `/proc/stat`, see proc(5); none when it is none of the kind."""
    words = stat.split(b"\n", 1)[0].split()
    if words[:1] != [b"cpu"] or len(words) <= _FIELDS or not all(word.isdigit() for word in words[1:]):
        return None
    ticks = [int(word) for word in words[1 : _FIELDS + 1]]
    return Load(sum(ticks), sum(ticks[field] for field in _IDLE_FIELDS))


def share_of_others(before: Load, after: Load, ran_ticks: float) -> float:
    """The share of all processors' time that others took, from 0 to 1.

    Args:
        before: Load at the start of a window.
        after: Load at its end.
        ran_ticks: What this process took of it.
    """
    total = after.total - before.total
    if total <= 0:
        return 1.0
    return min(1.0, max(0.0, (total - (after.idle - before.idle) - ran_ticks) / total))


def pause_s(ran_s: float, passed_s: float) -> float:
    """How long to rest, so that what ran is at most `DUTY_BESIDE_OTHERS` of what passed. At most `PAUSE_S_MAX`."""
    return min(PAUSE_S_MAX, max(0.0, ran_s / DUTY_BESIDE_OTHERS - passed_s))


class Pace:
    """Called between two pieces of work. One thread."""

    def __init__(
        self,
        stat_fd: int,
        clock: Callable[[], float] = time.monotonic,
        ran: Callable[[], float] = time.process_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Begin a window.

        Args:
            stat_fd: `/proc/stat`, opened for reading; while it says nothing, the machine counts as busy.
            clock: Seconds that pass.
            ran: Seconds of processor time that this process has had.
            sleep: Rests.
        """
        self._stat_fd = stat_fd
        self._clock, self._ran, self._sleep = clock, ran, sleep
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")
        self._is_busy = True  # until a window has told otherwise
        self._begin()

    def __call__(self) -> None:
        """Rest, where others have work to do."""
        passed_s = self._clock() - self._at_s
        if passed_s < BURST_S:
            return
        ran_s, before = self._ran() - self._ran_s, self._load
        if self._is_busy:
            self._sleep(pause_s(ran_s, passed_s))
        self._begin()
        self._is_busy = (
            before is None
            or self._load is None
            or share_of_others(before, self._load, ran_s * self._ticks_per_s) >= BUSY_SHARE
        )

    def _begin(self) -> None:
        self._at_s, self._ran_s, self._load = self._clock(), self._ran(), self._read()

    def _read(self) -> Load | None:
        try:
            return parse_load(os.pread(self._stat_fd, _STAT_BYTES, 0))
        except OSError:
            return None
