"""Keeps one live worker a module, proves candidates beside it, swaps without losing a request (`ports.ModelServer`)."""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from edge_agent.ports import Attestation, Health, MemoryGauge
from edge_agent.serving.asking import ask_who_answers
from edge_agent.serving.channel import close_fds
from edge_agent.serving.limits import CONNECTIONS_PARKED_MAX, MEMORY_SHARE_MAX, SAMPLES_WAITING_MAX, ServingLimits
from edge_agent.serving.logfile import BoundedLog
from edge_agent.serving.memory import SystemMemory, process_own_bytes
from edge_agent.serving.parking import Parking
from edge_agent.serving.sockets import Listeners
from edge_agent.serving.trial import ask_trial, begin_trial, health_of
from edge_agent.serving.worker_process import WorkerProcess
from edge_contract.deployment import Policy
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.names import model_name
from edge_contract.runtime import RUNTIME_PATH, Runtime
from edge_contract.terms import Agreement, Trial

_log = logging.getLogger(__name__)

OnSample = Callable[[str, JsonObject], None]
"""Gets (module, record): a sample's JSON without `seq`. Called on the supervisor's own thread."""

OnExit = Callable[[str, Digest], None]
"""Gets (module, manifest) when a live worker ended by itself. Called on the thread that listened to it; must not block,
and must not call the supervisor back."""

_ANY_PORT: Mapping[str, int] = MappingProxyType({})
_NO_PATHS: Mapping[str, Path] = MappingProxyType({})
_NO_POLICY: Final = Policy()


class WorkerSupervisor:
    """Implements `edge_agent.ports.ModelServer` with worker processes. Imports neither numpy nor an inference runtime.

    Methods are called from one thread at a time; `addresses` and `samples_dropped` from any.
    """

    def __init__(
        self,
        run_dir: Path,
        on_sample: OnSample,
        on_exit: OnExit,
        ports: Mapping[str, int] = _ANY_PORT,
        host: str = "127.0.0.1",
        limits: ServingLimits | None = None,
        memory: MemoryGauge | None = None,
        make_log: Callable[[Path], BoundedLog] = BoundedLog,
        unix_paths: Mapping[str, Path] = _NO_PATHS,
        compiled_dir: Path | None = None,
        providers: Sequence[str] = (),
    ) -> None:
        """Make a supervisor without workers.

        Args:
            run_dir: Existing folder for unix sockets and workers' logs; one agent's own.
            on_sample: See `OnSample`.
            on_exit: See `OnExit`.
            ports: TCP port by module; any free one for modules that are not named.
            host: Address the TCP sockets listen on.
            limits: Bounds of time; the defaults when none.
            memory: How much is free for a candidate; the system's own figures when none.
            unix_paths: Path of the unix socket by module; in `run_dir` for modules that are not named.
            compiled_dir: Where workers keep compiled models, or none: they keep none (ADR 26).
            providers: Execution providers that bundles may ask for.
            make_log: Makes what takes a module's output, from the path of its file; a file of bounded size.
        """
        self._run_dir = run_dir
        self._on_sample = on_sample
        self._on_exit = on_exit
        self._ports = dict(ports)
        self._host = host
        self._limits = limits or ServingLimits()
        self._memory = memory or SystemMemory()
        self._make_log = make_log
        self._unix_paths = dict(unix_paths)
        self._offered: dict[str, Any] = {
            "compiled": None if compiled_dir is None else str(compiled_dir),
            "providers": list(providers),
        }
        self._lock = threading.Lock()  # guards _live, _silent_since_ns and the moment a worker becomes live
        self._live: dict[str, WorkerProcess] = {}
        self._candidates: dict[str, WorkerProcess] = {}
        self._silent_since_ns: dict[str, int] = {}  # by module that served and whose clients wait now
        self._parkings: dict[str, Parking] = {}
        self._listeners: dict[str, Listeners] = {}
        self._logs: dict[str, BoundedLog] = {}
        self._samples: queue.Queue[tuple[str, JsonObject] | None] = queue.Queue(SAMPLES_WAITING_MAX)
        self._samples_dropped = 0
        self._deliverer = threading.Thread(target=self._deliver_samples, name="samples", daemon=True)
        self._deliverer.start()

    # --- ports.ModelServer

    def prove(self, module: str, manifest: Digest, slot: Path, policy: Policy = _NO_POLICY) -> Digest | None:
        """Start a candidate and prove it; see `ModelServer`."""
        self.discard(module)
        self._require_memory(module, slot)
        candidate = WorkerProcess(
            module,
            manifest,
            slot,
            self._listen(module),
            self._logs.setdefault(module, self._make_log(self._run_dir / f"{module}.log")),
            self._limits,
            self._take_sample,
            self._worker_ended,
        )
        self._candidates[module] = candidate
        try:
            candidate.command("prove", allow_pickle=policy.allow_pickle, **self._offered)
            loaded = candidate.expect("loaded", self._limits.load_ms, "to load the model")
            if loaded.get("manifest") != str(manifest):
                raise EdgeError("internal.bug", f"the slot {slot} holds {loaded.get('manifest')}, not {manifest}")
            proved = candidate.expect("proved", self._limits.prove_ms, "to prove the model")
        except EdgeError:
            self.discard(module)
            raise
        golden = proved.get("golden")
        candidate.golden = None if golden is None else Digest(str(golden))
        _log.info(
            "module %s: %s proved, loaded in %s ms with a peak of %s bytes",
            module, manifest, loaded.get("load_ms"), loaded.get("peak_bytes"),
        )  # fmt: skip
        return candidate.golden

    def activate(self, module: str, manifest: Digest) -> int:
        """Swap to the proved candidate; see `ModelServer`.

        Returns:
            Milliseconds for which nobody answered this module's clients; 0 when the old worker answered until the new
            one did, and for a module that did not serve before.
        """
        live, candidate = self._live.get(module), self._candidates.get(module)
        if candidate is None or candidate.manifest != manifest:
            if live is not None and live.manifest == manifest and not live.has_ended:
                return 0
            raise EdgeError("model.worker-crashed", f"module {module!r} has no proved candidate {manifest}")
        try:
            candidate.command("serve")
            candidate.expect("serving", self._limits.serve_ms, "to begin serving")
            if live is not None and not live.has_ended:
                self._replace(live, candidate)
            if (parking := self._parkings.get(module)) is not None:
                parking.leave_to(candidate)
        except EdgeError:
            self.discard(module)
            raise
        with self._lock:
            del self._candidates[module]
            self._live[module] = candidate
            silent_since_ns = self._silent_since_ns.pop(module, None)
            is_gone = candidate.has_ended
        if is_gone:
            self._worker_ended(candidate)
        return 0 if silent_since_ns is None else (time.monotonic_ns() - silent_since_ns) // 1_000_000

    def ensure(self, module: str, manifest: Digest, slot: Path, policy: Policy = _NO_POLICY) -> Digest | None:
        """Make this bundle what serves; see `ModelServer`.

        Where the file of the unix socket has gone or is somebody else's, the live worker gets a new one in its place.
        """
        live = self._live.get(module)
        if live is not None and live.manifest == manifest:
            begun_ns = time.monotonic_ns()
            if self.health(module).is_alive:
                self._listen(module)
                return live.golden
            live.kill()
            with self._lock:
                self._live.pop(module, None)
                self._silent_since_ns.setdefault(module, begun_ns)
        return self.restart(module, manifest, slot, policy)

    def restart(self, module: str, manifest: Digest, slot: Path, policy: Policy = _NO_POLICY) -> Digest | None:
        """Swap to a fresh worker of this bundle; see `ModelServer`."""
        golden = self.prove(module, manifest, slot, policy)
        self.activate(module, manifest)
        return golden

    def attest(self, module: str) -> Attestation:
        """Ask which bundle answers, and let it compute its golden vectors again; see `ModelServer`.

        Who answers in the place of the live worker is not asked for golden vectors, so there is no digest of them. A
        unix socket whose file has gone or is somebody else's is made anew afterwards.

        Raises:
            EdgeError: As `ModelServer.attest`, `device.answers-otherwise` when a stranger claims to be the live bundle,
                `device.disk-corrupt` when the golden vectors in the slot are no longer those it was proved with.
        """
        live, listeners = self._live.get(module), self._listeners.get(module)
        if live is None or listeners is None:
            raise EdgeError("model.not-serving", f"module {module!r} serves nothing")
        try:
            answer = ask_who_answers(listeners.unix_path, self._limits.ask_ms, lambda: live.has_ended)
        finally:
            # What was found is told as it is; the next one who asks finds the live worker again.
            with contextlib.suppress(EdgeError):
                self._listen(module)
        if answer.manifest != live.manifest:
            return Attestation(answer.manifest, None)
        if not answer.is_ours:
            raise EdgeError(
                "device.answers-otherwise",
                f"another process answers at {listeners.unix_path} and calls itself {answer.manifest.short}",
                "Find out who made that socket; the agent's own has taken its place again.",
            )
        return Attestation(answer.manifest, live.ask_golden())

    def begin_trial(self, module: str, trial: Trial) -> None:
        """Connect the live worker with the candidate; see `ModelServer`."""
        begin_trial(self._live.get(module), self._candidates.get(module), trial)

    def trial(self, module: str) -> Agreement:
        """Ask the candidate what it found; see `ModelServer`."""
        return ask_trial(self._candidates.get(module))

    def pause(self, module: str) -> None:
        """End the live worker and keep its sockets and its clients' connections; see `ModelServer`.

        Nobody is refused: what clients send waits until the next worker reads it, on open connections as on new ones.
        """
        with self._lock:
            live = self._live.pop(module, None)
            if live is not None:
                live.is_expected_to_end = True
                self._silent_since_ns[module] = time.monotonic_ns()
        if live is not None:
            parking = self._parkings.setdefault(module, Parking(module))
            others = sum(len(other) for other in self._parkings.values() if other is not parking)
            parking.connections_max = CONNECTIONS_PARKED_MAX - others
            live.successor = parking
            self._drain([live], is_handed_over=True)

    def memory_bytes(self, module: str) -> int:
        """Resident memory of the live worker; see `ModelServer`.

        Without the pages of files, such as libraries: others may use them too, and they count as available already.
        """
        pid = self.worker_pid(module)
        return 0 if pid is None else process_own_bytes(pid)

    def discard(self, module: str) -> None:
        """End the candidate; see `ModelServer`."""
        candidate = self._candidates.pop(module, None)
        if candidate is not None:
            candidate.kill()

    def health(self, module: str) -> Health:
        """Counters of the live worker; see `ModelServer`."""
        live = self._live.get(module)
        if live is None or live.has_ended:
            return Health(is_alive=False, requests=0, failures=0)
        try:
            stats = live.ask_stats()
        except EdgeError as error:
            _log.warning("module %s: %s", module, error)
            return Health(is_alive=False, requests=0, failures=0)
        return health_of(stats)

    def set_sampling(self, module: str, ratio: float) -> None:
        """Set the live worker's share of collected requests; see `ModelServer`."""
        live = self._live.get(module)
        if live is not None and not live.has_ended:
            with contextlib.suppress(EdgeError):  # it crashed this moment, which is reported elsewhere
                live.command("sampling", ratio=ratio)

    def stop(self, module: str) -> None:
        """Drain and end a module's workers; see `ModelServer`. Its sockets close: clients are refused at once."""
        self.discard(module)
        with self._lock:
            live = self._live.pop(module, None)
            self._silent_since_ns.pop(module, None)
        if (listeners := self._listeners.pop(module, None)) is not None:
            listeners.close()
        if (parking := self._parkings.pop(module, None)) is not None:
            parking.close()
        self._drain([] if live is None else [live], is_handed_over=False)

    def _drain(self, workers: list[WorkerProcess], is_handed_over: bool) -> None:
        """Let workers finish what they have begun, and end them."""
        for worker in workers:
            worker.is_expected_to_end = True
            with contextlib.suppress(EdgeError):
                worker.command("drain", deadline_ms=self._limits.drain_ms, hand_over=is_handed_over)
        for worker in workers:
            with contextlib.suppress(EdgeError):
                worker.expect("drained", self._limits.drained_ms, "to finish")
            worker.stop()

    def close(self) -> None:
        """Drain and end all workers; see `ModelServer`."""
        for module in list(self._candidates):
            self.discard(module)
        with self._lock:
            workers, self._live = list(self._live.values()), {}
        self._drain(workers, is_handed_over=False)
        for parking in self._parkings.values():
            parking.close()
        for listeners in self._listeners.values():
            listeners.close()
        self._parkings.clear()
        self._listeners.clear()
        self._samples.put(None)
        self._deliverer.join(self._limits.exit_ms / 1000)

    # --- more than the port

    def addresses(self, module: str) -> tuple[Path, str, int]:
        """Where a module answers: unix socket, and TCP host and port.

        Raises:
            EdgeError: `model.not-serving` before the first bundle of the module was proved.
        """
        listeners = self._listeners.get(module)
        if listeners is None:
            raise EdgeError("model.not-serving", f"module {module!r} has never served anything here")
        return listeners.unix_path, listeners.host, listeners.port

    def worker_pid(self, module: str) -> int | None:
        """Process id of the live worker, or none."""
        live = self._live.get(module)
        return None if live is None or live.has_ended else live.pid

    @property
    def samples_dropped(self) -> int:
        """Samples dropped because the agent's callback was slower than the workers."""
        return self._samples_dropped

    # --- parts

    def _require_memory(self, module: str, slot: Path) -> None:
        """Refuse what cannot be loaded beside what runs. A module whose clients wait is not refused: it is tried.

        Raises:
            EdgeError: `device.memory-short`, `artifact.*`, `model.load-failed`.
        """
        if module in self._silent_since_ns:
            return
        try:
            runtime = Runtime.parse((slot / "files" / RUNTIME_PATH).read_bytes())
        except OSError as error:
            raise EdgeError(
                "model.load-failed", f"the slot cannot be read: {error.strerror}: {error.filename}"
            ) from error
        available = self._memory.available_bytes()
        if available is not None and runtime.load_peak_bytes > available * MEMORY_SHARE_MAX:
            raise EdgeError(
                "device.memory-short",
                f"loading {runtime.model!r} version {runtime.version} needs {runtime.load_peak_bytes} bytes of memory, "
                f"{available} are free",
                "Stop other programs, or deploy a smaller model.",
            )

    def _listen(self, module: str) -> Listeners:
        listeners = self._listeners.get(module)
        if listeners is None:
            model_name(module)  # it becomes a file name
            port, path = self._ports.get(module, 0), self._unix_paths.get(module)
            listeners = Listeners.open(module, self._run_dir, self._host, port, path)
        elif not listeners.is_in_place:
            _log.error("module %s: %s is not the agent's socket any more; made anew", module, listeners.unix_path)
            listeners = listeners.with_new_unix()
            for worker in (self._live.get(module), self._candidates.get(module)):
                with contextlib.suppress(EdgeError):  # it crashed this moment; the next worker inherits the socket
                    if worker is not None:
                        worker.command("listen", [listeners.unix.fileno()])
        self._listeners[module] = listeners
        return listeners

    def _replace(self, live: WorkerProcess, candidate: WorkerProcess) -> None:
        """Move every connection from the live worker to the candidate, which accepts already, and end the live one.

        Raises:
            EdgeError: `model.worker-crashed` when the candidate died or got stuck; the live worker serves on.
        """
        live.is_expected_to_end = True
        live.successor = candidate
        try:
            live.command("drain", deadline_ms=self._limits.drain_ms, hand_over=True)
            live.expect("drained", self._limits.drained_ms, "to finish what it had begun")
        except EdgeError as error:
            _log.warning("module %s: the worker that is replaced: %s", live.module, error)
        if candidate.has_ended or live.undelivered:
            candidate.kill()
            self._restore(live)
            raise EdgeError(
                "model.worker-crashed",
                f"the new worker of {live.module!r} ended, or got stuck, while it took over the connections",
            )
        live.stop()

    def _restore(self, live: WorkerProcess) -> None:
        """Let the worker that was to be replaced go on."""
        live.successor = None
        connections, live.undelivered = live.undelivered, []
        try:
            live.command("serve")
            live.expect("serving", self._limits.serve_ms, "to go on serving")
            while connections:
                live.adopt(connections[0])
                connections.pop(0)
            live.is_expected_to_end = False
        except EdgeError as error:
            _log.error("module %s: %s", live.module, error)
            live.kill()
            live.is_expected_to_end = False
            self._worker_ended(live)
        for _transport, fds in connections:
            close_fds(fds)

    def _worker_ended(self, worker: WorkerProcess) -> None:
        with self._lock:
            is_news = self._live.get(worker.module) is worker and not worker.is_expected_to_end
            if is_news:
                del self._live[worker.module]
                self._silent_since_ns[worker.module] = time.monotonic_ns()
        if is_news:
            _log.error("module %s: its worker ended by itself", worker.module)
            self._on_exit(worker.module, worker.manifest)

    def _take_sample(self, module: str, record: JsonObject) -> None:
        try:
            self._samples.put_nowait((module, record))
        except queue.Full:
            self._samples_dropped += 1

    def _deliver_samples(self) -> None:
        while (item := self._samples.get()) is not None:
            try:
                self._on_sample(*item)
            except EdgeError as error:  # a full disk, for example; telemetry gives way
                self._samples_dropped += 1
                _log.warning("a sample of module %s was dropped: %s", item[0], error)
