"""The control channel: messages in any pieces, descriptors with the right one, and nonsense refused."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from edge_agent.serving.channel import MessageReader, close_fds, encode_message, receive, send_message
from edge_agent.serving.environment import worker_environment
from edge_agent.serving.limits import CONTROL_FDS_MAX, CONTROL_LINE_BYTES_MAX, UNIX_PATH_BYTES_MAX
from edge_agent.serving.logfile import BoundedLog
from edge_agent.serving.sockets import Listeners
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject


def test_messages_come_whole_whatever_the_pieces() -> None:
    messages: list[JsonObject] = [{"op": "prove"}, {"op": "sampling", "ratio": 0.5}, {"op": "stats", "id": 1}]
    stream = b"".join(encode_message(message) for message in messages)
    for step in (1, 2, 5, len(stream)):
        reader = MessageReader()
        got = [
            message
            for place in range(0, len(stream), step)
            for message, _fds in reader.feed(stream[place : place + step], [])
        ]
        assert got == messages


def test_each_message_gets_its_own_descriptors(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for number in range(6):
            names = [tmp_path / f"{number}-{index}" for index in range(number % 3)]
            fds = [os.open(name, os.O_CREAT | os.O_RDWR) for name in names]
            for name, fd in zip(names, fds, strict=True):
                os.write(fd, name.name.encode())
            send_message(ours, encode_message({"event": "connection", "number": number}, len(fds)), fds)
            close_fds(fds)
        ours.shutdown(socket.SHUT_WR)
        reader, seen = MessageReader(), []
        while True:
            data, received = receive(theirs)
            if not data:
                break
            for message, fds in reader.feed(data, received):
                contents = [os.pread(fd, 100, 0).decode() for fd in fds]
                close_fds(fds)
                seen.append((message["number"], contents))
        assert seen == [(number, [f"{number}-{index}" for index in range(number % 3)]) for number in range(6)]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"nonsense\n", id="no JSON"),
        pytest.param(b"[]\n", id="no object"),
        pytest.param(b'{"event":"connection","fds":1}\n', id="descriptors that did not come"),
        pytest.param(b'{"event":"connection","fds":-1}\n', id="negative count"),
        pytest.param(b'{"event":"connection","fds":true}\n', id="count that is a flag"),
        pytest.param(b"x" * (CONTROL_LINE_BYTES_MAX + 1), id="endless line"),
    ],
)
def test_nonsense_on_the_channel_is_refused(line: bytes) -> None:
    with pytest.raises(EdgeError):
        list(MessageReader().feed(line, []))


def test_descriptors_that_nobody_announces_do_not_pile_up() -> None:
    reader = MessageReader()
    fds = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(CONTROL_FDS_MAX + 1)]
    for fd in fds[1:]:
        assert list(reader.feed(b" ", [fd])) == []
    with pytest.raises(EdgeError, match="announces"):
        list(reader.feed(b" ", fds[:1]))
    reader.close()


def test_a_message_too_long_for_the_receiver_is_not_sent() -> None:
    with pytest.raises(EdgeError):
        encode_message({"event": "sample", "record": "x" * CONTROL_LINE_BYTES_MAX})


def test_a_workers_log_stays_within_its_bound(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "m.log", bytes_max=100)
    for number in range(50):
        log.write(b"line %03d\n" % number)
    log.write(b"x" * 1000)
    files = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(files) == {"m.log", "m.log.1"}
    assert all(size <= 100 for size in files.values())
    assert (tmp_path / "m.log.1").read_bytes().endswith(b"line 049\n")


def test_a_worker_sees_no_secrets_of_the_agent() -> None:
    environment = worker_environment(
        {"PATH": "/bin", "LIGHTERMAN_TOKEN": "t", "AZURE_KEY": "k", "CI": "true", "OPENBLAS_NUM_THREADS": "2"}
    )
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert environment["OPENBLAS_NUM_THREADS"] == "2"
    assert not {"LIGHTERMAN_TOKEN", "AZURE_KEY", "CI"} & set(environment)


def test_sockets_are_for_the_group_and_replace_what_a_crash_left(tmp_path: Path) -> None:
    first = Listeners.open("line", tmp_path, "127.0.0.1", 0)
    first.unix.close()
    first.tcp.close()
    second = Listeners.open("line", tmp_path, "127.0.0.1", first.port)
    try:
        assert second.unix_path.stat().st_mode & 0o777 == 0o660
        assert second.port == first.port
    finally:
        second.close()
    assert not second.unix_path.exists()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(EdgeError) as caught:
            Listeners.open("line", tmp_path, "127.0.0.1", port)
    assert caught.value.code == "config.invalid"
    assert str(port) in caught.value.detail
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", ["long", "missing", "file"])
def test_a_run_directory_that_will_not_do_is_named(tmp_path: Path, case: str) -> None:
    folder = tmp_path
    if case == "long":
        folder = tmp_path / ("x" * UNIX_PATH_BYTES_MAX)
        folder.mkdir()
    elif case == "missing":
        folder = tmp_path / "none"
    else:
        (tmp_path / "line.sock").write_text("mine")
    with pytest.raises(EdgeError) as caught:
        Listeners.open("line", folder, "127.0.0.1", 0)
    assert caught.value.code == "config.invalid"
    if case == "file":
        assert (tmp_path / "line.sock").read_text() == "mine"
