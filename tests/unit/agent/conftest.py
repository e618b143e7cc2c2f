"""Fixtures of the tests of the agent's parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tufrepo import TwoRepositories
from tests.unit.agent.trustbench import Device


@pytest.fixture
def repositories() -> TwoRepositories:
    return TwoRepositories()


@pytest.fixture
def device(tmp_path: Path, repositories: TwoRepositories) -> Device:
    return Device(tmp_path / "trust", repositories)
