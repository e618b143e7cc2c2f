"""The cloud of a simulated world: bundles with known flaws, assignments, reports."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from device_sim.hardware import Flaw
from device_sim.rng import stream
from edge_contract.delta import Delta
from edge_contract.deployment import Artifact, Assignment, Policy, bundle_repository
from edge_contract.digest import Digest
from edge_contract.limits import MIB
from edge_contract.manifest import WEIGHT_RAW, Descriptor
from edge_contract.terms import PPM, Trial
from edge_contract.twin import Report

_PLATFORM = "linux/amd64"
_UNTRIED = 0.5
_GATED = 0.5
_BASES_MAX: Final = 4
_PEAK_BYTES: Final = 8 * MIB


class DeltaFlaw(StrEnum):
    """What is wrong with a delta."""

    NONE = "none"
    REFUSED = "refused"  # the decoder does not take it
    WRONG = "wrong"  # it makes other bytes than it should
    MISSING = "missing"  # the registry does not have it
    KILLING = "killing"  # decoding it takes the device down


_DELTA_FLAWS: Final = (*([DeltaFlaw.NONE] * 6), *DeltaFlaw)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A model version for the one platform of a world.

    Attributes:
        model: Name of the model.
        version: Its version.
        manifest: Digest of its manifest.
        size: Bytes of its blobs.
        flaw: What is wrong with it; the cloud does not know.
        probation_ms: From its runtime descriptor.
    """

    model: str
    version: int
    manifest: Digest
    size: int
    flaw: Flaw
    probation_ms: int

    @property
    def blob(self) -> Descriptor:
        """The one file of it that counts."""
        return Descriptor(WEIGHT_RAW, Digest.of(b"blob " + self.manifest.value.encode()), self.size)


class Cloud:
    """Keeps what each device should run, and the newest report of each."""

    def __init__(self, seed: int) -> None:
        """Make a cloud whose digests belong to this seed."""
        self._seed = seed
        self._versions: dict[str, int] = {}
        self._deployments = 0
        self.bundles: dict[Digest, Bundle] = {}
        self.deltas: dict[Digest, tuple[Delta, ...]] = {}  # by the manifest of the bundle that they make
        self.delta_flaws: dict[Digest, DeltaFlaw] = {}
        self.assigned: dict[str, dict[str, Assignment]] = {}
        self.director_versions: dict[str, int] = {}
        self.reports: dict[str, Report] = {}

    def enrol(self, device: str) -> None:
        """Know a device."""
        self.assigned[device], self.director_versions[device] = {}, 1

    def publish(self, model: str, flaw: Flaw, draw: random.Random) -> Bundle:
        """Make the next version of a model."""
        version = self._versions[model] = self._versions.get(model, 0) + 1
        manifest = Digest.of(f"{self._seed} {model} {version}".encode())
        bundle = Bundle(model, version, manifest, draw.randint(1_000, 50_000_000), flaw, draw.randint(0, 20_000))
        self.bundles[manifest] = bundle
        self.deltas[manifest] = ()
        return bundle

    def make_deltas(self, bundle: Bundle, draw: random.Random) -> int:
        """Make deltas from some of the earlier versions; those who are assigned to it already learn of them.

        Returns:
            How many.
        """
        known = {delta.base for delta in self.deltas[bundle.manifest]}
        before = [
            item for item in self.bundles.values() if item.model == bundle.model and item.version < bundle.version
        ]
        bases = [item for item in before if item.blob.digest not in known]
        chosen = draw.sample(bases, min(len(bases), draw.randint(0, _BASES_MAX)))
        made = tuple(self._delta(base, bundle, draw) for base in chosen)
        self.deltas[bundle.manifest] += made
        if made:
            self._tell(bundle)
        return len(made)

    def _delta(self, base: Bundle, new: Bundle, draw: random.Random) -> Delta:
        digest = Digest.of(f"{self._seed} delta {base.manifest} {new.manifest}".encode())
        flaw = draw.choice(_DELTA_FLAWS)
        # Of a bundle whose bytes the registry got wrong there can be no delta that makes the right ones.
        self.delta_flaws[digest] = DeltaFlaw.WRONG if new.flaw is Flaw.BYTES else flaw
        size = max(1, int(new.size * draw.uniform(0.01, 0.99)))
        return Delta(base.blob.digest, base.size, new.blob.digest, new.size, digest, size, _PEAK_BYTES)

    def _tell(self, bundle: Bundle) -> None:
        for device, assigned in self.assigned.items():
            for module, assignment in assigned.items():
                if assignment.manifest == bundle.manifest:
                    assigned[module] = replace(assignment, deltas=self.deltas[bundle.manifest])
                    self.director_versions[device] += 1

    def deploy(self, bundle: Bundle, module: str, devices: list[str]) -> str:
        """Assign a bundle to a module of some devices; returns the deployment's identifier."""
        self._deployments += 1
        deployment = f"dep-{self._deployments}"
        artifact = Artifact(bundle.model, bundle.version, _PLATFORM, self._deployments, bundle_repository(bundle.model))
        policy = self._policy()
        for device in devices:
            self.assigned[device][module] = Assignment(
                module, deployment, bundle.manifest, 1_000, artifact, policy, self.deltas[bundle.manifest]
            )
            self.director_versions[device] += 1
        return deployment

    def _policy(self) -> Policy:
        """Every other deployment asks for a trial, and half of those trials decide."""
        draw = stream(self._seed, "policy", str(self._deployments))
        if draw.random() < _UNTRIED:
            return Policy()
        return Policy(trial=Trial(draw.randint(1_000, 60_000), top1_ppm_min=PPM // 2, gate=draw.random() < _GATED))

    def withdraw(self, module: str, device: str) -> None:
        """Assign nothing to a module any more."""
        if self.assigned[device].pop(module, None) is not None:
            self.director_versions[device] += 1

    def metadata(self, device: str) -> tuple[int, tuple[Assignment, ...]]:
        """Director version and assignments, as verified metadata gives them."""
        return self.director_versions[device], tuple(self.assigned[device].values())

    def receive(self, message: bytes) -> None:
        """Take a report as it came over the wire; the newest of a device counts, and a newer boot is newer."""
        report = Report.parse(message)
        known = self.reports.get(report.device)
        if known is None or (report.boot, report.number) > (known.boot, known.number):
            self.reports[report.device] = report
