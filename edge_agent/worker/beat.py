"""Tells the agent, now and then, that this worker is not stuck; a worker that stops telling is ended by the agent.

A beat is a number in the shared page: it wakes nobody. It is withheld when the event loop does not turn (a model holds
the interpreter's lock), and when a model's threads are busy and have finished nothing for longer than any request may
take.
"""

import asyncio
import time
from collections.abc import Callable

from edge_agent.worker.ledger import Ledger


class Beat:
    """Beats while things move. On the event loop."""

    def __init__(self, ledger: Ledger, is_busy: Callable[[], bool], finished: Callable[[], int], stuck_ms: int) -> None:
        """Make a heart that does not beat yet.

        Args:
            ledger: Where to beat.
            is_busy: Whether a model computes in a thread.
            finished: How many requests were finished so far, however they ended.
            stuck_ms: A busy model that finishes nothing for so long is stuck.
        """
        self._ledger = ledger
        self._is_busy = is_busy
        self._finished = finished
        self._stuck_s = stuck_ms / 1000
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._interval_s = 0.0
        self._seen = -1
        self._moved = time.monotonic()

    def begin(self, interval_ms: int) -> None:
        """Beat from now on, so often."""
        self._interval_s = interval_ms / 1000
        self._moved = time.monotonic()
        if self._timer is not None:
            self._timer.cancel()
        self._turn()

    def _turn(self) -> None:
        finished = self._finished()
        if finished != self._seen or not self._is_busy():
            self._seen, self._moved = finished, time.monotonic()
        if time.monotonic() - self._moved < self._stuck_s:
            self._ledger.beat()
        self._timer = self._loop.call_later(self._interval_s, self._turn)
