"""Fixtures every test folder may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support.mosquitto import MosquittoBroker, mosquitto
from tests.support.postgres import fresh_database, postgres_cluster

_SLOW_FOLDER: Final = Path(__file__).parent / "integration"
_MACHINE: Final = {
    "tests/integration/": "servers",
    "tests/attacks/": "devices",
    "tests/crash/": "devices",
    "tests/e2e/": "devices",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Integration tests start processes and servers: each may be quick, together they are not what one waits for."""
    for item in items:
        if item.path.is_relative_to(_SLOW_FOLDER):
            item.add_marker(pytest.mark.slow)


class _ByUse(LoadScopeScheduling):  # type: ignore[misc]  # the library ships no types
    """Where two processes share the tests: what uses the machine stays together by kind, the rest goes by file.

    So no more than two such tests are under way at once, whatever the machine, a server that tests of one kind share is
    started once, and tests of one file that build on each other meet.
    """

    def _split_scope(self, nodeid: str) -> str:
        for folder, kind in _MACHINE.items():
            if nodeid.startswith(folder):
                return kind
        return nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """See `_ByUse`; asked by pytest-xdist alone (`-n 2`)."""
    return _ByUse(config, log)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[MosquittoBroker]:
    """A plain mosquitto for one test; nothing survives its restart."""
    directory = tmp_path / "broker"
    directory.mkdir()
    with mosquitto(directory) as running:
        yield running


@pytest.fixture(scope="session")
def postgres_cluster_url() -> Iterator[str]:
    """One PostgreSQL cluster for the whole run, started by the first test that asks."""
    with postgres_cluster() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_cluster_url: str) -> Iterator[str]:
    """An empty PostgreSQL database for one test."""
    with fresh_database(postgres_cluster_url) as url:
        yield url
