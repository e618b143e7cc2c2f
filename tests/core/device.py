"""A device around the core whose every step a test decides: lanes, a disk, workers, and a power switch."""

from collections import deque

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.agent import Agent
from edge_agent.core.limits import STEP_MS_MAX
from edge_agent.core.record import ModuleRecord, Record
from edge_agent.shell.dispatch import Lane, lane_of
from edge_contract.deployment import Assignment
from edge_contract.digest import Digest
from edge_contract.jsonio import JsonObject
from edge_contract.phases import Phase
from edge_contract.terms import Agreement
from edge_contract.twin import Report, ReportedDeployment, ReportedModule

COMMANDS_MAX = 16
REPORT_MS = 3_600_000
SCRUB_MS = 7_200_000


class Device:
    """The shell's rules and nothing of its timing: a lane does one thing at a time, in order, when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000
        self.desired: tuple[Assignment, ...] = ()
        self.director_version = 0
        self.golden_fails: set[Digest] = set()
        self.sick: set[Digest] = set()
        self.disk: JsonObject | None = None
        self.is_disk_writable = True
        self.stuck: set[tuple[str, Digest]] = set()
        self.damaged: set[Digest] = set()
        self.postponed: dict[str, int] = {}
        self.is_memory_short = False
        self.refused: dict[str, ReportedDeployment] = {}
        self.otherwise: dict[str, Digest] = {}
        self._reported: dict[str, ReportedModule] = {}
        self.boot()

    # -- power -----------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Lose everything but the disk, and start."""
        record = None if self.disk is None else Record.from_json(self.disk)
        self.core = Agent("dev", report_ms=REPORT_MS, record=record, scrub_ms=SCRUB_MS)
        self.lanes: dict[Lane, deque[do.Command]] = {lane: deque() for lane in Lane}
        self.inbox: deque[inputs.Event] = deque()
        self.held: deque[do.Command] = deque()
        self.live: dict[str, Digest] = {}
        self.candidates: dict[str, Digest] = {}
        self.cancelled: set[int] = set()
        self.ops: set[int] = set()
        self.handle(inputs.Started())

    # -- the loop --------------------------------------------------------------------------------------------------

    def handle(self, event: inputs.Event) -> None:
        """Give the core one event and look closely at what it says."""
        before = self.core.snapshot()
        commands = self.core.handle(event, self.now)
        after = self.core.snapshot()
        assert len(commands) <= COMMANDS_MAX, commands
        persisted = [number for number, command in enumerate(commands) if isinstance(command, do.Persist)]
        assert len(persisted) <= 1
        if after != before:
            assert persisted == [0], "the record changed and nothing that follows waits for it"
            assert commands[0] == do.Persist(after)
            assert Record.from_json(after).to_json() == after
            self._look_at_modules(Record.from_json(before).modules, Record.from_json(after).modules)
        for command in commands:
            op = getattr(command, "op", None)
            if op is not None and not isinstance(command, do.CancelOperation):
                assert op not in self.ops, "an operation identifier was used twice"
                self.ops.add(op)
        self._look_at_report()
        if isinstance(event, inputs.TimeReached):
            deadline = self.core.deadline()
            assert deadline is None or deadline > self.now, "the core would be woken again and again"
        self.held.extend(commands)
        self.carry_out()

    def _look_at_report(self) -> None:
        """Whatever is reported can be read."""
        modules = self.core.reported_modules()
        if modules != self._reported:
            self._reported = modules
            report = Report("dev", "00" * 8, 1, 1, "linux/amd64", "1", 1, modules, self.core.error)
            assert Report.parse(report.to_bytes()).modules == modules

    def _look_at_modules(self, before: dict[str, ModuleRecord], after: dict[str, ModuleRecord]) -> None:
        for name, module in after.items():
            was_rolling_back = name in before and before[name].phase is Phase.ROLLING_BACK
            if was_rolling_back and module.phase is not Phase.ROLLING_BACK and module.live == before[name].live:
                assert module.live is not None
                self.stuck.add((name, module.live.manifest))  # the fallback did not come up
            if module.fallback is not None:
                assert module.fallback.manifest not in module.quarantined
            if module.live is not None and module.phase is not Phase.ROLLING_BACK:
                is_bad = module.live.manifest in module.quarantined
                assert not is_bad or (name, module.live.manifest) in self.stuck, "what failed here is live"

    def carry_out(self) -> None:
        """Start commands in order, none behind a record that is not durable but for those that may overtake."""
        for serve in [item for item in self.held if isinstance(item, do.ServeLive) and item.may_overtake]:
            self.held.remove(serve)
            self.lanes[Lane.SERVING].append(serve)
        while self.held:
            command = self.held[0]
            if isinstance(command, do.Persist):
                if not self.is_disk_writable:
                    return
                self.disk = command.record
            elif isinstance(command, do.CancelOperation):
                self.cancelled.add(command.op)
            elif not isinstance(command, do.SendReport):
                self.lanes[lane_of(command)].append(command)
            self.held.popleft()

    def deliver(self) -> None:
        """Let the loop take one event."""
        if self.inbox:
            self.handle(self.inbox.popleft())

    def pass_time(self, milliseconds: int) -> None:
        """Let time pass; the core is woken at each of its deadlines."""
        end = self.now + milliseconds
        for _ in range(1_000):
            deadline = self.core.deadline()
            if deadline is None or deadline > end:
                self.now = end
                return
            self.now = max(self.now, deadline)
            self.handle(inputs.TimeReached())
        raise AssertionError("the core never comes to rest")

    def step(self, end: int) -> bool:
        """Do the next thing that is to be done until an instant; false when there is none."""
        if self.inbox:
            self.deliver()
        elif lane := next((lane for lane in Lane if self.lanes[lane]), None):
            self.work(lane)
        elif (deadline := self.core.deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.handle(inputs.TimeReached())
        else:
            self.now = end
            return False
        return True

    def settle(self, milliseconds: int = 0) -> None:
        """Do all work, and let time pass, until nothing is left to do."""
        end = self.now + milliseconds
        for _ in range(20_000):
            if not self.step(end):
                return
        raise AssertionError("the device never comes to rest")

    def run_until(self, module: str, phase: Phase) -> None:
        """Do all work until a module is in a phase, or nothing is left to do for a while."""
        end = self.now + 2_000
        for _ in range(200):
            found = self.core.reported_modules().get(module)
            if (found is not None and found.phase is phase) or not self.step(end):
                return

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing is under way but time."""
        return not self.inbox and not self.held and not any(self.lanes.values())

    # -- lanes -----------------------------------------------------------------------------------------------------

    def work(self, lane: Lane, failure: tuple[str, str] | None = None) -> None:
        """Let a lane do its next command, which may fail; what it says waits in the inbox."""
        if not self.lanes[lane]:
            return
        command = self.lanes[lane].popleft()
        op: int | None = getattr(command, "op", None)
        if op is None:
            if isinstance(command, do.DiscardCandidate):
                self.candidates.pop(command.module, None)
            return
        if op in self.cancelled:
            return
        self.inbox.append(inputs.CommandFailed(op, *failure) if failure else self._perform(command, op))

    def hang(self, lane: Lane) -> None:
        """What a lane does next never ends; everything waits until that is given up."""
        if self.lanes[lane]:
            self.lanes[lane].popleft()
        self.pass_time(max(STEP_MS_MAX.values()))

    def _perform(self, command: do.Command, op: int) -> inputs.Event:  # noqa: C901  # one case a command
        match command:
            case do.RefreshMetadata():
                return inputs.MetadataRefreshed(op, self.director_version, self.desired, self.refused)
            case do.ResolveBundle():
                return inputs.BundleResolved(op, 10)
            case do.FetchBlobs():
                return inputs.BlobsFetched(op, 10)
            case do.VerifyBlobs():
                return inputs.BlobsVerified(op)
            case do.StageSlot(assignment=chosen):
                self.damaged.discard(chosen.manifest)
                return inputs.SlotStaged(op, 1_000, 0.05, 0.5)
            case do.ProveCandidate(assignment=chosen, stops_first=stops_first):
                self.candidates.pop(chosen.module, None)
                if stops_first:
                    self.live.pop(chosen.module, None)
                if chosen.manifest in self.golden_fails:
                    return inputs.CommandFailed(op, "model.golden-mismatch", "outputs differ")
                self.candidates[chosen.module] = chosen.manifest
                return inputs.CandidateProved(op, None)
            case do.BeginTrial(assignment=chosen):
                if chosen.module not in self.candidates or chosen.module not in self.live:
                    return inputs.CommandFailed(op, "model.worker-crashed", "there is no such candidate")
                return inputs.TrialBegun(op)
            case do.ObserveTrial(module=module):
                if module not in self.candidates:
                    return inputs.CommandFailed(op, "model.worker-crashed", "there is no such candidate")
                return inputs.TrialObserved(op, Agreement(compared=100, top1_ppm=1_000_000))
            case do.ActivateSlot(assignment=chosen):
                if self.candidates.pop(chosen.module, None) != chosen.manifest:
                    return inputs.CommandFailed(op, "model.worker-crashed", "there is no such candidate")
                self.live[chosen.module] = chosen.manifest
                return inputs.SlotActivated(op)
            case do.ObserveHealth(module=module):
                found = self.live.get(module)
                return inputs.HealthObserved(op, found is not None, 20, 20 if found in self.sick else 0)
            case do.AskLeave(assignment=chosen, gate=gate):
                if (wait_ms := self.postponed.get(str(gate), 0)) > 0:
                    return inputs.LeavePostponed(op, wait_ms, "device.postponed", "not now")
                return inputs.LeaveGiven(op, gate is do.Gate.ACTIVATE and self.is_memory_short)
            case do.CommitSlot(module=module) | do.AttestLive(module=module):
                found = self.live.get(module)
                if found is None:
                    return inputs.CommandFailed(op, "model.not-serving", "nothing answers")
                done = inputs.SlotCommitted if isinstance(command, do.CommitSlot) else inputs.LiveAttested
                return done(op, self.otherwise.pop(module, found), None)
            case do.ScrubStore(manifests=manifests):
                return inputs.StoreScrubbed(op, manifests & self.damaged)
            case do.HealSlot(assignment=chosen):
                self.damaged.discard(chosen.manifest)
                return inputs.SlotHealed(op, chosen.manifest)
            case do.RestartLive(module=module, manifest=manifest):
                if manifest in self.damaged:
                    return inputs.CommandFailed(op, "device.disk-corrupt", "the slot is damaged")
                self.candidates.pop(module, None)
                self.live[module] = manifest
                return inputs.LiveServed(op, None)
            case do.RollBack(module=module, manifest=manifest):
                if manifest in self.damaged:
                    return inputs.CommandFailed(op, "device.disk-corrupt", "the slot is damaged")
                self._ensure(module, manifest)
                return inputs.SlotRolledBack(op, None)
            case do.ServeLive(module=module, manifest=manifest):
                if manifest in self.damaged:
                    return inputs.CommandFailed(op, "device.disk-corrupt", "the slot is damaged")
                self._ensure(module, manifest)
                return inputs.LiveServed(op, None)
        raise AssertionError(f"no lane carries out {command}")

    def _ensure(self, module: str, manifest: Digest | None) -> None:
        if manifest is None:
            self.live.pop(module, None)
        elif self.live.get(module) != manifest:
            self.candidates.pop(module, None)
            self.live[module] = manifest

    def end_worker(self, module: str) -> None:
        """Let the live worker end by itself."""
        if module in self.live:
            self.inbox.append(inputs.WorkerExited(module, self.live.pop(module)))
