"""The one loop: takes events, asks the core, carries its commands out in order, and keeps telemetry moving.

Thread ownership: everything of the core, the journal and the delivery of telemetry belongs to the thread that calls
`run`. Other threads reach it only through `post` and `call`, which are queues.
"""

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from edge_agent import ports
from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.agent import Agent
from edge_agent.reporting import ReportSender
from edge_agent.shell.dispatch import Dispatcher
from edge_agent.shell.lanes import Lanes
from edge_agent.shell.limits import IDLE_MS_MAX, PERSIST_RETRY_MS
from edge_agent.shell.mailbox import Call, Item, Mailbox, Mark
from edge_agent.shell.telemetry import Telemetry
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.phases import Phase
from edge_contract.telemetry import Ack
from edge_contract.twin import Report, ReportedError, ReportedModule

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

    def reloading(self) -> None:
        """The agent is about to start anew in the same process."""
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
class _View:
    """What a report says of the core, as it was when the core asked for the report."""

    director_version: int
    modules: dict[str, ReportedModule]
    error: ReportedError | None
    is_clock_trusted: bool


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
        reports: ReportSender,
    ) -> None:
        """Bring the parts together; `run` starts them. `reports` is where reports go to be signed and sent."""
        self._core = core
        self._identity = identity
        self._dispatcher = dispatcher
        self._clock = clock
        self._journal = journal
        self._link = link
        self._supervisor = supervisor
        self._sender = reports
        self._mail = Mailbox()
        self._lanes = Lanes(dispatcher, self._mail.put, self._mail.put)
        self._telemetry = Telemetry(spool, link, lambda: self._mail.put(Mark.SAMPLES))
        self._commands: deque[do.Command | _View] = deque()
        self._persist_at: int | None = None
        self._disk_error: ReportedError | None = None
        self._is_disk_error_told = False
        self._told = self._view()
        self._is_online = False
        self._reports = 0
        self._is_reloading = False
        # Read by the metadata lane; replaced whole, so that a reader sees one consistent state.
        self.release_counters: dict[tuple[str, str], int] = core.release_counters

    # -- from other threads ----------------------------------------------------------------------------------------

    def post(self, event: inputs.Event) -> None:
        """Tell the core an event. Any thread."""
        self._mail.put(event)

    def fail(self, bug: BaseException) -> None:
        """End the process with what another thread met and nobody expected. Any thread."""
        self._mail.put(bug)

    def sample_taken(self, module: str, record: JsonObject) -> None:
        """Take a sample from a worker; see `Telemetry.take`. Any thread, never blocks."""
        self._telemetry.take(module, record)

    def call(self, function: Callable[[], Any], timeout_s: float) -> Any:
        """Run a function on the loop's thread and give its result. Any other thread.

        Raises:
            TimeoutError: If the loop did not get to it in time.
        """
        future: Future[Any] = Future()
        self._mail.put(Call(function, future))
        return future.result(timeout_s)

    def stop(self) -> None:
        """End the loop soon. Any thread, also from a signal handler."""
        self._is_reloading = False
        self._mail.put(Mark.STOP)

    def reload(self) -> None:
        """End the loop soon, for the program to start anew. Any thread, also from a signal handler."""
        self._is_reloading = True
        self._mail.put(Mark.STOP)

    @property
    def is_reloading(self) -> bool:
        """Whether the loop ends, or ended, for the program to start anew."""
        return self._is_reloading

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until `stop` or `reload`; then end everything that was started, within bounds.

        Raises:
            BaseException: Whatever a lane met that is not an operating error; the record decides at the next start.
        """
        self._lanes.start()
        try:
            self._mail.put(inputs.Started())  # before anything the link says
            self._link.start(self._mail.put_nudge, self._mail.put_ack, self._mail.put_link)
            self._telemetry.begin(self._clock.monotonic_ms())
            self._supervisor.ready()
            while self._turn():
                pass
        finally:
            if self._is_reloading:
                self._supervisor.reloading()
            else:
                self._supervisor.stopping()
            self._lanes.stop()
            self._telemetry.flush(self._clock.monotonic_ms())
            self._sender.stop()
            self._link.stop()

    def _turn(self) -> bool:
        item = self._next()
        now = self._clock.monotonic_ms()
        if item is Mark.STOP:
            return False
        self._take(item, now)
        deadline = self._core.deadline()
        if deadline is not None and now >= deadline:
            self._handle(inputs.TimeReached(), now)
        self._carry_out(now)
        self._telemetry.on_time(now, self._is_online)
        self._supervisor.alive(f"{self._identity.device}: {'online' if self._is_online else 'offline'}")
        return True

    def _next(self) -> Item | None:
        now = self._clock.monotonic_ms()
        times = (self._core.deadline(), self._persist_at, self._telemetry.deadline(self._is_online))
        wait = min(IDLE_MS_MAX, min((at - now for at in times if at is not None), default=IDLE_MS_MAX))
        return self._mail.get(wait / 1000)

    def _take(self, item: Item | None, now: int) -> None:
        if item is None:
            return
        if isinstance(item, BaseException):
            raise item
        if isinstance(item, Call):
            self._answer(item)
        elif isinstance(item, Ack):
            self._telemetry.acknowledged(item, now)
        elif isinstance(item, Mark):
            self._telemetry.samples_came(now)
        else:
            if isinstance(item, inputs.LinkChanged):
                self._is_online = item.is_online
                self._sender.link_changed(item.is_online)
                self._telemetry.link_changed()
            self._handle(item, now)

    def _answer(self, call: Call) -> None:
        try:
            call.future.set_result(call.function())
        except EdgeError as error:
            call.future.set_exception(error)

    # -- commands --------------------------------------------------------------------------------------------------

    def _handle(self, event: inputs.Event, now: int) -> None:
        for command in self._core.handle(event, now):
            if isinstance(command, do.ServeLive) and command.may_overtake:
                self._lanes.submit(command)
            elif isinstance(command, do.SendReport):
                self._plan_report()
            else:
                self._commands.append(command)
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
            if isinstance(command, _View):
                self._send(command)
            elif isinstance(command, do.CancelOperation):
                self._lanes.cancel(command.op)
            elif not isinstance(command, do.Persist):
                self._lanes.submit(command)
        if self._is_disk_error_told:
            self._is_disk_error_told = False
            self._send(self._view())

    def _persist(self, record: JsonObject, now: int) -> bool:
        try:
            self._journal.save(record)
        except EdgeError as error:
            # The live worker goes on answering; what the core decided waits until it can be remembered.
            self._persist_at = now + PERSIST_RETRY_MS
            if self._disk_error is None or self._disk_error.code != error.code:
                _log.warning("the record cannot be written: %s", error)
                self._disk_error = ReportedError.of(error.code, error.detail, Phase.IDLE)
                self._send(self._told)
            return False
        self._persist_at = self._disk_error = None
        return True

    # -- reports: what they claim is durable -----------------------------------------------------------------------

    def _view(self) -> _View:
        core = self._core
        return _View(core.director_version, core.reported_modules(), core.error, core.is_clock_trusted)

    def _plan_report(self) -> None:
        """Send a report behind the records that make it true; meanwhile the last one that is true."""
        if self._commands and isinstance(self._commands[-1], _View):
            self._commands.pop()
        self._commands.append(self._view())
        if self._persist_at is not None:
            self._send(self._told)

    def _send(self, view: _View) -> None:
        self._told = view
        self._is_disk_error_told = self._disk_error is not None
        self._reports += 1
        who = self._identity
        report = Report(
            device=who.device,
            boot=who.boot,
            number=self._reports,
            sent_ms=max(0, self._clock.wall_ms()),
            platform=who.platform,
            agent_version=who.agent_version,
            director_version=view.director_version,
            modules=view.modules,
            error=self._disk_error or view.error,
            bytes_fetched=self._dispatcher.network_bytes,
            bytes_saved=self._dispatcher.saved_bytes,
            clock_trusted=view.is_clock_trusted,
        )
        self._sender.send(report.to_bytes())

    # -- for the control socket (the loop's thread) ----------------------------------------------------------------

    def status(self) -> JsonObject:
        """How things stand, for `edge-agent status`."""
        error = self._disk_error or self._core.error
        try:
            records, waiting_bytes, dropped = self._telemetry.backlog()
        except EdgeError as problem:
            # What is live has to be seen all the same.
            records, waiting_bytes, dropped = 0, 0, self._telemetry.dropped
            error = error or ReportedError.of(problem.code, problem.detail, Phase.IDLE)
        return {
            "device": self._identity.device,
            "boot": self._identity.boot,
            "platform": self._identity.platform,
            "agent_version": self._identity.agent_version,
            "director_version": self._core.director_version,
            "online": self._is_online,
            "held": self._core.is_held,
            "clock_trusted": self._core.is_clock_trusted,
            "modules": {name: module.to_json() for name, module in self._core.reported_modules().items()},
            "spool": {"records": records, "bytes": waiting_bytes, "dropped": dropped},
            "bytes_fetched": self._dispatcher.network_bytes,
            "bytes_saved": self._dispatcher.saved_bytes,
            "error": None if error is None else error.to_json(),
        }

    def ask_rollback(self, module: str) -> Digest:
        """Roll a module back because a person asks; gives what will be live.

        Raises:
            EdgeError: `config.invalid`, `device.no-fallback` or `device.between-bundles`; then nothing changes.
        """
        reported = self._core.reported_modules().get(module)
        if reported is None:
            raise self._no_module(module)
        if reported.phase in (Phase.ACTIVATING, Phase.COMMITTING):
            raise EdgeError(
                "device.between-bundles",
                f"module {module!r} is {reported.phase} this moment",
                "Ask again in a moment; what is live and what a rollback would bring back may have changed by then.",
            )
        if reported.fallback is None:
            raise EdgeError("device.no-fallback", f"module {module!r} has nothing to roll back to")
        self._handle(inputs.RollbackRequested(module), self._clock.monotonic_ms())
        return reported.fallback

    def ask_report(self) -> None:
        """Report now because somebody asks."""
        self._handle(inputs.ReportRequested(), self._clock.monotonic_ms())

    def set_periods_soon(self, poll_ms: int | None, report_ms: int | None) -> None:
        """Ask and report this often until told otherwise; none goes back to what the agent was configured with.

        Any thread; does not wait.
        """
        self.post(inputs.PeriodsChanged(poll_ms, report_ms))

    def ask_hold(self, module: str) -> None:
        """Begin and go on with no update because a person asks; an empty name means the whole device.

        Raises:
            EdgeError: `config.invalid` for an unknown module.
        """
        self._require_module(module)
        self._handle(inputs.HoldRequested(module), self._clock.monotonic_ms())

    def ask_resume(self, module: str) -> None:
        """End a hold because a person asks; an empty name ends that of the device and those of all modules.

        Raises:
            EdgeError: `config.invalid` for an unknown module, or one that is held with the whole device.
        """
        self._require_module(module)
        if module and self._core.is_held:
            raise EdgeError(
                "config.invalid", "the whole device is held, not this module alone", "Resume without naming a module."
            )
        self._handle(inputs.ResumeRequested(module), self._clock.monotonic_ms())

    def _require_module(self, module: str) -> None:
        if module and module not in self._core.reported_modules():
            raise self._no_module(module)

    def _no_module(self, module: str) -> EdgeError:
        known = ", ".join(sorted(self._core.reported_modules())) or "none"
        return EdgeError("config.invalid", f"there is no module {module!r} on this device", f"Modules: {known}.")
