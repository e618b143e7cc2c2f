"""Decides what becomes of reports. Pure, like `collect.core`.

A report replaces the one before it, so of several that wait for one device only the newest is applied; the broker is
told of all of them once that is durable.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from cloud_registry import limits
from cloud_registry.collect.core import backoff_ms, check_boot
from cloud_registry.collect.inputs import (
    ApplyReport,
    LinkLost,
    MessageReceived,
    RecordDrop,
    RecordTrouble,
    ReportApplied,
    ReportCommand,
    ReportEvent,
    ReportRefused,
    StoreFailed,
)
from cloud_registry.collect.release import Delivery, ReleaseOrder
from edge_contract.errors import ContractError
from edge_contract.topics import device_of, report
from edge_contract.twin import Report

# As JSON has to write it. Some databases cannot store it in any text, and would refuse the report for ever.
_NUL: Final = b"\\u0000"


@dataclass(slots=True)
class ReportTotals:
    """What happened since the start, in reports."""

    applied: int = 0
    repeated: int = 0
    superseded: int = 0
    dropped: int = 0
    failures: int = 0


@dataclass(slots=True)
class _Waiting:
    report: Report
    received_ms: int
    deliveries: list[Delivery] = field(default_factory=list)


class ReportCore:
    """The sans-I/O machine: `handle`, `deadline`, `is_accepting`, `totals`. One thread."""

    def __init__(self) -> None:
        """Start empty."""
        self.totals = ReportTotals()
        self._order = ReleaseOrder()
        self._waiting: dict[str, _Waiting] = {}
        self._running: _Waiting | None = None
        self._operation = 0
        self._failures = 0
        self._retry_at: int | None = None

    @property
    def is_accepting(self) -> bool:
        """Whether the shell may hand in more messages."""
        return self._retry_at is None and len(self._waiting) < limits.REPORTS_AT_ONCE_MAX

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
            isinstance(event, ReportApplied | ReportRefused | StoreFailed)
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
            found = Report.parse(event.content)
            check_boot(found.boot)
            if _NUL in event.content:
                raise ContractError("artifact.document-invalid", "a report holds the character U+0000")
            if found.device != (device := device_of(event.topic)):
                raise ContractError(
                    "artifact.document-invalid", f"a report of {found.device!r} came on the topic of {device!r}"
                )
        except ContractError as error:
            delivery.is_done = True
            yield self._drop(event.topic, error.code, error.detail)
            return
        self._keep(_Waiting(found, event.received_ms, [delivery]))

    def _keep(self, later: _Waiting) -> None:
        """Let the newer of two reports of a device wait, for both."""
        earlier = self._waiting.get(later.report.device)
        if earlier is None:
            self._waiting[later.report.device] = later
            return
        self.totals.superseded += 1
        deliveries = [*earlier.deliveries, *later.deliveries]
        is_older = later.report.boot == earlier.report.boot and later.report.number < earlier.report.number
        kept = earlier if is_older else later
        kept.deliveries = deliveries
        self._waiting[kept.report.device] = kept

    def _start(self, now: int) -> Iterator[ReportCommand]:
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
        if self._running is not None or self._retry_at is not None or not self._waiting:
            return
        device = next(iter(self._waiting))
        self._running = self._waiting.pop(device)
        self._operation += 1
        yield ApplyReport(self._operation, self._running.report, self._running.received_ms)

    def _go_on(
        self, event: ReportApplied | ReportRefused | StoreFailed, running: _Waiting, now: int
    ) -> Iterator[ReportCommand]:
        if isinstance(event, StoreFailed):
            self.totals.failures += 1
            self._failures += 1
            delay = backoff_ms(self._failures)
            self._retry_at = now + delay
            newer = self._waiting.pop(running.report.device, None)
            self._keep(running)
            if newer is not None:
                self._keep(newer)
            yield RecordTrouble(event.code, event.detail, self._failures, delay)
            return
        self._failures = 0
        for delivery in running.deliveries:
            delivery.is_done = True
        if isinstance(event, ReportRefused):
            yield self._drop(report(running.report.device), event.code, event.detail)
        elif event.is_news:
            self.totals.applied += 1
        else:
            self.totals.repeated += 1

    def _drop(self, topic: str, code: str, detail: str) -> RecordDrop:
        self.totals.dropped += 1
        return RecordDrop(topic[: limits.TOPIC_CHARS_MAX], code, detail)
