"""The telemetry lake: Parquet files in one folder a day, written and read by DuckDB (docs/adr/0011-telemetry-lake.md).

    <lake>/received_date=2026-11-22/<writer>-<count>.parquet     what the catalogue may name
    <lake>/staging/<writer>.*                                    work in progress, never read by others
    <lake>/staging/<writer>.lock                                 held while that writer lives

A file appears under its final name only when it is whole and durable. It is data only if the catalogue in the
registry's database names it; queries are handed that list and nothing else.
"""

import fcntl
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from cloud_registry.adapters.durable import disk_errors, make_folder, sync_folder
from cloud_registry.errors import RegistryError
from cloud_registry.limits import (
    LAKE_MEMORY_BYTES,
    ORPHAN_GRACE_MS,
    QUERY_BYTES_MAX,
    QUERY_MEMORY_BYTES,
    ROW_BYTES_MAX,
)
from cloud_registry.ports import LakeFile, LakeRow
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject, dump

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

COLUMNS: Final[dict[str, str]] = {
    "device": "VARCHAR",
    "boot": "VARCHAR",
    "seq": "BIGINT",
    "kind": "VARCHAR",
    "module": "VARCHAR",
    "model": "VARCHAR",
    "version": "BIGINT",
    "manifest": "VARCHAR",
    "taken_ms": "BIGINT",
    "received_ms": "BIGINT",
    "body": "VARCHAR",
}
"""Name and type of every column of a file, in order."""

REPORT_COLUMNS: Final[dict[str, str]] = {
    "device": "VARCHAR",
    "boot": "VARCHAR",
    "number": "BIGINT",
    "sent_ms": "BIGINT",
    "received_ms": "BIGINT",
    "platform": "VARCHAR",
    "agent_version": "VARCHAR",
    "director_version": "BIGINT",
    "bytes_fetched": "BIGINT",
    "bytes_saved": "BIGINT",
    "body": "VARCHAR",
}
"""Name and type of every column of the table `reports`; `body` is the whole report as JSON text."""

_NAME: Final = re.compile(r"received_date=\d{4}-\d{2}-\d{2}/([0-9a-f]{16})-\d{8}\.parquet")
_STAGED: Final = re.compile(r"([0-9a-f]{16})\.(?:ndjson|parquet|merged\.parquet|lock)")
_FULL: Final = "No space left on device"
# Nothing is fetched from elsewhere, and no variable of this program is taken for a table.
_SETTINGS: Final[dict[str, str]] = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
}
_PREDICTIONS: Final = """
CREATE VIEW predictions AS
SELECT device, boot, seq, module, model, version, manifest, taken_ms, received_ms,
    json_extract(body, '$.inputs') AS inputs, json_extract(body, '$.outputs') AS outputs,
    TRY_CAST(json_extract_string(body, '$.latency_us') AS BIGINT) AS latency_us,
    json_extract_string(body, '$.request_id') AS request_id
FROM telemetry WHERE kind = 'prediction'
"""


class ParquetLake:
    """The `LakeWriter` port: one writer with a name of its own; several processes may have one each.

    `write` is for one thread, `merge` and `sweep` for one (other) thread, `retire` for any.
    """

    def __init__(self, folder: Path, wall_ms: Callable[[], int]) -> None:
        """Prepare the folder and take this writer's lock.

        Args:
            folder: The lake; made if need be.
            wall_ms: The time, milliseconds since 1970.

        Raises:
            EdgeError: `device.disk-full` or `device.disk-error`.
        """
        self._folder = folder.absolute()
        self._staging = self._folder / "staging"
        self._wall_ms = wall_ms
        self._writer = secrets.token_hex(8)
        self._count = 0
        self._retired: set[str] = set()
        self._guard = threading.Lock()
        self._connection: DuckDBPyConnection | None = None
        with disk_errors(f"prepare the telemetry lake {folder}"):
            make_folder(self._staging)
            self._lock = self._take_lock()

    def close(self) -> None:
        """Give the lock back; files that never reached the catalogue become orphans."""
        self._reset()
        with suppress(OSError):
            self._staged("lock").unlink()
        self._lock.close()

    def write(self, rows: Sequence[LakeRow]) -> LakeFile:
        """See `LakeWriter.write`."""
        received = [row.received_ms for row in rows]
        source = self._staged("ndjson")
        with disk_errors("write telemetry"):
            try:
                with source.open("wb") as file:
                    for row in rows:
                        file.write(_line(row))
                if self._connection is None:
                    self._connection = _connect(LAKE_MEMORY_BYTES)
                query = _select_json(source, COLUMNS)
                return self._copy(
                    self._connection, query, self._staged("parquet"), len(rows), min(received), max(received)
                )
            except BaseException:
                self._reset()  # DuckDB may not be usable after an error
                raise
            finally:
                source.unlink(missing_ok=True)

    def merge(self, files: Sequence[LakeFile]) -> LakeFile:
        """See `LakeWriter.merge`."""
        paths = [str(self._folder / file.path) for file in files]
        query = f"SELECT * FROM {_parquet(paths)} ORDER BY device, boot, seq"  # noqa: S608 - quoted, and our own
        first, last = min(file.received_ms_min for file in files), max(file.received_ms_max for file in files)
        with disk_errors("merge telemetry"), _connect(LAKE_MEMORY_BYTES) as connection:
            return self._copy(
                connection, query, self._staged("merged.parquet"), sum(file.rows for file in files), first, last
            )

    def retire(self, files: Sequence[LakeFile]) -> None:
        """See `LakeWriter.retire`."""
        now = self._wall_ms() / 1000
        for file in files:
            with suppress(OSError):
                os.utime(self._folder / file.path, (now, now))
            with self._guard:
                self._retired.add(file.path)

    def sweep(self, catalogue: Callable[[], Sequence[LakeFile]]) -> int:
        """See `LakeWriter.sweep`."""
        with disk_errors("sweep the telemetry lake"):
            self._sweep_staging()
            named = {file.path for file in catalogue()}
            orphans = [path for path in self._files() if path not in named and self._is_past_grace(path)]
            loose = [path for path in orphans if not self._may_be_entered(path)]
            if not loose:
                return 0
            # Whoever wrote these has gone since the catalogue was read, and may have entered them before.
            named = {file.path for file in catalogue()}
            removed = [path for path in loose if path not in named]
            for path in removed:
                (self._folder / path).unlink(missing_ok=True)
            with self._guard:
                self._retired -= set(removed)
            return len(removed)

    # --- inside ---

    def _staged(self, suffix: str) -> Path:
        return self._staging / f"{self._writer}.{suffix}"

    def _take_lock(self) -> IO[bytes]:
        path = self._staged("lock")
        while True:
            lock = path.open("wb")
            fcntl.flock(lock, fcntl.LOCK_EX)
            # A sweep that saw the file before it was locked has removed it, and would take this writer for dead.
            with suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                    return lock
            lock.close()

    def _copy(
        self, connection: "DuckDBPyConnection", query: str, temporary: Path, rows: int, first_ms: int, last_ms: int
    ) -> LakeFile:
        """Run a query into a new file: temporary name, sync, rename, sync the folder."""
        try:
            with _duck_errors("write telemetry"):
                target = _quoted(str(temporary))
                found = connection.execute(f"COPY ({query}) TO {target} (FORMAT parquet, COMPRESSION zstd)").fetchone()
            if found is None or found[0] != rows:
                raise EdgeError("internal.bug", f"{found} of {rows} records were written")
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
                size = os.fstat(file.fileno()).st_size
            day = datetime.fromtimestamp(last_ms // 1000, UTC).date().isoformat()
            folder = self._folder / f"received_date={day}"
            make_folder(folder)
            with self._guard:
                self._count += 1
                path = folder / f"{self._writer}-{self._count:08d}.parquet"
            temporary.replace(path)
            sync_folder(folder)
        finally:
            temporary.unlink(missing_ok=True)
        return LakeFile(str(path.relative_to(self._folder)), rows, size, first_ms, last_ms)

    def _reset(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _files(self) -> Iterator[str]:
        for folder in sorted(self._folder.glob("received_date=*")):
            for path in sorted(folder.iterdir()):
                name = f"{folder.name}/{path.name}"
                if _NAME.fullmatch(name):
                    yield name

    def _is_past_grace(self, path: str) -> bool:
        try:
            age_ms = self._wall_ms() - int((self._folder / path).stat().st_mtime * 1000)
        except FileNotFoundError:
            return False
        return age_ms >= ORPHAN_GRACE_MS

    def _may_be_entered(self, path: str) -> bool:
        """Whether a living writer may still enter a file into the catalogue."""
        with self._guard:
            if path in self._retired:
                return False
        match = _NAME.fullmatch(path)
        return match is not None and self._is_alive(match[1])

    def _sweep_staging(self) -> None:
        """Remove what dead writers left: their files, and under its lock the lock itself."""
        for path in sorted(self._staging.iterdir(), key=lambda path: path.suffix == ".lock"):
            match = _STAGED.fullmatch(path.name)
            if match is not None and not self._is_alive(match[1], and_remove=path):
                path.unlink(missing_ok=True)

    def _is_alive(self, writer: str, and_remove: Path | None = None) -> bool:
        """Whether a writer holds its lock; what is to be removed of a dead one goes while its lock is held here."""
        if writer == self._writer:
            return True
        try:
            with (self._staging / f"{writer}.lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if and_remove is not None:
                    and_remove.unlink(missing_ok=True)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False


class LockedLake:
    """A DuckDB that can read the catalogued files and nothing else: for SQL from users, in a process of its own.

    It writes nothing, fetches nothing, and its settings can no longer be changed. One thread.
    """

    def __init__(self, paths: Sequence[str], reports: str | None, threads: int = 1) -> None:
        """Make the tables, then lock the doors.

        Args:
            paths: Absolute paths of the catalogued files.
            reports: An NDJSON file with rows of the table `reports`; none leaves it empty.
            threads: Threads of DuckDB.

        Raises:
            EdgeError: `device.*` when a file cannot be read.
        """
        self._connection = connection = _connect(QUERY_MEMORY_BYTES, threads)
        with _duck_errors("open the telemetry lake"):
            if paths:
                connection.execute(f"CREATE VIEW telemetry AS FROM {_parquet(paths)}")
            else:
                connection.execute(f"CREATE TABLE telemetry ({_typed(COLUMNS)})")
            connection.execute(_PREDICTIONS)
            connection.execute(f"CREATE TABLE reports ({_typed(REPORT_COLUMNS)})")
            if reports is not None:
                connection.execute(f"INSERT INTO reports {_select_json(Path(reports), REPORT_COLUMNS)}")
            allowed = ", ".join(_quoted(path) for path in paths)
            connection.execute(f"SET allowed_paths = [{allowed}]")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")

    def run(self, sql: str, rows_max: int) -> JsonObject:
        """Run one SELECT.

        Args:
            sql: From a user.
            rows_max: At most so many rows come back, and at most `QUERY_BYTES_MAX` bytes of them.

        Returns:
            `{"columns": [...], "rows": [[...]], "truncated": bool}`.

        Raises:
            EdgeError: `cloud.query-invalid`.
        """
        import duckdb

        try:
            statements = self._connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise EdgeError(
                    "cloud.query-invalid",
                    f"{len(statements)} statements were sent" if len(statements) != 1 else "only SELECT is allowed",
                    "Send one SELECT; the tables are telemetry, predictions and reports.",
                )
            cursor = self._connection.execute(statements[0])
            columns = [column[0] for column in cursor.description or ()]
            rows, is_truncated = _bounded(iter(cursor.fetchone, None), rows_max)
        except duckdb.OutOfMemoryException:
            raise EdgeError(
                "cloud.query-invalid", "the query needs more memory than it may have", "Narrow it with WHERE."
            ) from None
        except duckdb.Error as error:
            raise EdgeError("cloud.query-invalid", f"the query cannot be run: {_first_lines(error)}") from None
        return {"columns": columns, "rows": rows, "truncated": is_truncated}


def report_line(row: JsonObject) -> bytes:
    """One row of the table `reports` as a line of NDJSON, with the keys of `REPORT_COLUMNS`."""
    return dump(row) + b"\n"


def _line(row: LakeRow) -> bytes:
    sample = row.sample
    return (
        dump(
            {
                "device": row.device,
                "boot": row.boot,
                "seq": sample.seq,
                "kind": sample.kind,
                "module": sample.module,
                "model": sample.model,
                "version": sample.version,
                "manifest": None if sample.manifest is None else str(sample.manifest),
                "taken_ms": sample.taken_ms,
                "received_ms": row.received_ms,
                "body": dump(sample.body).decode(),
            }
        )
        + b"\n"
    )


def _connect(memory_bytes: int, threads: int = 1) -> "DuckDBPyConnection":
    try:
        import duckdb
    except ImportError:
        raise EdgeError("config.dependency-missing", "duckdb is not installed", "Install lighterman[cloud].") from None
    with _duck_errors("start DuckDB"):
        settings: dict[str, Any] = {**_SETTINGS, "threads": threads, "memory_limit": f"{memory_bytes}B"}
        return duckdb.connect(":memory:", config=settings)


@contextmanager
def _duck_errors(what: str) -> Iterator[None]:
    import duckdb

    try:
        yield
    except duckdb.OutOfMemoryException:
        raise EdgeError("device.memory-short", f"cannot {what}: not enough memory") from None
    except duckdb.IOException as error:
        if _FULL in str(error):
            raise EdgeError(
                "device.disk-full", f"cannot {what}: no space is left", "Make space on the registry's disk."
            ) from None
        raise EdgeError("device.disk-error", f"cannot {what}: {_first_lines(error)}") from None
    except (duckdb.InternalException, duckdb.FatalException) as error:
        raise EdgeError("device.disk-error", f"cannot {what}: {_first_lines(error)}") from None
    except duckdb.Error as error:
        raise EdgeError("artifact.document-invalid", f"cannot {what}: {_first_lines(error)}") from None


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _typed(columns: dict[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in columns.items())


def _parquet(paths: Sequence[str]) -> str:
    """A table function over files; the folder's date is not a column of its own, received_ms says more."""
    return f"read_parquet([{', '.join(_quoted(path) for path in paths)}], hive_partitioning = false)"


def _select_json(path: Path, columns: dict[str, str]) -> str:
    typed = ", ".join(f"{name}: '{kind}'" for name, kind in columns.items())
    return (
        f"SELECT * FROM read_json({_quoted(str(path))}, format = 'newline_delimited', columns = {{{typed}}}, "  # noqa: S608 - quoted, and our own
        f"maximum_object_size = {ROW_BYTES_MAX})"
    )


def _bounded(source: Iterator[Any], rows_max: int) -> tuple[list[list[Any]], bool]:
    """Rows as JSON values while they fit, and whether some did not."""
    rows: list[list[Any]] = []
    size = 0
    for row in source:
        if len(rows) >= rows_max:
            return rows, True
        values = [_plain(value) for value in row]
        size += len(json.dumps(values, ensure_ascii=False).encode("utf-8", "replace"))
        if size > QUERY_BYTES_MAX:
            if not rows:
                raise RegistryError("cloud.query-invalid", f"the first row alone has over {QUERY_BYTES_MAX} bytes")
            return rows, True
        rows.append(values)
    return rows, False


def _plain(value: Any) -> Any:
    """A value of DuckDB as JSON: numbers and text as they are, not-a-number as null, everything else as text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)


def wall_ms() -> int:
    """The system's time, milliseconds since 1970."""
    return time.time_ns() // 1_000_000
