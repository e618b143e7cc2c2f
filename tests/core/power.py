"""Power cuts at every instant, one and two of them, and a disk that refuses the record in between.

A cut loses everything but what is durable: the record, what is on disk, and what the cloud and the operator did. So
what follows a cut depends on that durable state alone, and every run from one state is played once, however many
instants lead to it. Points are counted for each instant, pairs for each instant of each run that follows.
"""

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.agent import Agent
from edge_agent.core.limits import (
    COMMIT_ATTEMPTS_MAX,
    FINAL_ATTEMPTS_MAX,
    PROBATION_RESTARTS_MAX,
    ROLLBACK_ATTEMPTS_MAX,
)
from edge_agent.core.record import ModuleRecord, Record
from edge_agent.shell.dispatch import Lane, lane_of
from edge_contract.deployment import Assignment
from edge_contract.digest import Digest
from edge_contract.phases import Phase
from edge_contract.terms import Agreement, Trial
from tests.core.bench import assignment

RUN_MS = 45_000
STEPS_MAX = 2_000
COMMANDS_MAX = 200
WAKES_BEFORE_THE_DISK_WORKS = 3


@dataclass(frozen=True, slots=True)
class Durable:
    """What a power cut leaves.

    Attributes:
        record: The record as it is on disk, empty for none.
        done: How many acts of the plan have happened.
        damaged: Slots that are damaged on disk.
    """

    record: str
    done: int
    damaged: frozenset[Digest] = frozenset()


@dataclass(frozen=True, slots=True)
class Act:
    """Something that the outside does once.

    Attributes:
        when: When it happens.
        assigns: Versions by module that the cloud assigns from now on, or none.
        tells: What an operator asks for; asked again after a cut that came before it was durable.
        rots: A version whose slot is damaged from now on, 0 for none.
        ends_worker: Whether the live worker of module `digits` ends.
    """

    when: Callable[["World"], bool]
    assigns: dict[str, int] | None = None
    tells: inputs.Event | None = None
    rots: int = 0
    ends_worker: bool = False


@dataclass(frozen=True)
class Plan:
    """A way things go when no power is cut.

    Attributes:
        name: What it shows.
        given: Versions that both modules ran before, in order.
        acts: What the outside does, in order.
        modules: Names of the modules.
        sick: Versions that fail their probation.
        bad: Versions that fail their golden vectors.
        is_memory_short: Whether the live worker has to stop before a candidate loads.
        scrub_ms: Mean time between two readings of the disk.
        trial: What candidates have to show beside the live bundle, or none; those that are `odd` disagree with it.
        odd: Versions that disagree with what is live in a trial.
        is_serving_first: Whether the lane of workers is the quickest, not the one of metadata.
    """

    name: str
    given: tuple[int, ...]
    acts: tuple[Act, ...]
    modules: tuple[str, ...] = ("digits",)
    sick: frozenset[int] = frozenset()
    bad: frozenset[int] = frozenset()
    is_memory_short: bool = False
    scrub_ms: int = 10**9
    trial: Trial | None = None
    odd: frozenset[int] = frozenset()
    is_serving_first: bool = False

    def manifests(self, versions: frozenset[int]) -> frozenset[Digest]:
        """The bundles of these versions."""
        return frozenset(assignment(version, module=name).manifest for version in versions for name in self.modules)

    @cached_property
    def first(self) -> Durable:
        """The durable state in which it begins."""
        if not self.given:
            return Durable("", 0)
        act = Act(when=lambda world: True, assigns=dict.fromkeys(self.modules, self.given[-1]))
        before = Plan(self.name, self.given[:-1], (act,), self.modules)
        return Durable(World(before, before.first).run().points[-1].record, 0)


@dataclass(slots=True)
class Run:
    """What happened between two cuts.

    Attributes:
        points: The durable state at every instant a cut could come.
        persists: How many records became durable.
        end: How it ended, see `World.end`.
    """

    points: list[Durable] = field(default_factory=list)
    persists: int = 0
    end: tuple[object, ...] = ()


class World:
    """A device from its start to where nothing happens any more, one instant after the other."""

    def __init__(self, plan: Plan, start: Durable, disk_fails_at: int | None = None) -> None:
        """Switch it on.

        Args:
            plan: What happens around it.
            start: What it finds.
            disk_fails_at: Which record (from 0) the disk refuses for a while, or none.
        """
        self.plan = plan
        self.state = start
        self.now = 1_000
        self.live: dict[str, Digest] = {}
        self.inbox: deque[inputs.Event] = deque()
        self._candidates: dict[str, Digest] = {}
        self._lanes: dict[Lane, deque[do.Command]] = {
            lane: deque() for lane in (reversed(Lane) if plan.is_serving_first else Lane)
        }
        self._held: deque[do.Command] = deque()
        self._cancelled: set[int] = set()
        self._sick, self._bad = plan.manifests(plan.sick), plan.manifests(plan.bad)
        self._odd = plan.manifests(plan.odd)
        self._disk_fails_at, self._wakes, self._is_refusing = disk_fails_at, 0, False
        self._asked: do.Persist | None = None
        self._commands = 0
        self._was_at_rest = False
        self._run = Run()
        record = Record.from_json(json.loads(start.record)) if start.record else None
        self.core = Agent("dev", 10**9, 10**9, record, plan.scrub_ms)
        self._handle(inputs.Started())

    def run(self) -> Run:
        """Everything up to the end."""
        end = self.now + RUN_MS
        for _ in range(STEPS_MAX):
            self._run.points.append(self.state)
            if not self._step(end):
                self._run.end = self.end()
                return self._run
        raise AssertionError("the device never comes to rest")

    # -- one instant after the other -------------------------------------------------------------------------------

    def _step(self, end: int) -> bool:
        if self._carry_out() or self._act():
            return True
        if self.inbox:
            self._handle(self.inbox.popleft())
            return True
        if self._work() or self._act():
            return True
        self._look()
        deadline = self.core.deadline()
        if self._is_refusing and (self._wakes >= WAKES_BEFORE_THE_DISK_WORKS or deadline is None or deadline > end):
            self._is_refusing = False
            return True
        if deadline is None or deadline > end:
            return False
        self.now, self._wakes = max(self.now, deadline), self._wakes + 1
        self._handle(inputs.TimeReached())
        return True

    def _handle(self, event: inputs.Event) -> list[do.Command]:
        commands = self.core.handle(event, self.now)
        assert not any(isinstance(command, do.Persist) for command in commands[1:]), "a record is not the first command"
        self._commands += sum(1 for command in commands if not isinstance(command, do.SendReport))
        assert self._commands <= COMMANDS_MAX, "something is done again and again"
        self._held.extend(commands)
        return commands

    def _carry_out(self) -> bool:
        """Start one command, none behind a record that is not durable but for those that may overtake."""
        if not self._held:
            return False
        command = self._held[0]
        if isinstance(command, do.Persist) and self._refuses():
            early = next((item for item in self._held if isinstance(item, do.ServeLive) and item.may_overtake), None)
            if early is None:
                return False
            self._held.remove(early)
            self._lanes[Lane.SERVING].append(early)
            return True
        self._held.popleft()
        if isinstance(command, do.Persist):
            done = self.state.done + (command is self._asked)
            self.state = Durable(json.dumps(command.record, sort_keys=True), done, self.state.damaged)
            self._run.persists += 1
            self._asked = None if command is self._asked else self._asked
        elif isinstance(command, do.CancelOperation):
            self._cancelled.add(command.op)
        elif not isinstance(command, do.SendReport):
            self._lanes[lane_of(command)].append(command)
        return True

    def _refuses(self) -> bool:
        if self._run.persists == self._disk_fails_at:
            self._disk_fails_at, self._is_refusing, self._wakes = None, True, 0
        return self._is_refusing

    def _act(self) -> bool:
        acts = self.plan.acts
        if self._asked is not None or self.state.done >= len(acts) or not acts[self.state.done].when(self):
            return False
        act = acts[self.state.done]
        if act.tells is not None:
            commands = self._handle(act.tells)
            self._asked = next((command for command in commands if isinstance(command, do.Persist)), None)
            if self._asked is not None:
                return True
        damaged = self.state.damaged
        if act.rots:
            damaged |= self.plan.manifests(frozenset({act.rots}))
        self.state = Durable(self.state.record, self.state.done + 1, damaged)
        if act.assigns is not None:
            self._handle(inputs.RefreshRequested())
        if act.ends_worker and "digits" in self.live:
            self.inbox.append(inputs.WorkerExited("digits", self.live.pop("digits")))
        return True

    def _desired(self) -> tuple[Assignment, ...]:
        wanted: dict[str, int] = {}
        for act in self.plan.acts[: self.state.done]:
            wanted = act.assigns if act.assigns is not None else wanted
        if not wanted and self.plan.given:
            wanted = dict.fromkeys(self.plan.modules, self.plan.given[-1])
        tried = {version for version in wanted.values() if version not in self.plan.given} if self.plan.trial else set()
        return tuple(
            assignment(version, module=name, trial=self.plan.trial if version in tried else None)
            for name, version in wanted.items()
        )

    # -- lanes -----------------------------------------------------------------------------------------------------

    def _work(self) -> bool:
        """One lane does its next command; the loop hears of it at a later instant."""
        for queue in self._lanes.values():
            while queue:
                command = queue.popleft()
                op: int | None = getattr(command, "op", None)
                if op in self._cancelled:
                    continue
                if isinstance(command, do.DiscardCandidate):
                    self._candidates.pop(command.module, None)
                elif op is not None:
                    self.inbox.append(self._perform(command, op))
                return True
        return False

    def _perform(self, command: do.Command, op: int) -> inputs.Event:
        match command:
            case do.RefreshMetadata():
                return inputs.MetadataRefreshed(op, len(self.plan.given) + self.state.done, self._desired())
            case do.ResolveBundle():
                return inputs.BundleResolved(op, 10)
            case do.FetchBlobs():
                return inputs.BlobsFetched(op, 10)
            case do.VerifyBlobs():
                return inputs.BlobsVerified(op)
            case do.AskLeave(gate=gate):
                return inputs.LeaveGiven(op, gate is do.Gate.ACTIVATE and self.plan.is_memory_short)
            case do.StageSlot(assignment=chosen):
                self._mend(chosen.manifest)
                return inputs.SlotStaged(op, 1_000, 0.05, 0.5)
            case do.HealSlot(assignment=chosen):
                self._mend(chosen.manifest)
                return inputs.SlotHealed(op, chosen.manifest)
            case do.ScrubStore(manifests=manifests):
                return inputs.StoreScrubbed(op, manifests & self.state.damaged)
        return self._serve(command, op)

    def _mend(self, manifest: Digest) -> None:
        self.state = Durable(self.state.record, self.state.done, self.state.damaged - {manifest})

    def _serve(self, command: do.Command, op: int) -> inputs.Event:  # noqa: C901  # one case a command
        match command:
            case do.ProveCandidate(assignment=chosen, stops_first=stops_first):
                if stops_first:
                    self.live.pop(chosen.module, None)
                if chosen.manifest in self._bad:
                    return inputs.CommandFailed(op, "model.golden-mismatch", "outputs differ")
                self._candidates[chosen.module] = chosen.manifest
                return inputs.CandidateProved(op, None)
            case do.BeginTrial(assignment=chosen):
                if chosen.module not in self._candidates or chosen.module not in self.live:
                    return inputs.CommandFailed(op, "model.worker-crashed", "there is no such candidate")
                return inputs.TrialBegun(op)
            case do.ObserveTrial(module=module):
                if module not in self._candidates:
                    return inputs.CommandFailed(op, "model.worker-crashed", "there is no such candidate")
                top1_ppm = 0 if self._candidates[module] in self._odd else 1_000_000
                return inputs.TrialObserved(op, Agreement(compared=100, top1_ppm=top1_ppm))
            case do.ActivateSlot(assignment=chosen):
                if self._candidates.pop(chosen.module, None) != chosen.manifest:
                    return inputs.CommandFailed(op, "model.worker-crashed", "there is no such candidate")
                self._goes_live(chosen.module, chosen.manifest)
                return inputs.SlotActivated(op)
            case do.ObserveHealth(module=module):
                found = self.live.get(module)
                return inputs.HealthObserved(op, found is not None, 20, 20 if found in self._sick else 0)
            case do.CommitSlot(module=module) | do.AttestLive(module=module):
                found = self.live.get(module)
                if found is None:
                    return inputs.CommandFailed(op, "model.not-serving", "nothing answers")
                done = inputs.SlotCommitted if isinstance(command, do.CommitSlot) else inputs.LiveAttested
                return done(op, found, None)
            case do.RollBack(module=module, manifest=None):
                self.live.pop(module, None)
                return inputs.SlotRolledBack(op, None)
            case do.RollBack() | do.ServeLive() | do.RestartLive():
                assert command.manifest is not None
                if command.manifest in self.state.damaged:
                    return inputs.CommandFailed(op, "device.disk-corrupt", "the slot is damaged")
                if self.live.get(command.module) != command.manifest:
                    self._candidates.pop(command.module, None)
                self._goes_live(command.module, command.manifest)
                return (
                    inputs.SlotRolledBack(op, None) if isinstance(command, do.RollBack) else inputs.LiveServed(op, None)
                )
        raise AssertionError(f"no lane carries out {command}")

    # -- what has to hold ------------------------------------------------------------------------------------------

    def _goes_live(self, module: str, manifest: Digest) -> None:
        """What answers is old or new, sound on disk, and was proved."""
        assert manifest in {assignment(version, module=module).manifest for version in self._versions()}
        assert manifest not in self.state.damaged
        assert manifest not in self._bad
        self.live[module] = manifest

    def _versions(self) -> set[int]:
        assigned = [act.assigns.values() for act in self.plan.acts if act.assigns]
        return {*self.plan.given, *(version for versions in assigned for version in versions)}

    def _look(self) -> None:
        """Nothing is under way but time: who is live answers, and all counts are within their bounds."""
        deadline = self.core.deadline()
        is_due = deadline is not None and deadline <= self.now
        for name, module in self.modules.items():
            assert max(module.attempt, module.failures) <= FINAL_ATTEMPTS_MAX
            assert module.rollbacks <= ROLLBACK_ATTEMPTS_MAX
            assert module.commits <= COMMIT_ATTEMPTS_MAX
            assert module.probation_restarts <= PROBATION_RESTARTS_MAX + 1
            if self._is_refusing or is_due or module.live is None or module.phase is Phase.ROLLING_BACK:
                continue
            is_down = self.live.get(name) != module.live.manifest
            assert not is_down or module.live.manifest in self.state.damaged, f"{name} does not answer"

    @property
    def modules(self) -> dict[str, ModuleRecord]:
        """What the core has in mind."""
        return Record.from_json(self.core.snapshot()).modules

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing is under way but time."""
        return not self.inbox and not self._held and not any(self._lanes.values())

    def end(self) -> tuple[object, ...]:
        """How things stand: what is recorded is durable, and what is live answers."""
        assert json.dumps(self.core.snapshot(), sort_keys=True) == self.state.record
        told = self.core.reported_modules()
        return (
            self.state.done,
            sorted(self.state.damaged),
            *(
                (
                    name,
                    module.phase,
                    module.live and module.live.manifest,
                    told[name].live == told[name].answering,
                    self.live.get(name),
                    module.fallback and module.fallback.manifest,
                    module.deployment and module.deployment.deployment,
                    module.outcome,
                    module.error and module.error.code,
                    sorted(module.quarantined),
                    told[name].held,
                    told[name].serving,
                )
                for name, module in self.modules.items()
            ),
        )


@dataclass(slots=True)
class Tally:
    """How many instants were tried.

    Attributes:
        singles: Instants of one cut.
        pairs: Pairs of instants of two cuts.
        disk_pairs: Pairs of a cut and a record that the disk refuses for a while, in either order.
    """

    singles: int = 0
    pairs: int = 0
    disk_pairs: int = 0


class Explorer:
    """Plays a plan with every cut and every pair of cuts."""

    def __init__(self, plan: Plan) -> None:
        """Play nothing yet."""
        self.plan = plan
        self.tally = Tally()
        self._runs: dict[tuple[Durable, int | None], Run] = {}

    @cached_property
    def smooth(self) -> Run:
        """The plan without a cut: as it ends, all others have to end."""
        return World(self.plan, self.plan.first).run()

    def explore(self) -> Tally:
        """Every single and every pair.

        Raises:
            AssertionError: When something does not hold, or ends elsewhere.
        """
        for point in self.smooth.points:
            after = self._run(point)
            for again in after.points:
                self._run(again)
            for number in range(after.persists):
                self._run(point, number)
            self.tally.singles += 1
            self.tally.pairs += len(after.points)
            self.tally.disk_pairs += after.persists
        for number in range(self.smooth.persists):
            refused = self._run(self.plan.first, number)
            for point in refused.points:
                self._run(point)
            self.tally.disk_pairs += len(refused.points)
        return self.tally

    def _run(self, start: Durable, disk_fails_at: int | None = None) -> Run:
        key = (start, disk_fails_at)
        if key not in self._runs:
            run = self._runs[key] = World(self.plan, start, disk_fails_at).run()
            assert run.end == self.smooth.end, f"{self.plan.name}: ends elsewhere after {start}, {disk_fails_at}"
        return self._runs[key]
