"""The load generator counts what happened: answers, failures, connections that end, versions that come back."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks._native import Native
from tests.support.require import require_program

OLD, NEW = "a" * 64, "b" * 64
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
_TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Native:
    """The programs, compiled."""
    require_program("cc")
    return Native(tmp_path_factory.mktemp("native"))


def answer(manifest: str, status: str = "200 OK", more: str = "") -> bytes:
    """An HTTP answer with a body of two bytes."""
    return f"HTTP/1.1 {status}\r\nLighterman-Manifest: sha256:{manifest}\r\n{more}Content-Length: 2\r\n\r\nok".encode()


@contextlib.contextmanager
def server(script: Callable[[int], bytes | None]) -> Iterator[str]:
    """Answers the n-th request of a connection with what the script gives; closes it at none."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(_TIMEOUT_S)

    def serve(sock: socket.socket) -> None:
        with sock, contextlib.suppress(ConnectionError):  # the generator leaves in the middle
            sock.settimeout(_TIMEOUT_S)
            number = 0
            while sock.recv(4096):
                reply = script(number)
                if reply is None:
                    return
                sock.sendall(reply)
                number += 1

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"tcp:127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(_TIMEOUT_S)


@pytest.mark.parametrize("connections", [1, 3])
def test_good_answers_are_counted_and_timed(native: Native, connections: int) -> None:
    with server(lambda _: answer(OLD)) as address:
        found = native.load("http", address, REQUEST, connections, 0.2, (OLD, NEW))
    assert found["answers"] > 0
    assert found["max_us"] >= found["p99_us"] >= found["p50_us"] > 0
    assert not any(found[name] for name in ("failed", "closes", "resets", "refused", "backwards", "unknown"))


def test_an_old_answer_after_a_new_one_is_counted(native: Native) -> None:
    with server(lambda number: answer(NEW if number == 3 else OLD)) as address:
        found = native.load("http", address, REQUEST, 1, 0.1, (OLD, NEW))
    assert found["backwards"] == found["answers"] - 4 > 0


def test_an_answer_of_nobody_is_counted(native: Native) -> None:
    with server(lambda _: answer("c" * 64)) as address:
        found = native.load("http", address, REQUEST, 2, 0.1, (OLD, NEW))
    assert found["unknown"] == found["answers"] > 0


def test_failures_are_counted_with_their_status(native: Native) -> None:
    with server(lambda _: answer(OLD, "503 Service Unavailable")) as address:
        found = native.load("http", address, REQUEST, 1, 0.1)
    assert found["answers"] == 0
    assert found["failed"] > 0
    assert found["failure"] == 503


@pytest.mark.parametrize("connections", [1, 2])
def test_a_connection_that_ends_early_is_a_reset_and_one_that_says_so_is_closed(
    native: Native, connections: int
) -> None:
    with server(lambda number: answer(OLD) if number < 2 else None) as address:
        cut = native.load("http", address, REQUEST, connections, 0.1)
    with server(lambda _: answer(OLD, more="Connection: close\r\n")) as address:
        closed = native.load("http", address, REQUEST, connections, 0.1)
    assert cut["resets"] > 0
    assert cut["closes"] == 0
    assert closed["closes"] == closed["answers"] > 0
    assert closed["resets"] == 0


def test_a_pause_between_requests_is_kept(native: Native) -> None:
    with server(lambda _: answer(OLD)) as address:
        process = native.start_load("http", address, REQUEST, 2, 0.5, pause_us=100_000)
        text, _ = process.communicate(timeout=_TIMEOUT_S)
    assert '"failed": 0' in text
    count = int(text.partition('"answers": ')[2].partition(",")[0])
    assert 2 <= count <= 2 * (0.5 / 0.1 + 1)


def test_the_echo_answers_with_as_many_bytes_as_it_was_told(native: Native, tmp_path: Path) -> None:
    with native.echo(f"unix:{tmp_path / 'echo'}", 64, 16):
        found = native.load("raw:16", f"unix:{tmp_path / 'echo'}", b"x" * 64, 1, 0.1)
    assert found["answers"] > 0
    assert found["resets"] == 0


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="needs a C compiler"):
        Native(tmp_path)
