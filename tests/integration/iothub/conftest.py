"""One emulator a file: it starts in a tenth of a second, and devices have names of their own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from device_sim.iothub.running import Emulator
from tests.support.iothub import running_hub

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def hub() -> Iterator[Emulator]:
    """A hub without throttling."""
    with running_hub() as emulator:
        yield emulator


@pytest.fixture
def name() -> str:
    """A name that no other test has."""
    return f"pump-{next(_numbers)}"


@pytest.fixture(autouse=True)
def _no_faults(hub: Emulator) -> Iterator[None]:
    yield
    hub.admin.clear_faults()
