"""The local control socket: for the agent's own user and group, in bounded time, whatever an asker does."""

import json
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.shell import control
from edge_agent.shell.control import ControlServer
from edge_agent.shell.limits import CONTROL_ASKERS_MAX, CONTROL_BYTES_MAX, CONTROL_MS
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.phases import Phase
from tests.unit.shell.device import Device

WAIT_S = 20


def _addresses(module: str) -> JsonObject:
    return {"unix": f"/run/{module}.sock", "tcp": "127.0.0.1:1"}


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device()
    device.thread.start()
    device.link.wait_for(lambda: device.link.reports)
    yield device
    device.end()


@pytest.fixture
def path(device: Device, tmp_path: Path) -> Iterator[Path]:
    server = ControlServer(tmp_path / "agent.sock", device.runner, _addresses)
    server.start()
    yield tmp_path / "agent.sock"
    server.stop()
    assert not (tmp_path / "agent.sock").exists()


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(WAIT_S)
    connection.connect(str(path))
    return connection


def ask(path: Path, line: bytes) -> Any:
    with connect(path) as connection:
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        reply = b""
        while chunk := connection.recv(65536):
            reply += chunk
    assert reply.endswith(b"\n")
    return json.loads(reply)


def test_status_says_what_is_live_and_where_it_answers(device: Device, path: Path) -> None:
    device.confirm(1)
    reply = ask(path, b'{"op":"status"}\n')
    assert reply["ok"] is True
    module = reply["status"]["modules"]["digits"]
    assert (module["version"], module["serving"], module["tcp"]) == (1, True, "127.0.0.1:1")


def test_nobody_else_may_ask(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_an_asker_who_says_nothing_keeps_nobody_waiting(path: Path) -> None:
    silent = [connect(path) for _ in range(CONTROL_ASKERS_MAX - 1)]
    begin = time.monotonic()
    assert ask(path, b'{"op":"status"}\n')["ok"] is True
    assert time.monotonic() - begin < CONTROL_MS / 1000
    for connection in silent:
        connection.close()


def test_askers_who_dawdle_are_ended_as_a_whole_and_not_by_the_byte(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CONTROL_MS", 400)
    slow = [connect(path) for _ in range(CONTROL_ASKERS_MAX)]
    end = time.monotonic() + WAIT_S
    while slow and time.monotonic() < end:
        time.sleep(0.05)  # as slow as an asker can be while something always comes
        for connection in list(slow):
            try:
                connection.sendall(b" ")
            except OSError:
                connection.close()
                slow.remove(connection)
    assert not slow
    assert ask(path, b'{"op":"status"}\n')["ok"] is True


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"\n", "artifact.document-invalid"),
        (b"hello\n", "artifact.document-invalid"),
        (b"[]\n", "artifact.document-invalid"),
        (b"{}\n", "config.invalid"),
        (b'{"op":7}\n', "config.invalid"),
        (b'{"op":"reboot"}\n', "config.invalid"),
        (b'{"op":"rollback"}\n', "config.invalid"),
        (b'{"op":"rollback","module":"nobody"}\n', "config.invalid"),
        (b'{"op":"' + b"x" * CONTROL_BYTES_MAX + b'"}\n', "artifact.document-too-large"),
        (b"\xff\xfe\n", "artifact.document-invalid"),
    ],
)
def test_what_is_no_request_is_answered_with_the_reason(path: Path, line: bytes, code: str) -> None:
    reply = ask(path, line)
    assert (reply["ok"], reply["error"]["code"]) == (False, code)


def test_a_rollback_brings_the_fallback_back(device: Device, path: Path) -> None:
    device.confirm(1)
    assert ask(path, b'{"op":"rollback","module":"digits"}\n')["error"]["code"] == "device.no-fallback"
    first = device.server.live["digits"]
    device.confirm(2)
    assert ask(path, b'{"op":"rollback","module":"digits"}\n') == {"ok": True, "fallback": str(first)}
    device.link.wait_for(lambda: device.ended == ("rolled_back", None))
    assert device.server.live["digits"] == first


def test_a_rollback_between_two_bundles_is_not_swallowed(device: Device, path: Path) -> None:
    device.confirm(1)
    device.confirm(2)
    machine = device.runner._core._modules["digits"]

    def between() -> None:
        machine.record.phase = Phase.ACTIVATING

    def after() -> None:
        machine.record.phase = Phase.IDLE

    device.runner.call(between, WAIT_S)
    assert ask(path, b'{"op":"rollback","module":"digits"}\n')["error"]["code"] == "device.between-bundles"
    device.runner.call(after, WAIT_S)


def test_refresh_asks_the_cloud(device: Device, path: Path) -> None:
    device.cloud.assign(device.cloud.publish(1))
    assert ask(path, b'{"op":"refresh"}\n') == {"ok": True}
    device.link.wait_for(lambda: device.ended == ("confirmed", None))


def test_a_bug_in_an_answer_ends_the_process_instead_of_hiding(tmp_path: Path) -> None:
    device = Device()

    def broken(module: str) -> JsonObject:
        raise ZeroDivisionError

    device.thread.start()
    device.confirm(1)
    server = ControlServer(tmp_path / "agent.sock", device.runner, broken)
    server.start()
    with connect(tmp_path / "agent.sock") as connection:
        connection.sendall(b'{"op":"status"}\n')
        assert connection.recv(10) == b""
    device.thread.join(WAIT_S)
    assert isinstance(device.raised, ZeroDivisionError)
    server.stop()


def test_a_path_that_cannot_be_listened_at_is_a_matter_of_configuration(tmp_path: Path) -> None:
    for path in (tmp_path / ("x" * 200), tmp_path / "missing" / "agent.sock"):
        with pytest.raises(EdgeError) as caught:
            ControlServer(path, Device().runner, _addresses)
        assert caught.value.code == "config.invalid"


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    for _ in range(2):
        stale = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server = ControlServer(tmp_path / "agent.sock", Device().runner, _addresses)
        server._socket.close()
        stale.close()
    assert (tmp_path / "agent.sock").exists()
