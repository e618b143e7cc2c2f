"""Virtual time: a queue of things to do, in the order of their instants, and nothing that waits."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(order=True, slots=True)
class Timer:
    """Something to be done at an instant; equal instants keep the order in which they were asked for."""

    at_ms: int
    number: int
    action: Callable[[], None] = field(compare=False)
    is_cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        """Never do it."""
        self.is_cancelled = True


class VirtualClock:
    """Milliseconds that pass only when somebody asks for the next thing to do. One thread."""

    def __init__(self) -> None:
        """Start at 0."""
        self.now_ms = 0
        self._queue: list[Timer] = []
        self._numbers = 0

    def call_at(self, at_ms: int, action: Callable[[], None]) -> Timer:
        """Do something at an instant, at the earliest now."""
        self._numbers += 1
        timer = Timer(max(at_ms, self.now_ms), self._numbers, action)
        heapq.heappush(self._queue, timer)
        return timer

    def call_in(self, wait_ms: int, action: Callable[[], None]) -> Timer:
        """Do something after a while."""
        return self.call_at(self.now_ms + wait_ms, action)

    def advance(self) -> bool:
        """Go to the next instant at which there is something to do, and do it; false when there is nothing left."""
        while self._queue:
            timer = heapq.heappop(self._queue)
            if not timer.is_cancelled:
                self.now_ms = timer.at_ms
                timer.action()
                return True
        return False
