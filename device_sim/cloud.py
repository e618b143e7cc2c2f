"""The cloud of a simulated world: bundles with known flaws, assignments, reports."""

from __future__ import annotations

import random
from dataclasses import dataclass

from device_sim.hardware import Flaw
from device_sim.rng import stream
from edge_contract.deployment import Artifact, Assignment, Policy, bundle_repository
from edge_contract.digest import Digest
from edge_contract.terms import PPM, Trial
from edge_contract.twin import Report

_PLATFORM = "linux/amd64"
_UNTRIED = 0.5
_GATED = 0.5


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


class Cloud:
    """Keeps what each device should run, and the newest report of each."""

    def __init__(self, seed: int) -> None:
        """Make a cloud whose digests belong to this seed."""
        self._seed = seed
        self._versions: dict[str, int] = {}
        self._deployments = 0
        self.bundles: dict[Digest, Bundle] = {}
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
        return bundle

    def deploy(self, bundle: Bundle, module: str, devices: list[str]) -> str:
        """Assign a bundle to a module of some devices; returns the deployment's identifier."""
        self._deployments += 1
        deployment = f"dep-{self._deployments}"
        artifact = Artifact(bundle.model, bundle.version, _PLATFORM, self._deployments, bundle_repository(bundle.model))
        policy = self._policy()
        for device in devices:
            self.assigned[device][module] = Assignment(module, deployment, bundle.manifest, 1_000, artifact, policy)
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
