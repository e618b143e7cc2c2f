"""An HTTP server on 127.0.0.1 that sends exactly what a test wants: wrong, too much, too little, too slowly."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from edge_contract.digest import Digest

_HEAD_BYTES_MAX = 64 * 1024
_RANGE = re.compile(r"bytes=(\d+)-")


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


Script = Callable[[Asked], Iterable[bytes]]
"""Gives the raw bytes of an answer, piece by piece; the connection is closed behind the last one."""


@dataclass
class RawServer:
    """Answers one connection after the other, each on a thread of its own.

    Attributes:
        script: Makes the answers; may be replaced between requests.
        asked: Requests so far.
        connections: Connections so far.
        keep_alive: Wait for further requests on a connection instead of closing it.
        unix: Listen on a unix socket at this path instead.
    """

    script: Script
    tls: ssl.SSLContext | None = None
    keep_alive: bool = False
    unix: Path | None = None
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        if self.unix is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.port: int = self._listener.getsockname()[1]
        else:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(str(self.unix))
            self._listener.listen()
        self.ended = threading.Event()
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, name="rawhttp", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Base URL."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def pause(self, seconds: float) -> None:
        """For scripts: wait, or until the server ends."""
        self.ended.wait(seconds)

    def close(self) -> None:
        """End it and every connection."""
        self.ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)

    def _accept(self) -> None:
        while not self.ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
            self._open.add(connection)
            while (asked := _read(connection)) is not None:
                self.asked.append(asked)
                for piece in self.script(asked):
                    connection.sendall(piece)
                if not self.keep_alive:
                    break
        self._open.discard(connection)
        connection.close()


def _read(connection: socket.socket) -> Asked | None:
    data = b""
    while b"\r\n\r\n" not in data and len(data) < _HEAD_BYTES_MAX:
        chunk = connection.recv(4096)
        if not chunk:
            return None
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += connection.recv(65_536)
    return Asked(method, path, headers, body)


@contextmanager
def raw_server(
    script: Script, tls: ssl.SSLContext | None = None, keep_alive: bool = False, unix: Path | None = None
) -> Iterator[RawServer]:
    """A server for the length of a `with` block."""
    server = RawServer(script, tls, keep_alive, unix)
    try:
        yield server
    finally:
        server.close()


def answer(status: int, body: bytes = b"", length: int | None = None, **headers: str) -> bytes:
    """A whole answer; `length` lies about the body's length, underscores in header names stand for dashes."""
    fields = {"Content-Length": str(len(body) if length is None else length)}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Any\r\n{lines}\r\n".encode() + body


def blobs(*contents: bytes, ranges: bool = True) -> Script:
    """An honest registry of these blobs and manifests."""
    known = {str(Digest.of(data)): data for data in contents}

    def script(asked: Asked) -> Iterable[bytes]:
        data = known.get(asked.path.rpartition("/")[2])
        if data is None:
            return [answer(404, b"{}")]
        place = _RANGE.fullmatch(asked.headers.get("range", ""))
        if place is None or not ranges:
            return [answer(200, data)]
        start = int(place[1])
        if start >= len(data):
            return [answer(416)]
        spread = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return [answer(206, data[start:], Content_Range=spread)]

    return script
