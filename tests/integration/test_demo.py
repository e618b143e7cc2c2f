"""The demonstration end to end, as a newcomer runs it: promises kept, nothing left behind, the truth in its exit."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.net import wait_until
from tests.support.processes import Child, child_process
from tests.support.require import require_program

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

_DEVICES = 5
_DEMO_S = 540.0


def _argv(broker: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "device_sim", "demo", "--json", "--devices", str(_DEVICES), "--broker", broker, *more]


def _descendants(pid: int) -> set[int]:
    """Processes that this one started, and those started by them."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                # The name in parentheses may hold anything, so the fields are counted from behind it.
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
    found = {pid}
    while True:
        more = {child for child, parent in parents.items() if parent in found} - found
        if not more:
            return found - {pid}
        found |= more


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _document(child: Child) -> dict[str, Any]:
    text = child.output()
    document: dict[str, Any] = json.loads(text[text.index("{") :])
    return document


@pytest.mark.parametrize("broker", ["mosquitto", "embedded"])
def test_the_demonstration_keeps_its_promises(broker: str, tmp_path: Path) -> None:
    if broker == "mosquitto":
        require_program("mosquitto")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with child_process(_argv(broker), log_path=tmp_path / "demo.log", env=environment) as child:
        code = child.wait(_DEMO_S)
        assert code == 0, child.tail()
    document = _document(child)
    assert document["ok"], document["promises"]
    assert document["broker"] == {"kind": broker, "tls": broker == "mosquitto"}
    assert document["devices"] == _DEVICES + 1
    assert document["load"]["failed"] == 0
    assert document["load"]["served"] > 500
    first, second, damaged = document["versions"]
    assert first["outcomes"] == second["outcomes"] == {"confirmed": _DEVICES + 1}
    assert second["answered_accuracy"] > first["answered_accuracy"] > 0.9
    assert damaged["outcomes"] == {"refused": _DEVICES + 1}
    assert damaged["codes"] == {"model.golden-mismatch": _DEVICES + 1}
    assert damaged["answered"] == 0
    assert {row["live"] for row in document["fleet"]} == {second["manifest"]}
    # One platform, one runtime: what the fleet computed on the golden vectors is the same everywhere.
    assert len({row["golden"] for row in document["fleet"]}) == 1
    assert document["bytes_pulled"] > 0
    assert [row["version"] for row in document["predictions"]] == [1, 2]
    assert document["repeated_records"] == 0
    assert not list(tmp_path.glob("lighterman-*"))


def test_an_interrupted_demonstration_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with child_process(_argv("embedded"), log_path=tmp_path / "demo.log", env=environment) as child:
        agent_log = "lighterman-demo-*/agent.log"
        wait_until(lambda: bool(list(tmp_path.glob(agent_log))) or not child.is_running, 120, what="the agent to start")
        started = _descendants(child.pid)
        assert len(started) >= 3, child.tail()
        child.send(signal.SIGTERM)
        assert child.wait(60) == 130
    wait_until(lambda: not any(_is_running(pid) for pid in started), 30, what="every process to end")
    assert not list(tmp_path.glob("lighterman-*"))


def test_a_demonstration_that_cannot_be_given_says_why(tmp_path: Path) -> None:
    with child_process(_argv("embedded", "--devices", "0"), log_path=tmp_path / "demo.log") as child:
        assert child.wait(60) == 2
    assert _document(child)["error"]["code"] == "config.invalid"
