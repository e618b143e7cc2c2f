"""What has to hold in every world, looked at whenever it could break. Each rule names itself when it does."""

from __future__ import annotations

from collections import Counter
from typing import Final, Protocol

from device_sim.cloud import Cloud
from device_sim.hardware import UNFIT, Flaw, Workers
from device_sim.storage import Storage
from edge_agent.core import commands as do
from edge_agent.core.agent import Agent
from edge_agent.core.limits import FINAL_ATTEMPTS_MAX, QUARANTINE_MAX, ROLLBACK_ATTEMPTS_MAX
from edge_agent.core.record import ModuleRecord, Record
from edge_contract.delta import Delta
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.phases import Outcome, Phase
from edge_contract.twin import Report

_SAME_INSTANT_MAX: Final = 50
# Steps whose effect a power cut cannot take back need their phase on disk before they start.
_PHASE_ON_DISK: Final[dict[type, Phase]] = {
    do.ActivateSlot: Phase.ACTIVATING,
    do.CommitSlot: Phase.COMMITTING,
    do.RollBack: Phase.ROLLING_BACK,
}


class InvariantError(EdgeError):
    """A rule of `Checkers` does not hold."""

    def __init__(self, rule: str, device: str, detail: str) -> None:
        """Name the rule, the device and what was seen."""
        super().__init__("internal.bug", f"{rule}: {device}: {detail}")
        self.rule = rule
        self.device = device


class Device(Protocol):
    """What the rules look at."""

    name: str
    storage: Storage
    workers: Workers
    restarts: int

    @property
    def agent(self) -> Agent | None:
        """The core, none while the device is without power."""
        ...


class Checkers:
    """The rules, with what they have to remember. A rule that breaks raises `InvariantError`."""

    def __init__(self, cloud: Cloud) -> None:
        """Know the bundles' flaws from the cloud; devices do not."""
        self._cloud = cloud
        self.steps = 0
        self._assigned: set[tuple[str, str, Digest]] = set()
        self._verified: set[tuple[str, Digest]] = set()
        self._failures: Counter[tuple[str, str, str]] = Counter()
        self._rollbacks: Counter[tuple[str, str]] = Counter()
        self._records: dict[str, Record] = {}
        self._unwritten: dict[str, set[tuple[str, Digest]]] = {}
        self._failed_proofs: set[tuple[str, str, Digest]] = set()
        self._stuck: set[tuple[str, str, Digest]] = set()
        self._instants: dict[str, tuple[int, int]] = {}

    # -- facts -----------------------------------------------------------------------------------------------------

    def saw_assignment(self, device: str, module: str, manifest: Digest) -> None:
        """Verified metadata assigned a bundle to a device."""
        self._assigned.add((device, module, manifest))

    def saw_verified(self, device: str, manifest: Digest) -> None:
        """A device read every blob of a bundle and found them genuine."""
        self._verified.add((device, manifest))

    def decoding(self, device: Device, delta: Delta) -> None:
        """A delta that failed on a device is not decoded there again, nor one that does not live to tell."""
        if device.storage.decoding(delta.new).of(delta.digest).is_hopeless:
            raise InvariantError("failed-deltas-rest", device.name, f"{delta.digest} is decoded again")

    # -- rules -----------------------------------------------------------------------------------------------------

    def handled(self, device: Device, now_ms: int) -> None:
        """A core does not go round and round at one instant."""
        self.steps += 1
        at_ms, count = self._instants.get(device.name, (-1, 0))
        count = count + 1 if at_ms == now_ms else 1
        self._instants[device.name] = (now_ms, count)
        if count > _SAME_INSTANT_MAX:
            raise InvariantError("no-spinning", device.name, f"{count} events at one instant")

    def started(self, device: Device, command: do.Command) -> None:
        """A command starts only after every record before it is durable, and where it has to, with its phase in it."""
        if device.storage.being_written is not None:
            detail = f"{type(command).__name__} started while a record was being written"
            raise InvariantError("persist-is-a-barrier", device.name, detail)
        if isinstance(command, do.ResolveBundle):
            key = (device.name, command.assignment.module, command.assignment.manifest)
            if key in self._failed_proofs:
                detail = f"{command.assignment.manifest.short} is tried again after it failed its golden vectors"
                raise InvariantError("failed-is-not-tried-again", device.name, detail)
        if isinstance(command, do.RollBack):
            # Rolling back takes another deployment up again, one that was refused before as well.
            for counted in [key for key in self._failures if key[::2] == (device.name, command.module)]:
                del self._failures[counted]
        phase = _PHASE_ON_DISK.get(type(command))
        if phase is None:
            return
        module = command.assignment.module if isinstance(command, do.BundleCommand) else _module(command)
        record = self._durable(device, module)
        if record is None or record.phase is not phase:
            found = "nothing" if record is None else str(record.phase)
            detail = f"{type(command).__name__} started while the durable record of {module} said {found}"
            raise InvariantError("persist-before-acting", device.name, detail)
        if isinstance(command, do.ActivateSlot) and (
            record.deployment is None or record.deployment.manifest != command.assignment.manifest
        ):
            raise InvariantError(
                "persist-before-acting", device.name, f"{module} activates what its record does not name"
            )

    def serving(self, device: Device, module: str, manifest: Digest) -> None:
        """What answers was assigned by verified metadata, verified on this disk, is fit, and never failed here."""
        bundle = self._cloud.bundles[manifest]
        name = f"{bundle.model}:{bundle.version} in {module}"
        if (device.name, module, manifest) not in self._assigned:
            raise InvariantError("only-assigned-goes-live", device.name, f"{name} was never assigned")
        if (device.name, manifest) not in self._verified:
            raise InvariantError("only-verified-goes-live", device.name, f"{name} was never verified")
        if bundle.flaw in UNFIT:
            raise InvariantError("damaged-never-goes-live", device.name, f"{name} is flawed: {bundle.flaw}")
        record = self._durable(device, module)
        if record is None or manifest not in record.quarantined:
            return
        # When its fallback could not be made live, the device goes on with what it has until a person or a newer
        # deployment helps it.
        is_stuck = record.live is not None and record.live.manifest == manifest
        if not is_stuck or (device.name, module, manifest) not in self._stuck:
            raise InvariantError("quarantined-never-goes-live", device.name, f"{name} failed here before")

    def settled(self, device: Device) -> None:
        """With nothing under way, what is said to answer is what answers."""
        if device.agent is None:
            return
        for name, module in device.agent.reported_modules().items():
            answers = device.workers.live.get(name)
            if module.serving and module.live != answers:
                detail = f"{name} says that {_short(module.live)} answers, but {_short(answers)} does"
                raise InvariantError("what-answers-is-known", device.name, detail)

    def needs_slot(self, device: Device, module: str, manifest: Digest) -> None:
        """Garbage collection never takes the slot that is live or would be rolled back to."""
        if manifest not in device.storage.slots:
            raise InvariantError(
                "slots-are-kept", device.name, f"{module} needs {manifest.short}, but its slot is gone"
            )

    def reported(self, device: Device, report: Report) -> None:
        """A report never claims what a power cut could take back."""
        for name, module in report.modules.items():
            record = self._durable(device, name)
            claim = (module.live, module.deployment and module.deployment.outcome)
            truth = (None, None) if record is None else (record.live and record.live.manifest, record.outcome)
            if claim != truth:
                raise InvariantError(
                    "reports-are-durable", device.name, f"{name}: reported {claim}, durable is {truth}"
                )

    def failed(self, device: Device, command: do.Command, code: str) -> None:
        """A flawed bundle is tried a bounded number of times, and so is a rollback (plus once for each power cut)."""
        if isinstance(command, do.BundleCommand):
            assignment = command.assignment
            if self._cloud.bundles[assignment.manifest].flaw is Flaw.NONE or code.startswith(("network.", "device.")):
                return
            key = (device.name, assignment.deployment, assignment.module)
            self._failures[key] += 1
            if self._failures[key] > FINAL_ATTEMPTS_MAX + device.restarts:
                detail = f"{assignment.deployment} failed {self._failures[key]} times, last with {code}"
                raise InvariantError("attempts-are-bounded", device.name, detail)
            module = device.agent.reported_modules().get(assignment.module) if device.agent else None
            is_current = module and module.deployment and module.deployment.deployment == assignment.deployment
            if is_current and isinstance(command, do.ProveCandidate):
                self._unwritten.setdefault(device.name, set()).add((assignment.module, assignment.manifest))
        elif isinstance(command, do.RollBack):
            counted = (device.name, command.module)
            self._rollbacks[counted] += 1
            record = self._durable(device, command.module)
            if self._rollbacks[counted] >= ROLLBACK_ATTEMPTS_MAX and record is not None and record.live is not None:
                self._stuck.add((device.name, command.module, record.live.manifest))
            if self._rollbacks[counted] > ROLLBACK_ATTEMPTS_MAX + device.restarts:
                raise InvariantError(
                    "attempts-are-bounded", device.name, f"{command.module} rolls back again and again"
                )

    def rolled_back(self, device: Device, module: str) -> None:
        """A rollback ended; the next one counts afresh."""
        self._rollbacks[device.name, module] = 0

    def persisted(self, device: Device, record: JsonObject) -> None:
        """A record reads back as it was, its director version never falls, and what is quarantined stays so."""
        new = Record.from_json(record)
        if new.to_json() != record:
            raise InvariantError("records-read-back", device.name, "a record differs after it was written and read")
        for module_name, manifest in self._unwritten.pop(device.name, set()):
            self._failed_proofs.add((device.name, module_name, manifest))
        old = self._records.get(device.name)
        self._records[device.name] = new
        for name, module in new.modules.items():
            if module.phase is not Phase.ROLLING_BACK:
                self._rollbacks[device.name, name] = 0
        if old is None:
            return
        if new.director_version < old.director_version:
            raise InvariantError(
                "versions-never-fall", device.name, f"{old.director_version} to {new.director_version}"
            )
        for name, before in old.modules.items():
            lost = set(before.quarantined) - set(new.modules[name].quarantined)
            if lost and len(before.quarantined) < QUARANTINE_MAX:
                raise InvariantError("quarantine-is-kept", device.name, f"{name} forgot {sorted(map(str, lost))}")

    def lost_power(self, device: Device) -> None:
        """Forget the record that never became durable."""
        data = device.storage.load()
        self._unwritten.pop(device.name, None)
        self._records.pop(device.name, None)
        if data is not None:
            self._records[device.name] = Record.from_json(data)

    def unconverged(self, device: Device) -> str:
        """Why a device is not yet where its cloud wants it; empty when it is, and the cloud knows."""
        if device.agent is None:
            return "it is without power"
        report = self._cloud.reports.get(device.name)
        modules = device.agent.reported_modules()
        for name, assignment in self._cloud.assigned[device.name].items():
            module, reported = modules.get(name), report.modules.get(name) if report else None
            if module is None:
                return f"{name} does not know its assignment"
            outcome = module.deployment.outcome if module.deployment else None
            if module.live != assignment.manifest or outcome is not Outcome.CONFIRMED or module.phase is not Phase.IDLE:
                return f"{name} is {module.phase} with the outcome {outcome}"
            if device.workers.live.get(name) != assignment.manifest:
                return f"{name} is confirmed, but does not answer"
            if reported is None or reported.live != assignment.manifest or reported.deployment != module.deployment:
                return f"{name} is confirmed, but the cloud does not know"
        return ""

    def _durable(self, device: Device, module: str) -> ModuleRecord | None:
        data = device.storage.load()
        return None if data is None else Record.from_json(data).modules.get(module)


def _module(command: do.Command) -> str:
    return command.module if isinstance(command, do.ModuleCommand) else ""


def _short(manifest: Digest | None) -> str:
    return "nothing" if manifest is None else manifest.short
