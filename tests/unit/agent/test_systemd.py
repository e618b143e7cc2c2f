"""What systemd hears, and whether it would take the unit."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.systemd import SystemdSupervisor, take_listen_fds
from edge_contract.limits import MODULES_MAX
from tests.support.require import require_program

UNITS = Path(__file__).resolve().parents[3] / "deploy" / "systemd"


@pytest.fixture
def ears(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        yield listener


def heard(ears: socket.socket) -> list[str]:
    ears.setblocking(False)
    messages = []
    try:
        while True:
            messages.append(ears.recv(4096).decode())
    except BlockingIOError:
        return messages


def test_the_life_of_an_agent_is_told(ears: socket.socket) -> None:
    supervisor = SystemdSupervisor({"NOTIFY_SOCKET": ears.getsockname(), "WATCHDOG_USEC": "60000000"})
    assert supervisor.is_supervised
    assert supervisor.watchdog_ms == 60_000
    supervisor.ready()
    supervisor.alive("dev-1: online")
    supervisor.stopping()
    assert heard(ears) == ["READY=1", "WATCHDOG=1\nSTATUS=dev-1: online", "STOPPING=1"]


def test_a_busy_loop_does_not_flood_systemd(ears: socket.socket) -> None:
    supervisor = SystemdSupervisor({"NOTIFY_SOCKET": ears.getsockname(), "WATCHDOG_USEC": "60000000"})
    for _ in range(1000):
        supervisor.alive("same")
    supervisor.alive("other\nREADY=1")
    assert heard(ears) == ["WATCHDOG=1\nSTATUS=same", "WATCHDOG=1\nSTATUS=other READY=1"]


def test_a_sign_of_life_comes_twice_within_the_period(ears: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    supervisor = SystemdSupervisor({"NOTIFY_SOCKET": ears.getsockname(), "WATCHDOG_USEC": "10000000"})
    count = 0
    for step in range(40):
        now = 100.0 + step * 0.5
        supervisor.alive("same")
        count += len(heard(ears))
    assert count == 4


def test_an_abstract_socket_is_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        name = f"lighterman-test-{os.getpid()}"
        listener.bind(f"\0{name}")
        SystemdSupervisor({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert heard(listener) == ["READY=1"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "relative"},
        {"NOTIFY_SOCKET": "/nonexistent/notify"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
    ],
)
def test_without_systemd_nobody_is_told_and_nothing_fails(environment: dict[str, str]) -> None:
    supervisor = SystemdSupervisor(environment)
    supervisor.ready()
    supervisor.alive("x")
    supervisor.stopping()
    assert supervisor.watchdog_ms is None


@pytest.mark.system
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    analyze = require_program("systemd-analyze")
    unit = (UNITS / "lighterman-agent.service").read_text(encoding="utf-8")
    program = re.search(r"^ExecStart=(\S+)", unit, re.MULTILINE)
    assert program is not None
    # The program lies elsewhere on this machine, which is all that may differ.
    mine = tmp_path / "lighterman-agent.service"
    mine.write_text(unit.replace(program[1], sys.executable), encoding="utf-8")
    sockets = tmp_path / "lighterman-digits.socket"
    sockets.write_bytes((UNITS / sockets.name).read_bytes())
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(mine), str(sockets)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if "lighterman" in line]
    assert (done.returncode, complaints) == (0, []), done.stderr


def test_the_unit_says_what_the_agent_counts_on() -> None:
    lines = (UNITS / "lighterman-agent.service").read_text(encoding="utf-8").splitlines()
    for wanted in (
        "Type=notify",
        "Environment=ORT_DISABLE_TELEMETRY=1",
        "Restart=always",
        "NoNewPrivileges=yes",
        "KillMode=process",  # workers outlive the agent
        "RuntimeDirectoryPreserve=restart",  # and are found again
    ):
        assert wanted in lines
    (store,) = [line for line in lines if line.startswith("FileDescriptorStoreMax=")]
    assert int(store.partition("=")[2]) >= 2 * MODULES_MAX
    (watchdog,) = [line for line in lines if line.startswith("WatchdogSec=")]
    assert int(watchdog.partition("=")[2]) > 30, "the loop may take ten seconds, a slow disk some more"


def test_sockets_that_are_meant_for_this_process_are_taken_with_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(os, "set_inheritable", lambda fd, _on: seen.append(fd))
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "3", "LISTEN_FDNAMES": "digits.unix:digits.tcp"}
    assert take_listen_fds(environment) == [("digits.unix", 3), ("digits.tcp", 4), ("unknown", 5)]
    assert seen == [3, 4, 5]
    assert environment == {}, "a child would take them for its own"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_PID": "1", "LISTEN_FDS": "2"},
        {"LISTEN_PID": "me", "LISTEN_FDS": "2"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"},
    ],
)
def test_sockets_of_another_process_are_not_taken(environment: dict[str, str]) -> None:
    assert take_listen_fds(dict(environment)) == []


def test_what_systemd_is_to_keep_goes_along_with_its_name(ears: socket.socket, tmp_path: Path) -> None:
    supervisor = SystemdSupervisor({"NOTIFY_SOCKET": ears.getsockname()})
    with (tmp_path / "kept").open("wb") as kept:
        supervisor.keep("kept/digits/unix", kept.fileno())
        supervisor.keep("no:such:name", kept.fileno())
        data, fds, _flags, _from = socket.recv_fds(ears, 4096, 4)
        assert data == b"FDSTORE=1\nFDNAME=kept/digits/unix"
        assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(kept.fileno()).st_ino]
        os.close(fds[0])
    supervisor.forget("kept/digits/unix")
    supervisor.reloading()
    first, second = heard(ears)
    assert first == "FDSTOREREMOVE=1\nFDNAME=kept/digits/unix"
    assert second.startswith("RELOADING=1\nMONOTONIC_USEC=")
