"""Events: facts in the past tense that the shell tells the core.

An event with an `op` completes the command that carried the same operation identifier; each such command gets exactly
one completion, or none when it was cancelled. Completions of operations the core has given up are ignored.
"""

from dataclasses import dataclass

from edge_contract.deployment import Assignment
from edge_contract.digest import Digest


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
class RefreshRequested:
    """An operator on the device asked for fresh metadata."""


@dataclass(frozen=True, slots=True)
class RollbackRequested:
    """An operator on the device asked for the fallback of a module."""

    module: str


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
    """Metadata was verified; these are all assignments of this device."""

    director_version: int
    assignments: tuple[Assignment, ...]


@dataclass(frozen=True, slots=True)
class BundleResolved(Completed):
    """The manifest is present and valid, the platform fits and there is space."""

    plan_bytes: int


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


@dataclass(frozen=True, slots=True)
class CandidateProved(Completed):
    """The candidate loaded and met its golden vectors; digest of its outputs on them, or none when it has none."""

    golden: Digest | None


@dataclass(frozen=True, slots=True)
class SlotActivated(Completed):
    """The candidate answers; the worker before it has drained and ended."""


@dataclass(frozen=True, slots=True)
class HealthObserved(Completed):
    """Counters of the live worker since it went live."""

    is_alive: bool
    requests: int
    failures: int


@dataclass(frozen=True, slots=True)
class SlotCommitted(Completed):
    """Housekeeping after a good probation is done."""


@dataclass(frozen=True, slots=True)
class SlotRolledBack(Completed):
    """The fallback (or nothing, if there was none) is what answers now."""

    golden: Digest | None


@dataclass(frozen=True, slots=True)
class LiveServed(Completed):
    """The live bundle answers."""

    golden: Digest | None


Event = (
    Started
    | TimeReached
    | NudgeReceived
    | RefreshRequested
    | RollbackRequested
    | WorkerExited
    | LinkChanged
    | CommandFailed
    | MetadataRefreshed
    | BundleResolved
    | BlobsFetched
    | BlobsVerified
    | SlotStaged
    | CandidateProved
    | SlotActivated
    | HealthObserved
    | SlotCommitted
    | SlotRolledBack
    | LiveServed
)
