"""A site and a device for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.trust.world import Device, Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def device(site: Site, tmp_path: Path) -> Device:
    return Device(site, tmp_path / "device")
