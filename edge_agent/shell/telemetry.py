"""Telemetry on its way: from workers into the spool, and from there to the cloud until it is acknowledged."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from edge_agent import ports
from edge_agent.core.batching import Delivery
from edge_agent.shell.limits import FLUSH_MS, SAMPLES_BYTES_MAX, SAMPLES_MAX
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.telemetry import Ack

_log = logging.getLogger("edge_agent")
_LEAF_BYTES = 32  # what a number takes in memory, about


class Telemetry:
    """Owns the spool and the delivery. The loop's thread, but for `take`.

    Trouble with the disk never passes: telemetry gives way to everything else.
    """

    def __init__(self, spool: ports.Spool, link: ports.Link, wake: Callable[[], None]) -> None:
        """Move records from `take` to the link.

        Args:
            spool: Keeps them.
            link: Sends them.
            wake: Tells the loop that there are samples; called by whoever calls `take`.
        """
        self._spool = spool
        self._link = link
        self._wake = wake
        self._delivery = Delivery()
        self._samples: deque[JsonObject] = deque()
        self._samples_bytes = 0
        self._dropped = 0
        self._lock = threading.Lock()
        self._flush_at: int | None = None
        self._sent = ("", 0)  # boot and highest number of the batch that was sent last

    def take(self, module: str, record: JsonObject) -> None:
        """Take a sample. Any thread, never blocks.

        It is dropped and counted when `SAMPLES_MAX` samples or `SAMPLES_BYTES_MAX` bytes wait already.
        """
        weight = _weight(record)
        with self._lock:
            if len(self._samples) >= SAMPLES_MAX or self._samples_bytes + weight > SAMPLES_BYTES_MAX:
                self._dropped += 1
                return
            self._samples.append({**record, "module": module})
            self._samples_bytes += weight
            is_first = len(self._samples) == 1
        if is_first:
            self._wake()

    def begin(self, now: int) -> None:
        """Send what an earlier run left."""
        if self._has_backlog():
            self._delivery.record_waits(now)

    def samples_came(self, now: int) -> None:
        """There are samples: write them soon, together with those that follow at once."""
        self._flush_at = now + FLUSH_MS

    def link_changed(self) -> None:
        """What was under way may be lost."""
        self._delivery.link_changed()

    def deadline(self, is_online: bool) -> int | None:
        """When `on_time` has something to do next."""
        times = (self._flush_at, self._delivery.deadline(is_online))
        return min((at for at in times if at is not None), default=None)

    def on_time(self, now: int, is_online: bool) -> None:
        """Do what is due."""
        if self._flush_at is not None and now >= self._flush_at:
            self.flush(now)
        deadline = self._delivery.deadline(is_online)
        if deadline is not None and now >= deadline:
            self._deliver(now)

    def flush(self, now: int) -> None:
        """Write the samples that wait to the spool."""
        with self._lock:
            records, self._samples, self._samples_bytes = list(self._samples), deque(), 0
        self._flush_at = None
        if not records:
            return
        try:
            self._spool.append(records)
        except EdgeError as error:
            with self._lock:
                self._dropped += len(records)
            _log.warning("%d samples were dropped: %s", len(records), error)
            return
        self._delivery.record_waits(now)

    def acknowledged(self, ack: Ack, now: int) -> None:
        """Forget what is durable in the cloud.

        Nobody signs acknowledgements, so one can be believed about what was sent at most.
        """
        boot, sent = self._sent
        believed = Ack({boot: min(ack.upto[boot], sent)} if boot in ack.upto else {})
        try:
            is_taken = self._spool.acknowledge(believed) > 0
        except EdgeError as error:
            # A full disk must not end the agent. The batch is sent again, and acknowledged again.
            _log.warning("an acknowledgement waits for the disk: %s", error)
            return
        if is_taken:
            self._delivery.batch_acknowledged(now, has_more=self._has_backlog())

    def backlog(self) -> tuple[int, int, int]:
        """(records waiting, bytes waiting, records dropped).

        Raises:
            EdgeError: What is wrong with the disk.
        """
        records, waiting_bytes, dropped = self._spool.backlog()
        return records, waiting_bytes, dropped + self._dropped

    @property
    def dropped(self) -> int:
        """Samples that never came to the spool."""
        return self._dropped

    def _has_backlog(self) -> bool:
        """Whether records wait; when the disk does not say, they may."""
        try:
            return self._spool.backlog()[0] > 0
        except EdgeError as error:
            _log.warning("the spool cannot be read: %s", error)
            return True

    def _deliver(self, now: int) -> None:
        try:
            batch = self._spool.next_batch()
        except EdgeError as error:
            _log.warning("telemetry waits for the disk: %s", error)
            self._delivery.batch_sent(now)  # asked for again when it would be sent again
            return
        if batch is None:
            self._delivery.batch_acknowledged(now, has_more=False)
            return
        self._sent = (batch.boot, batch.samples[-1].seq)
        self._link.send_batch(batch.to_bytes())
        self._delivery.batch_sent(now)


def _weight(value: Any) -> int:
    """About the bytes that a JSON value takes in memory."""
    if isinstance(value, str):
        return len(value) + _LEAF_BYTES
    if isinstance(value, dict):
        return _LEAF_BYTES + sum(_weight(name) + _weight(item) for name, item in value.items())
    if isinstance(value, list):
        return _LEAF_BYTES + sum(_weight(item) for item in value)
    return _LEAF_BYTES
