"""SQL of users: it answers questions about the lake, and can do nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cloud_registry.adapters.lake import ParquetLake
from cloud_registry.limits import QUERY_BYTES_MAX, QUERY_CHARS_MAX, QUERY_ROWS_MAX
from cloud_registry.query import QueryResult, run_query
from edge_contract.errors import EdgeError
from tests.unit.cloud_telemetry.making import T0_MS, Catalogue, rows

REPORT = {
    "device": "dev-1",
    "boot": "b",
    "number": 3,
    "sent_ms": 1,
    "received_ms": 2,
    "platform": "linux/amd64",
    "agent_version": "0.1.0",
    "director_version": 9,
    "bytes_fetched": 0,
    "body": '{"modules":{}}',
}


class World:
    """A lake with one catalogued file, one that is not, and a secret beside it."""

    def __init__(self, folder: Path) -> None:
        self.lake_dir = folder / "lake"
        lake = ParquetLake(self.lake_dir, lambda: T0_MS)
        self.catalogue = Catalogue([lake.write(rows("dev-1", range(1, 101)))], [REPORT])
        self.file = self.lake_dir / self.catalogue.files[0].path
        self.orphan = self.lake_dir / lake.write(rows("dev-2", [1])).path
        lake.close()
        self.secret = folder / "secret.txt"
        self.secret.write_text("hunter2")
        self.target = folder / "target"

    def run(self, sql: str, rows_max: int = 1_000, seconds_max: float = 30) -> QueryResult:
        """Run a query; what stands in braces is filled in."""
        filled = sql.format(file=self.file, orphan=self.orphan, secret=self.secret, target=self.target)
        return run_query(self.catalogue, self.lake_dir, filled, rows_max, seconds_max)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("query"))


def test_a_query_answers_with_columns_and_rows(world: World) -> None:
    result = world.run("SELECT device, count(*) AS n, max(latency_us) FROM predictions GROUP BY device")
    assert result.to_json() == {
        "columns": ["device", "n", "max(latency_us)"],
        "rows": [["dev-1", 100, 220]],
        "truncated": False,
    }


def test_reports_are_a_table_too(world: World) -> None:
    result = world.run("SELECT device, director_version, json_extract_string(body, '$.modules') FROM Reports")
    assert result.rows == [["dev-1", 9, "{}"]]


def test_values_that_json_lacks_become_text_or_null(world: World) -> None:
    result = world.run(
        "SELECT TIMESTAMP '2026-11-22 10:00:00', 1.5::DECIMAL(4,2), 'a'::BLOB, 'nan'::DOUBLE, [1, NULL], {{'k': true}},"
        " 170141183460469231731687303715884105727, NULL"
    )
    assert result.rows == [
        ["2026-11-22 10:00:00", "1.50", "61", None, [1, None], {"k": True}, 2**127 - 1, None],
    ]


def test_an_empty_lake_has_its_tables_all_the_same(tmp_path: Path) -> None:
    for table in ("telemetry", "predictions", "reports"):
        assert run_query(Catalogue(), tmp_path, f"SELECT count(*) FROM {table}").rows == [[0]]


def test_rows_beyond_the_bound_are_left_out_and_it_says_so(world: World) -> None:
    result = world.run("SELECT seq FROM telemetry ORDER BY seq", rows_max=10)
    assert (len(result.rows), result.rows[-1], result.truncated) == (10, [10], True)
    assert not world.run("SELECT seq FROM telemetry", rows_max=100).truncated


def test_bytes_beyond_the_bound_are_left_out_too(world: World) -> None:
    result = world.run(f"SELECT repeat('x', {QUERY_BYTES_MAX // 4}) FROM range(100)")
    assert (len(result.rows), result.truncated) == (3, True)
    with pytest.raises(EdgeError, match=r"first row alone"):
        world.run(f"SELECT repeat('x', {QUERY_BYTES_MAX * 2})")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM read_blob('{secret}')",
        "SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM read_json('{secret}')",
        "SELECT * FROM sniff_csv('{secret}')",
        "SELECT * FROM '{secret}'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_text('/proc/self/environ')",
        "SELECT * FROM read_parquet('{orphan}')",
        "SELECT * FROM parquet_metadata('{orphan}')",
        "SELECT * FROM read_parquet('http://127.0.0.1:9/x.parquet')",
        "SELECT * FROM query('COPY (SELECT 1) TO ''{target}''')",
        "SELECT getenv('HOME')",
        "SELECT * FROM rows",
        "COPY (SELECT 1) TO '{target}'",
        "COPY (SELECT 1) TO '{file}' (FORMAT parquet)",
        "COPY telemetry FROM '{secret}'",
        "EXPORT DATABASE '{target}'",
        "ATTACH '{target}' AS other",
        "ATTACH ':memory:' AS other",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET memory_limit = '100GB'",
        "RESET enable_external_access",
        "PRAGMA database_list",
        "CREATE TABLE mine AS SELECT 1",
        "INSERT INTO reports SELECT * FROM reports",
        "WITH x AS (SELECT 1) DELETE FROM reports",
        "DROP VIEW telemetry",
        "EXPLAIN ANALYZE SELECT 1",
        "CALL pragma_version()",
        "PREPARE p AS SELECT 1",
        "BEGIN",
        "CHECKPOINT",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP VIEW telemetry",
        ";",
        "-- nothing",
        "SELEC 1",
        "SELECT nothing FROM nowhere",
        "SELECT '\x00",
    ],
)
def test_what_is_not_a_question_about_the_lake_is_refused(world: World, sql: str) -> None:
    before = world.file.read_bytes()
    with pytest.raises(EdgeError) as caught:
        world.run(sql)
    assert caught.value.code == "cloud.query-invalid"
    assert "hunter2" not in str(caught.value)
    assert not world.target.exists()
    assert world.file.read_bytes() == before


@pytest.mark.parametrize("sql", ["", "   ", "SELECT 1 --" + "x" * QUERY_CHARS_MAX])
def test_a_query_has_a_length(world: World, sql: str) -> None:
    with pytest.raises(EdgeError, match=r"query-invalid"):
        world.run(sql)


@pytest.mark.parametrize("rows_max", [0, -1, QUERY_ROWS_MAX + 1])
def test_the_bound_of_rows_is_bounded(world: World, rows_max: int) -> None:
    with pytest.raises(EdgeError, match=r"query-invalid"):
        world.run("SELECT 1", rows_max=rows_max)


def test_an_endless_query_ends_when_its_time_is_up(world: World) -> None:
    began = time.monotonic()
    with pytest.raises(EdgeError, match=r"took longer than 2 s"):
        world.run("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n", seconds_max=2)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT list(i) FROM range(1000000000) t(i)",
        "SELECT length(repeat('x', 4000000000))",
        "SELECT count(*) FROM (SELECT DISTINCT random() FROM range(1000000000))",
    ],
)
def test_a_greedy_query_meets_its_bound_of_memory_or_time(world: World, sql: str) -> None:
    with pytest.raises(EdgeError) as caught:
        world.run(sql, seconds_max=20)
    assert caught.value.code == "cloud.query-invalid"
    assert "memory" in caught.value.detail or "longer" in caught.value.detail


def test_a_missing_file_is_the_registrys_fault_not_the_queries(world: World, tmp_path: Path) -> None:
    with pytest.raises(EdgeError) as caught:
        run_query(world.catalogue, tmp_path / "elsewhere", "SELECT 1")
    assert caught.value.code == "device.disk-error"
