"""The one loop: takes events, asks the core, carries its commands out in order, and keeps telemetry moving.

Thread ownership: everything of the core, the journal and the delivery of telemetry belongs to the thread that calls
`run`. Other threads reach it only through `post` and `call`, which are queues.
"""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from edge_agent import ports
from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.agent import Agent
from edge_agent.core.batching import Delivery
from edge_agent.shell.dispatch import Dispatcher
from edge_agent.shell.lanes import Lanes
from edge_agent.shell.limits import EVENTS_MAX, FLUSH_MS, IDLE_MS_MAX, PERSIST_RETRY_MS, SAMPLES_MAX
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.phases import Phase
from edge_contract.telemetry import Ack
from edge_contract.twin import Report, ReportedError

_log = logging.getLogger("edge_agent")


class Supervisor(Protocol):
    """What the process manager hears from the agent (systemd's notify protocol, or nobody). The loop's thread."""

    def ready(self) -> None:
        """The agent is up."""
        ...

    def alive(self, status: str) -> None:
        """The loop turned; `status` is a line for people."""
        ...

    def stopping(self) -> None:
        """The agent is about to end."""
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this agent is.

    Attributes:
        device: Name of the device.
        boot: Identifier of this run, 16 hexadecimal digits.
        platform: `os/architecture[/variant]`.
        agent_version: Version of the agent.
    """

    device: str
    boot: str
    platform: str
    agent_version: str


@dataclass(frozen=True, slots=True)
class _Call:
    """A function that another thread wants run on the loop's thread."""

    function: Callable[[], Any]
    future: "Future[Any]"


class _Stop:
    """Ends the loop."""


class _SamplesWait:
    """Samples were appended to the buffer."""


class Runner:
    """The shell around one core."""

    def __init__(
        self,
        core: Agent,
        identity: Identity,
        dispatcher: Dispatcher,
        clock: ports.Clock,
        journal: ports.Journal,
        link: ports.Link,
        spool: ports.Spool,
        supervisor: Supervisor,
    ) -> None:
        """Bring the parts together; `run` starts them."""
        self._core = core
        self._identity = identity
        self._dispatcher = dispatcher
        self._clock = clock
        self._journal = journal
        self._link = link
        self._spool = spool
        self._supervisor = supervisor
        self._queue: queue.Queue[inputs.Event | Ack | _Call | _SamplesWait | _Stop | BaseException] = queue.Queue(
            EVENTS_MAX
        )
        self._lanes = Lanes(dispatcher, self.post, self._queue.put)
        self._commands: deque[do.Command] = deque()
        self._persist_at: int | None = None
        self._disk_error: ReportedError | None = None
        self._delivery = Delivery()
        self._samples: deque[JsonObject] = deque()
        self._samples_lock = threading.Lock()
        self._samples_dropped = 0
        self._flush_at: int | None = None
        self._is_online = False
        self._reports = 0
        # Read by the metadata lane; replaced whole, so that a reader sees one consistent state.
        self.release_counters: dict[tuple[str, str], int] = core.release_counters

    # -- from other threads ----------------------------------------------------------------------------------------

    def post(self, event: inputs.Event) -> None:
        """Tell the core an event. Any thread."""
        self._queue.put(event)

    def sample_taken(self, module: str, record: JsonObject) -> None:
        """Take a sample from a worker; dropped and counted above `SAMPLES_MAX`. Any thread, never blocks."""
        with self._samples_lock:
            if len(self._samples) >= SAMPLES_MAX:
                self._samples_dropped += 1
                return
            self._samples.append({**record, "module": module})
            is_first = len(self._samples) == 1
        if is_first:
            self._queue.put(_SamplesWait())

    def call(self, function: Callable[[], Any], timeout_s: float) -> Any:
        """Run a function on the loop's thread and give its result. Any other thread.

        Raises:
            TimeoutError: If the loop did not get to it in time.
        """
        future: Future[Any] = Future()
        self._queue.put(_Call(function, future))
        return future.result(timeout_s)

    def stop(self) -> None:
        """End the loop soon. Any thread, also from a signal handler."""
        self._queue.put(_Stop())

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until `stop`; then end everything that was started, within bounds.

        Raises:
            BaseException: Whatever a lane met that is not an operating error; the record decides at the next start.
        """
        self._lanes.start()
        self._link.start(
            on_nudge=lambda version: self.post(inputs.NudgeReceived(version)),
            on_ack=self._queue.put,
            on_online=lambda is_online: self.post(inputs.LinkChanged(is_online)),
        )
        if self._has_backlog():
            self._delivery.record_waits(self._clock.monotonic_ms())
        self.post(inputs.Started())
        self._supervisor.ready()
        try:
            while self._turn():
                pass
        finally:
            self._supervisor.stopping()
            self._lanes.stop()
            self._flush(self._clock.monotonic_ms())
            self._link.stop()

    def _turn(self) -> bool:
        item = self._next()
        now = self._clock.monotonic_ms()
        if isinstance(item, _Stop):
            return False
        if isinstance(item, BaseException):
            raise item
        if isinstance(item, _Call):
            self._answer(item)
        elif isinstance(item, Ack):
            self._on_ack(item, now)
        elif isinstance(item, _SamplesWait):
            self._flush_at = now + FLUSH_MS
        elif item is not None:
            if isinstance(item, inputs.LinkChanged):
                self._is_online = item.is_online
                self._delivery.link_changed()
            self._handle(item, now)
        deadline = self._core.deadline()
        if deadline is not None and now >= deadline:
            self._handle(inputs.TimeReached(), now)
        if self._flush_at is not None and now >= self._flush_at:
            self._flush(now)
        self._carry_out(now)
        self._deliver(now)
        self._supervisor.alive(f"{self._identity.device}: {'online' if self._is_online else 'offline'}")
        return True

    def _next(self) -> inputs.Event | Ack | _Call | _SamplesWait | _Stop | BaseException | None:
        now = self._clock.monotonic_ms()
        times = (self._core.deadline(), self._flush_at, self._persist_at, self._delivery.deadline(self._is_online))
        wait = min(IDLE_MS_MAX, min((at - now for at in times if at is not None), default=IDLE_MS_MAX))
        try:
            return self._queue.get(timeout=wait / 1000) if wait > 0 else self._queue.get_nowait()
        except queue.Empty:
            return None

    def _answer(self, call: _Call) -> None:
        try:
            call.future.set_result(call.function())
        except EdgeError as error:
            call.future.set_exception(error)

    # -- commands --------------------------------------------------------------------------------------------------

    def _handle(self, event: inputs.Event, now: int) -> None:
        self._commands.extend(self._core.handle(event, now))
        self.release_counters = self._core.release_counters
        self._carry_out(now)

    def _carry_out(self, now: int) -> None:
        """Start commands in order; none after a `Persist` whose record is not durable."""
        if self._persist_at is not None and now < self._persist_at:
            return
        while self._commands:
            command = self._commands[0]
            if isinstance(command, do.Persist) and not self._persist(command.record, now):
                return
            self._commands.popleft()
            if isinstance(command, do.CancelOperation):
                self._lanes.cancel(command.op)
            elif isinstance(command, do.SendReport):
                self._send_report()
            elif not isinstance(command, do.Persist):
                self._lanes.submit(command)

    def _persist(self, record: JsonObject, now: int) -> bool:
        try:
            self._journal.save(record)
        except EdgeError as error:
            # The live worker goes on answering; what the core decided waits until it can be remembered.
            _log.warning("the record cannot be written: %s", error)
            if self._disk_error is None or self._disk_error.code != error.code:
                self._disk_error = ReportedError(error.code, error.detail, Phase.IDLE, 1)
                self._send_report()
            self._persist_at = now + PERSIST_RETRY_MS
            return False
        self._persist_at = self._disk_error = None
        return True

    def _send_report(self) -> None:
        self._reports += 1
        who = self._identity
        report = Report(
            device=who.device,
            boot=who.boot,
            number=self._reports,
            sent_ms=max(0, self._clock.wall_ms()),
            platform=who.platform,
            agent_version=who.agent_version,
            director_version=self._core.director_version,
            modules=self._core.reported_modules(),
            error=self._disk_error or self._core.error,
            bytes_fetched=self._dispatcher.network_bytes,
        )
        self._link.send_report(report.to_bytes())

    # -- telemetry -------------------------------------------------------------------------------------------------

    def _flush(self, now: int) -> None:
        with self._samples_lock:
            records, self._samples = list(self._samples), deque()
        self._flush_at = None
        if not records:
            return
        try:
            self._spool.append(records)
        except EdgeError as error:
            self._samples_dropped += len(records)
            _log.warning("%d samples were dropped: %s", len(records), error)
            return
        self._delivery.record_waits(now)

    def _on_ack(self, ack: Ack, now: int) -> None:
        try:
            is_taken = self._spool.acknowledge(ack) > 0
        except EdgeError as error:
            # A full disk must not end the agent. The batch is sent again, and acknowledged again.
            _log.warning("an acknowledgement waits for the disk: %s", error)
            return
        if is_taken:
            self._delivery.batch_acknowledged(now, has_more=self._has_backlog())

    def _has_backlog(self) -> bool:
        """Whether records wait; when the disk does not say, they may."""
        try:
            return self._spool.backlog()[0] > 0
        except EdgeError as error:
            _log.warning("the spool cannot be read: %s", error)
            return True

    def _deliver(self, now: int) -> None:
        deadline = self._delivery.deadline(self._is_online)
        if deadline is None or now < deadline:
            return
        try:
            batch = self._spool.next_batch()
        except EdgeError as error:
            _log.warning("telemetry waits for the disk: %s", error)
            self._delivery.batch_sent(now)  # asked for again when it would be sent again
            return
        if batch is None:
            self._delivery.batch_acknowledged(now, has_more=False)
            return
        self._link.send_batch(batch.to_bytes())
        self._delivery.batch_sent(now)

    # -- for the control socket (the loop's thread) ----------------------------------------------------------------

    def status(self) -> JsonObject:
        """How things stand, for `edge-agent status`."""
        error = self._disk_error or self._core.error
        try:
            records, waiting_bytes, dropped = self._spool.backlog()
        except EdgeError as problem:
            # What is live has to be seen all the same.
            records = waiting_bytes = dropped = 0
            error = error or ReportedError.of(problem.code, problem.detail, Phase.IDLE)
        return {
            "device": self._identity.device,
            "boot": self._identity.boot,
            "platform": self._identity.platform,
            "agent_version": self._identity.agent_version,
            "director_version": self._core.director_version,
            "online": self._is_online,
            "modules": {name: module.to_json() for name, module in self._core.reported_modules().items()},
            "spool": {"records": records, "bytes": waiting_bytes, "dropped": dropped + self._samples_dropped},
            "bytes_fetched": self._dispatcher.network_bytes,
            "error": None if error is None else error.to_json(),
        }
