"""Commands: absolute, idempotent imperatives that the core gives the shell, to be started in the order given.

`Persist` is a barrier: nothing after it starts before its record is durable, but for a `ServeLive` that may overtake.
Commands with an `op` complete with exactly one event of the same `op`, or with none after they were cancelled; the
others have no completion.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from edge_contract.deployment import Assignment, Policy
from edge_contract.digest import Digest
from edge_contract.jsonio import JsonObject


@dataclass(frozen=True, slots=True)
class Persist:
    """Make this record durable before anything that follows."""

    record: JsonObject


@dataclass(frozen=True, slots=True)
class SendReport:
    """Tell the cloud how things stand now; a report that cannot be sent is replaced by a later one."""


@dataclass(frozen=True, slots=True)
class CancelOperation:
    """Stop working on an operation as soon as possible; its completion will be ignored."""

    op: int


@dataclass(frozen=True, slots=True)
class DiscardCandidate:
    """End the candidate worker of a module, if there is one."""

    module: str


@dataclass(frozen=True, slots=True)
class SetSampling:
    """Collect this share (0..1) of the live worker's requests."""

    module: str
    ratio: float


@dataclass(frozen=True, slots=True)
class CollectGarbage:
    """Remove slots and blobs that none of these bundles needs.

    Attributes:
        keep: Manifests of bundles.
        deltas: Deltas that a download under way may still use.
    """

    keep: frozenset[Digest]
    deltas: frozenset[Digest] = frozenset()


@dataclass(frozen=True, slots=True)
class RefreshMetadata:
    """Fetch and verify metadata; completes with `MetadataRefreshed`."""

    op: int


class Gate(StrEnum):
    """Where the device's owner has a say."""

    DOWNLOAD = "download"
    ACTIVATE = "activate"


@dataclass(frozen=True, slots=True)
class ScrubStore:
    """Read these slots and their blobs from disk again; completes with `StoreScrubbed`."""

    op: int
    manifests: frozenset[Digest]


@dataclass(frozen=True, slots=True)
class BundleCommand:
    """Base of the steps of an update.

    Attributes:
        op: Operation identifier.
        assignment: The verified assignment worked on.
    """

    op: int
    assignment: Assignment


@dataclass(frozen=True, slots=True)
class ResolveBundle(BundleCommand):
    """Get and check manifest, platform, space on disk and in memory; completes with `BundleResolved`."""


@dataclass(frozen=True, slots=True)
class AskLeave(BundleCommand):
    """Ask windows, hook and memory whether to go on; completes with `LeaveGiven` or `LeavePostponed`."""

    gate: Gate


@dataclass(frozen=True, slots=True)
class FetchBlobs(BundleCommand):
    """Pull every missing blob, resuming; completes with `BlobsFetched`."""


@dataclass(frozen=True, slots=True)
class VerifyBlobs(BundleCommand):
    """Read every blob from disk again; completes with `BlobsVerified`."""


@dataclass(frozen=True, slots=True)
class StageSlot(BundleCommand):
    """Unpack the bundle into its slot; completes with `SlotStaged`."""


@dataclass(frozen=True, slots=True)
class ProveCandidate(BundleCommand):
    """Start the candidate and prove it on the golden vectors; completes with `CandidateProved`.

    Attributes:
        stops_first: End the live worker before; then nobody answers until an activation, a `ServeLive` or a `RollBack`.
    """

    stops_first: bool = False


@dataclass(frozen=True, slots=True)
class BeginTrial(BundleCommand):
    """Let the proved candidate compute on inputs of the live worker, as the policy's trial says, and answer nobody;
    completes with `TrialBegun`. It ends when the candidate is activated or discarded.
    """


@dataclass(frozen=True, slots=True)
class ActivateSlot(BundleCommand):
    """Make the proved candidate what answers; completes with `SlotActivated`.

    On failure the live worker still answers, unless it was stopped first.
    """


@dataclass(frozen=True, slots=True)
class HealSlot(BundleCommand):
    """Make a damaged slot anew from genuine bytes; completes with `SlotHealed`."""


@dataclass(frozen=True, slots=True)
class ModuleCommand:
    """Base of commands on a module that is not an update step.

    Attributes:
        op: Operation identifier.
        module: Name of the module.
    """

    op: int
    module: str


@dataclass(frozen=True, slots=True)
class ObserveHealth(ModuleCommand):
    """Read the live worker's counters; completes with `HealthObserved`."""


@dataclass(frozen=True, slots=True)
class CommitSlot(ModuleCommand):
    """Let the live bundle prove that it is what answers; completes with `SlotCommitted`."""


@dataclass(frozen=True, slots=True)
class AttestLive(ModuleCommand):
    """The same, without anything following from it; completes with `LiveAttested`."""


@dataclass(frozen=True, slots=True)
class ObserveTrial(ModuleCommand):
    """Read what the candidate's trial has found so far; completes with `TrialObserved`."""


@dataclass(frozen=True, slots=True)
class RestartLive(ModuleCommand):
    """Swap the live worker for a fresh one of this bundle, from its slot as it is now; completes with `LiveServed`."""

    manifest: Digest
    policy: Policy = field(default_factory=Policy)


@dataclass(frozen=True, slots=True)
class RollBack(ModuleCommand):
    """Make this bundle (none: nothing) what answers; completes with `SlotRolledBack`."""

    manifest: Digest | None
    policy: Policy = field(default_factory=Policy)


@dataclass(frozen=True, slots=True)
class ServeLive(ModuleCommand):
    """Make sure that this bundle answers; completes with `LiveServed`.

    Attributes:
        manifest: What is live.
        policy: Its signed policy.
        may_overtake: Whether it need not wait for any record: it only brings up again what was live before, and a disk
            that cannot be written is no reason to serve nobody. A bundle that has yet to prove itself has to wait until
            its restart was counted.
    """

    manifest: Digest
    may_overtake: bool = False
    policy: Policy = field(default_factory=Policy)


Command = (
    Persist
    | SendReport
    | CancelOperation
    | DiscardCandidate
    | SetSampling
    | CollectGarbage
    | RefreshMetadata
    | ScrubStore
    | ResolveBundle
    | AskLeave
    | FetchBlobs
    | VerifyBlobs
    | StageSlot
    | ProveCandidate
    | BeginTrial
    | ObserveTrial
    | ActivateSlot
    | HealSlot
    | ObserveHealth
    | CommitSlot
    | AttestLive
    | RestartLive
    | RollBack
    | ServeLive
)
