"""SQL of users over the telemetry lake, in a child process that can read the lake and do nothing else.

A query may be hostile or merely endless, so it is not run inside the server: the child gets no environment, no
descriptor but its pipes, bounds on memory and processor time that the kernel enforces, and it is killed when its time
is up. DuckDB in it is locked (`adapters.lake.LockedLake`). See docs/adr/0011-telemetry-lake.md.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from cloud_registry.limits import (
    QUERIES_AT_ONCE_MAX,
    QUERY_ADDRESS_BYTES,
    QUERY_CHARS_MAX,
    QUERY_ROWS_DEFAULT,
    QUERY_ROWS_MAX,
    QUERY_SECONDS_MAX,
)
from cloud_registry.ports import LakeFile
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

_PACKAGE_ROOT: Final = Path(__file__).resolve().parents[1]
_TOO_LONG: Final = "Narrow it with WHERE, for example on received_ms, or aggregate less."
_running = threading.BoundedSemaphore(QUERIES_AT_ONCE_MAX)


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What a query gave.

    Attributes:
        columns: Names.
        rows: Values as JSON has them; what JSON has no form for (times, decimals) is text, bytes are hexadecimal.
        truncated: Whether there was more than may be given back.
    """

    columns: list[str]
    rows: list[list[Any]]
    truncated: bool

    def to_json(self) -> JsonObject:
        """The answer of `POST /api/v1/query`."""
        return {"columns": self.columns, "rows": self.rows, "truncated": self.truncated}


class QuerySource(Protocol):
    """What a query may see."""

    def lake_files(self) -> Sequence[LakeFile]:
        """The catalogue."""
        ...

    def report_rows(self) -> Iterable[JsonObject]:
        """The newest report of every device, with the keys of the table `reports`."""
        ...


def run_query(
    source: QuerySource,
    lake_dir: Path,
    sql: str,
    rows_max: int = QUERY_ROWS_DEFAULT,
    seconds_max: float = QUERY_SECONDS_MAX,
) -> QueryResult:
    """Run one SELECT over `telemetry`, `predictions` and `reports`. Blocks; any thread.

    Args:
        source: The catalogue and the reports.
        lake_dir: The lake's folder.
        sql: From a user.
        rows_max: At most so many rows come back, `1..QUERY_ROWS_MAX`.
        seconds_max: At most so long, waiting for other queries included.

    Raises:
        EdgeError: `cloud.query-invalid`; `cloud.unavailable` while too many queries run; `device.*` when the lake
            cannot be read.
    """
    if not sql.strip() or len(sql) > QUERY_CHARS_MAX:
        raise EdgeError("cloud.query-invalid", f"a query has 1 to {QUERY_CHARS_MAX} characters; this has {len(sql)}")
    if not 1 <= rows_max <= QUERY_ROWS_MAX:
        raise EdgeError("cloud.query-invalid", f"rows_max is {rows_max}", f"Use 1 to {QUERY_ROWS_MAX}.")
    from cloud_registry.metrics import METRICS

    began = time.monotonic()
    outcome = "refused"
    if not _running.acquire(timeout=seconds_max):
        raise EdgeError("cloud.unavailable", "too many queries run at the same time", "Try again in a moment.")
    try:
        with tempfile.TemporaryDirectory(prefix="lighterman-query-") as folder:
            reports = _write_reports(source, Path(folder)) if "reports" in sql.lower() else None
            files = [str(lake_dir.absolute() / file.path) for file in source.lake_files()]
            request = {"files": files, "reports": reports, "sql": sql, "rows_max": rows_max, "seconds": seconds_max}
            answer = _ask_child(json.dumps(request).encode(), seconds_max)
        if "error" in answer:
            error = answer["error"]
            raise EdgeError(error["code"], error["detail"], error["hint"])
        outcome = "answered"
    finally:
        _running.release()
        METRICS.queries.labels(outcome).inc()
        METRICS.query_seconds.observe(time.monotonic() - began)
    return QueryResult(answer["columns"], answer["rows"], answer["truncated"])


def _write_reports(source: QuerySource, folder: Path) -> str:
    from cloud_registry.adapters.lake import report_line

    path = folder / "reports.ndjson"
    with path.open("wb") as file:
        for row in source.report_rows():
            file.write(report_line(row))
    return str(path)


def _ask_child(request: bytes, seconds_max: float) -> JsonObject:
    environment = {"PYTHONPATH": str(_PACKAGE_ROOT), "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
    child = subprocess.Popen(
        [sys.executable, "-s", "-m", "cloud_registry.query"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd="/",
        close_fds=True,
    )
    try:
        output, _ = child.communicate(request, timeout=seconds_max)
    except subprocess.TimeoutExpired:
        raise EdgeError("cloud.query-invalid", f"the query took longer than {seconds_max:g} s", _TOO_LONG) from None
    finally:
        child.kill()
        child.communicate()
    try:
        answer: JsonObject = json.loads(output)
    except ValueError:
        # It ended without a word: the kernel refused it memory or time.
        raise EdgeError(
            "cloud.query-invalid", "the query needs more memory or time than it may have", _TOO_LONG
        ) from None
    return answer


def _restrain(seconds: float) -> None:
    """Have the kernel enforce the bounds, in the child."""
    cpu_s = int(seconds) + 1
    for kind, bound in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, QUERY_ADDRESS_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        bounded = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (bounded, bounded))


def main() -> None:
    """The child: one request on standard input, one answer on standard output, both JSON."""
    from cloud_registry.adapters.lake import LockedLake

    request = json.load(sys.stdin.buffer)
    try:
        _restrain(request["seconds"])
        lake = LockedLake(request["files"], request["reports"])
        answer = lake.run(request["sql"], request["rows_max"])
    except EdgeError as error:
        answer = {"error": error.to_json()}
    output = json.dumps(answer, allow_nan=False).encode()
    while output:
        output = output[os.write(sys.stdout.fileno(), output) :]


if __name__ == "__main__":
    main()
