"""The local control socket: one JSON line in, one JSON line out. Reachable by the agent's own user and group."""

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from edge_agent.core import inputs
from edge_agent.shell.clock import SystemClock
from edge_agent.shell.limits import (
    CONTROL_ASKERS_MAX,
    CONTROL_BACKLOG,
    CONTROL_BYTES_MAX,
    CONTROL_MS,
    CONTROL_PAUSE_MS,
)
from edge_agent.shell.runner import Runner
from edge_contract.errors import EdgeError
from edge_contract.jsonio import Fields, JsonObject, parse_object

_MODE = 0o660
_OPERATIONS = ("status", "refresh", "rollback", "hold", "resume", "reload")


class ControlServer:
    """Answers local requests, a few at a time, so that somebody who says nothing keeps nobody waiting."""

    def __init__(
        self,
        path: Path,
        runner: Runner,
        addresses: Callable[[str], JsonObject],
        more: Callable[[], JsonObject] = dict,
    ) -> None:
        """Serve at a path.

        Args:
            path: Of the socket; a stale one is replaced (the data directory's lock proves that nobody else uses it).
            runner: The loop to ask.
            addresses: Where a module answers predictions: `{"unix": path, "tcp": "host:port"}`.
            more: What other parts of the process say in its status, by key; called on askers' threads.

        Raises:
            EdgeError: `config.invalid` when nothing can listen there.
        """
        self._runner = runner
        self._addresses = addresses
        self._more = more
        self._path = path
        self._clock = SystemClock()
        self._places = threading.BoundedSemaphore(CONTROL_ASKERS_MAX)
        self._is_stopping = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)
            self._socket.bind(str(path))
            path.chmod(_MODE)  # before anybody can connect, and without a umask that other threads would share
            self._socket.listen(CONTROL_BACKLOG)
        except OSError as error:
            self._socket.close()
            raise EdgeError(
                "config.invalid",
                f"the agent cannot listen at {path}: {error.strerror or error}",
                "Choose another run directory, with a short path: --run-dir.",
            ) from error
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        self._is_stopping.set()
        self._path.unlink(missing_ok=True)
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self) -> None:
        while not self._is_stopping.is_set():
            self._places.acquire()
            try:
                connection, _ = self._socket.accept()
            except OSError:
                self._places.release()
                self._is_stopping.wait(CONTROL_PAUSE_MS / 1000)
                continue
            threading.Thread(target=self._attend, args=(connection,), name="control-asker", daemon=True).start()

    def _attend(self, connection: socket.socket) -> None:
        try:
            with connection:
                line = self._read_line(connection)
                connection.settimeout(CONTROL_MS / 1000)
                connection.sendall(json.dumps(self._reply(line)).encode() + b"\n")
        except OSError:
            return  # the asker went away, or took too long
        except BaseException as bug:  # noqa: BLE001  # nothing may fail in silence: the loop ends the process with it
            self._runner.fail(bug)
        finally:
            self._places.release()

    def _read_line(self, connection: socket.socket) -> bytes:
        """One line, all of it within `CONTROL_MS`."""
        until = self._clock.monotonic_ms() + CONTROL_MS
        data = bytearray()
        while not data.endswith(b"\n") and len(data) <= CONTROL_BYTES_MAX:
            left = until - self._clock.monotonic_ms()
            if left <= 0:
                raise TimeoutError("no whole line came in time")
            connection.settimeout(left / 1000)
            chunk = connection.recv(4096)
            if not chunk:
                break
            data += chunk
        return bytes(data).rstrip(b"\n")

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
            return {"status": status | self._more()}
        if op == "refresh":
            self._runner.post(inputs.RefreshRequested())
            return {}
        if op == "reload":
            self._runner.reload()
            return {}
        if op == "rollback":
            module = fields.text("module")
            fallback = self._runner.call(lambda: self._runner.ask_rollback(module), CONTROL_MS / 1000)
            return {"fallback": str(fallback)}
        if op in ("hold", "resume"):
            module = fields.text("module", "")
            ask = self._runner.ask_hold if op == "hold" else self._runner.ask_resume
            self._runner.call(lambda: ask(module), CONTROL_MS / 1000)
            return {}
        raise EdgeError("config.invalid", f"unknown operation {op!r}", f"Known: {', '.join(_OPERATIONS)}.")
