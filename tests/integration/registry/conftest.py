"""Each test runs on SQLite and on PostgreSQL, unless it names one of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_registry.adapters.sql.database import Database
from tests.integration.registry.running import Registry, running_registry


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.system)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/registry.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database."""
    opened = Database(database_url)
    try:
        opened.migrate()
        yield opened
    finally:
        opened.close()


@pytest.fixture
def registry(tmp_path: Path, database_url: str) -> Iterator[Registry]:
    """A running registry on either database."""
    with running_registry(tmp_path / "data", database_url) as running:
        yield running


@pytest.fixture
def local_registry(tmp_path: Path) -> Iterator[Registry]:
    """A running registry on SQLite, for what does not touch the database's nature."""
    with running_registry(tmp_path / "data") as running:
        yield running
