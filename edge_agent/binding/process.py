"""The process: hears from the agent which modules have bindings, keeps them bound to what is live, tells its counters.

Standard input carries one JSON object a line: first what to be (see `Work`), then which bundle each module serves. Its
end is the order to end. Which bundle's bindings count is asked at the module's own socket, because only what answers
there is live.
"""

import contextlib
import logging
import os
import queue
import socket
import socketserver
import threading
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, Final

from edge_agent.binding.asking import live_manifest
from edge_agent.binding.carrier import Carrier, Listener, is_relayed
from edge_agent.binding.counters import prometheus_text
from edge_agent.binding.descriptor import read_bindings
from edge_agent.binding.limits import ASKERS_MAX, COMMAND_BYTES_MAX, REPORT_MS
from edge_agent.binding.loops import admit
from edge_agent.binding.module import Module
from edge_agent.binding.relayed import Relay
from edge_agent.binding.work import SOCKET, Work, read_modules
from edge_contract.bindings import Binding
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject, dump

_LOG = logging.getLogger(__name__)
_HEAD_BYTES_MAX: Final = 4096
_NO_BROKER: Final = "it is for MQTT, and this device has no [binding]; inside IoT Edge bind inputs/NAME to outputs/NAME"


class BindingProcess:
    """The modules of one device and their bindings. `run` owns everything; `report` may be called by any thread."""

    def __init__(self, work: Work) -> None:
        """Be ready to work."""
        self._work = work
        self._relay: Relay | None = None
        self._events: queue.Queue[dict[str, Digest] | str | None] = queue.Queue()
        self._told: dict[str, Digest] = {}
        self._bound: dict[str, tuple[Digest, tuple[Binding, ...]]] = {}
        self._modules: dict[str, Module] = {}
        self._refused: dict[tuple[str, str], str] = {}
        self._errors: dict[str, str] = {}

    def run(self, commands: IO[bytes]) -> None:
        """Work until the commands end.

        Raises:
            EdgeError: For a command that cannot be read.
        """
        if self._work.relay_fd >= 0:
            self._relay = Relay(socket.socket(fileno=self._work.relay_fd), lambda: self._events.put(None))
        counters = _Counters(self._work.run / SOCKET, self)
        counters.start()
        threading.Thread(target=self._listen, args=(commands,), name="commands", daemon=True).start()
        try:
            while (event := self._events.get()) is not None:
                if isinstance(event, dict):
                    self._told = event
                self._look()
        finally:
            leaving = [threading.Thread(target=module.stop, args=(False,)) for module in self._modules.values()]
            for thread in leaving:
                thread.start()
            for thread in leaving:
                thread.join()
            counters.stop()

    def report(self) -> JsonObject:
        """How everything stands."""
        modules = {name: module.report() for name, module in sorted(self._modules.copy().items())}
        refused = [
            {"module": module, "binding": name, "why": why} for (module, name), why in sorted(self._refused.items())
        ]
        address = self._work.address
        return {
            "broker": "" if address is None else f"{address.host}:{address.port}",
            "edge": self._relay is not None,
            "modules": modules,
            "refused": refused,
            "errors": self._errors.copy(),
        }

    def _listen(self, commands: IO[bytes]) -> None:
        """The commands' own thread."""
        while line := commands.readline(COMMAND_BYTES_MAX + 1):
            try:
                self._events.put(read_modules(line))
            except EdgeError as error:
                _LOG.error("a command cannot be read: %s", error)
                break
        self._events.put(None)

    def _seen(self, module: str, manifest: Digest) -> None:
        """A lane met a bundle; any thread."""
        bound = self._bound.get(module)
        if bound is None or bound[0] != manifest:
            self._events.put(module)

    def _look(self) -> None:
        """Read the bindings of what is live, and let those run that may."""
        errors: dict[str, str] = {}
        for name, told in self._told.items():
            manifest = self._live(name, told)
            bound = self._bound.get(name)
            if bound is not None and bound[0] == manifest:
                continue
            try:
                bindings = read_bindings(self._work.slots, manifest, name, self._relay is not None)
            except EdgeError as error:
                _LOG.error("module %s: %s", name, error)
                errors[name] = str(error)
                continue
            self._bound[name] = (manifest, tuple(item.expand(self._work.device, name) for item in bindings))
        for name in set(self._bound) - set(self._told):
            del self._bound[name]
        self._errors = errors
        carried, strangers = self._carried()
        admitted, refused = admit(carried)
        self._refused = refused | strangers
        for (module, name), why in self._refused.items():
            _LOG.error("module %s: the binding %s does not run: %s", module, name, why)
        self._apply(admitted)

    def _carried(self) -> tuple[dict[str, tuple[Binding, ...]], dict[tuple[str, str], str]]:
        """Bindings for which there is a carrier, by module; and why the others do not run."""
        if self._work.address is not None:
            return {name: bindings for name, (_, bindings) in self._bound.items()}, {}
        carried = {name: tuple(filter(is_relayed, bindings)) for name, (_, bindings) in self._bound.items()}
        return carried, {
            (name, binding.name): _NO_BROKER
            for name, (_, bindings) in self._bound.items()
            for binding in bindings
            if binding not in carried[name]
        }

    def _connect(self, is_edge: bool, name: str, listener: Listener, receive_max: int) -> Carrier:
        if is_edge and self._relay is not None:
            return self._relay.carrier(name, listener, receive_max)
        from edge_agent.binding.broker import Broker  # paho, which no module of IoT Edge needs

        assert self._work.address is not None, "bindings without a carrier are refused before"
        return Broker(self._work.address, f"lighterman-{self._work.device}-{name}", listener, receive_max)

    def _apply(self, admitted: dict[str, tuple[Binding, ...]]) -> None:
        for name in [name for name in self._modules if not admitted.get(name)]:
            self._modules.pop(name).stop(is_forgetting=True)
        for name, bindings in admitted.items():
            if not bindings:
                continue
            if name not in self._modules:
                path = self._work.run / f"{name}.sock"
                self._modules[name] = Module(name, path, self._connect, self._relay is not None, self._seen)
            self._modules[name].bind(bindings, self._bound[name][0])

    def _live(self, module: str, told: Digest) -> Digest:
        """Which bundle answers the module's socket; what the agent told while nobody answers."""
        try:
            return live_manifest(self._work.run / f"{module}.sock")
        except EdgeError:
            return told


class _Counters:
    """Answers who asks for counters, on a unix socket of the agent's user and group."""

    def __init__(self, path: Path, process: BindingProcess) -> None:
        path.unlink(missing_ok=True)
        self._path = path
        self._server = _Server(path, process)
        os.chmod(path, 0o660)
        self._identity = path.stat().st_ino
        self._thread = threading.Thread(target=self._server.serve_forever, name="counters", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._identity:  # and not that of a process that follows this one
                self._path.unlink()
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: Path, process: BindingProcess) -> None:
        self.process = process
        self._places = threading.BoundedSemaphore(ASKERS_MAX)
        super().__init__(os.fspath(path), _Asked)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._places.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()


class _Asked(socketserver.BaseRequestHandler):
    """One question, one answer, and the end of the connection."""

    request: socket.socket
    server: _Server

    def handle(self) -> None:
        self.request.settimeout(REPORT_MS / 1000)
        try:
            head = b""
            while b"\r\n\r\n" not in head and len(head) <= _HEAD_BYTES_MAX and (part := self.request.recv(1024)):
                head += part
            self.request.sendall(_response(head.split(b" ", 2)[1:2], self.server.process.report))
        except OSError:
            return  # the asker went away


def _response(path: list[bytes], report: Any) -> bytes:
    if path == [b"/metrics"]:
        status, kind, body = HTTPStatus.OK, "text/plain; version=0.0.4; charset=utf-8", b""
        body = prometheus_text(report()["modules"])
    elif path == [b"/report"]:
        status, kind, body = HTTPStatus.OK, "application/json", dump(report())
    else:
        status, kind, body = HTTPStatus.NOT_FOUND, "application/json", b'{"error":"there are /metrics and /report"}'
    head = f"HTTP/1.1 {status} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body
