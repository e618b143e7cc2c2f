"""What other threads tell the loop: one queue that never blocks who puts, bounded by what may be in it."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from edge_agent.core import inputs
from edge_agent.shell.limits import ACKED_BOOTS_MAX
from edge_contract.telemetry import Ack


@dataclass(frozen=True, slots=True)
class Call:
    """A function that another thread wants run on the loop's thread."""

    function: Callable[[], Any]
    future: "Future[Any]"


class Mark(Enum):
    """Items that carry nothing."""

    STOP = "stop"
    SAMPLES = "samples"  # samples were put where nobody waited for any before


Item = inputs.Event | Ack | Call | Mark | BaseException


class _Box(Enum):
    """Says that a merged message waits."""

    NUDGE = "nudge"
    LINK = "link"
    ACK = "ack"


@dataclass(slots=True)
class _Merged:
    """Messages of the link, as many as a broker likes to send, each kind as one that says the same."""

    director_version: int | None = None
    is_online: bool | None = None
    upto: dict[str, int] = field(default_factory=dict)


class Mailbox:
    """The loop's only ear. Every method but `get` may be called from any thread, and none of them blocks.

    Completions and exits of workers are as many as the commands they follow, requests as many as the control socket
    lets in; what comes over the network is merged. So the queue is bounded without a bound of its own, on which the
    loop could wait for itself. `SimpleQueue` takes an item even from a signal handler that interrupted a `get`.
    """

    def __init__(self) -> None:
        """Make an empty one."""
        self._queue: queue.SimpleQueue[Item | _Box] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._merged = _Merged()

    def put(self, item: Item) -> None:
        """Put an item that follows from something the loop knows of. Also from a signal handler."""
        self._queue.put(item)

    def put_nudge(self, director_version: int) -> None:
        """The highest version counts."""
        with self._lock:
            waiting = self._merged.director_version
            self._merged.director_version = max(director_version, waiting or 0)
        if waiting is None:
            self._queue.put(_Box.NUDGE)

    def put_link(self, is_online: bool) -> None:
        """The newest word counts: a link that went and came back is one that came up."""
        with self._lock:
            waiting, self._merged.is_online = self._merged.is_online, is_online
        if waiting is None:
            self._queue.put(_Box.LINK)

    def put_ack(self, ack: Ack) -> None:
        """The highest number of each boot counts. What does not fit is acknowledged again some other time."""
        with self._lock:
            upto = self._merged.upto
            is_first = not upto
            for boot, number in ack.upto.items():
                if boot in upto or len(upto) < ACKED_BOOTS_MAX:
                    upto[boot] = max(number, upto.get(boot, 0))
            is_first = is_first and bool(upto)
        if is_first:
            self._queue.put(_Box.ACK)

    def get(self, wait_s: float) -> Item | None:
        """The next item, or none after so long. The loop's thread."""
        try:
            item = self._queue.get(timeout=wait_s) if wait_s > 0 else self._queue.get_nowait()
        except queue.Empty:
            return None
        return self._open(item) if isinstance(item, _Box) else item

    def _open(self, box: _Box) -> Item:
        with self._lock:
            merged = self._merged
            if box is _Box.NUDGE:
                version, merged.director_version = merged.director_version or 0, None
                return inputs.NudgeReceived(version)
            if box is _Box.LINK:
                is_online, merged.is_online = bool(merged.is_online), None
                return inputs.LinkChanged(is_online)
            upto, merged.upto = merged.upto, {}
            return Ack(upto)
