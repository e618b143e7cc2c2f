"""The life of a worker process: load and prove when told, serve, hand over, end. The agent speaks through `Control`."""

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_agent.worker.access import TcpAccess
from edge_agent.worker.beat import Beat
from edge_agent.worker.bundle import LoadedBundle, load_bundle, prove_bundle, read_allowance
from edge_agent.worker.compiling import Compiler
from edge_agent.worker.control import Control, sample_line
from edge_agent.worker.door import Door
from edge_agent.worker.engines import Allowance, Engine
from edge_agent.worker.frames import FrameModels
from edge_agent.worker.imports import leave_out_device
from edge_agent.worker.ledger import Ledger
from edge_agent.worker.lifeline import Lifeline
from edge_agent.worker.limits import BEAT_MS, COMPILE_AFTER_MS, RETIRE_MS, SWITCH_INTERVAL_S, WorkerLimits
from edge_agent.worker.metrics import Metrics
from edge_agent.worker.outliving import Outliving
from edge_agent.worker.passing import PassedOn
from edge_agent.worker.priority import Priority, give_memory_back, peak_bytes
from edge_agent.worker.rerun import GoldenRerun
from edge_agent.worker.sampler import Sampler
from edge_agent.worker.service import Service
from edge_agent.worker.trial import ShowingEngine, TrialRun, TrialSource
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.limits import DETAIL_CHARS_MAX
from edge_contract.terms import Agreement

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arguments:
    """What the command line says.

    Attributes:
        slot: Folder of the unpacked bundle.
        module: Name of the module.
        control_fd: The worker's end of the control channel.
        unix_fd: Listening unix socket.
        tcp_fd: Listening TCP socket.
        output_fd: Reads what this process prints; none when it ends with its agent.
        log: File that gets that while there is no agent.
        orphans: Folder in which to wait for the next agent, or none.
        orphan_ms: How long to wait there.
    """

    slot: Path
    module: str
    control_fd: int
    unix_fd: int
    tcp_fd: int
    output_fd: int | None = None
    log: Path | None = None
    orphans: Path | None = None
    orphan_ms: int = 0


class WorkerProcess:
    """One worker. Everything but loading and proving runs on the event loop."""

    def __init__(self, arguments: Arguments, limits: WorkerLimits, lifeline: Lifeline) -> None:
        """Connect to the agent; must be called on the event loop."""
        self._arguments = arguments
        self._limits = limits
        self._priority = Priority()
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._bundle: LoadedBundle | None = None
        self._access = TcpAccess("")
        self._proving: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None
        self._rerunning: asyncio.Task[None] | None = None
        self._rerun_question: object = None
        self._trial: TrialRun | None = None
        self._source: TrialSource | None = None
        self._engines: dict[str, Engine] = {}
        self._listeners = {
            "unix": socket.socket(fileno=arguments.unix_fd),
            "tcp": socket.socket(fileno=arguments.tcp_fd),
        }
        self._control = Control(socket.socket(fileno=arguments.control_fd), self._on_message, self._on_lost)
        self._ledger = Ledger(self._control.send)
        self._operations: dict[str, Callable[[JsonObject, list[int]], None]] = {
            "prove": self._prove,
            "serve": self._serve,
            "keep": lambda _message, _fds: self._ledger.introduce(),
            "adopt": self._adopt,
            "listen": self._listen,
            "drain": self._drain,
            "stop": self._stop,
            "retire": self._retire,
            "welcome": self._welcome,
            "stats": self._stats,
            "golden": self._golden,
            "sampling": self._sampling,
            "trial-source": self._begin_trial_source,
            "trial": self._begin_trial,
            "agreement": self._agreement,
        }
        self._golden_digest: str | None = None
        self._terms = ""
        self._serving_since = 0.0
        self._is_retiring = False
        self._passed_on = PassedOn()
        self._outliving: Outliving | None = None
        if arguments.orphans is not None and arguments.output_fd is not None:
            self._outliving = Outliving(
                arguments.orphans,
                arguments.module,
                arguments.orphan_ms,
                self._control,
                lifeline,
                self._hello,
                self._end_alone,
            )

    async def run(self) -> None:
        """Live until the agent says so, or is gone and no other one comes."""
        await self._ended.wait()

    def _on_message(self, message: tuple[JsonObject, list[int]]) -> None:
        content, fds = message
        name = content.get("op")
        operation = self._operations.get(name) if isinstance(name, str) else None
        if operation is None:
            raise EdgeError("internal.bug", f"the agent asked for {name!r}, which this worker does not know")
        operation(content, fds)

    # --- prove

    def _prove(self, message: JsonObject, _fds: list[int]) -> None:
        if self._proving is None:
            if message.get("urgent"):
                self._priority.hurry()
            self._terms = str(message.get("terms", ""))
            self._access = TcpAccess(str(message.get("tcp_token", "")))
            self._proving = self._loop.create_task(self._load_and_prove(read_allowance(message)))

    async def _load_and_prove(self, allowance: Allowance) -> None:
        start = time.monotonic_ns()
        try:
            bundle = await self._loop.run_in_executor(
                None, load_bundle, self._arguments.slot, allowance, leave_out_device
            )
            load_ms = (time.monotonic_ns() - start) // 1_000_000
            self._control.send(
                {"event": "loaded", "manifest": str(bundle.manifest), "peak_bytes": peak_bytes(), "load_ms": load_ms}
            )
            proof = await self._loop.run_in_executor(None, prove_bundle, bundle)
        except Exception as error:  # noqa: BLE001 - reported and logged, not passed over
            self._control.send({"event": "refused", **_told(error, "loading")})
            return
        give_memory_back()
        self._bundle = bundle
        self._open_door(bundle)
        self._golden_digest = None if proof is None else str(proof.digest)
        self._control.send(
            {
                "event": "proved",
                "golden": self._golden_digest,
                "max_error": 0.0 if proof is None else proof.error_max,
            }
        )

    def _open_door(self, bundle: LoadedBundle) -> None:
        runtime = bundle.runtime
        self._sampler = Sampler(
            self._arguments.module,
            runtime.model,
            runtime.version,
            bundle.manifest,
            self._deliver_samples,
        )
        self._sampler.set_ratio(runtime.sampling_ratio)
        self._metrics = Metrics(bundle.members)
        service = Service(self._arguments.module, bundle, self._metrics, self._sampler, self._limits)
        self._rerun = GoldenRerun(bundle, service, self._limits)
        frames = FrameModels(self._arguments.module, bundle, service.compute, self._limits)
        self._door = Door(
            service.handle, service.refuse, self._limits, service.common_headers, frames, self._ledger, self._access
        )
        self._beat = Beat(self._ledger, lambda: service.is_computing, lambda: service.runs, self._limits.stuck_ms)
        service.connections = lambda: self._door.connections
        service.samples_lost = lambda: self._control.dropped
        for kind, sock in self._listeners.items():
            self._door.listen(kind, sock)

    def _deliver_samples(self, records: Sequence[JsonObject]) -> None:
        lines = [sample_line(record) for record in records]  # on the sampler's thread, which accounts for it
        self._loop.call_soon_threadsafe(self._control.offer_samples, lines)

    def _proved(self) -> LoadedBundle:
        if self._bundle is None:
            raise EdgeError("internal.bug", "the agent wants something of a worker that is not proved")
        return self._bundle

    def _require_proved(self) -> None:
        if self._bundle is None:
            raise EdgeError("internal.bug", "the agent wants a worker to serve that is not proved")

    # --- serve

    def _serve(self, message: JsonObject, _fds: list[int]) -> None:
        self._require_proved()
        if self._draining is not None:
            self._draining.cancel()
            self._draining = None
        if self._trial is not None:
            self._trial.close()  # it has passed, or nobody wants to know any more
            self._trial = None
        self._priority.restore()
        self._passed_on.forget()
        if self._outliving is not None and not self._outliving.is_prepared:
            self._serving_since = time.monotonic()
            self._outliving.prepare()
        self._beat.begin(int(message.get("beat_ms", BEAT_MS)))
        self._door.open()
        self._control.send({"event": "serving"})
        self._loop.call_later(COMPILE_AFTER_MS / 1000, self._compile)

    def _compile(self) -> None:
        bundle = self._bundle
        if bundle is None or self._draining is not None or bundle.allowance.compiled is None:
            return
        if members := bundle.worth_compiling():
            compiler = Compiler(self._arguments.slot, bundle.allowance.compiled, members)
            # A thread that nothing waits for: the process that compiles ends with this one.
            threading.Thread(target=compiler.run, name="compiler", daemon=True).start()

    def _adopt(self, message: JsonObject, fds: list[int]) -> None:
        self._require_proved()
        pending = b""
        if len(fds) == 2:
            with open(fds[1], "rb") as file:
                file.seek(0)
                pending = file.read()
        self._passed_on.came(fds[0])
        self._door.adopt(fds[0], str(message.get("transport")), pending)

    def _listen(self, message: JsonObject, fds: list[int]) -> None:
        self._require_proved()
        kind = "tcp" if message.get("kind") == "tcp" else "unix"
        old, self._listeners[kind] = self._listeners[kind], socket.socket(fileno=fds[0])
        self._door.listen(kind, self._listeners[kind])
        old.close()

    # --- drain

    def _drain(self, message: JsonObject, _fds: list[int]) -> None:
        self._require_proved()
        if self._draining is None:
            deadline_ms, is_handed_over = int(message["deadline_ms"]), bool(message["hand_over"])
            if not is_handed_over and self._outliving is not None:
                self._outliving.give_up()  # this is the end, whoever sees it
            self._draining = self._loop.create_task(self._drain_and_say(deadline_ms, is_handed_over))

    async def _drain_and_say(self, deadline_ms: int, is_handed_over: bool) -> None:
        await self._door.drain(deadline_ms, self._hand_over if is_handed_over else None)
        await self._loop.run_in_executor(None, self._sampler.flush, self._limits.flush_ms)
        self._control.send({"event": "drained"})

    def _hand_over(self, fd: int, kind: str, pending: bytes) -> None:
        self._ledger.gave_away(fd)
        self._passed_on.gave_away(fd, kind, pending)
        fds = [fd]
        if pending:
            # As long as a whole request, so it does not fit in a message.
            memory = os.memfd_create("pending", os.MFD_CLOEXEC)
            with open(memory, "wb", closefd=False) as file:
                file.write(pending)
            fds.append(memory)
        self._control.send({"event": "connection", "transport": kind, "slot": fd}, fds)

    # --- the end, and another agent

    def _stop(self, _message: JsonObject, _fds: list[int]) -> None:
        if self._outliving is not None:
            self._outliving.give_up()

    def _on_lost(self) -> None:
        if self._is_retiring:
            return
        if self._outliving is None or not self._outliving.is_prepared:
            self._ended.set()
            return
        if self._draining is not None:
            # Nobody knows how much of what was given away has arrived; what has not is taken back when one knows.
            self._draining.cancel()
            self._draining = None
            self._door.open()
        self._outliving.lost()

    def _hello(self) -> tuple[JsonObject, list[int]]:
        arguments = self._arguments
        assert arguments.output_fd is not None
        facts: JsonObject = {
            "module": arguments.module,
            "manifest": str(self._proved().manifest),
            "golden": self._golden_digest,
            "terms": self._terms,
            "serving_ms": int((time.monotonic() - self._serving_since) * 1000),
            "limbo": self._passed_on.limbo,
            "adopted": self._passed_on.adopted,
        }
        return facts, [self._listeners["unix"].fileno(), self._listeners["tcp"].fileno(), arguments.output_fd]

    def _welcome(self, message: JsonObject, _fds: list[int]) -> None:
        if self._outliving is None:
            raise EdgeError("internal.bug", "an agent adopts a worker that never outlived one")
        self._outliving.welcomed()
        for fd, kind, pending in self._passed_on.take_back({int(number) for number in message["gone"]}):
            self._door.adopt(fd, kind, pending)
        self._ledger.introduce()
        self._control.send_waiting()

    def _retire(self, _message: JsonObject, _fds: list[int]) -> None:
        self._end_alone("the agent that came is of another version")

    def _end_alone(self, reason: str) -> None:
        """Finish what was begun, and end."""
        if not self._is_retiring:
            self._is_retiring = True
            _log.warning("this worker finishes what it has begun, and ends: %s", reason)
            if self._outliving is not None:
                self._outliving.shut()
            self._retiring = self._loop.create_task(self._finish_and_end())

    async def _finish_and_end(self) -> None:
        await self._door.drain(RETIRE_MS, None)
        await self._loop.run_in_executor(None, self._sampler.flush, self._limits.flush_ms)
        self._ended.set()

    # --- questions

    def _stats(self, message: JsonObject, _fds: list[int]) -> None:
        self._require_proved()
        metrics = self._metrics
        self._control.send(
            {
                "event": "stats",
                "id": message.get("id"),
                "requests": metrics.requests,
                "failures": metrics.failures,
                "nonfinite": metrics.nonfinite,
                "latencies": metrics.latencies().to_pairs(),
                "drift": max(member.drift.value for member in self._proved().members.values()),
            }
        )

    def _golden(self, message: JsonObject, _fds: list[int]) -> None:
        self._require_proved()
        # Who asks while a rerun is under way gets what that one finds; who asked before has given up.
        self._rerun_question = message.get("id")
        if self._rerunning is None or self._rerunning.done():
            self._rerunning = self._loop.create_task(self._rerun_and_say())

    async def _rerun_and_say(self) -> None:
        try:
            proof = await self._rerun.prove()
            found: JsonObject = {"golden": None if proof is None else str(proof.digest)}
        except Exception as error:  # noqa: BLE001 - reported and logged, not passed over
            found = _told(error, "computing the golden vectors again")
        self._control.send({"event": "golden", "id": self._rerun_question, **found})

    # --- trials

    def _begin_trial_source(self, message: JsonObject, fds: list[int]) -> None:
        self._require_proved()
        if self._source is not None:
            self._source.close()
        else:
            self._engines = {member.name: member.engine for member in self._proved().members.values()}
        self._source = TrialSource(socket.socket(fileno=fds[0]), int(message["sampling_ppm"]))
        for member in self._proved().members.values():
            member.engine = ShowingEngine(self._engines[member.name], member.name, self._source)

    def _begin_trial(self, message: JsonObject, fds: list[int]) -> None:
        if self._trial is not None:
            self._trial.close()
        self._trial = TrialRun(self._proved(), socket.socket(fileno=fds[0]), int(message["cpu_permille_max"]))
        self._control.send({"event": "trial", "id": message.get("id")})

    def _agreement(self, message: JsonObject, _fds: list[int]) -> None:
        found = Agreement() if self._trial is None else self._trial.agreement
        self._control.send({"event": "agreement", "id": message.get("id"), **found.to_json()})

    def _sampling(self, message: JsonObject, _fds: list[int]) -> None:
        self._require_proved()
        self._sampler.set_ratio(float(message["ratio"]))


def _told(error: Exception, doing: str) -> JsonObject:
    """An error as the agent is told of it."""
    if isinstance(error, EdgeError):
        return {"code": error.code, "detail": error.detail, "hint": error.hint}
    if isinstance(error, MemoryError):
        return {
            "code": "device.memory-short",
            "detail": f"the worker could not get the memory it needs while {doing}",
            "hint": "Let the policy give it more, or deploy a smaller model.",
        }
    _log.error("%s met a bug", doing, exc_info=error)
    detail = f"the worker failed while {doing}: {type(error).__name__}: {error}"[:DETAIL_CHARS_MAX]
    return {"code": "internal.bug", "detail": detail, "hint": ""}


def run_worker(arguments: Arguments, limits: WorkerLimits | None = None) -> None:
    """Be a worker; ends the process and does not return."""
    limits = limits or WorkerLimits()
    faulthandler.enable()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Stopping the agent's service signals every process of it, but the agent decides when its workers end, by closing
    # the channel. Not SIG_IGN: what a script starts would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)
    for fd in (arguments.control_fd, arguments.unix_fd, arguments.tcp_fd, arguments.output_fd):
        if fd is not None:
            os.set_inheritable(fd, False)  # what a script starts may outlive this process
    lifeline = Lifeline(arguments.control_fd, limits.hangup_ms, arguments.output_fd, arguments.log)

    async def live() -> None:
        await WorkerProcess(arguments, limits, lifeline).run()

    asyncio.new_event_loop().run_until_complete(live())
    # Without waiting for threads: a model may be stuck, and there is nothing to save.
    logging.shutdown()
    os._exit(0)
