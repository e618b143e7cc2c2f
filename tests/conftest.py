"""Fixtures every test folder may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.mosquitto import MosquittoBroker, mosquitto
from tests.support.postgres import fresh_database, postgres_cluster

_SLOW_FOLDER: Final = Path(__file__).parent / "integration"
_TOGETHER: Final = ("system", "e2e")
_FOLDERS_TOGETHER: Final = ("attacks", "crash", "e2e", "integration")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Integration tests start processes and servers: each may be quick, together they are not what one waits for.

    Where two processes share the tests (`make test`), whatever uses the machine stays in one of them, one after
    another, so that no two such tests fight for a port, a processor or a disk; the rest goes by file.
    """
    for item in items:
        if item.path.is_relative_to(_SLOW_FOLDER):
            item.add_marker(pytest.mark.slow)
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        is_alone = folder in _FOLDERS_TOGETHER or any(item.get_closest_marker(name) for name in _TOGETHER)
        item.add_marker(pytest.mark.xdist_group("machine" if is_alone else str(item.path)))


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
