"""A device that verifies repositories in memory, for the tests of trust."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.ports import Desired
from edge_agent.trust.timefloor import TimeFloor
from edge_agent.trust.uptane import UptaneVerifier
from edge_contract.errors import EdgeError
from tests.support.tufrepo import DAY_MS, NOW_MS, TwoRepositories


class Device:
    """A verifier with its folder, its clock and what it has installed; it can be started anew."""

    def __init__(self, folder: Path, repositories: TwoRepositories) -> None:
        self.folder = folder
        self.repositories = repositories
        self.wall_ms = NOW_MS
        self.running_ms = 0
        self.installed: dict[tuple[str, str], int] = {}
        self.roots = (repositories.director.files["1.root.json"], repositories.image.files["1.root.json"])
        self.start()

    def start(self) -> None:
        """As after a restart."""
        self.floor = TimeFloor(self.folder / "time.json", NOW_MS - 365 * DAY_MS, lambda: self.running_ms)
        self.verifier = UptaneVerifier(
            self.folder,
            self.repositories.device,
            self.repositories.director.fetch,
            self.repositories.image.fetch,
            lambda: self.installed,
            self.floor,
        )
        self.verifier.seed(*self.roots)

    def refresh(self) -> Desired:
        return self.verifier.refresh(self.wall_ms)

    def refused(self) -> str:
        """The code of the error that a refresh ends with."""
        with pytest.raises(EdgeError) as caught:
            self.refresh()
        return caught.value.code

    def on_disk(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in self.folder.rglob("*.json")}
