"""Logs that leave the device: bounded, and without what looks like a secret."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from edge_agent.limits import HUB_METHOD_BYTES_MAX
from edge_agent.shell.limits import LOG_TAIL_BYTES
from edge_agent.shell.operations import RecentLog, RunnerOperations
from edge_contract.errors import EdgeError
from edge_contract.jsonio import dump


def no_runner() -> Any:
    return None


@pytest.fixture
def recent() -> RecentLog:
    return RecentLog()


@pytest.fixture
def operations(recent: RecentLog, tmp_path: Path) -> RunnerOperations:
    return RunnerOperations(no_runner, tmp_path, recent, "info")


def logs(operations: RunnerOperations, source: str = "") -> dict[str, str]:
    found: dict[str, str] = operations.perform("collect-logs", {"source": source} if source else {})["logs"]
    return found


@pytest.mark.parametrize(
    "line",
    [
        "HostName=h;SharedAccessKey=s3cret",
        "AccountKey=s3cret;",
        "Authorization: Bearer s3cret",
        '{"password": "s3cret"}',
        "token: s3cret",
        "passphrase=s3cret",
        'api_key = "s3cret"',
        "SharedAccessSignature sr=s3cret&sig=s3cret",
    ],
)
def test_what_looks_like_a_secret_does_not_leave_the_device(
    operations: RunnerOperations, tmp_path: Path, line: str
) -> None:
    (tmp_path / "digits.log").write_text(f"before\n{line}\nafter\n")
    text = logs(operations, "digits")["digits"]
    assert "s3cret" not in text
    assert "before" in text
    assert "after" in text


def test_half_a_line_is_not_shown(operations: RunnerOperations, tmp_path: Path) -> None:
    (tmp_path / "digits.log").write_text("password=" + "s" * (LOG_TAIL_BYTES - 3) + "\nend")
    assert logs(operations, "digits")["digits"] == "end"


def test_an_answer_fits_whatever_logs_hold(operations: RunnerOperations, recent: RecentLog, tmp_path: Path) -> None:
    for name in ("a", "b", "binding"):
        (tmp_path / f"{name}.log").write_text("\x1b[1m\x00" * 30_000)
    for _ in range(1_000):
        recent.emit(logging.LogRecord("edge_agent", logging.INFO, "", 0, '"' * 400, (), None))
    found = operations.perform("collect-logs", {})
    assert set(found["logs"]) == {"agent", "a", "b", "binding"}
    assert len(dump(found)) <= HUB_METHOD_BYTES_MAX


def test_a_log_of_nobody_is_empty_and_a_path_is_none(operations: RunnerOperations) -> None:
    assert logs(operations, "absent") == {"absent": ""}
    with pytest.raises(EdgeError):
        logs(operations, "../secret")


def test_a_log_call_that_is_wrong_raises_in_nobody(recent: RecentLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    recent.emit(logging.LogRecord("edge_agent", logging.INFO, "", 0, "%d", ("x",), None))
    assert recent.text() == ""
