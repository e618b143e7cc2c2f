"""Keeps one live worker a module, proves candidates beside it, swaps without losing a request (`ports.ModelServer`)."""

import contextlib
import dataclasses
import json
import logging
import resource
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from edge_agent.ports import Attestation, Health, MemoryGauge
from edge_agent.serving.adoption import Adopted, adopt_orphans
from edge_agent.serving.asking import ask_who_answers
from edge_agent.serving.handle import can_adopt
from edge_agent.serving.handover import drain, replace, settle
from edge_agent.serving.inherited import Inherited, Named, SocketKeeper, name_parked
from edge_agent.serving.limits import DESCRIPTORS_WANTED, ORPHAN_FOLDER, ServingLimits
from edge_agent.serving.logfile import BoundedLog
from edge_agent.serving.memory import SystemMemory, process_own_bytes, require_room
from edge_agent.serving.orphans import waiting_name
from edge_agent.serving.parking import ParkingLot
from edge_agent.serving.resources import Limiter, require_within
from edge_agent.serving.samples import OnSample, SampleDeliverer
from edge_agent.serving.shelf import Shelf
from edge_agent.serving.sockets import Listeners
from edge_agent.serving.starting import Outliving, start_worker
from edge_agent.serving.trial import ask_trial, begin_trial, health_of
from edge_agent.serving.worker_process import WorkerProcess
from edge_contract.deployment import Policy
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.terms import Agreement, Resources, Trial

_log = logging.getLogger(__name__)

OnExit = Callable[[str, Digest], None]
"""Gets (module, manifest) when a live worker ended by itself. Called on the thread that listened to it; must not block,
and must not call the supervisor back."""

_ANY_PORT: Mapping[str, int] = MappingProxyType({})
_NO_PATHS: Mapping[str, Path] = MappingProxyType({})
_NO_POLICY: Final = Policy()


def _want_descriptors() -> None:
    """Take as many descriptors as are wanted and the system grants without a question."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(DESCRIPTORS_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
        tcp_token: str = "",
        is_outlived: bool = False,
        inherited: Inherited | None = None,
        keeper: SocketKeeper | None = None,
        limiter: Limiter | None = None,
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
            tcp_token: What clients over TCP have to present; empty lets everybody ask who can connect.
            make_log: Makes what takes a module's output, from the path of its file; a file of bounded size.
            is_outlived: Whether workers that serve go on serving when this process ends without a word, for an `adopt`
                of the next one; then `run_dir` stays where it is. Otherwise they end with it.
            inherited: Descriptors that this process was started with; owned from now on.
            keeper: Keeps the listening sockets for the next agent, or none.
            limiter: Keeps workers within what the policy lets them use; by what this machine permits when none.
        """
        _want_descriptors()
        self._run_dir = run_dir
        self._on_sample = on_sample
        self._on_exit = on_exit
        self._limits = limits or ServingLimits()
        self._memory = memory or SystemMemory()
        self._make_log = make_log
        self._offered: dict[str, Any] = {
            "compiled": None if compiled_dir is None else str(compiled_dir),
            "providers": list(providers),
            "tcp_token": tcp_token,
        }
        self._lock = threading.Lock()  # guards _live, _silent_since_ns and the moment a worker becomes live
        self._live: dict[str, WorkerProcess] = {}
        self._candidates: dict[str, WorkerProcess] = {}
        self._silent_since_ns: dict[str, int] = {}  # by module that served and whose clients wait now
        self._on_trial: dict[str, Resources] = {}  # what the candidate of a module may use after its trial
        self._parked = ParkingLot()
        self._spares: dict[str, list[WorkerProcess]] = {}  # by module, adopted beside the live worker; they serve too
        self._logs: dict[str, BoundedLog] = {}
        self._shelf = Shelf(run_dir, host, ports, unix_paths, inherited or Inherited(), keeper)
        self._limiter = Limiter() if limiter is None else limiter
        self._samples = SampleDeliverer(on_sample)
        self._orphans: Path | None = None
        if is_outlived and can_adopt():
            folder = run_dir / ORPHAN_FOLDER
            try:
                folder.mkdir(mode=0o700, exist_ok=True)
                self._orphans = folder
            except OSError as error:  # full, or read-only: whoever needs a socket there is told
                _log.error("workers end with this agent: %s cannot be made: %s", folder, error.strerror)

    # --- after a start

    def adopt(self) -> None:
        """Take over the workers that outlived the agent before this one, and what was passed on by it.

        Called once, before anything else, by an agent that is sure to be the only one here. They go on serving; the
        next `ensure` of a module decides about its worker.
        """
        for module in self._shelf.parked_modules:
            self._silent_since_ns[module] = time.monotonic_ns()
        found = Adopted()
        if self._orphans is not None:
            found = adopt_orphans(
                self._orphans, self._shelf, self._limits, self._log_of, self._samples.take, self._worker_ended
            )
        with self._lock:
            self._live.update(found.live)
            self._spares.update(found.spares)
            for module in found.live:
                self._silent_since_ns.pop(module, None)
        for worker in found.live.values():
            if worker.has_ended:
                self._worker_ended(worker)
        for module in self._shelf.parked_modules:
            self._parked.park(module, found.without_served(self._shelf.take_parked(module)))
            self._move_parked(module)

    def release(self) -> list[Named]:
        """Let go of everything, so that the next program in this process adopts it; for a re-execution.

        Workers that serve are left alone, candidates end. May be called while another thread is still in a method.

        Returns:
            Descriptors to pass on, each with its name: listening sockets and connections of waiting clients.
        """
        for module in list(self._candidates):
            self.discard(module)
        named = self._shelf.name_all()
        for module, connections in self._parked.held().items():
            named += name_parked(module, connections)
        return named

    # --- ports.ModelServer

    def prove(self, module: str, manifest: Digest, slot: Path, policy: Policy = _NO_POLICY) -> Digest | None:
        """Start a candidate and prove it; see `ModelServer`."""
        self.discard(module)
        require_within(policy.resources, slot)
        if not (urgent := module in self._silent_since_ns):
            require_room(self._memory, slot)
        log = self._log_of(module)
        outliving = None
        if self._orphans is not None:
            outliving = Outliving(self._orphans, log.path, self._limits.orphan_ms)
        running = start_worker(module, slot, self._listen(module), outliving)
        candidate = WorkerProcess(
            module, manifest, running, log, self._limits, self._samples.take, self._worker_ended
        )  # fmt: skip
        self._candidates[module] = candidate
        candidate.guard.confinement = self._limiter.confine(module, candidate.pid, policy.resources)
        try:
            candidate.terms = self._terms(policy)
            told: dict[str, Any] = {"terms": candidate.terms, "allow_pickle": policy.allow_pickle, "urgent": urgent}
            candidate.command("prove", **told, **self._offered)
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
        self._settle_on(module, None)
        live, candidate = self._live.get(module), self._candidates.get(module)
        if candidate is None or candidate.manifest != manifest:
            if live is not None and live.manifest == manifest and not live.has_ended:
                return 0
            raise EdgeError("model.worker-crashed", f"module {module!r} has no proved candidate {manifest}")
        if (own := self._on_trial.pop(module, None)) is not None:
            candidate.guard.bound(self._limiter, candidate.pid, own)
        try:
            candidate.command("serve", beat_ms=candidate.guard.beat_ms)
            candidate.expect("serving", self._limits.serve_ms, "to begin serving")
            if live is not None and not live.has_ended:
                self._replace(live, candidate)
            self._parked.leave_to(module, candidate)
        except EdgeError:
            self._parked.park(module, candidate.rescue())  # it may have accepted, and been given, connections
            self.discard(module)
            self._move_parked(module)
            raise
        with self._lock:
            del self._candidates[module]
            self._live[module] = candidate
            silent_since_ns = self._silent_since_ns.pop(module, None)
            is_gone = candidate.has_ended
        if is_gone:
            self._worker_ended(candidate)
        self._move_parked(module)
        return 0 if silent_since_ns is None else (time.monotonic_ns() - silent_since_ns) // 1_000_000

    def ensure(self, module: str, manifest: Digest, slot: Path, policy: Policy = _NO_POLICY) -> Digest | None:
        """Make this bundle what serves; see `ModelServer`.

        Where the file of the unix socket has gone or is somebody else's, the live worker gets a new one in its place.
        Of several workers that were adopted the one with this bundle becomes the live one; it is replaced where it was
        proved on other terms than this agent's, which may have another configuration.
        """
        self._settle_on(module, manifest)
        live = self._live.get(module)
        if live is not None and live.manifest == manifest and live.terms == self._terms(policy):
            begun_ns = time.monotonic_ns()
            if self.health(module).is_alive:
                self._listen(module)
                live.guard.bound(self._limiter, live.pid, policy.resources)
                return live.golden
            with self._lock:
                self._live.pop(module, None)
                self._silent_since_ns.setdefault(module, begun_ns)
            live.fail()  # what its clients can go on with waits for the next one
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
        live, listeners = self._live.get(module), self._shelf.get(module)
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
        candidate = self._candidates.get(module)
        if candidate is not None and trial.memory_bytes_max:
            own = candidate.guard.resources
            bounds = [bound for bound in (own.memory_bytes_max, trial.memory_bytes_max) if bound]
            candidate.guard.bound(self._limiter, candidate.pid, dataclasses.replace(own, memory_bytes_max=min(bounds)))
            self._on_trial[module] = own
        begin_trial(self._live.get(module), candidate, trial)

    def trial(self, module: str) -> Agreement:
        """Ask the candidate what it found; see `ModelServer`."""
        return ask_trial(self._candidates.get(module))

    def pause(self, module: str) -> None:
        """End the live worker and keep its sockets and its clients' connections; see `ModelServer`.

        Nobody is refused: what clients send waits until the next worker reads it, on open connections as on new ones.
        """
        self._settle_on(module, None)
        with self._lock:
            live = self._live.pop(module, None)
            if live is not None:
                live.is_expected_to_end = True
                self._silent_since_ns[module] = time.monotonic_ns()
        if live is not None:
            live.successor = self._parked.of(module)
            drain([live], self._limits, is_handed_over=True)

    def memory_bytes(self, module: str) -> int:
        """Resident memory of the live worker; see `ModelServer`.

        Without the pages of files, such as libraries: others may use them too, and they count as available already.
        """
        pid = self.worker_pid(module)
        return 0 if pid is None else process_own_bytes(pid)

    def discard(self, module: str) -> None:
        """End the candidate; see `ModelServer`."""
        self._on_trial.pop(module, None)
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
        self._shelf.close(module)
        self._parked.close(module)
        workers = [*self._spares.pop(module, []), *([] if live is None else [live])]
        drain(workers, self._limits, is_handed_over=False)

    def close(self) -> None:
        """Drain and end all workers; see `ModelServer`."""
        for module in list(self._candidates):
            self.discard(module)
        with self._lock:
            workers, self._live = list(self._live.values()), {}
        workers += [spare for spares in self._spares.values() for spare in spares]
        self._spares.clear()
        # First, as in `stop`: who connects while the workers drain is refused, and not left in a queue that ends.
        self._shelf.close_all()
        self._parked.close_all()
        drain(workers, self._limits, is_handed_over=False)
        self._samples.close(self._limits.exit_ms / 1000)

    # --- more than the port

    def addresses(self, module: str) -> tuple[Path, str, int]:
        """Where a module answers: unix socket, and TCP host and port.

        Raises:
            EdgeError: `model.not-serving` before the first bundle of the module was proved.
        """
        listeners = self._shelf.get(module)
        if listeners is None:
            raise EdgeError("model.not-serving", f"module {module!r} has never served anything here")
        return listeners.unix_path, listeners.host, listeners.port

    def worker_pid(self, module: str) -> int | None:
        """Process id of the live worker, or none."""
        live = self._live.get(module)
        return None if live is None or live.has_ended else live.pid

    def limits_in_force(self, module: str) -> JsonObject:
        """What bounds the live worker, by which means, and what could not be had, with the reason. Any thread."""
        live = self._live.get(module)
        return {} if live is None else live.guard.to_json()

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of all workers, adopted and started."""
        spares = [spare for spares in self._spares.values() for spare in spares]
        return [worker.pid for worker in (*self._live.values(), *self._candidates.values(), *spares)]

    def live_manifests(self) -> dict[str, Digest | None]:
        """The bundle of each live worker by module; none for a module between two workers. Any thread."""
        with self._lock:
            live = {module: worker.manifest for module, worker in self._live.items()}
        return dict.fromkeys(self._shelf.modules) | live

    @property
    def samples_dropped(self) -> int:
        """Samples dropped because the agent's callback was slower than the workers."""
        return self._samples.dropped

    # --- parts

    def _terms(self, policy: Policy) -> str:
        """What a worker is told once, when it is proved: nothing of it can change while it runs."""
        told = {"allow_pickle": policy.allow_pickle, **self._offered}
        return str(Digest.of(json.dumps(told, sort_keys=True).encode()))

    def _log_of(self, module: str) -> BoundedLog:
        return self._logs.setdefault(module, self._make_log(self._run_dir / f"{module}.log"))

    def _listen(self, module: str) -> Listeners:
        def workers() -> list[WorkerProcess]:
            found = [self._live.get(module), self._candidates.get(module), *self._spares.get(module, [])]
            return [worker for worker in found if worker is not None]

        return self._shelf.listen(module, workers)

    def _settle_on(self, module: str, manifest: Digest | None) -> None:
        """Of several adopted workers make one the live one, and move the clients of the others to it.

        Args:
            module: Name of the module.
            manifest: The bundle that is wanted; the newest worker when none has it.
        """
        spares = self._spares.pop(module, None)
        if spares is None:
            return
        live = self._live.get(module)
        workers = [worker for worker in (live, *spares) if worker is not None and not worker.has_ended]
        if not workers:
            return
        chosen = settle(workers, manifest, self._limits)
        with self._lock:
            self._live[module] = chosen
            self._silent_since_ns.pop(module, None)
            is_gone = chosen.has_ended
        if is_gone:
            self._worker_ended(chosen)

    def _replace(self, live: WorkerProcess, candidate: WorkerProcess) -> None:
        try:
            replace(live, candidate, self._limits)
        except EdgeError:
            if live.has_ended:
                self._worker_ended(live)
            self._move_parked(live.module)
            raise

    def _move_parked(self, module: str) -> None:
        """Give connections that wait to the live worker, if there is one. Any thread."""
        with self._lock:
            live = self._live.get(module)
        if live is not None and not live.has_ended and not live.is_expected_to_end:
            with contextlib.suppress(EdgeError):  # it ended this moment; they wait for the next one
                self._parked.leave_to(module, live)

    def _worker_ended(self, worker: WorkerProcess) -> None:
        if self._orphans is not None:
            with contextlib.suppress(OSError):
                (self._orphans / waiting_name(worker.module, worker.pid)).unlink(missing_ok=True)
        # What its clients can go on with is for whoever serves next.
        if not worker.is_expected_to_end and (found := worker.rescue()):
            self._parked.park(worker.module, found)
            self._move_parked(worker.module)
        with self._lock:
            is_news = self._live.get(worker.module) is worker and not worker.is_expected_to_end
            if is_news:
                del self._live[worker.module]
                self._silent_since_ns[worker.module] = time.monotonic_ns()
        if is_news:
            _log.error("module %s: its worker ended by itself", worker.module)
            self._on_exit(worker.module, worker.manifest)
