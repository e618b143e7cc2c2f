"""The local control socket: one JSON line in, one JSON line out. Reachable by the agent's own user and group."""

import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from edge_agent.core import inputs
from edge_agent.shell.limits import CONTROL_BACKLOG, CONTROL_BYTES_MAX, CONTROL_MS
from edge_agent.shell.runner import Runner
from edge_contract.errors import EdgeError
from edge_contract.jsonio import Fields, JsonObject, parse_object


class ControlServer:
    """Answers local requests one after the other on a thread of its own."""

    def __init__(self, path: Path, runner: Runner, addresses: Callable[[str], JsonObject]) -> None:
        """Serve at a path.

        Args:
            path: Of the socket; a stale one is replaced (the data directory's lock proves that nobody else uses it).
            runner: The loop to ask.
            addresses: Where a module answers predictions: `{"unix": path, "tcp": "host:port"}`.
        """
        self._runner = runner
        self._addresses = addresses
        self._path = path
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o117)
        try:
            self._socket.bind(str(path))
        except OSError as error:
            self._socket.close()
            raise EdgeError(
                "config.invalid",
                f"the agent cannot listen at {path}: {error.strerror or error}",
                "Choose another run directory, with a short path: --run-dir.",
            ) from error
        finally:
            os.umask(before)
        self._socket.listen(CONTROL_BACKLOG)
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        self._path.unlink(missing_ok=True)
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(CONTROL_MS / 1000)
                try:
                    line = _read_line(connection)
                    connection.sendall(json.dumps(self._reply(line)).encode() + b"\n")
                except OSError:
                    continue  # the asker went away

    def _reply(self, line: bytes) -> JsonObject:
        try:
            fields = Fields(parse_object(line, "request", CONTROL_BYTES_MAX), "request", "config.invalid")
            return {"ok": True, **self._perform(fields.text("op"), fields)}
        except EdgeError as error:
            return {"ok": False, "error": error.to_json()}
        except TimeoutError:
            late = EdgeError("internal.bug", f"the agent's loop did not answer within {CONTROL_MS} ms")
            return {"ok": False, "error": late.to_json()}

    def _perform(self, op: str, fields: Fields) -> JsonObject:
        if op == "status":
            status = self._runner.call(self._runner.status, CONTROL_MS / 1000)
            for name, module in status["modules"].items():
                module.update(self._addresses(name))
            return {"status": status}
        if op == "refresh":
            self._runner.post(inputs.RefreshRequested())
            return {}
        if op == "rollback":
            module = fields.text("module")
            modules = self._runner.call(self._runner.status, CONTROL_MS / 1000)["modules"]
            if module not in modules:
                known = ", ".join(sorted(modules)) or "none"
                raise EdgeError("config.invalid", f"there is no module {module!r} on this device", f"Modules: {known}.")
            if modules[module]["fallback"] is None:
                raise EdgeError("device.no-fallback", f"module {module!r} has nothing to roll back to")
            self._runner.post(inputs.RollbackRequested(module))
            return {"fallback": modules[module]["fallback"]}
        raise EdgeError("config.invalid", f"unknown operation {op!r}", "Known: status, refresh, rollback.")


def _read_line(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) <= CONTROL_BYTES_MAX:
        chunk = connection.recv(4096)
        if not chunk:
            break
        data += chunk
    return data.rstrip(b"\n")
