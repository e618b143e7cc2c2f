"""One stack for all tests of this folder; each test gets it whole again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.stack import Stack, running_stack


@pytest.fixture(scope="session")
def stack_of_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that lives as long as the run."""
    with running_stack(tmp_path_factory.mktemp("e2e")) as stack:
        yield stack


@pytest.fixture
def stack(stack_of_session: Stack) -> Iterator[Stack]:
    """The stack, everything up; the test's own devices end with it."""
    stack_of_session.heal()
    with stack_of_session.ending_devices():
        yield stack_of_session
