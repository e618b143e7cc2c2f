"""`ports.MetadataVerifier`: what the shell counts on. Attacks are in tests/unit/agent/test_trust.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from edge_agent import ports
from edge_agent.trust.timefloor import TimeFloor
from edge_agent.trust.uptane import UptaneVerifier
from edge_contract.deployment import Assignment
from tests.support.tufrepo import NOW_MS, TwoRepositories
from tests.unit.shell.fakes import Cloud, FakeVerifier


class Bench(Protocol):
    """A verifier, and the way to assign something to its device."""

    @property
    def verifier(self) -> ports.MetadataVerifier:
        """The verifier."""
        ...

    def assign(self, *versions: int) -> tuple[int, tuple[Assignment, ...]]:
        """Assign these versions of a model each; gives the director version and the assignments."""
        ...


class UptaneBench:
    def __init__(self, folder: Path) -> None:
        self.repositories = two = TwoRepositories()
        floor = TimeFloor(folder / "time.json")
        self.verifier = UptaneVerifier(folder, two.device, two.director.fetch, two.image.fetch, dict, floor)
        self.verifier.seed(two.director.files["1.root.json"], two.image.files["1.root.json"])

    def assign(self, *versions: int) -> tuple[int, tuple[Assignment, ...]]:
        made = tuple(self.repositories.release(version, model=f"model-{version}") for version in versions)
        return self.repositories.assign(*made), made


class FakeBench:
    def __init__(self, _: Path) -> None:
        self.cloud = Cloud()
        self.verifier = FakeVerifier(self.cloud)

    def assign(self, *versions: int) -> tuple[int, tuple[Assignment, ...]]:
        made = tuple(self.cloud.publish(version) for version in versions)
        return self.cloud.assign(*made), made


IMPLEMENTATIONS: dict[str, Callable[[Path], Bench]] = {"uptane": UptaneBench, "fake": FakeBench}


@pytest.fixture(params=IMPLEMENTATIONS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    return IMPLEMENTATIONS[request.param](tmp_path)


def test_a_device_without_assignments_is_told_so(bench: Bench) -> None:
    assert bench.verifier.refresh(NOW_MS).assignments == ()


def test_every_assignment_comes_with_the_version_that_says_it(bench: Bench) -> None:
    for versions in ((1,), (1, 2), (2,), ()):
        director_version, made = bench.assign(*versions)
        desired = bench.verifier.refresh(NOW_MS)
        assert desired.director_version == director_version
        assert set(desired.assignments) == set(made)


def test_asking_again_gives_the_same(bench: Bench) -> None:
    bench.assign(1)
    assert bench.verifier.refresh(NOW_MS) == bench.verifier.refresh(NOW_MS)
