"""Asks a module's own unix socket which bundle answers there, over HTTP like any client, within a bound of time."""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.serving.limits import ASK_ANSWER_BYTES_MAX
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError

_REQUEST: Final = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_HEADER: Final = b"lighterman-manifest"
_POLL_S: Final = 0.05
_CREDENTIALS: Final = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Answer:
    """Who answered.

    Attributes:
        manifest: The bundle it says it is.
        is_ours: Whether the socket that was reached is one on which this very process listens. The kernel says so
            (SO_PEERCRED, unix(7)), so nobody who took the path over can claim it.
    """

    manifest: Digest
    is_ours: bool


def ask_who_answers(path: Path, timeout_ms: int, is_over: Callable[[], bool]) -> Answer:
    """Ask for the server's metadata.

    Args:
        path: The unix socket.
        timeout_ms: For everything together.
        is_over: Asked while waiting; when true nobody will answer any more.

    Raises:
        EdgeError: `model.not-serving` when nobody listens or what answers is no worker, `model.worker-crashed` when it
            is over, `model.timeout`.
    """
    deadline = time.monotonic() + timeout_ms / 1000
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(_POLL_S)

        def patiently(call: Callable[[], bytes | None]) -> bytes | None:
            """Wait until a call need not wait any more."""
            while True:
                if is_over():
                    raise EdgeError("model.worker-crashed", f"the worker behind {path} ended before it answered")
                if time.monotonic() > deadline:
                    raise EdgeError("model.timeout", f"nothing answered at {path} within {timeout_ms} ms")
                with contextlib.suppress(TimeoutError, BlockingIOError, InterruptedError):
                    return call()

        try:
            patiently(lambda: _connect(sock, path))
            peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            sock.sendall(_REQUEST)  # fits in the empty buffer of a new connection: it never waits
            head = b""
            while b"\r\n\r\n" not in head:
                data = patiently(lambda: sock.recv(ASK_ANSWER_BYTES_MAX))
                head += data or b""
                if not data or len(head) > ASK_ANSWER_BYTES_MAX:
                    raise EdgeError("model.not-serving", f"what answers at {path} is no worker")
        except OSError as error:
            raise EdgeError("model.not-serving", f"nobody answers at {path}: {error.strerror or error}") from error
    return Answer(_manifest(head.partition(b"\r\n\r\n")[0], path), _CREDENTIALS.unpack(peer)[0] == os.getpid())


def _connect(sock: socket.socket, path: Path) -> None:
    try:
        sock.connect(os.fspath(path))
    except BlockingIOError:
        # The queue of a unix socket is full: it does not wait, unlike TCP.
        time.sleep(_POLL_S)
        raise


def _manifest(head: bytes, path: Path) -> Digest:
    status, *lines = head.split(b"\r\n")
    pairs = [line.partition(b":") for line in lines]
    values = [value.strip() for name, _, value in pairs if name.strip().lower() == _HEADER]
    if status.split(b" ")[:2] != [b"HTTP/1.1", b"200"] or len(values) != 1:
        raise EdgeError("model.not-serving", f"what answers at {path} does not say which bundle it is")
    try:
        return Digest(values[0].decode("ascii"))
    except (EdgeError, ValueError) as error:
        raise EdgeError("model.not-serving", f"what answers at {path} does not say which bundle it is") from error
