"""A test bench for the core: feeds events, answers commands like a faultless shell would, and keeps the trace."""

from collections.abc import Callable

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.agent import Agent
from edge_agent.core.record import Record
from edge_contract.deployment import Artifact, Assignment, Policy
from edge_contract.digest import Digest
from edge_contract.jsonio import JsonObject

GOLDEN = Digest.of(b"golden outputs")
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
    """Drives one core. `fail` maps a command type to (code, detail) for its next executions."""

    def __init__(self, record: JsonObject | None = None) -> None:
        self.desired: tuple[Assignment, ...] = ()
        self.director_version = 0
        self.now = 0
        self.disk: JsonObject | None = record
        self.fail: dict[type, tuple[str, str]] = {}
        self.health = (True, 0, 0)
        self.trace: list[str] = []
        self.sent: list[do.Command] = []
        self.answering: Digest | None = None
        self.boot()

    def boot(self) -> None:
        """Start the agent from what is on disk."""
        record = None if self.disk is None else Record.from_json(self.disk)
        self.core = Agent("dev", poll_ms=60_000, report_ms=60_000, record=record)
        self.waiting: list[do.Command] = []
        self.answering = None
        self.tell(inputs.Started())

    def tell(self, event: inputs.Event) -> None:
        """Feed one event; commands with a completion wait for `step`."""
        for command in self.core.handle(event, self.now):
            self.sent.append(command)
            self.trace.append(type(command).__name__)
            if isinstance(command, do.Persist):
                self.disk = command.record
            elif hasattr(command, "op") and not isinstance(command, do.CancelOperation):
                self.waiting.append(command)

    def step(self) -> bool:
        """Complete the oldest waiting command; false when there is none."""
        if not self.waiting:
            return False
        command = self.waiting.pop(0)
        self.tell(self.answer(command))
        return True

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

    def answer(self, command: do.Command) -> inputs.Event:
        """What a faultless shell would answer, unless a failure is set."""
        op: int = command.op  # type: ignore[union-attr]
        if type(command) in self.fail:
            return inputs.CommandFailed(op, *self.fail[type(command)])
        match command:
            case do.RefreshMetadata():
                return inputs.MetadataRefreshed(op, self.director_version, self.desired)
            case do.ResolveBundle():
                return inputs.BundleResolved(op, 1000)
            case do.FetchBlobs():
                return inputs.BlobsFetched(op, 1000)
            case do.VerifyBlobs():
                return inputs.BlobsVerified(op)
            case do.StageSlot():
                return inputs.SlotStaged(op, 2_000, 0.05, 1.0)
            case do.ProveCandidate():
                return inputs.CandidateProved(op, GOLDEN)
            case do.ActivateSlot(assignment=chosen):
                self.answering = chosen.manifest
                return inputs.SlotActivated(op)
            case do.ObserveHealth():
                return inputs.HealthObserved(op, *self.health)
            case do.CommitSlot():
                return inputs.SlotCommitted(op)
            case do.RollBack(manifest=manifest):
                self.answering = manifest
                return inputs.SlotRolledBack(op, GOLDEN if manifest else None)
            case do.ServeLive(manifest=manifest):
                self.answering = manifest
                return inputs.LiveServed(op, GOLDEN)
        raise AssertionError(f"no answer to {command}")

    @property
    def module(self) -> JsonObject:
        """The report of module `digits`."""
        return self.core.reported_modules()["digits"].to_json()

    def error_code(self) -> str | None:
        """Code of the error that belongs to no module."""
        return self.core.error.code if self.core.error else None
