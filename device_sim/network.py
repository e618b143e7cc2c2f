"""The network between simulated devices and their cloud: messages that may be lost, late, doubled or out of order."""

from __future__ import annotations

import random
from collections.abc import Callable

from device_sim.clock import VirtualClock
from device_sim.faults import Faults

_FAST_MS = (5, 80)
_TIMEOUT_MS = 10_000


class Network:
    """Carries closures. Faults are read at each use, so that a world can end them."""

    def __init__(self, clock: VirtualClock, draw: random.Random, faults: Callable[[], Faults]) -> None:
        """Deliver by this clock, with these faults."""
        self._clock = clock
        self._draw = draw
        self._faults = faults
        self.offline: set[str] = set()

    def send(self, device: str, deliver: Callable[[], None]) -> None:
        """Carry one message between a device and the cloud, in either direction; nobody learns whether it came."""
        faults = self._faults()
        copies = 2 if self._draw.random() < faults.repeat else 1
        for _ in range(copies):
            wait_ms, is_lost = self._wait_ms(faults), self._draw.random() < faults.loss
            if is_lost or device in self.offline:
                continue
            self._clock.call_in(wait_ms, lambda: None if device in self.offline else deliver())

    def request(self, device: str, work_ms: int, answer: Callable[[bool], None]) -> None:
        """Carry a request and its answer.

        Args:
            device: Who asks.
            work_ms: How long the other side takes.
            answer: Called once: true when the answer came, false when the device gave up waiting.
        """
        faults = self._faults()
        is_lost = self._draw.random() < faults.loss or device in self.offline
        wait_ms = self._wait_ms(faults) + work_ms

        def arrive() -> None:
            answer(not is_lost and device not in self.offline)

        self._clock.call_in(_TIMEOUT_MS if is_lost or wait_ms > _TIMEOUT_MS else wait_ms, arrive)

    def _wait_ms(self, faults: Faults) -> int:
        wait_ms = self._draw.randint(*_FAST_MS)
        if self._draw.random() < faults.slow:
            wait_ms += self._draw.randint(0, faults.slow_ms_max)
        return wait_ms
