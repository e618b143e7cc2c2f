"""Carries out the core's commands through the ports. Blocking; the simulator uses the same code with its own ports."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from edge_agent import ports
from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_contract.deployment import Assignment
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import MANIFEST_BYTES_MAX, RUNTIME_BYTES_MAX
from edge_contract.manifest import MANIFEST_TYPE, Descriptor, Manifest, Role
from edge_contract.runtime import Runtime

_log = logging.getLogger("edge_agent")

Operation = (
    do.RefreshMetadata
    | do.ResolveBundle
    | do.FetchBlobs
    | do.VerifyBlobs
    | do.StageSlot
    | do.ProveCandidate
    | do.ActivateSlot
    | do.ObserveHealth
    | do.CommitSlot
    | do.RollBack
    | do.ServeLive
)


class Lane(StrEnum):
    """Which of the shell's threads carries a command out; each port belongs to one lane.

    Three lanes, so that a long download delays neither a newer assignment nor the restart of a worker.
    """

    METADATA = "metadata"
    STORE = "store"
    SERVING = "serving"


_LANES: Final[dict[type, Lane]] = {
    do.RefreshMetadata: Lane.METADATA,
    do.ResolveBundle: Lane.STORE,
    do.FetchBlobs: Lane.STORE,
    do.VerifyBlobs: Lane.STORE,
    do.StageSlot: Lane.STORE,
    do.CollectGarbage: Lane.STORE,
    do.ProveCandidate: Lane.SERVING,
    do.ActivateSlot: Lane.SERVING,
    do.ObserveHealth: Lane.SERVING,
    do.CommitSlot: Lane.SERVING,
    do.RollBack: Lane.SERVING,
    do.ServeLive: Lane.SERVING,
    do.DiscardCandidate: Lane.SERVING,
    do.SetSampling: Lane.SERVING,
}


def lane_of(command: do.Command) -> Lane:
    """The lane of a command.

    Raises:
        KeyError: For `Persist`, `SendReport` and `CancelOperation`, which the loop does itself.
    """
    return _LANES[type(command)]


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports that commands need."""

    clock: ports.Clock
    verifier: ports.MetadataVerifier
    fetcher: ports.BundleFetcher
    blobs: ports.BlobStore
    slots: ports.SlotStore
    server: ports.ModelServer


def _never() -> bool:
    return False


def _go_on(is_cancelled: Callable[[], bool]) -> None:
    """Leave work that nobody wants any more."""
    if is_cancelled():
        raise EdgeError("network.cut", "the operation was cancelled")


class Dispatcher:
    """Turns one command into the port calls it stands for, and their result into the completing event.

    Operating errors become `CommandFailed`; anything else is a bug and passes through.

    Attributes:
        network_bytes: Bytes of blobs that came over the network since the process began. Written by the store lane
            alone.
    """

    def __init__(self, platform: str, hardware_id: str, outside: Ports) -> None:
        """Serve a device.

        Args:
            platform: `os/architecture[/variant]` of this device.
            hardware_id: Its hardware, or empty.
            outside: The ports.
        """
        self._platform = platform
        self._hardware_id = hardware_id
        self._out = outside
        self.network_bytes = 0

    def execute(self, command: do.Command, is_cancelled: Callable[[], bool] = _never) -> inputs.Event | None:
        """Carry out one command.

        Args:
            command: Any command with a lane.
            is_cancelled: Asked during long work.

        Returns:
            The completing event, or none for commands without completion.
        """
        if isinstance(command, do.CollectGarbage | do.DiscardCandidate | do.SetSampling):
            self._housekeeping(command)
            return None
        if isinstance(command, do.Persist | do.SendReport | do.CancelOperation):
            raise AssertionError(f"{type(command).__name__} belongs to the loop")
        try:
            return self._operate(command, is_cancelled)
        except EdgeError as error:
            return inputs.CommandFailed(command.op, error.code, error.detail)

    def _operate(self, command: Operation, is_cancelled: Callable[[], bool]) -> inputs.Event:
        out = self._out
        match command:
            case do.RefreshMetadata(op):
                desired = out.verifier.refresh(out.clock.wall_ms())
                return inputs.MetadataRefreshed(op, desired.director_version, desired.assignments)
            case do.ResolveBundle(op, assignment):
                return self._resolve(op, assignment, is_cancelled)
            case do.FetchBlobs(op, assignment):
                return self._fetch(op, assignment, is_cancelled)
            case do.VerifyBlobs(op, assignment):
                out.blobs.verify(assignment.manifest, assignment.manifest_bytes)
                for blob in self._manifest(assignment.manifest).blobs:
                    _go_on(is_cancelled)
                    out.blobs.verify(blob.digest, blob.size)
                return inputs.BlobsVerified(op)
            case do.StageSlot(op, assignment):
                return self._stage(op, assignment)
            case do.ProveCandidate(op, assignment):
                slot = out.slots.path(assignment.manifest)
                return inputs.CandidateProved(op, out.server.prove(assignment.module, assignment.manifest, slot))
            case do.ActivateSlot(op, assignment):
                out.server.activate(assignment.module, assignment.manifest)
                return inputs.SlotActivated(op)
            case do.ObserveHealth(op, module):
                health = out.server.health(module)
                return inputs.HealthObserved(op, health.is_alive, health.requests, health.failures)
            case do.CommitSlot(op):
                return inputs.SlotCommitted(op)
            case do.RollBack(op, module, manifest):
                golden = self._serve(module, manifest)
                return inputs.SlotRolledBack(op, golden)
            case do.ServeLive(op, module, manifest):
                return inputs.LiveServed(op, self._serve(module, manifest))

    def _serve(self, module: str, manifest: Digest | None) -> Digest | None:
        if manifest is None:
            self._out.server.stop(module)
            return None
        return self._out.server.ensure(module, manifest, self._out.slots.path(manifest))

    def _resolve(self, op: int, assignment: Assignment, is_cancelled: Callable[[], bool]) -> inputs.Event:
        artifact = assignment.artifact
        if artifact.platform != self._platform:
            raise EdgeError(
                "artifact.platform-mismatch",
                f"bundle {assignment.manifest.short} is for {artifact.platform}, this device is {self._platform}",
                "Build the model for this platform and deploy again.",
            )
        if artifact.hardware_ids and self._hardware_id not in artifact.hardware_ids:
            raise EdgeError(
                "artifact.platform-mismatch",
                f"bundle {assignment.manifest.short} is for the hardware {', '.join(artifact.hardware_ids)}, "
                f"this device is {self._hardware_id or 'of no named hardware'}",
            )
        descriptor = Descriptor(MANIFEST_TYPE, assignment.manifest, assignment.manifest_bytes)
        self.network_bytes += self._out.fetcher.fetch(artifact.repository, descriptor, is_cancelled)
        manifest = self._manifest(assignment.manifest)
        missing = [blob for blob in manifest.blobs if not self._out.blobs.has(blob.digest)]
        plan_bytes = sum(blob.size for blob in missing)
        self._out.blobs.require_space(plan_bytes)
        return inputs.BundleResolved(op, plan_bytes)

    def _fetch(self, op: int, assignment: Assignment, is_cancelled: Callable[[], bool]) -> inputs.Event:
        total = 0
        for blob in self._manifest(assignment.manifest).blobs:
            _go_on(is_cancelled)
            count = self._out.fetcher.fetch(assignment.artifact.repository, blob, is_cancelled)
            total += count
            self.network_bytes += count
        return inputs.BlobsFetched(op, total)

    def _stage(self, op: int, assignment: Assignment) -> inputs.Event:
        manifest = self._manifest(assignment.manifest)
        runtime = self._runtime(manifest)
        if (runtime.model, runtime.version) != (assignment.artifact.model, assignment.artifact.version):
            raise EdgeError(
                "artifact.runtime-invalid",
                f"bundle {assignment.manifest.short} says it is {runtime.model}:{runtime.version}, "
                f"signed metadata says {assignment.artifact.model}:{assignment.artifact.version}",
            )
        told = runtime.golden.path if runtime.golden else None
        if told != next((layer.path for layer in manifest.with_role(Role.GOLDEN)), None):
            raise EdgeError(
                "artifact.runtime-invalid",
                f"bundle {assignment.manifest.short} has its golden vectors elsewhere than it says: {told}",
            )
        self._out.slots.stage(assignment.manifest, manifest)
        probation = runtime.probation
        return inputs.SlotStaged(op, probation.window_ms, probation.failure_ratio_max, runtime.sampling_ratio)

    def _manifest(self, digest: Digest) -> Manifest:
        return Manifest.parse(self._out.blobs.read(digest, MANIFEST_BYTES_MAX))

    def _runtime(self, manifest: Manifest) -> Runtime:
        (layer,) = manifest.with_role(Role.RUNTIME)
        return Runtime.parse(self._out.blobs.read(layer.digest, RUNTIME_BYTES_MAX))

    def _housekeeping(self, command: do.CollectGarbage | do.DiscardCandidate | do.SetSampling) -> None:
        """What nobody waits for. Whatever goes wrong here shows itself in what follows: a worker that ended, a disk."""
        try:
            match command:
                case do.DiscardCandidate(module):
                    self._out.server.discard(module)
                case do.SetSampling(module, ratio):
                    self._out.server.set_sampling(module, ratio)
                case do.CollectGarbage(keep):
                    self._collect(keep)
        except EdgeError as error:
            _log.warning("%s did not work: %s", type(command).__name__, error)

    def _collect(self, keep: frozenset[Digest]) -> None:
        """Mark from the bundles to keep, sweep the rest; what is in doubt stays until the next collection."""
        blobs = set(keep)
        for digest in keep:
            if self._out.blobs.has(digest):
                blobs |= {blob.digest for blob in self._manifest(digest).blobs}
        self._out.slots.collect(keep)
        self._out.blobs.collect(frozenset(blobs))
