"""Notices that a worker is stuck: its count of turns stands still. Used by the thread that listens to the worker."""

import time
from typing import Final

from edge_agent.serving.keeping import Keeping

LOOKS: Final = 3
"""Looks without a turn until a worker counts as stuck. More than one: after the whole machine has slept, the agent may
look before the worker had a chance to turn."""


class Watch:
    """Looks at one worker's beats, rarely."""

    def __init__(self, keeping: Keeping, stuck_ms: int) -> None:
        """Watch nothing yet.

        Args:
            keeping: Where the beats are read.
            stuck_ms: A worker that has not turned for so long is stuck.
        """
        self._keeping = keeping
        self._interval_s = stuck_ms / 1000 / LOOKS
        self._next: float | None = None
        self._seen = 0
        self._misses = 0

    def begin(self) -> None:
        """It serves: it beats from now on."""
        self._misses = 0
        self._seen = self._keeping.beat()
        self._next = time.monotonic() + self._interval_s

    @property
    def wait_s(self) -> float | None:
        """How long until the next look; none when there is none."""
        return None if self._next is None else max(0.0, self._next - time.monotonic())

    def is_due(self) -> bool:
        """Whether to look now."""
        return self._next is not None and time.monotonic() >= self._next

    def look(self) -> bool:
        """Look, and let go of connections that are closed meanwhile; true when the worker is stuck."""
        self._next = time.monotonic() + self._interval_s
        self._keeping.prune()
        beat = self._keeping.beat()
        self._misses = self._misses + 1 if beat == self._seen else 0
        self._seen = beat
        return self._misses >= LOOKS
