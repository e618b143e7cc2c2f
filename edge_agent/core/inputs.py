"""Events: facts in the past tense that the shell tells the core.

An event with an `op` completes the command that carried the same operation identifier; each such command gets exactly
one completion, or none when it was cancelled. Completions of operations the core has given up are ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_agent.core.probation import Baseline
from edge_contract.deployment import Assignment
from edge_contract.digest import Digest
from edge_contract.terms import Agreement
from edge_contract.twin import ReportedDeployment, ReportedError


@dataclass(frozen=True, slots=True)
class Started:
    """The agent process began; the record, if any, was restored."""


@dataclass(frozen=True, slots=True)
class TimeReached:
    """The instant that `deadline` named has come."""


@dataclass(frozen=True, slots=True)
class NudgeReceived:
    """The cloud hinted that director metadata of this version exists."""

    director_version: int


@dataclass(frozen=True, slots=True)
class PeriodsChanged:
    """Somebody who may set how often this device asks and reports did so.

    Attributes:
        poll_ms: Mean time between refreshes of metadata without a nudge; none for what the agent was configured with.
        report_ms: Longest time between reports; none likewise.
    """

    poll_ms: int | None = None
    report_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ReportRequested:
    """Somebody asked for a report now."""


@dataclass(frozen=True, slots=True)
class RefreshRequested:
    """An operator on the device asked for fresh metadata."""


@dataclass(frozen=True, slots=True)
class RollbackRequested:
    """An operator on the device asked for the fallback of a module."""

    module: str


@dataclass(frozen=True, slots=True)
class HoldRequested:
    """An operator asked to begin or go on with no update, of one module or (empty) of the whole device."""

    module: str = ""


@dataclass(frozen=True, slots=True)
class ResumeRequested:
    """An operator ended a hold, of one module or (empty) of the whole device and all its modules."""

    module: str = ""


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """The worker that served this bundle ended by itself."""

    module: str
    manifest: Digest


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """The link to the cloud came up or went down."""

    is_online: bool


@dataclass(frozen=True, slots=True)
class Completed:
    """Base of completions.

    Attributes:
        op: Identifier of the completed operation.
    """

    op: int


@dataclass(frozen=True, slots=True)
class CommandFailed(Completed):
    """The operation failed; state on disk is as before, or as the command's documentation says."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class MetadataRefreshed(Completed):
    """Metadata was verified; these are all assignments of this device.

    Attributes:
        director_version: Version of the director's targets.
        assignments: One a module, without those in `refused`.
        refused: What was assigned and must not be taken, by module; the module goes on with what it has.
        is_clock_trusted: Whether the clock was not behind a time known to have passed.
        warning: What went wrong beside it and keeps nothing from going on, or none.
    """

    director_version: int
    assignments: tuple[Assignment, ...]
    refused: Mapping[str, ReportedDeployment] = field(default_factory=dict)
    is_clock_trusted: bool = True
    warning: ReportedError | None = None


@dataclass(frozen=True, slots=True)
class BundleResolved(Completed):
    """The manifest is present and valid, the platform fits and there is space."""

    plan_bytes: int


@dataclass(frozen=True, slots=True)
class LeaveGiven(Completed):
    """Nothing speaks against going on.

    Attributes:
        stops_first: Whether the live worker has to end before the candidate loads, for want of memory or by policy.
    """

    stops_first: bool = False


@dataclass(frozen=True, slots=True)
class LeavePostponed(Completed):
    """A maintenance window is closed, or the device's hook asked to wait."""

    wait_ms: int
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class BlobsFetched(Completed):
    """Every blob of the bundle is present; so many bytes came over the network."""

    network_bytes: int


@dataclass(frozen=True, slots=True)
class BlobsVerified(Completed):
    """Every blob was read from disk again and is genuine."""


@dataclass(frozen=True, slots=True)
class SlotStaged(Completed):
    """The slot is complete and durable; its runtime descriptor says this."""

    probation_ms: int
    failure_ratio_max: float
    sampling_ratio: float
    nonfinite_ratio_max: float = 1.0
    latency_ratio_max: float = 0.0
    drift_max: float = 0.0


@dataclass(frozen=True, slots=True)
class CandidateProved(Completed):
    """The candidate loaded and met its golden vectors; digest of its outputs on them, or none when it has none."""

    golden: Digest | None


@dataclass(frozen=True, slots=True)
class TrialBegun(Completed):
    """The candidate computes on inputs of the live worker."""


@dataclass(frozen=True, slots=True)
class TrialObserved(Completed):
    """What the trial found so far."""

    agreement: Agreement


@dataclass(frozen=True, slots=True)
class SlotActivated(Completed):
    """The candidate answers; the worker before it has drained and ended.

    Attributes:
        gap_ms: For how long nobody answered.
        before: What the worker before it was like, for comparison; nothing when there was none or it cannot be told.
    """

    gap_ms: int = 0
    before: Baseline = field(default_factory=Baseline)


@dataclass(frozen=True, slots=True)
class HealthObserved(Completed):
    """Counters of the live worker since it went live; see `edge_agent.ports.Health`."""

    is_alive: bool
    requests: int
    failures: int
    nonfinite: int = 0
    latencies: tuple[tuple[int, int], ...] = ()
    drift: float = 0.0


@dataclass(frozen=True, slots=True)
class SlotCommitted(Completed):
    """The module's own socket was asked: this bundle answers, and computed this on its golden vectors just now."""

    manifest: Digest
    golden: Digest | None


@dataclass(frozen=True, slots=True)
class SlotRolledBack(Completed):
    """The fallback (or nothing, if there was none) is what answers now."""

    golden: Digest | None


@dataclass(frozen=True, slots=True)
class LiveServed(Completed):
    """The live bundle answers."""

    golden: Digest | None


@dataclass(frozen=True, slots=True)
class LiveAttested(Completed):
    """The module's own socket was asked: this bundle answers, and computed this on its golden vectors just now."""

    manifest: Digest
    golden: Digest | None


@dataclass(frozen=True, slots=True)
class StoreScrubbed(Completed):
    """Slots and their blobs were read from disk again; these are damaged or gone."""

    damaged: frozenset[Digest]


@dataclass(frozen=True, slots=True)
class SlotHealed(Completed):
    """A damaged slot was made anew from genuine bytes."""

    manifest: Digest


Event = (
    Started
    | TimeReached
    | NudgeReceived
    | PeriodsChanged
    | ReportRequested
    | RefreshRequested
    | RollbackRequested
    | HoldRequested
    | ResumeRequested
    | WorkerExited
    | LinkChanged
    | CommandFailed
    | MetadataRefreshed
    | BundleResolved
    | LeaveGiven
    | LeavePostponed
    | BlobsFetched
    | BlobsVerified
    | SlotStaged
    | CandidateProved
    | TrialBegun
    | TrialObserved
    | SlotActivated
    | HealthObserved
    | SlotCommitted
    | SlotRolledBack
    | LiveServed
    | LiveAttested
    | StoreScrubbed
    | SlotHealed
)
