"""One registry without HTTP, its author with real keys, and a device with its real verifier.

Everything that decides is the code that ships: the packager's key commands, the registry's rules and director, the
agent's verifier. Only the line between them is ours, so that a thief can sit on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cloud_registry.adapters.director import TufDirector
from cloud_registry.client import RegistryClient
from edge_agent.ports import Desired
from edge_agent.trust.source import FetchMetadata
from edge_agent.trust.timefloor import TimeFloor
from edge_agent.trust.uptane import UptaneVerifier
from edge_contract.deployment import Artifact, Assignment, bundle_repository
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from packager.keychange import Change, rotate
from packager.keys import KeyPlan, RingMaker, set_up
from packager.keystore import KEY_ROLES, KeyRing
from packager.progress import QuietReporter
from packager.sign import sign_targets
from packager.tufmake import NewTarget
from tests.unit.cloud_data.support import SetAssignments
from tests.unit.packager.support import TrustOfRegistry

QUIET = QuietReporter()
SECRET = "correct horse"
DEVICE = "dev-1"
DAY_MS = 86_400_000

Wire = Callable[[str, str, bytes | None], bytes | None]
"""What arrives of (repository, file name, bytes that were sent or none)."""


def maker() -> RingMaker:
    """Opens folders with the one pass phrase of these tests."""
    return RingMaker(lambda _is_new: SECRET)


def ring(*folders: Path) -> KeyRing:
    """The keys in these folders."""
    return maker()(*folders)


def plan(root: tuple[int, int] = (1, 1), targets: tuple[int, int] = (1, 1), days: int = 365) -> KeyPlan:
    """So many root and targets keys, and how many of them have to sign."""
    counts = dict.fromkeys(KEY_ROLES, root[0]) | {"image-targets": targets[0]}
    return KeyPlan(counts, dict.fromkeys(KEY_ROLES, root[1]) | {"image-targets": targets[1]}, expires_days=days)


def some_bundle(model: str = "digits", version: int = 1, text: str = "good") -> NewTarget:
    """A made-up bundle."""
    data = f"{text} manifest of {model} {version}".encode()
    artifact = Artifact(model, version, "linux/amd64", version, bundle_repository(model))
    return NewTarget(Digest.of(data), len(data), artifact)


class Site:
    """A registry, its author's folder of keys, and what operators assigned."""

    def __init__(self, folder: Path, keys: KeyPlan | None = None) -> None:
        self.folder = folder
        self.registry = TrustOfRegistry(folder / "registry")
        self.table = self.registry.repository._table
        self.online = self.registry.repository._keys
        self.assignments = SetAssignments()
        self.assignments.by_device[DEVICE] = ()
        self.director = TufDirector(self.table, self.online, self.assignments, self.registry.clock)
        self.keys = folder / "keys"
        set_up(self.client, self.keys, keys or plan(), maker(), QUIET)
        self.sent: list[str] = []

    @property
    def client(self) -> RegistryClient:
        """The registry as the packager knows it."""
        return self.registry.as_client()

    def publish(self, *targets: NewTarget, keys: Sequence[Path] = ()) -> int:
        """Sign bundles."""
        return sign_targets(self.client, ring(*(keys or (self.keys,))), targets, 365, QUIET)

    def assign(self, *targets: NewTarget) -> None:
        """Let the director assign these to the device, one module a model."""
        self.assignments.by_device[DEVICE] = tuple(assignment(target) for target in targets)

    def rotate(self, *roles: str, keys: Sequence[Path] = (), **changes: object) -> None:
        """`packager keys rotate`."""
        rotate(self.client, ring(*(keys or (self.keys,))), Change(roles, **changes), QUIET)  # type: ignore[arg-type]

    def serve(self, repository: str, name: str) -> bytes | None:
        """What the registry answers."""
        try:
            if repository == "director":
                return self.director.metadata(DEVICE, name)
            return self.registry.repository.read(name)
        except EdgeError as error:
            if error.code != "cloud.not-found":
                raise
            return None


def assignment(target: NewTarget) -> Assignment:
    """The assignment of a bundle."""
    return Assignment(
        target.artifact.model, f"d-{target.digest.hex[:8]}", target.digest, target.length, target.artifact
    )


def straight(repository: str, name: str, data: bytes | None) -> bytes | None:
    """A line with nobody on it."""
    return data


class Device:
    """A device with its own folder and clock, and somebody on its line perhaps."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site = site
        self.wire: Wire = straight
        self.installed: dict[tuple[str, str], int] = {}
        self.asked: list[str] = []
        self.days_ahead = 0
        clock = site.registry.clock
        self.floor = TimeFloor(folder / "time.json", clock.wall_ms() - 365 * DAY_MS, lambda: 0)
        self.verifier = UptaneVerifier(
            folder, DEVICE, self._fetch("director"), self._fetch("image"), lambda: self.installed, self.floor
        )
        roots = [site.serve(name, "1.root.json") for name in ("director", "image")]
        assert roots[0] is not None
        assert roots[1] is not None
        self.verifier.seed(roots[0], roots[1])

    def _fetch(self, repository: str) -> FetchMetadata:
        def fetch(name: str, bytes_max: int) -> bytes | None:
            self.asked.append(f"{repository}/{name}")
            data = self.wire(repository, name, self.site.serve(repository, name))
            if data is not None and len(data) > bytes_max:
                raise EdgeError("trust.metadata-too-large", name)
            return data

        return fetch

    def refresh(self) -> Desired:
        """What verified metadata says that this device should run."""
        return self.verifier.refresh(self.site.registry.clock.wall_ms() + self.days_ahead * DAY_MS)

    def runs(self) -> list[Digest]:
        """The manifests of everything assigned and allowed."""
        return [item.manifest for item in self.refresh().assignments]

    def refused(self) -> str:
        """The code with which a refresh ends."""
        with pytest.raises(EdgeError) as caught:
            self.refresh()
        return caught.value.code


__all__ = ["DAY_MS", "DEVICE", "QUIET", "Device", "Site", "assignment", "maker", "plan", "ring", "some_bundle"]
