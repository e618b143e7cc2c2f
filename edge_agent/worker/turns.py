"""Bounded admission for threads that run a model themselves: so many at once, so many waiting, the rest refused."""

import queue
import time

from edge_contract.errors import EdgeError


class Turns:
    """The turns of one model. Any thread.

    Attributes:
        given: How many were given back so far.

    A queue of tokens, because the standard library's semaphore is written in Python and costs as much as a tiny model.
    """

    def __init__(self, places: int, waiting_max: int) -> None:
        """Let `places` threads in at once and `waiting_max` wait."""
        self._places = places
        self._waiting_max = waiting_max
        self._waiting = 0
        self.given = 0
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(places):
            self._tokens.put(None)

    @property
    def is_busy(self) -> bool:
        """Whether somebody has a turn."""
        return self._tokens.qsize() < self._places

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return self._waiting

    def take(self, deadline_ns: int) -> bool:
        """Take a turn; whoever takes one gives it back.

        Args:
            deadline_ns: Monotonic clock after which it is not worth having.

        Returns:
            Whether it had to be waited for.

        Raises:
            EdgeError: `model.overloaded` when too many wait already, `model.timeout`.
        """
        try:
            self._tokens.get_nowait()
            return False
        except queue.Empty:
            pass
        # Not exact between threads, and it need not be: the threads themselves are bounded.
        if self._waiting >= self._waiting_max:
            raise EdgeError("model.overloaded", f"{self._waiting} requests are waiting already", "Try again later.")
        self._waiting += 1
        try:
            self._tokens.get(timeout=max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9))
        except queue.Empty:
            raise EdgeError("model.timeout", "the request's time was up before its turn came") from None
        finally:
            self._waiting -= 1
        return True

    def give(self) -> None:
        """Give a turn back."""
        self.given += 1  # not exact between threads either: it is asked whether it moves
        self._tokens.put(None)
