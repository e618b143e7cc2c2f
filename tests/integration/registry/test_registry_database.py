"""Schema, documents, and transactions on both databases."""

from __future__ import annotations

import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text

from cloud_registry.adapters.sql.database import Database
from cloud_registry.adapters.sql.documents import SqlDocuments
from cloud_registry.adapters.sql.tables import METADATA
from cloud_registry.limits import METADATA_BYTES_MAX
from cloud_registry.ports import MetadataRow
from edge_contract.errors import EdgeError
from tests.integration.registry.running import error_of


def test_the_migrations_build_the_schema_that_the_code_uses(database: Database) -> None:
    differences = database.read(lambda connection: compare_metadata(MigrationContext.configure(connection), METADATA))
    assert differences == []


def test_processes_that_start_together_migrate_once(database_url: str) -> None:
    opened = [Database(database_url) for _ in range(4)]
    try:
        with ThreadPoolExecutor(4) as starters:
            heads = set(starters.map(Database.migrate, opened))
        assert len(heads) == 1
        opened[0].ping()
    finally:
        for item in opened:
            item.close()


def test_a_database_of_a_newer_version_is_left_alone(database: Database) -> None:
    database.write(lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    error = error_of(database.migrate)
    assert error.code == "config.invalid"
    assert "newer" in error.hint


def test_an_unreachable_database_is_an_error_with_a_code() -> None:
    database = Database("postgresql+psycopg://u:secret@127.0.0.1:9/none")
    try:
        error = error_of(database.ping)
    finally:
        database.close()
    assert error.code == "cloud.unavailable"
    assert "secret" not in str(error)


def test_a_database_url_that_is_none_is_refused() -> None:
    assert error_of(Database, "nonsense").code == "config.invalid"


def test_sqlite_survives_power_cuts_and_is_closed_to_others(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/new/registry.db")
    try:
        database.migrate()
        asked = ("journal_mode", "synchronous", "foreign_keys")
        found = database.read(
            lambda connection: [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in asked]
        )
    finally:
        database.close()
    assert found == ["wal", 2, 1]
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_what_a_failed_transaction_wrote_is_gone(database: Database) -> None:
    def work(connection: Connection) -> None:
        connection.execute(text("INSERT INTO model_numbers (name, last) VALUES ('x', 1)"))
        raise EdgeError("cloud.conflict", "on purpose")

    assert error_of(database.write, work).code == "cloud.conflict"
    count = database.read(lambda connection: connection.execute(text("SELECT count(*) FROM model_numbers")).scalar())
    assert count == 0


def test_writers_wait_for_each_other_and_readers_for_nobody(database: Database) -> None:
    database.write(lambda c: c.execute(text("INSERT INTO model_numbers (name, last) VALUES ('x', 0)")))
    is_inside, may_end = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        connection.execute(text("UPDATE model_numbers SET last = last + 1"))
        is_inside.set()
        assert may_end.wait(20)

    def fast(connection: Connection) -> None:
        connection.execute(text("UPDATE model_numbers SET last = last + 1"))

    def value() -> object:
        return database.read(lambda c: c.execute(text("SELECT last FROM model_numbers")).scalar())

    with ThreadPoolExecutor(2) as workers:
        first = workers.submit(database.write, slow)
        assert is_inside.wait(20)
        second = workers.submit(database.write, fast)
        assert value() == 0
        assert not second.done()
        may_end.set()
        first.result(20)
        second.result(20)
    assert value() == 2


@pytest.fixture
def documents(database: Database) -> SqlDocuments:
    return SqlDocuments(database)


def row(name: str, version: int = 1, data: bytes = b"{}", repository: str = "image") -> MetadataRow:
    return MetadataRow(repository, name, version, data)


def test_documents_are_kept_byte_by_byte(documents: SqlDocuments) -> None:
    data = bytes(range(256))
    documents.put_many([row("1.root", data=data)], {("image", "1.root"): 0})
    assert documents.get("image", "1.root") == (1, data)
    assert documents.get("image", "2.root") is None
    assert documents.get("director/cam-1", "1.root") is None


def test_documents_change_together_or_not_at_all(documents: SqlDocuments) -> None:
    documents.put_many([row("targets"), row("bins-00"), row("old")], {})
    expect = {("image", "targets"): 1, ("image", "bins-00"): 2}
    error = error_of(documents.put_many, [row("targets", 2), row("bins-00", 2)], expect, [("image", "old")])
    assert error.code == "cloud.conflict"
    assert documents.versions("image") == {"targets": 1, "bins-00": 1, "old": 1}
    documents.put_many([row("targets", 2), row("bins-00", 2)], expect | {("image", "bins-00"): 1}, [("image", "old")])
    assert documents.versions("image") == {"targets": 2, "bins-00": 2}
    assert error_of(documents.put_many, [row("x")], {("image", "targets"): 0}).code == "cloud.conflict"


def test_of_writers_that_race_with_the_same_expectation_one_wins(documents: SqlDocuments) -> None:
    def write(number: int) -> str:
        try:
            documents.put_many([row("timestamp", 1, str(number).encode())], {("image", "timestamp"): 0})
        except EdgeError as error:
            return error.code
        return "written"

    with ThreadPoolExecutor(8) as racers:
        results = list(racers.map(write, range(8)))
    assert sorted(results) == ["cloud.conflict"] * 7 + ["written"]


def test_a_repository_of_documents_is_removed_whole(documents: SqlDocuments) -> None:
    documents.put_many([row("a"), row("b"), row("a", repository="director/cam-1")], {})
    documents.remove_repository("image")
    assert documents.versions("image") == {}
    assert documents.versions("director/cam-1") == {"a": 1}


def test_documents_have_bounds(documents: SqlDocuments) -> None:
    assert error_of(documents.put_many, [row("a", 0)], {}).code == "cloud.too-large"
    assert error_of(documents.put_many, [row("a", 1, bytes(METADATA_BYTES_MAX + 1))], {}).code == "cloud.too-large"
