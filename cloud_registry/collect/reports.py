"""Decides what becomes of reports. Pure, like `collect.core`.

What a message says is read only once its signature is verified, which needs the device's key: so messages are handed
over as they came, those of one device together and in their order, and the broker is told once that is durable.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from cloud_registry import limits
from cloud_registry.collect.core import backoff_ms
from cloud_registry.collect.inputs import (
    LinkLost,
    MessageReceived,
    RecordDrop,
    RecordTrouble,
    ReportCommand,
    ReportEvent,
    ReportsFailed,
    ReportsTaken,
    StoreFailed,
    TakeReports,
)
from cloud_registry.collect.release import Delivery, ReleaseOrder
from cloud_registry.ports import ReportMessage
from edge_contract.errors import ContractError
from edge_contract.topics import device_of, report


@dataclass(slots=True)
class ReportTotals:
    """What happened since the start, in reports."""

    applied: int = 0
    superseded: int = 0
    dropped: int = 0
    failures: int = 0


@dataclass(slots=True)
class _Waiting:
    message: ReportMessage
    delivery: Delivery


@dataclass(slots=True)
class _Running:
    device: str
    items: list[_Waiting] = field(default_factory=list)


class ReportCore:
    """The sans-I/O machine: `handle`, `deadline`, `is_accepting`, `totals`. One thread."""

    def __init__(self) -> None:
        """Start empty."""
        self.totals = ReportTotals()
        self._order = ReleaseOrder()
        self._waiting: dict[str, deque[_Waiting]] = {}
        self._waiting_count = 0
        self._running: _Running | None = None
        self._operation = 0
        self._failures = 0
        self._retry_at: int | None = None

    @property
    def is_accepting(self) -> bool:
        """Whether the shell may hand in more messages."""
        return self._retry_at is None and self._waiting_count < limits.REPORTS_AT_ONCE_MAX

    @property
    def held(self) -> int:
        """Deliveries that the broker still waits for."""
        return len(self._order)

    @property
    def failures(self) -> int:
        """Failures of the database in a row."""
        return self._failures

    @property
    def deadline(self) -> int | None:
        """When to send `TimePassed` at the latest, in the clock of `handle`; none when nothing waits."""
        return self._retry_at

    def handle(self, event: ReportEvent, now: int) -> list[ReportCommand]:
        """Take one event and say what to do.

        Args:
            event: What happened.
            now: Milliseconds of a clock that never goes back.
        """
        commands: list[ReportCommand] = []
        if isinstance(event, MessageReceived):
            commands += self._take(event)
        elif isinstance(event, LinkLost):
            self._order.forget()
        elif (
            isinstance(event, ReportsTaken | ReportsFailed | StoreFailed)
            and self._running is not None
            and event.operation == self._operation
        ):
            running, self._running = self._running, None
            commands += self._go_on(event, running, now)
        commands += self._start(now)
        return commands + self._order.ready()

    def _take(self, event: MessageReceived) -> Iterator[ReportCommand]:
        delivery = self._order.add(event.token)
        try:
            device = device_of(event.topic)
        except ContractError as error:
            delivery.is_done = True
            yield self._drop(event.topic, error.code, error.detail)
            return
        self._waiting.setdefault(device, deque()).append(
            _Waiting(ReportMessage(event.content, event.received_ms), delivery)
        )
        self._waiting_count += 1

    def _start(self, now: int) -> Iterator[ReportCommand]:
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
        if self._running is not None or self._retry_at is not None or not self._waiting:
            return
        device = next(iter(self._waiting))
        waiting = self._waiting.pop(device)
        taken = [waiting.popleft() for _ in range(min(len(waiting), limits.REPORTS_A_DEVICE_MAX))]
        if waiting:
            self._waiting[device] = waiting  # behind the other devices
        self._waiting_count -= len(taken)
        self._running = _Running(device, taken)
        self._operation += 1
        yield TakeReports(self._operation, device, tuple(item.message for item in taken))

    def _go_on(
        self, event: ReportsTaken | ReportsFailed | StoreFailed, running: _Running, now: int
    ) -> Iterator[ReportCommand]:
        if isinstance(event, StoreFailed):
            self.totals.failures += 1
            self._failures += 1
            delay = backoff_ms(self._failures)
            self._retry_at = now + delay
            later = self._waiting.pop(running.device, deque())
            self._waiting[running.device] = deque([*running.items, *later])
            self._waiting_count += len(running.items)
            yield RecordTrouble(event.code, event.detail, self._failures, delay)
            return
        self._failures = 0
        for item in running.items:
            item.delivery.is_done = True
        if isinstance(event, ReportsFailed):
            yield self._drop(report(running.device), event.code, event.detail)
            return
        for verdict in event.verdicts:
            if verdict.code is not None:
                yield self._drop(report(running.device), verdict.code, verdict.detail)
            elif verdict.is_applied:
                self.totals.applied += 1
            else:
                self.totals.superseded += 1

    def _drop(self, topic: str, code: str, detail: str) -> RecordDrop:
        self.totals.dropped += 1
        return RecordDrop(topic[: limits.TOPIC_CHARS_MAX], code, detail)
