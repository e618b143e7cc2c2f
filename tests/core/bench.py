"""A test bench for the core: feeds events, answers commands like a faultless shell would, and keeps the trace."""

from collections.abc import Callable
from typing import Any

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.agent import Agent
from edge_agent.core.probation import Baseline
from edge_agent.core.record import Record
from edge_contract.deployment import Artifact, Assignment, Policy
from edge_contract.digest import Digest
from edge_contract.jsonio import JsonObject
from edge_contract.terms import Agreement
from edge_contract.twin import ReportedDeployment, ReportedModule

GOLDEN = Digest.of(b"golden outputs")
GAP_MS = 700
Answer = Callable[[do.Command], inputs.Event | None]


def assignment(version: int, module: str = "digits", deployment: str | None = None, **policy: object) -> Assignment:
    """Version N of a model, assigned by deployment `d<N>` unless named otherwise."""
    return Assignment(
        module=module,
        deployment=deployment or f"d{version}",
        manifest=Digest.of(f"{module}:{version}".encode()),
        manifest_bytes=100,
        artifact=Artifact("digits", version, "linux/amd64", version, "bundles/digits"),
        policy=Policy(**policy),  # type: ignore[arg-type]
    )


class Bench:
    """Drives one core.

    Attributes:
        fail: (code, detail) by command type, for all executions until it is taken away.
        failures: The same for the next executions only, one entry each.
        hangs: How many of the next executions never complete, by command type.
        hung: Those that did not.
        otherwise: Which bundle is found answering in the next proofs, one entry each.
    """

    def __init__(self, record: JsonObject | None = None, poll_ms: int = 60_000, report_ms: int = 60_000) -> None:
        self.desired: tuple[Assignment, ...] = ()
        self.refused: dict[str, ReportedDeployment] = {}
        self.periods = (poll_ms, report_ms)
        self.failures: dict[type, list[tuple[str, str]]] = {}
        self.hangs: dict[type, int] = {}
        self.hung: list[do.Command] = []
        self.otherwise: list[Digest] = []
        self.reports: list[dict[str, ReportedModule]] = []
        self.director_version = 0
        self.now = 0
        self.disk: JsonObject | None = record
        self.damaged: set[Digest] = set()
        self.postponed: dict[str, int] = {}
        self.is_memory_short = False
        self.fail: dict[type, tuple[str, str]] = {}
        self.health: tuple[Any, ...] = (True, 0, 0)
        self.agreement = Agreement(compared=100, top1_ppm=1_000_000)
        self.before = Baseline()
        self.sampling_ratio = 1.0
        self.trace: list[str] = []
        self.sent: list[do.Command] = []
        self.boot()

    def boot(self) -> None:
        """Start the agent from what is on disk."""
        record = None if self.disk is None else Record.from_json(self.disk)
        self.core = Agent("dev", *self.periods, record)
        self.waiting: list[do.Command] = []
        self.answers: dict[str, Digest] = {}
        self.candidates: dict[str, Digest] = {}
        self.tell(inputs.Started())

    def tell(self, event: inputs.Event) -> None:
        """Feed one event; commands with a completion wait for `step`."""
        for command in self.core.handle(event, self.now):
            self.sent.append(command)
            self.trace.append(type(command).__name__)
            if isinstance(command, do.Persist):
                self.disk = command.record
            elif isinstance(command, do.CancelOperation):
                self.waiting = [item for item in self.waiting if getattr(item, "op", None) != command.op]
            elif isinstance(command, do.SendReport):
                self.reports.append(self.core.reported_modules())
            elif hasattr(command, "op") or isinstance(command, do.DiscardCandidate):
                self.waiting.append(command)

    def step(self) -> bool:
        """Complete the oldest waiting command; false when there is none."""
        if not self.waiting:
            return False
        command = self.waiting.pop(0)
        if isinstance(command, do.DiscardCandidate):
            self.candidates.pop(command.module, None)
        elif self.hangs.get(type(command), 0) > 0:
            self.hangs[type(command)] -= 1
            self.hung.append(command)
        else:
            self.tell(self.answer(command))
        return True

    def until(self, kind: type[do.Command]) -> do.Command:
        """Complete commands until one of this kind is next; leaves it waiting."""
        while not isinstance(self.waiting[0], kind):
            assert self.step()
        return self.waiting[0]

    def end_worker(self, module: str = "digits") -> None:
        """Let the live worker end by itself."""
        self.tell(inputs.WorkerExited(module, self.answers.pop(module)))
        self.tell(inputs.TimeReached())

    def pass_time(self) -> None:
        """The instant that the core waits for has come."""
        self.tell(inputs.TimeReached())

    def settle(self, until: int = 10_000) -> None:
        """Complete everything and let time pass, at most to `now + until`."""
        end = self.now + until
        for _ in range(10_000):
            while self.step():
                pass
            deadline = self.core.deadline()
            if deadline is None or deadline > end:
                self.now = end
                return
            self.now = max(self.now, deadline)
            self.tell(inputs.TimeReached())
        raise AssertionError("the core never comes to rest")

    def assign(self, *assignments: Assignment) -> None:
        """Publish new assignments and nudge."""
        self.desired = assignments
        self.director_version += 1
        self.tell(inputs.NudgeReceived(self.director_version))

    def answer(self, command: do.Command) -> inputs.Event:  # noqa: C901  # one case a command
        """What a faultless shell would answer, unless a failure is set."""
        op: int = command.op  # type: ignore[union-attr]
        if self.failures.get(type(command)):
            return inputs.CommandFailed(op, *self.failures[type(command)].pop(0))
        if type(command) in self.fail:
            return inputs.CommandFailed(op, *self.fail[type(command)])
        match command:
            case do.RefreshMetadata():
                return inputs.MetadataRefreshed(op, self.director_version, self.desired, self.refused)
            case do.ResolveBundle():
                return inputs.BundleResolved(op, 1000)
            case do.FetchBlobs():
                return inputs.BlobsFetched(op, 1000)
            case do.VerifyBlobs():
                return inputs.BlobsVerified(op)
            case do.StageSlot(assignment=chosen):
                self.damaged.discard(chosen.manifest)
                return inputs.SlotStaged(op, 2_000, 0.05, self.sampling_ratio)
            case do.ProveCandidate(assignment=chosen, stops_first=stops_first):
                if stops_first:
                    self.answers.pop(chosen.module, None)
                self.candidates[chosen.module] = chosen.manifest
                return inputs.CandidateProved(op, GOLDEN)
            case do.BeginTrial(assignment=chosen):
                if chosen.module not in self.candidates or chosen.module not in self.answers:
                    return inputs.CommandFailed(op, "model.worker-crashed", "there is no such candidate")
                return inputs.TrialBegun(op)
            case do.ObserveTrial(module=module):
                if module not in self.candidates:
                    return inputs.CommandFailed(op, "model.worker-crashed", "there is no such candidate")
                return inputs.TrialObserved(op, self.agreement)
            case do.ActivateSlot(assignment=chosen):
                if self.candidates.pop(chosen.module, None) != chosen.manifest:
                    return inputs.CommandFailed(op, "model.worker-crashed", "there is no such candidate")
                gap_ms = 0 if chosen.module in self.answers else GAP_MS
                self.answers[chosen.module] = chosen.manifest
                return inputs.SlotActivated(op, gap_ms, self.before)
            case do.ObserveHealth():
                return inputs.HealthObserved(op, *self.health)
            case do.AskLeave(gate=gate):
                if (wait_ms := self.postponed.get(str(gate), 0)) > 0:
                    return inputs.LeavePostponed(op, wait_ms, "device.postponed", "not now")
                return inputs.LeaveGiven(op, gate is do.Gate.ACTIVATE and self.is_memory_short)
            case do.CommitSlot(module=module) | do.AttestLive(module=module):
                found = self.answers.get(module)
                if found is None:
                    return inputs.CommandFailed(op, "model.not-serving", "nothing answers")
                found = self.otherwise.pop(0) if self.otherwise else found
                done = inputs.SlotCommitted if isinstance(command, do.CommitSlot) else inputs.LiveAttested
                return done(op, found, GOLDEN)
            case do.ScrubStore(manifests=manifests):
                return inputs.StoreScrubbed(op, manifests & self.damaged)
            case do.HealSlot(assignment=chosen):
                self.damaged.discard(chosen.manifest)
                return inputs.SlotHealed(op, chosen.manifest)
            case do.RestartLive(module=module, manifest=manifest):
                self.candidates.pop(module, None)
                self.answers[module] = manifest
                return inputs.LiveServed(op, GOLDEN)
            case do.RollBack(module=module, manifest=manifest):
                if manifest in self.damaged:
                    return inputs.CommandFailed(op, "device.disk-corrupt", "the slot is damaged")
                self._ensure(module, manifest)
                return inputs.SlotRolledBack(op, GOLDEN if manifest else None)
            case do.ServeLive(module=module, manifest=manifest):
                if manifest in self.damaged:
                    return inputs.CommandFailed(op, "device.disk-corrupt", "the slot is damaged")
                self._ensure(module, manifest)
                return inputs.LiveServed(op, GOLDEN)
        raise AssertionError(f"no answer to {command}")

    def _ensure(self, module: str, manifest: Digest | None) -> None:
        """As the supervisor of workers does: what is to serve is proved first, in the place of any candidate."""
        if manifest is None:
            self.answers.pop(module, None)
        elif self.answers.get(module) != manifest:
            self.candidates.pop(module, None)
            self.answers[module] = manifest

    @property
    def answering(self) -> Digest | None:
        """What answers in module `digits`."""
        return self.answers.get("digits")

    @property
    def module(self) -> JsonObject:
        """The report of module `digits`."""
        return self.core.reported_modules()["digits"].to_json()

    def error_code(self) -> str | None:
        """Code of the error that belongs to no module."""
        return self.core.error.code if self.core.error else None
