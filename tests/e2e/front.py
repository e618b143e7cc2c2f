"""A web server between a device and the registry that lies: it changes, swaps or repeats what it passes on."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.net import LOOPBACK

_TIMEOUT_S = 30.0
_PASSED_ON = ("Authorization", "Content-Type", "Accept", "Range")
_PASSED_BACK = ("Content-Type", "Content-Range", "Docker-Content-Digest")


class Front:
    """What the server does; its attributes may be changed while it runs.

    Attributes:
        port: Where it listens on 127.0.0.1.
        reroute: Gives another path for a path.
        token: Replaces the client's own token, when not empty.
        change: Gives other bytes for what came from a path.
        is_recording: Whether answers are kept in `records`.
        is_replaying: Whether answers come from `records` where there is one.
        records: Bodies by path; the newest answer to each.
    """

    def __init__(self, target_port: int) -> None:
        self.reroute: Callable[[str], str] | None = None
        self.token = ""
        self.change: Callable[[str, bytes], bytes] | None = None
        self.is_recording = self.is_replaying = False
        self.records: dict[str, bytes] = {}
        self._target_port = target_port
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                front.pass_on(self)

            def do_HEAD(self) -> None:
                front.pass_on(self)

            def do_POST(self) -> None:
                front.pass_on(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="front", daemon=True)

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://{LOOPBACK}:{self.port}"

    def honest(self) -> None:
        """Stop lying."""
        self.reroute = self.change = None
        self.token = ""
        self.is_recording = self.is_replaying = False

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_TIMEOUT_S)

    def pass_on(self, request: BaseHTTPRequestHandler) -> None:
        """Serve one request, on the thread of its connection."""
        sent = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = request.path if self.reroute is None else self.reroute(request.path)
        if self.is_replaying and request.path in self.records:
            status, headers, body = http.client.OK, {"Content-Type": "application/json"}, self.records[request.path]
        else:
            status, headers, body = self._ask(request, path, sent)
        if status == http.client.OK:
            if self.is_recording:
                self.records[request.path] = body
            if self.change is not None:
                body = self.change(request.path, body)
        with suppress(OSError):  # the agent may have gone away
            request.send_response(status)
            for name, value in headers.items():
                request.send_header(name, value)
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(body)

    def _ask(self, request: BaseHTTPRequestHandler, path: str, sent: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
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
def lying_front(target_port: int) -> Iterator[Front]:
    """A front for the length of a block, honest at first."""
    front = Front(target_port)
    front.start()
    try:
        yield front
    finally:
        front.close()
