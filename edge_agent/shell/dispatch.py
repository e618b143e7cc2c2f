"""Carries out the core's commands through the ports. Blocking; the simulator uses the same code with its own ports."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from edge_agent import ports
from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.choosing import Way
from edge_agent.core.planning import stops_first, window_wait_ms
from edge_agent.core.probation import Baseline, baseline
from edge_agent.shell.fetching import Fetching, disk_bytes
from edge_contract.deployment import Assignment, Policy
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import MANIFEST_BYTES_MAX, RUNTIME_BYTES_MAX
from edge_contract.manifest import MANIFEST_TYPE, Descriptor, Manifest, Role
from edge_contract.phases import Phase
from edge_contract.runtime import Runtime
from edge_contract.twin import ReportedError

_log = logging.getLogger("edge_agent")
_DAMAGE: Final = frozenset({"device.disk-corrupt", "artifact.not-found"})
"""What reading a slot again ends with when it is no longer what was staged."""

_OfWorkers = (
    do.ProveCandidate
    | do.BeginTrial
    | do.ObserveTrial
    | do.ActivateSlot
    | do.ObserveHealth
    | do.CommitSlot
    | do.AttestLive
    | do.RestartLive
    | do.RollBack
    | do.ServeLive
)
Operation = (
    do.RefreshMetadata
    | do.ScrubStore
    | do.ResolveBundle
    | do.AskLeave
    | do.FetchBlobs
    | do.VerifyBlobs
    | do.StageSlot
    | do.HealSlot
    | _OfWorkers
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
    do.ScrubStore: Lane.STORE,
    do.ResolveBundle: Lane.STORE,
    do.AskLeave: Lane.STORE,
    do.FetchBlobs: Lane.STORE,
    do.VerifyBlobs: Lane.STORE,
    do.StageSlot: Lane.STORE,
    do.HealSlot: Lane.STORE,
    do.CollectGarbage: Lane.STORE,
    do.ProveCandidate: Lane.SERVING,
    do.BeginTrial: Lane.SERVING,
    do.ObserveTrial: Lane.SERVING,
    do.ActivateSlot: Lane.SERVING,
    do.ObserveHealth: Lane.SERVING,
    do.CommitSlot: Lane.SERVING,
    do.AttestLive: Lane.SERVING,
    do.RestartLive: Lane.SERVING,
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


class _NobodyKnows:
    """A `MemoryGauge` for where nobody can tell."""

    def available_bytes(self) -> int | None:
        return None


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports that commands need.

    Attributes:
        clock: Time.
        verifier: Metadata.
        fetcher: Content.
        blobs: Blobs on disk.
        slots: Unpacked bundles.
        server: Workers.
        gauge: Memory.
        hook: The device owner's say, or none.
        floor_ms: The latest time known to have passed; windows are not judged by an earlier clock. The metadata lane.
        maker: Makes blobs by deltas, or none: every blob comes whole. The store lane.
        duty: Done after each refresh of metadata, with the time; a failure is reported and stops nothing.
    """

    clock: ports.Clock
    verifier: ports.MetadataVerifier
    fetcher: ports.BundleFetcher
    blobs: ports.BlobStore
    slots: ports.SlotStore
    server: ports.ModelServer
    gauge: ports.MemoryGauge = field(default_factory=_NobodyKnows)
    hook: ports.UpdateHook | None = None
    floor_ms: Callable[[], int] = lambda: 0
    duty: Callable[[int], None] | None = None
    maker: ports.DeltaMaker | None = None


def _never() -> bool:
    return False


def _go_on(is_cancelled: Callable[[], bool]) -> None:
    """Leave work that nobody wants any more."""
    if is_cancelled():
        raise EdgeError("network.cut", "the operation was cancelled")


class Dispatcher:
    """Turns one command into the port calls it stands for, and their result into the completing event.

    Operating errors become `CommandFailed`; anything else is a bug and passes through.
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
        self._sound: set[Digest] = (
            set()
        )  # slots that were read whole in this process; the rest is read before it serves
        self._before: dict[str, Baseline] = {}  # by module; used by the serving lane alone
        self._floor_ms = 0  # written by the metadata lane, which alone may ask for it
        self._fetching = Fetching(outside.fetcher, outside.blobs, outside.gauge, outside.maker)

    @property
    def network_bytes(self) -> int:
        """Bytes of blobs and deltas that came over the network since the process began. Any thread."""
        return self._fetching.network_bytes

    @property
    def saved_bytes(self) -> int:
        """Bytes that needed not come since then because deltas made them. Any thread."""
        return self._fetching.saved_bytes

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
        match command:
            case do.RefreshMetadata(op):
                return self._refresh(op)
            case do.ScrubStore(op, manifests):
                return inputs.StoreScrubbed(op, self._scrub(manifests, is_cancelled))
            case do.ResolveBundle(op, assignment):
                return self._resolve(op, assignment, is_cancelled)
            case do.AskLeave(op, assignment, gate):
                return self._ask_leave(op, assignment, gate)
            case do.FetchBlobs(op, assignment):
                return self._fetch(op, assignment, is_cancelled)
            case do.VerifyBlobs(op, assignment):
                self._verify(assignment, is_cancelled)
                return inputs.BlobsVerified(op)
            case do.StageSlot(op, assignment):
                return self._stage(op, assignment, is_cancelled)
            case do.HealSlot(op, assignment):
                return self._heal(op, assignment, is_cancelled)
            case _:
                return self._operate_workers(command, is_cancelled)

    def _operate_workers(self, command: _OfWorkers, is_cancelled: Callable[[], bool]) -> inputs.Event:
        out = self._out
        match command:
            case do.ProveCandidate(op, assignment, is_live_stopped):
                if is_live_stopped:
                    self._look_at_live(assignment.module)
                    out.server.pause(assignment.module)
                slot = out.slots.path(assignment.manifest)
                golden = out.server.prove(assignment.module, assignment.manifest, slot, assignment.policy)
                return inputs.CandidateProved(op, golden)
            case do.BeginTrial(op, assignment):
                if assignment.policy.trial is None:
                    raise AssertionError("a trial without its terms")
                out.server.begin_trial(assignment.module, assignment.policy.trial)
                return inputs.TrialBegun(op)
            case do.ObserveTrial(op, module):
                return inputs.TrialObserved(op, out.server.trial(module))
            case do.ActivateSlot(op, assignment):
                self._look_at_live(assignment.module)
                gap_ms = out.server.activate(assignment.module, assignment.manifest)
                return inputs.SlotActivated(op, gap_ms, self._before.pop(assignment.module, Baseline()))
            case do.ObserveHealth(op, module):
                seen = out.server.health(module)
                return inputs.HealthObserved(
                    op, seen.is_alive, seen.requests, seen.failures, seen.nonfinite, seen.latencies, seen.drift
                )
            case do.CommitSlot(op, module):
                found = out.server.attest(module)
                return inputs.SlotCommitted(op, found.manifest, found.golden)
            case do.AttestLive(op, module):
                found = out.server.attest(module)
                return inputs.LiveAttested(op, found.manifest, found.golden)
            case do.RollBack(op, module, manifest, policy):
                golden = self._serve(module, manifest, policy, is_cancelled)
                return inputs.SlotRolledBack(op, golden)
            case do.ServeLive(op, module, manifest, _may_overtake, policy):
                return inputs.LiveServed(op, self._serve(module, manifest, policy, is_cancelled))
            case do.RestartLive(op, module, manifest, policy):
                slot = self._sound_slot(manifest, is_cancelled)
                return inputs.LiveServed(op, out.server.restart(module, manifest, slot, policy))

    # -- metadata --------------------------------------------------------------------------------------------------

    def _refresh(self, op: int) -> inputs.Event:
        out = self._out
        wall_ms = out.clock.wall_ms()
        try:
            desired = out.verifier.refresh(wall_ms)
        except EdgeError:
            self._do_duty(wall_ms)  # metadata that nobody renews must not let the device's own certificate end
            raise
        self._floor_ms = out.floor_ms()
        warning = self._do_duty(wall_ms)
        return inputs.MetadataRefreshed(
            op, desired.director_version, desired.assignments, desired.refused, desired.is_clock_trusted, warning
        )

    def _do_duty(self, wall_ms: int) -> ReportedError | None:
        if self._out.duty is None:
            return None
        try:
            self._out.duty(wall_ms)
        except EdgeError as error:
            _log.warning("%s", error)
            return ReportedError.of(error.code, error.detail, Phase.IDLE)
        return None

    # -- serving ---------------------------------------------------------------------------------------------------

    def _look_at_live(self, module: str) -> None:
        """Remember what the worker is like that is about to be replaced."""
        seen = self._out.server.health(module)
        if seen.is_alive:
            self._before[module] = baseline(seen.latencies)

    def _serve(
        self, module: str, manifest: Digest | None, policy: Policy, is_cancelled: Callable[[], bool]
    ) -> Digest | None:
        if manifest is None:
            self._out.server.stop(module)
            return None
        return self._out.server.ensure(module, manifest, self._sound_slot(manifest, is_cancelled), policy)

    def _sound_slot(self, manifest: Digest, is_cancelled: Callable[[], bool]) -> Path:
        """The folder of a slot that was read whole since this process began: nothing else is ever run.

        Raises:
            EdgeError: `device.disk-corrupt`, `artifact.not-found`.
        """
        if manifest not in self._sound:
            self._out.slots.verify(manifest, is_cancelled)
            self._sound.add(manifest)
        return self._out.slots.path(manifest)

    # -- getting a bundle ------------------------------------------------------------------------------------------

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
        manifest = self._get_manifest(assignment, is_cancelled)
        for layer in manifest.with_role(Role.RUNTIME):
            self._get_small(artifact.repository, layer, RUNTIME_BYTES_MAX, is_cancelled)
        self._plan_memory(assignment, manifest)
        plan_bytes = disk_bytes(self._plan(assignment, manifest)) + self._out.slots.bytes_needed(manifest)
        self._out.blobs.require_space(plan_bytes)
        return inputs.BundleResolved(op, plan_bytes)

    def _plan(self, assignment: Assignment, manifest: Manifest) -> tuple[Way, ...]:
        return self._fetching.plan(manifest.blobs, assignment.deltas, self._out.slots.bytes_needed(manifest))

    def _get_manifest(self, assignment: Assignment, is_cancelled: Callable[[], bool]) -> Manifest:
        descriptor = Descriptor(MANIFEST_TYPE, assignment.manifest, assignment.manifest_bytes)
        repository = assignment.artifact.repository
        return Manifest.parse(self._get_small(repository, descriptor, MANIFEST_BYTES_MAX, is_cancelled))

    def _get_small(self, repository: str, blob: Descriptor, bytes_max: int, is_cancelled: Callable[[], bool]) -> bytes:
        """Fetch a document and read it; one that has rotted since it was fetched is fetched once more."""
        for is_last in (False, True):
            self._fetching.fetch(repository, blob, is_cancelled)
            try:
                return self._out.blobs.read(blob.digest, bytes_max)
            except EdgeError as error:
                if is_last or error.code != "device.disk-corrupt":
                    raise
            with contextlib.suppress(EdgeError):
                self._out.blobs.verify(blob.digest, blob.size)  # it removes what is damaged
        raise AssertionError("the last attempt returns or raises")

    def _plan_memory(self, assignment: Assignment, manifest: Manifest) -> bool:
        """Whether the live worker has to end before the candidate loads.

        Raises:
            EdgeError: `device.memory-short`.
        """
        return stops_first(
            assignment.policy.activation,
            self._runtime(manifest).load_peak_bytes,
            self._out.server.memory_bytes(assignment.module),
            self._out.gauge.available_bytes(),
        )

    def _ask_leave(self, op: int, assignment: Assignment, gate: do.Gate) -> inputs.Event:
        is_activation = gate is do.Gate.ACTIVATE
        if is_activation:
            now_ms = max(self._out.clock.wall_ms(), self._floor_ms)
            wait_ms = window_wait_ms(assignment.policy.windows, now_ms)
            if wait_ms > 0:
                detail = f"the maintenance window opens in {wait_ms // 1000} s"
                return inputs.LeavePostponed(op, wait_ms, "device.outside-window", detail)
        if self._out.hook is not None and (wait_ms := self._out.hook.ask(str(gate), assignment)) > 0:
            detail = f"the device's hook asked to wait {wait_ms // 1000} s with the {gate}"
            return inputs.LeavePostponed(op, wait_ms, "device.postponed", detail)
        is_stopped = is_activation and self._plan_memory(assignment, self._manifest(assignment.manifest))
        return inputs.LeaveGiven(op, is_stopped)

    def _fetch(self, op: int, assignment: Assignment, is_cancelled: Callable[[], bool]) -> inputs.Event:
        total = 0
        _go_on(is_cancelled)
        for way in self._plan(assignment, self._manifest(assignment.manifest)):
            _go_on(is_cancelled)
            total += self._fetching.get(assignment.artifact.repository, way, assignment.deltas, is_cancelled)
        return inputs.BlobsFetched(op, total)

    def _verify(self, assignment: Assignment, is_cancelled: Callable[[], bool]) -> None:
        self._out.blobs.verify(assignment.manifest, assignment.manifest_bytes)
        for blob in self._manifest(assignment.manifest).blobs:
            _go_on(is_cancelled)
            self._out.blobs.verify(blob.digest, blob.size)

    def _stage(self, op: int, assignment: Assignment, is_cancelled: Callable[[], bool]) -> inputs.Event:
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
        self._unpack(assignment.manifest, manifest, is_cancelled)
        probation = runtime.probation
        return inputs.SlotStaged(
            op,
            probation.window_ms,
            probation.failure_ratio_max,
            runtime.sampling_ratio,
            probation.nonfinite_ratio_max,
            probation.latency_ratio_max,
            probation.drift_max,
        )

    def _unpack(self, digest: Digest, manifest: Manifest, is_cancelled: Callable[[], bool]) -> None:
        """Stage a slot, and read it whole: one that was complete before may have rotted since.

        Raises:
            EdgeError: `device.disk-corrupt` when it had; it is out of the way then, and the next attempt makes it anew.
        """
        self._out.slots.stage(digest, manifest)
        try:
            self._out.slots.verify(digest, is_cancelled)
        except EdgeError as error:
            if error.code in _DAMAGE:
                self._set_aside(digest)
            raise
        self._sound.add(digest)

    # -- healing ---------------------------------------------------------------------------------------------------

    def _scrub(self, manifests: frozenset[Digest], is_cancelled: Callable[[], bool]) -> frozenset[Digest]:
        damaged = set()
        for digest in sorted(manifests):
            _go_on(is_cancelled)
            try:
                self._out.slots.verify(digest, is_cancelled)
            except EdgeError as error:
                if error.code not in _DAMAGE:
                    raise
                _log.error("slot %s is damaged: %s", digest.short, error)
                self._sound.discard(digest)
                damaged.add(digest)
        return frozenset(damaged)

    def _heal(self, op: int, assignment: Assignment, is_cancelled: Callable[[], bool]) -> inputs.Event:
        self._set_aside(assignment.manifest)
        manifest = self._get_manifest(assignment, is_cancelled)
        plan_bytes = disk_bytes(self._plan(assignment, manifest)) + self._out.slots.bytes_needed(manifest)
        self._out.blobs.require_space(plan_bytes)
        self._fetch(op, assignment, is_cancelled)
        self._verify(assignment, is_cancelled)
        self._unpack(assignment.manifest, manifest, is_cancelled)
        return inputs.SlotHealed(op, assignment.manifest)

    def _set_aside(self, digest: Digest) -> None:
        self._sound.discard(digest)
        self._out.slots.set_aside(digest)

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
                case do.CollectGarbage(keep, deltas):
                    self._collect(keep, deltas)
        except EdgeError as error:
            _log.warning("%s did not work: %s", type(command).__name__, error)

    def _collect(self, keep: frozenset[Digest], deltas: frozenset[Digest]) -> None:
        """Mark from the bundles to keep, sweep the rest; what is in doubt stays until the next collection."""
        blobs = set(keep | deltas)
        for digest in keep:
            if self._out.blobs.has(digest):
                blobs |= {blob.digest for blob in self._manifest(digest).blobs}
        self._out.slots.collect(keep)
        self._out.blobs.collect(frozenset(blobs))
