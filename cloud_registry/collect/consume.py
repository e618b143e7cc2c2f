"""The shells around the two cores: a connection, a queue, and one thread that runs the core's commands in order."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from cloud_registry.adapters.link_mqtt import LinkHandlers, MqttLink
from cloud_registry.collect.core import CollectorCore, FlushRules
from cloud_registry.collect.inputs import (
    CommitFile,
    CommitRefused,
    FileCommitted,
    FileRefused,
    FileWritten,
    ReadWatermarks,
    RecordDrop,
    RecordTrouble,
    ReleaseMessage,
    ReportCommand,
    ReportEvent,
    ReportsFailed,
    ReportsTaken,
    SendAck,
    StoreFailed,
    TakeReports,
    TelemetryCommand,
    TelemetryEvent,
    TimePassed,
    WatermarksRead,
    WriteFile,
)
from cloud_registry.collect.intake import Intake
from cloud_registry.collect.reports import ReportCore
from cloud_registry.config import MqttConfig
from cloud_registry.limits import (
    DROPS_LOGGED_A_MINUTE_MAX,
    FLUSH_MESSAGES_MAX,
    REPORTS_AT_ONCE_MAX,
    STOP_TIMEOUT_S,
)
from cloud_registry.metrics import RegistryMetrics
from cloud_registry.ports import Clock, FleetStore, LakeWriter
from edge_contract.codes import Category
from edge_contract.errors import EdgeError
from edge_contract.limits import BATCH_BYTES_MAX, ENVELOPE_BYTES_MAX
from edge_contract.telemetry import Ack

_log: Final = logging.getLogger(__name__)
_TICK_S: Final = 1.0
TELEMETRY: Final = "telemetry"
REPORTS: Final = "report"


class DropLog:
    """Says why messages were given up, but not more often than somebody could read. One thread."""

    def __init__(self) -> None:
        """Start a minute."""
        self._began = time.monotonic()
        self._count = 0

    def write(self, drop: RecordDrop) -> None:
        """One line, or a count at the end of the minute."""
        now = time.monotonic()
        if now - self._began >= 60:
            if self._count > DROPS_LOGGED_A_MINUTE_MAX:
                _log.warning("dropped %d more messages", self._count - DROPS_LOGGED_A_MINUTE_MAX)
            self._began, self._count = now, 0
        self._count += 1
        if self._count <= DROPS_LOGGED_A_MINUTE_MAX:
            _log.warning("dropped a message on %r: %s [%s]", drop.topic, drop.detail, drop.code)


class Feed(Protocol):
    """Where messages come from: a broker, or an IoT hub. Any thread."""

    @property
    def is_ready(self) -> bool:
        """Whether messages can come in."""
        ...

    def start(self) -> None:
        """Connect and begin."""
        ...

    def close(self) -> None:
        """End; bounded."""
        ...

    def acknowledge(self, token: Any) -> None:
        """Release a delivery of this feed."""
        ...

    def send_ack(self, device: str, ack: Ack) -> None:
        """Tell a device what is durable; never blocks."""
        ...


MakeFeed = Callable[[LinkHandlers], Feed]
"""Makes a feed that hands messages to these handlers."""


def mqtt_feed(mqtt: MqttConfig, kind: str, topic_filter: str, session: str) -> MakeFeed:
    """Messages of one topic filter from a broker.

    Args:
        mqtt: The broker.
        kind: For logs and the session's name.
        topic_filter: What to subscribe to.
        session: Name of this installation's session at the broker.
    """

    def make(handlers: LinkHandlers) -> Feed:
        shared = mqtt.shared_group
        return MqttLink(
            mqtt,
            kind,
            subscriptions=[f"$share/{shared}/{topic_filter}" if shared else topic_filter],
            handlers=handlers,
            # A broker shares out messages to absent members too: theirs must not outlive them.
            session="" if shared else session,
        )

    return make


class _Consumer:
    """What both kinds of messages have in common."""

    def __init__(
        self,
        kind: str,
        feed: MakeFeed,
        clock: Clock,
        metrics: RegistryMetrics,
        content_bytes_max: int,
    ) -> None:
        self._kind = kind
        self._metrics = metrics
        self._drops = DropLog()
        self._is_stopping = threading.Event()
        self._intake = Intake(clock.wall_ms, content_bytes_max)
        self._link = feed(LinkHandlers(self._intake.offer, self._intake.lost))
        self._thread = threading.Thread(target=self._run, name=f"collect-{kind}", daemon=True)

    @property
    def is_ready(self) -> bool:
        """Whether messages can come in."""
        return self._link.is_ready and self._thread.is_alive()

    def start(self) -> None:
        """Connect and begin."""
        self._thread.start()
        self._link.start()

    def close(self) -> None:
        """End; what was not stored was not acknowledged and comes again."""
        self._is_stopping.set()
        self._intake.close()
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT_S)
        self._link.close()
        self._metrics.is_link_up.labels(self._kind).set(0)

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            self._metrics.is_link_up.labels(self._kind).set(self._link.is_ready)
            self._turn()

    def _turn(self) -> None:
        """Wait for what comes next and do it."""
        raise AssertionError("each kind has its own")

    def _wait_s(self, deadline: int | None) -> float:
        return _TICK_S if deadline is None else min(_TICK_S, max(0.0, (deadline - monotonic_ms()) / 1000))

    def _run_common(self, command: ReleaseMessage | RecordDrop | RecordTrouble) -> None:
        if isinstance(command, ReleaseMessage):
            if command.token is not None:
                self._link.acknowledge(command.token)
        elif isinstance(command, RecordDrop):
            self._metrics.messages.labels(self._kind, "dropped").inc()
            self._drops.write(command)
        else:
            self._metrics.store_failures.labels(self._kind).inc()
            _log.error(
                "%s cannot be stored (attempt %d, next in %d ms): %s [%s]",
                self._kind,
                command.attempts,
                command.retry_ms,
                command.detail,
                command.code,
            )


class TelemetryConsumer(_Consumer):
    """Telemetry from the broker into the lake. `start` it once, `close` it at the end."""

    def __init__(
        self,
        feed: MakeFeed,
        fleet: FleetStore,
        lake: LakeWriter,
        clock: Clock,
        metrics: RegistryMetrics,
        rules: FlushRules | None = None,
        kind: str = TELEMETRY,
    ) -> None:
        """Prepare.

        Args:
            feed: Where batches come from.
            fleet: Watermarks and catalogue.
            lake: Writes files.
            clock: The time.
            metrics: Counted in.
            rules: When to write.
            kind: Name in logs and metrics.

        Raises:
            EdgeError: as the feed.
        """
        super().__init__(kind, feed, clock, metrics, BATCH_BYTES_MAX)
        self._fleet = fleet
        self._lake = lake
        self._core = CollectorCore(rules)
        self._began_writing = 0.0

    def _turn(self) -> None:
        core = self._core
        if core.is_accepting:
            events: list[TelemetryEvent] = [*self._intake.take(FLUSH_MESSAGES_MAX, self._wait_s(core.deadline))]
        else:
            self._is_stopping.wait(self._wait_s(core.deadline))
            events = []
        for event in [*events, TimePassed()]:
            self._handle(event)
        self._metrics.is_blocked.labels(self._kind).set(core.failures > 0)

    def _handle(self, event: TelemetryEvent) -> None:
        before = (self._core.totals.stored, self._core.totals.duplicates)
        waiting = deque(self._core.handle(event, monotonic_ms()))
        # The core says no more once this process is told to stop: a command left over is the same as a crash.
        while waiting and not self._is_stopping.is_set():
            answer = self._execute(waiting.popleft())
            if answer is not None:
                waiting.extend(self._core.handle(answer, monotonic_ms()))
        self._metrics.samples.labels("stored").inc(self._core.totals.stored - before[0])
        self._metrics.samples.labels("duplicate").inc(self._core.totals.duplicates - before[1])

    def _execute(self, command: TelemetryCommand) -> TelemetryEvent | None:
        if isinstance(command, SendAck):
            self._metrics.messages.labels(self._kind, "taken").inc()
            self._link.send_ack(command.device, Ack({command.boot: command.upto}))
            return None
        if isinstance(command, ReleaseMessage | RecordDrop | RecordTrouble):
            self._run_common(command)
            return None
        try:
            return self._store(command)
        except EdgeError as error:
            return _failed(command, error.code, str(error))
        except Exception as error:  # noqa: BLE001 - logged, and the loop has to go on
            # A bug, in a library or here: it must hold up nobody but the rows that bring it about.
            _log.exception("storing telemetry failed unexpectedly")
            return _failed(command, "internal.bug", repr(error)[:200])

    def _store(self, command: ReadWatermarks | WriteFile | CommitFile) -> TelemetryEvent:
        if isinstance(command, ReadWatermarks):
            return WatermarksRead(command.operation, {key: self._fleet.watermark(*key) for key in command.keys})
        if isinstance(command, WriteFile):
            self._began_writing = time.monotonic()
            return FileWritten(command.operation, self._lake.write(command.rows))
        try:
            self._fleet.commit_batch(command.marks, command.file)
        except EdgeError as error:
            if error.code != "cloud.conflict":
                raise
            self._lake.retire([command.file])
            self._metrics.conflicts.inc()
            return CommitRefused(command.operation)
        self._metrics.files.inc()
        self._metrics.flush_seconds.observe(time.monotonic() - self._began_writing)
        return FileCommitted(command.operation)


class ReportConsumer(_Consumer):
    """Reports from the broker into the database. `start` it once, `close` it at the end."""

    def __init__(
        self, feed: MakeFeed, fleet: FleetStore, clock: Clock, metrics: RegistryMetrics, kind: str = REPORTS
    ) -> None:
        """Prepare; arguments as for `TelemetryConsumer`."""
        super().__init__(kind, feed, clock, metrics, ENVELOPE_BYTES_MAX)
        self._fleet = fleet
        self._core = ReportCore()

    def _turn(self) -> None:
        core = self._core
        if core.is_accepting:
            events: list[ReportEvent] = [*self._intake.take(REPORTS_AT_ONCE_MAX, self._wait_s(core.deadline))]
        else:
            self._is_stopping.wait(self._wait_s(core.deadline))
            events = []
        # All of them before the first command, so that a device's reports are taken together.
        waiting: deque[ReportCommand] = deque()
        for event in [*events, TimePassed()]:
            waiting.extend(core.handle(event, monotonic_ms()))
        while waiting and not self._is_stopping.is_set():
            command = waiting.popleft()
            if isinstance(command, TakeReports):
                waiting.extend(core.handle(self._store(command), monotonic_ms()))
            else:
                self._run_common(command)
        self._metrics.is_blocked.labels(self._kind).set(core.failures > 0)

    def _store(self, command: TakeReports) -> ReportEvent:
        try:
            verdicts = tuple(self._fleet.take_reports(command.device, command.messages))
        except EdgeError as error:
            if error.category == Category.ARTIFACT or error.code == "internal.bug":
                return ReportsFailed(command.operation, error.code, error.detail)
            return StoreFailed(command.operation, error.code, str(error))
        except Exception as error:  # noqa: BLE001 - logged, and the loop has to go on
            _log.exception("reports of %s failed unexpectedly", command.device)
            return ReportsFailed(command.operation, "internal.bug", repr(error)[:200])
        for verdict in verdicts:
            if verdict.code is None:
                self._metrics.messages.labels(self._kind, "taken").inc()
            else:
                self._metrics.reports_refused.labels(verdict.code).inc()
        return ReportsTaken(command.operation, verdicts)


def _failed(command: ReadWatermarks | WriteFile | CommitFile, code: str, detail: str) -> StoreFailed | FileRefused:
    """What a failure means: rows that no file can hold are given up, everything else is tried again."""
    is_about_the_rows = isinstance(command, WriteFile) and code in ("artifact.document-invalid", "internal.bug")
    if is_about_the_rows:
        return FileRefused(command.operation, detail)
    return StoreFailed(command.operation, code, detail)


def monotonic_ms() -> int:
    """A clock that never goes back, in milliseconds."""
    return time.monotonic_ns() // 1_000_000
