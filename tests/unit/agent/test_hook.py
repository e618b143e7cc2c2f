"""The device owner's hook: its exit code decides, within bounds, whatever it does."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from edge_agent.hook import CommandHook
from edge_contract.deployment import Artifact, Assignment
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError

MANIFEST = Digest.of(b"bundle")
ASSIGNMENT = Assignment(
    "digits", "dep-1", MANIFEST, 100, Artifact("digits", 7, "linux/amd64", release_counter=7, repository="b/d")
)


def hook(folder: Path, script: str, timeout_ms: int = 10_000) -> CommandHook:
    path = folder / "hook"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return CommandHook(path, timeout_ms)


def test_exit_code_0_goes_on_and_the_program_is_told_what_about(tmp_path: Path) -> None:
    asked = hook(tmp_path, f'echo "$@" > {tmp_path}/args; cat > {tmp_path}/stdin')
    assert asked.ask("download", ASSIGNMENT) == 0
    assert (tmp_path / "args").read_text().split() == ["download", "digits", "digits", "7", str(MANIFEST)]
    assert json.loads((tmp_path / "stdin").read_text()) == {
        "gate": "download",
        "module": "digits",
        "model": "digits",
        "version": 7,
        "manifest": str(MANIFEST),
        "deployment": "dep-1",
    }


@pytest.mark.parametrize(
    ("script", "wait_ms"),
    [
        ("exit 75", 300_000),
        ("echo busy; echo 90; exit 75", 90_000),
        ("echo 1.5; exit 75", 1_500),
        ("echo 0; exit 75", 1_000),
        ("echo 99999999; exit 75", 24 * 3_600_000),
        ("echo soon; exit 75", 300_000),
        ("echo nan; exit 75", 300_000),
        ("echo -5; exit 75", 300_000),
    ],
)
def test_exit_code_75_waits_within_bounds(tmp_path: Path, script: str, wait_ms: int) -> None:
    assert hook(tmp_path, script).ask("activate", ASSIGNMENT) == wait_ms


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo the pump runs >&2; exit 3", "exit code 3: the pump runs"),
        ("kill -9 $$", "signal 9"),
    ],
)
def test_anything_else_is_an_error_that_says_what_the_hook_said(tmp_path: Path, script: str, said: str) -> None:
    with pytest.raises(EdgeError, match=said) as caught:
        hook(tmp_path, script).ask("activate", ASSIGNMENT)
    assert caught.value.code == "device.hook-failed"


def test_a_hook_that_cannot_be_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="No such file") as caught:
        CommandHook(tmp_path / "absent").ask("download", ASSIGNMENT)
    assert caught.value.code == "device.hook-failed"


def test_a_hook_that_does_not_answer_is_killed_with_its_children(tmp_path: Path) -> None:
    asked = hook(tmp_path, f"sleep 100 & echo $! > {tmp_path}/child; wait", timeout_ms=300)
    with pytest.raises(EdgeError, match="within 300 ms"):
        asked.ask("download", ASSIGNMENT)
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 5
    while _is_running(child) and time.monotonic() < deadline:
        os.sched_yield()
    assert not _is_running(child)


def test_children_left_behind_keep_nobody_waiting(tmp_path: Path) -> None:
    begun = time.monotonic()
    assert hook(tmp_path, "sleep 100 & exit 0").ask("download", ASSIGNMENT) == 0
    assert time.monotonic() - begun < 8


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_the_pin_of_the_devices_key_is_none_of_its_business(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTERMAN_KEY_PIN", "4711")
    monkeypatch.setenv("LIGHTERMAN_OTHER", "kept")
    assert (
        hook(tmp_path, f'echo "$LIGHTERMAN_KEY_PIN,$LIGHTERMAN_OTHER" > {tmp_path}/seen').ask("download", ASSIGNMENT)
        == 0
    )
    assert (tmp_path / "seen").read_text() == ",kept\n"
