"""A broker with TLS, and a registry's database beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.telemetry.parts import Cloud, cloud
from tests.integration.telemetry.secure import SecureBroker, running_broker


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[SecureBroker]:
    """A running broker that lets d1 and d2 in."""
    with running_broker(tmp_path) as made:
        yield made


@pytest.fixture
def beside(tmp_path: Path, secure: SecureBroker) -> Iterator[Cloud]:
    """A registry beside it that has enrolled d1 and d2."""
    with cloud(tmp_path, secure.cloud_config()) as made:
        made.enrol("d1", "d2")
        yield made
