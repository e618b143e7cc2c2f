"""A simulated device: the agent's core that ships, with a shell, a disk and workers that exist in virtual time only."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from device_sim.checkers import Checkers, InvariantError
from device_sim.clock import Timer, VirtualClock
from device_sim.cloud import Cloud
from device_sim.content import PowerLostError, SimContent
from device_sim.faults import Faults
from device_sim.hardware import Flaw, Workers, golden_of
from device_sim.network import Network
from device_sim.rng import spell_ms, stream
from device_sim.storage import Storage
from device_sim.trace import Trace, describe
from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.agent import Agent
from edge_agent.shell.dispatch import Lane, lane_of
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.terms import PPM, Agreement
from edge_contract.twin import Report

MakeAgent = Callable[[str, JsonObject | None], Agent]

_PERSIST_MS = (1, 20)
_STEP_MS = (5, 400)
_DOWN_MS = (500, 30_000)
_BOOT_MS = (50, 2_000)
_BYTES_PER_MS = 2_000
_CRASH_AFTER_MS = (10, 5_000)
_CLOCK_ORIGIN_MS_MAX = 10_000_000
_FAILURE_RATIO_MAX = 0.05
_RESUME_MS = 10_000
_SCRUB_MS = 300_000


def core_agent(device: str, record: JsonObject | None) -> Agent:
    """The core as it ships."""
    return Agent(device, scrub_ms=_SCRUB_MS) if record is None else Agent.restore(record, device, scrub_ms=_SCRUB_MS)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all devices of a world share."""

    seed: int
    clock: VirtualClock
    network: Network
    cloud: Cloud
    trace: Trace
    checkers: Checkers
    faults: Callable[[], Faults]
    make_agent: MakeAgent


@dataclass(slots=True)
class _Work:
    """An operation of the core and the power-on it belongs to."""

    command: do.Command
    op: int | None
    boot: int
    is_done: bool = field(default=False)

    @property
    def lane(self) -> Lane:
        """The shell's thread that would carry it out."""
        return lane_of(self.command)


class SimDevice:
    """One device. Everything happens by the world's clock."""

    def __init__(self, name: str, around: Surroundings) -> None:
        """Make a device without power; `start` switches it on."""
        self.name = name
        self.storage = Storage()
        self.workers = Workers()
        self.agent: Agent | None = None
        self.restarts = 0
        self._around = around
        self._draw: random.Random = stream(around.seed, "device", name)
        self._boot = 0
        self._origin_ms = 0
        self._reports = 0
        self._commands: deque[do.Command | Report] = deque()
        self._is_writing = False
        self._waiting: dict[Lane, deque[_Work]] = {lane: deque() for lane in Lane}
        self._running: dict[Lane, _Work] = {}
        self._completing = 0
        self._timer: Timer | None = None
        self.content = self._new_content()

    # -- power -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Switch it on: restore the record, and go on."""
        self._boot += 1
        self._reports = 0
        # Monotonic time starts anywhere after a boot, so a core that stored an instant is found out.
        self._origin_ms = self._draw.randint(0, _CLOCK_ORIGIN_MS_MAX) - self._around.clock.now_ms
        self._around.trace.add(self.name, f"starts, boot {self._boot}")
        self.agent = self._around.make_agent(self.name, self.storage.load())
        self.content = self._new_content()
        self.feed(inputs.Started())
        self._later(self._draw.randint(*_BOOT_MS), self._link_up)

    def _new_content(self) -> SimContent:
        around = self._around
        return SimContent(
            self.storage, around.cloud, self._draw, around.faults, lambda delta: around.checkers.decoding(self, delta)
        )

    def cut_power(self) -> None:
        """Take the power away, and give it back after a while."""
        if self.agent is None:
            return
        self.restarts += 1
        self._around.trace.add(self.name, "loses power")
        for work in self._running.values():
            if self._draw.random() < 0.5:
                self._leave_behind(work.command)
        self.storage.cut_power(self._draw)
        self._around.checkers.lost_power(self)
        self.workers = Workers()
        self.agent, self._running, self._is_writing, self._completing = None, {}, False, 0
        self._commands.clear()
        self._waiting = {lane: deque() for lane in Lane}
        if self._timer is not None:
            self._timer.cancel()
        self._boot += 1
        self._later(self._draw.randint(*_DOWN_MS), self.start)

    def _leave_behind(self, command: do.Command) -> None:
        """What an interrupted step may have finished on the disk without anybody hearing of it."""
        if isinstance(command, do.FetchBlobs):
            self.content.leave_behind(
                self._around.cloud.bundles[command.assignment.manifest], command.assignment.deltas
            )
        if isinstance(command, do.StageSlot):
            self.storage.slots.add(command.assignment.manifest)

    # -- network ---------------------------------------------------------------------------------------------------

    def go_offline(self, for_ms: int) -> None:
        """Lose the network for a while."""
        self._around.network.offline.add(self.name)
        self._around.trace.add(self.name, f"is offline for {for_ms} ms")
        if self.agent is not None:
            self.feed(inputs.LinkChanged(False))
        self._around.clock.call_in(for_ms, self.go_online)

    def go_online(self) -> None:
        """Have the network again."""
        self._around.network.offline.discard(self.name)
        self._link_up()

    def receive_nudge(self, director_version: int) -> None:
        """Take a nudge as the cloud sent it."""
        if self.agent is not None:
            self.feed(inputs.NudgeReceived(director_version))

    def _link_up(self) -> None:
        if self.agent is not None and self.name not in self._around.network.offline:
            self.feed(inputs.LinkChanged(True))

    # -- other events ----------------------------------------------------------------------------------------------

    def crash_worker(self, module: str) -> None:
        """End the live worker of a module."""
        manifest = self.workers.live.get(module)
        if manifest is not None and self.agent is not None:
            self.workers.end(module)
            self.feed(inputs.WorkerExited(module, manifest))

    def rot(self, draw: random.Random) -> None:
        """Damage a slot on disk, if there is one that a worker runs from."""
        if self.workers.live:
            self.storage.rotten.add(self.workers.live[draw.choice(sorted(self.workers.live))])

    def hold(self, for_ms: int) -> None:
        """Hold updates back for a while, as an operator on the device does."""
        if self.agent is not None:
            self.feed(inputs.HoldRequested())
            self._around.clock.call_in(for_ms, self._resume)

    def _resume(self) -> None:
        if self.agent is None:
            self._around.clock.call_in(_RESUME_MS, self._resume)  # the operator comes again
        else:
            self.feed(inputs.ResumeRequested())

    def ask_rollback(self, module: str) -> None:
        """Ask for the fallback, as an operator on the device does."""
        if self.agent is not None:
            self.feed(inputs.RollbackRequested(module))

    # -- the shell -------------------------------------------------------------------------------------------------

    def feed(self, event: inputs.Event) -> None:
        """Give the core an event and do what it says."""
        agent = self.agent
        if agent is None:
            return
        try:
            commands = agent.handle(event, self._now_ms())
        except AssertionError as error:
            self._around.trace.add(self.name, f"{describe(event)} -> {error}")
            raise InvariantError("core-keeps-its-table", self.name, str(error)) from error
        self._around.trace.add(self.name, f"{describe(event)} -> {[type(item).__name__ for item in commands]}")
        self._around.checkers.handled(self, self._around.clock.now_ms)
        for command in commands:
            if isinstance(command, do.ServeLive) and command.may_overtake and self._draw.random() < 0.5:
                self._submit(command)
                continue
            # A report says what is true now; it waits behind the record that makes it so.
            self._commands.append(self._report(agent) if isinstance(command, do.SendReport) else command)
        self._carry_out()
        self._arm()
        if not (self._running or self._commands or self._is_writing or self._completing):
            self._around.checkers.settled(self)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        deadline = self.agent.deadline() if self.agent is not None else None
        if deadline is not None:
            self._timer = self._around.clock.call_at(
                deadline - self._origin_ms, lambda: self.feed(inputs.TimeReached())
            )

    def _carry_out(self) -> None:
        while self._commands and not self._is_writing:
            command = self._commands.popleft()
            if isinstance(command, Report):
                self._send(command)
                continue
            self._around.checkers.started(self, command)
            if isinstance(command, do.Persist):
                self._persist(command)
            elif isinstance(command, do.CancelOperation):
                self._cancel(command.op)
            elif not isinstance(command, do.SendReport):
                self._submit(command)
        for lane in Lane:
            self._work_on(lane)

    def _submit(self, command: do.Command) -> None:
        work = _Work(command, getattr(command, "op", None), self._boot)
        self._waiting[work.lane].append(work)

    def _persist(self, command: do.Persist) -> None:
        self.storage.begin_write(command.record)
        self._is_writing = True

        def durable() -> None:
            self.storage.end_write()
            self._is_writing = False
            self._around.checkers.persisted(self, command.record)
            self._carry_out()

        self._later(self._draw.randint(*_PERSIST_MS), durable)

    def _report(self, agent: Agent) -> Report:
        self._reports += 1
        return Report(
            device=self.name,
            boot=f"{self._boot:016x}",
            number=self._reports,
            sent_ms=self._around.clock.now_ms,
            platform="linux/amd64",
            agent_version="sim",
            director_version=agent.director_version,
            modules=agent.reported_modules(),
            error=agent.error,
            bytes_fetched=self.content.fetching.network_bytes,
            bytes_saved=self.content.fetching.saved_bytes,
        )

    def _send(self, report: Report) -> None:
        self._around.checkers.reported(self, report)
        message = report.to_bytes()
        self._around.network.send(self.name, lambda: self._around.cloud.receive(message))

    # -- operations: one at a time in each lane, as the shell's threads do them -------------------------------------

    def _work_on(self, lane: Lane) -> None:
        if lane not in self._running and self._waiting[lane]:
            work = self._running[lane] = self._waiting[lane].popleft()
            self._perform(work)

    def _cancel(self, op: int) -> None:
        waiting = [work for works in self._waiting.values() for work in works]
        for work in [*waiting, *self._running.values()]:
            if work.op == op:
                # It ends where it next looks; what it already did stays done.
                self._finish(work, inputs.CommandFailed(op, "network.cut", "the operation was cancelled"))

    def _finish(self, work: _Work, event: inputs.Event | None) -> None:
        """Tell the core how an operation ended, once; not at the same instant, because nothing real is that fast."""
        if work.is_done or work.boot != self._boot:
            return
        work.is_done = True
        if self._running.get(work.lane) is work:
            del self._running[work.lane]
        elif work in self._waiting[work.lane]:
            self._waiting[work.lane].remove(work)
        self._completing += 1
        self._later(1, lambda: self._completed(work, event))

    def _completed(self, work: _Work, event: inputs.Event | None) -> None:
        self._completing -= 1
        if isinstance(event, inputs.CommandFailed):
            self._around.checkers.failed(self, work.command, event.code)
        if event is not None:
            self.feed(event)
        self._work_on(work.lane)

    def _perform(self, work: _Work) -> None:
        command, faults = work.command, self._around.faults()
        if isinstance(command, do.RefreshMetadata):
            self._ask(work, 20, lambda: self._refresh(command.op, faults))
        elif isinstance(command, do.ResolveBundle):
            self._ask(work, 20, lambda: self._resolve(command, faults))
        elif isinstance(command, do.FetchBlobs):
            bundle = self._around.cloud.bundles[command.assignment.manifest]
            if bundle.manifest in self.storage.blobs:
                self._do(work, lambda: inputs.BlobsFetched(command.op, 0))
            else:
                # A long download is many requests: the timeout of one does not end it, `cut` does.
                wait_ms = self.content.expected_bytes(bundle, command.assignment.deltas) // _BYTES_PER_MS
                self._later(wait_ms, lambda: self._ask(work, 1, lambda: self._fetch(command)))
        elif isinstance(command, do.HealSlot):
            self._ask(work, 20, lambda: self._heal(command))
        elif isinstance(command, do.ScrubStore):
            self._do(work, lambda: inputs.StoreScrubbed(command.op, command.manifests & self.storage.rotten))
        elif isinstance(command, do.BundleCommand):
            self._do(work, lambda: self._local_step(command, faults))
        elif isinstance(command, do.ModuleCommand):
            self._do(work, lambda: self._module_step(command, faults))
        else:
            self._do(work, lambda: self._keep_house(command))

    def _keep_house(self, command: do.Command) -> None:
        if isinstance(command, do.CollectGarbage):
            kept = [self._around.cloud.bundles[manifest].blob.digest for manifest in command.keep]
            self.storage.collect(command.keep, {*kept, *command.deltas})
        elif isinstance(command, do.DiscardCandidate):
            self.workers.candidate.pop(command.module, None)

    def _do(self, work: _Work, effect: Callable[[], inputs.Event | None]) -> None:
        def end() -> None:
            if not work.is_done:
                self._finish(work, effect())

        self._later(self._draw.randint(*_STEP_MS), end)

    def _ask(self, work: _Work, work_ms: int, effect: Callable[[], inputs.Event]) -> None:
        def answer(came: bool) -> None:
            if work.is_done or work.boot != self._boot:
                return
            failed = inputs.CommandFailed(work.op or 0, "network.timeout", "no answer")
            self._finish(work, effect() if came else failed)

        self._around.network.request(self.name, work_ms, answer)

    def _refresh(self, op: int, faults: Faults) -> inputs.Event:
        if self._draw.random() < faults.hostile:
            return inputs.CommandFailed(op, "trust.signature-invalid", "nobody we trust signed this")
        version, assignments = self._around.cloud.metadata(self.name)
        for assignment in assignments:
            self._around.checkers.saw_assignment(self.name, assignment.module, assignment.manifest)
        return inputs.MetadataRefreshed(op, version, assignments)

    def _resolve(self, command: do.ResolveBundle, faults: Faults) -> inputs.Event:
        bundle = self._around.cloud.bundles[command.assignment.manifest]
        if self._draw.random() < faults.disk_full:
            return inputs.CommandFailed(command.op, "device.disk-full", "no space for the bundle")
        if bundle.flaw is Flaw.INVALID:
            return inputs.CommandFailed(command.op, "artifact.manifest-invalid", "the manifest cannot be read")
        return inputs.BundleResolved(command.op, bundle.size)

    def _fetch(self, command: do.FetchBlobs) -> inputs.Event:
        bundle = self._around.cloud.bundles[command.assignment.manifest]
        try:
            return inputs.BlobsFetched(command.op, self.content.get(bundle, command.assignment.deltas))
        except InvariantError:
            raise
        except EdgeError as error:
            return inputs.CommandFailed(command.op, error.code, error.detail)
        except PowerLostError:
            self.cut_power()
            return inputs.CommandFailed(command.op, "device.restarted", "a delta took the device down")

    def _heal(self, command: do.HealSlot) -> inputs.Event:
        manifest = command.assignment.manifest
        self.storage.blobs.add(manifest)
        self.storage.slots.add(manifest)
        self.storage.rotten.discard(manifest)
        return inputs.SlotHealed(command.op, manifest)

    def _local_step(self, command: do.BundleCommand, faults: Faults) -> inputs.Event:
        assignment, op = command.assignment, command.op
        bundle = self._around.cloud.bundles[assignment.manifest]
        if isinstance(command, do.VerifyBlobs):
            if self._draw.random() < faults.disk_error:
                self.storage.blobs.discard(bundle.manifest)
                return inputs.CommandFailed(op, "device.disk-corrupt", "a blob lost its digest")
            self.storage.verified.add(bundle.manifest)
            self._around.checkers.saw_verified(self.name, bundle.manifest)
            return inputs.BlobsVerified(op)
        if isinstance(command, do.AskLeave):
            if self._draw.random() < faults.postponed:
                return inputs.LeavePostponed(op, 5_000, "device.postponed", "not now")
            return inputs.LeaveGiven(op, command.gate is do.Gate.ACTIVATE and self._draw.random() < faults.memory_short)
        if isinstance(command, do.StageSlot):
            if self._draw.random() < faults.disk_error:
                return inputs.CommandFailed(op, "device.disk-error", "the disk said no")
            self.storage.slots.add(bundle.manifest)
            self.storage.rotten.discard(bundle.manifest)
            return inputs.SlotStaged(op, bundle.probation_ms, _FAILURE_RATIO_MAX, 1.0)
        if isinstance(command, do.ProveCandidate):
            self._around.checkers.needs_slot(self, assignment.module, bundle.manifest)
            if command.stops_first:
                self.workers.end(assignment.module)
            if bundle.flaw is Flaw.OUTPUTS:
                return inputs.CommandFailed(op, "model.golden-mismatch", "the outputs differ")
            self.workers.candidate[assignment.module] = bundle.manifest
            return inputs.CandidateProved(op, golden_of(bundle.manifest))
        if isinstance(command, do.BeginTrial):
            if self.workers.candidate.get(assignment.module) is None:
                return inputs.CommandFailed(op, "model.worker-crashed", "there is no candidate")
            return inputs.TrialBegun(op)
        if self._draw.random() < faults.activate_failure or self.workers.candidate.get(assignment.module) is None:
            self.workers.candidate.pop(assignment.module, None)
            return inputs.CommandFailed(op, "model.worker-crashed", "the candidate ended by itself")
        self._serve(assignment.module, bundle.manifest)
        return inputs.SlotActivated(op)

    def _module_step(self, command: do.ModuleCommand, faults: Faults) -> inputs.Event:
        op, module = command.op, command.module
        if isinstance(command, do.ObserveHealth):
            live = self.workers.live.get(module)
            flaw = self._flaw(live) if live else Flaw.NONE
            return inputs.HealthObserved(op, *self.workers.health(module, flaw, self._around.clock.now_ms))
        if isinstance(command, do.ObserveTrial):
            if self.workers.candidate.get(module) is None:
                return inputs.CommandFailed(op, "model.worker-crashed", "the candidate is gone")
            return inputs.TrialObserved(op, Agreement(compared=self._draw.randrange(100), top1_ppm=PPM))
        if isinstance(command, do.CommitSlot | do.AttestLive):
            return self._attest(command)
        if isinstance(command, do.RestartLive):
            self._around.checkers.needs_slot(self, module, command.manifest)
            self._serve(module, command.manifest)
            return inputs.LiveServed(op, golden_of(command.manifest))
        manifest = command.manifest if isinstance(command, do.RollBack | do.ServeLive) else None
        if manifest is not None:
            if manifest in self.storage.rotten:
                return inputs.CommandFailed(op, "device.disk-corrupt", "the slot is damaged")
            self._around.checkers.needs_slot(self, module, manifest)
            if self._draw.random() < faults.activate_failure:
                return inputs.CommandFailed(op, "model.timeout", "the worker did not come up")
            self._serve(module, manifest)
        else:
            self.workers.end(module)
        golden = golden_of(manifest) if manifest else None
        if isinstance(command, do.RollBack):
            self._around.checkers.rolled_back(self, module)
            return inputs.SlotRolledBack(op, golden)
        return inputs.LiveServed(op, golden)

    def _attest(self, command: do.CommitSlot | do.AttestLive) -> inputs.Event:
        live = self.workers.live.get(command.module)
        if live is None:
            return inputs.CommandFailed(command.op, "model.not-serving", "nothing answers")
        done = inputs.SlotCommitted if isinstance(command, do.CommitSlot) else inputs.LiveAttested
        return done(command.op, live, golden_of(live))

    def _serve(self, module: str, manifest: Digest) -> None:
        self._around.checkers.serving(self, module, manifest)
        if self.workers.live.get(module) != manifest and self._flaw(manifest) is Flaw.CRASHING:
            self._later(self._draw.randint(*_CRASH_AFTER_MS), lambda: self._crash_if_live(module, manifest))
        self.workers.serve(module, manifest, self._around.clock.now_ms)

    def _crash_if_live(self, module: str, manifest: Digest) -> None:
        if self.workers.live.get(module) == manifest:
            self.crash_worker(module)

    # -- small helpers ---------------------------------------------------------------------------------------------

    def _flaw(self, manifest: Digest) -> Flaw:
        return self._around.cloud.bundles[manifest].flaw

    def _now_ms(self) -> int:
        return self._around.clock.now_ms + self._origin_ms

    def _later(self, wait_ms: int, action: Callable[[], None]) -> None:
        """Do something after a while, unless the power was cut meanwhile."""
        boot = self._boot
        self._around.clock.call_in(wait_ms, lambda: action() if boot == self._boot else None)


def next_fault_ms(draw: random.Random, mean_ms: float) -> int | None:
    """When the next fault of a kind comes; none when the kind is left out."""
    return spell_ms(draw, mean_ms) if mean_ms > 0 else None
