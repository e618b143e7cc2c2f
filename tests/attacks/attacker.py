"""Somebody between a device and the registry: reads all, and changes, forges, repeats or withholds what he likes."""

from __future__ import annotations

import http.client
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.net import LOOPBACK

_TIMEOUT_S = 30.0
_PASSED_ON = ("Authorization", "Content-Type", "Accept", "Range")
_PASSED_BACK = ("Content-Type", "Content-Range", "Docker-Content-Digest", "WWW-Authenticate")

Change = Callable[[str, bytes], bytes]
Pour = Callable[[str, bytes], Iterable[bytes] | None]


class Attacker:
    """A web server in the registry's place. Its attributes may be changed while it runs.

    Attributes:
        port: Where it listens on 127.0.0.1.
        files: Told instead of what the registry has, by path; none says that there is no such file.
        change: Gives other bytes for what came from a path.
        pour: Gives pieces that are sent instead of what came from a path, without saying how many; none leaves it.
        reroute: Gives another path for a path.
        token: Replaces the device's own token, when not empty.
        is_shut: Whether everybody is turned away.
        poured: Bytes that were sent by `pour`.
        heard: Every answer of the registry by path, the oldest first, each once.
        asked: Method, path and token of every request.
    """

    def __init__(self, target_port: int) -> None:
        """Listen on a port of its own for the registry's on 127.0.0.1."""
        self._target_port = target_port
        self.heard: dict[str, list[bytes]] = defaultdict(list)
        self.asked: list[tuple[str, str, str]] = []
        self.poured = 0
        self.tell_the_truth()
        attacker = self
        self.ended = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                attacker.serve(self)

            def do_HEAD(self) -> None:
                attacker.serve(self)

            def do_POST(self) -> None:
                attacker.serve(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # the agent hung up on us, which is what it should do

        self._server = Server((LOOPBACK, 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="attacker", daemon=True)

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://{LOOPBACK}:{self.port}"

    def tell_the_truth(self) -> None:
        """Stop lying."""
        self.files: Mapping[str, bytes | None] = {}
        self.change: Change | None = None
        self.pour: Pour | None = None
        self.reroute: Callable[[str], str] | None = None
        self.token = ""
        self.is_shut = False

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_TIMEOUT_S)

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        """Serve one request, on the thread of its connection."""
        sent = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        authorization = request.headers.get("Authorization", "")
        self.asked.append((request.command, request.path, authorization.removeprefix("Bearer ")))
        status, headers, body = self._answer(request, sent)
        pieces = self.pour(request.path, body) if self.pour is not None and status == http.client.OK else None
        with suppress(OSError):  # the agent may have gone away
            request.send_response(status)
            for name, value in headers.items():
                request.send_header(name, value)
            if pieces is None:
                request.send_header("Content-Length", str(len(body)))
            else:
                request.send_header("Transfer-Encoding", "chunked")
            request.end_headers()
            if request.command != "HEAD":
                self._send(request, body, pieces)

    def _send(self, request: BaseHTTPRequestHandler, body: bytes, pieces: Iterable[bytes] | None) -> None:
        if pieces is None:
            request.wfile.write(body)
            return
        for piece in pieces:
            if self.ended.is_set():
                return
            request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            request.wfile.flush()
            self.poured += len(piece)
        request.wfile.write(b"0\r\n\r\n")

    def _answer(self, request: BaseHTTPRequestHandler, sent: bytes) -> tuple[int, dict[str, str], bytes]:
        if self.is_shut:
            return http.client.SERVICE_UNAVAILABLE, {}, b""
        if request.path in self.files:
            forged = self.files[request.path]
            if forged is None:
                return http.client.NOT_FOUND, {}, b""
            return http.client.OK, {"Content-Type": "application/octet-stream"}, forged
        status, headers, body = self._ask(request, sent)
        if status == http.client.OK:
            if self.heard[request.path][-1:] != [body]:
                self.heard[request.path].append(body)
            if self.change is not None:
                body = self.change(request.path, body)
        return status, headers, body

    def _ask(self, request: BaseHTTPRequestHandler, sent: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        path = request.path if self.reroute is None else self.reroute(request.path)
        connection = http.client.HTTPConnection(LOOPBACK, self._target_port, timeout=_TIMEOUT_S)
        try:
            connection.request(request.command, path, sent, headers)
            answer = connection.getresponse()
            body = answer.read()
            return answer.status, {name: answer.headers[name] for name in _PASSED_BACK if name in answer.headers}, body
        except OSError:
            return http.client.BAD_GATEWAY, {}, b""
        finally:
            connection.close()


@contextmanager
def attacker_before(target_port: int) -> Iterator[Attacker]:
    """An attacker for the length of a block, honest at first."""
    attacker = Attacker(target_port)
    attacker.start()
    try:
        yield attacker
    finally:
        attacker.close()
