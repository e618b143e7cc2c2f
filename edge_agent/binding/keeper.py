"""The agent's side of the MQTT binding: starts the process when a live bundle has bindings, restarts it, ends it."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from edge_agent.binding.descriptor import read_bindings
from edge_agent.binding.limits import (
    BUNDLES_KNOWN_MAX,
    EXIT_MS,
    REPORT_BYTES_MAX,
    REPORT_MS,
    RESTART_MS_FIRST,
    RESTART_MS_MAX,
    STEADY_MS,
    WATCH_MS,
)
from edge_agent.binding.relay import InputRelay
from edge_agent.binding.work import SOCKET, BrokerAddress, Work, modules_line
from edge_agent.config import BindingConfig
from edge_agent.serving.environment import worker_environment
from edge_agent.serving.logfile import BoundedLog
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject, dump, parse_object

_LOG: Final = logging.getLogger(__name__)
_COMMAND: Final = (sys.executable, "-P", "-m", "edge_agent.binding")
_OFF: Final = "the bundle has MQTT bindings, and this device has no [binding] in its configuration"


class BindingKeeper:
    """Keeps the binding process in step with what is live. Imports no MQTT library; a thread of its own does the work.

    `report` may be called by any thread.
    """

    def __init__(
        self,
        config: BindingConfig | None,
        device: str,
        run: Path,
        slots: Path,
        live: Callable[[], Mapping[str, Digest | None]],
        command: tuple[str, ...] = _COMMAND,
        relay: InputRelay | None = None,
    ) -> None:
        """Describe the work; `start` begins it.

        Args:
            config: Which broker; none where the device's owner wants no binding.
            device: Name of the device.
            run: Run directory, which holds the modules' sockets.
            slots: Folder of the slots.
            live: Gives the bundle that each module serves, none for one between two workers; called on the keeper's
                thread.
            command: The process's program and arguments.
            relay: Carries inputs and outputs of an IoT Edge module; none where the agent is no such module.
        """
        self._config = config
        self._device = device
        self._run = run
        self._slots = slots
        self._live = live
        self._command = command
        self._relay = relay
        self._log = BoundedLog(run / "binding.log")
        self._has_bindings: dict[tuple[str, Digest], bool] = {}
        self._unreadable: set[Digest] = set()
        self._wanted: dict[str, Digest] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._told: dict[str, Digest] | None = None
        self._began = 0.0
        self._begins = 0.0
        self._failures = 0
        self._error = ""
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="binding", daemon=True)

    def start(self) -> None:
        """Begin to watch what is live."""
        self._thread.start()

    def stop(self) -> None:
        """End the process in order, and kill it when it does not end."""
        self._is_stopping.set()
        self._thread.join((EXIT_MS + WATCH_MS) / 1000)
        if self._relay is not None:
            self._relay.close()

    def report(self) -> JsonObject | None:
        """How the bindings stand, for `edge-agent status`; none while no live bundle has any."""
        wanted = self._wanted
        if not wanted:
            return None
        if self._is_off:
            return {"phase": "off", "modules": dict.fromkeys(sorted(wanted)), "error": _OFF}
        process = self._process
        found: JsonObject = {"phase": "starting" if process is None else "running", "restarts": self._failures}
        try:
            found |= ask_report(self._run)
        except EdgeError as error:
            found |= {"phase": "starting", "modules": dict.fromkeys(sorted(wanted)), "error": self._error or str(error)}
        if self._relay is not None:
            found["relay"] = self._relay.report()
        return found

    # --- the keeper's thread

    def _watch(self) -> None:
        try:
            while not self._is_stopping.wait(WATCH_MS / 1000):
                try:
                    self._turn()
                except (OSError, EdgeError) as error:
                    self._failed(f"the binding cannot be started: {error}")
        finally:
            self._end()

    def _turn(self) -> None:
        live: dict[str, Digest] = {}
        for module, manifest in self._live().items():
            # Messages are to wait for a module that is between two workers.
            manifest = manifest or self._wanted.get(module)
            if manifest is not None and self._is_bound(module, manifest):
                live[module] = manifest
        self._wanted = live
        if self._is_off:
            return
        if self._process is not None and self._process.poll() is not None:
            code = self._process.returncode
            self._end()
            self._failed(f"the binding ended with exit code {code}")
        if not live:
            if self._process is not None:
                self._tell(modules_line({}))  # so that the broker keeps no messages for what is gone
            self._end()
            return
        if self._process is None:
            if time.monotonic() < self._begins:
                return
            self._begin()
        if live != self._told:
            self._tell(modules_line(live))
            self._told = live

    def _is_bound(self, module: str, manifest: Digest) -> bool:
        known = self._has_bindings.get((module, manifest))
        if known is None:
            try:
                known = bool(read_bindings(self._slots, manifest, module, self._relay is not None))
            except EdgeError as error:
                if manifest not in self._unreadable:
                    self._unreadable.add(manifest)
                    _LOG.warning("module %s: its bindings cannot be read: %s", module, error)
                return False
            # A few bundles are live at any time; others are forgotten when there are many.
            if len(self._has_bindings) > BUNDLES_KNOWN_MAX:
                self._has_bindings.clear()
                self._unreadable.clear()
            self._has_bindings[module, manifest] = known
            if known and self._is_off:
                _LOG.warning("module %s: %s", module, _OFF)
        return known

    @property
    def _is_off(self) -> bool:
        """Whether this device has nothing to carry messages."""
        return self._config is None and self._relay is None

    def _begin(self) -> None:
        address = None if self._config is None else _address(self._config)
        with contextlib.ExitStack() as ends:
            passed = []
            if self._relay is not None:
                passed.append(ends.enter_context(self._relay.attach()).fileno())
            work = Work(self._device, self._run, self._slots, address, *passed)
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=worker_environment(os.environ),
                start_new_session=True,  # an interrupt typed at the agent is for the agent
                pass_fds=passed,
            )
        self._process, self._told, self._began = process, None, time.monotonic()
        threading.Thread(target=self._copy_log, args=(process,), name="binding-log", daemon=True).start()
        self._tell(dump(work.to_json()) + b"\n")
        _LOG.info("the binding was started, process %d", process.pid)

    def _tell(self, line: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        # It reads all the time; a pipe that is full or closed is a process that has ended or is about to.
        with contextlib.suppress(OSError):
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _copy_log(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stderr is not None
        with process.stderr as stream:
            while data := os.read(stream.fileno(), 4096):
                self._log.write(data)

    def _failed(self, why: str) -> None:
        is_steady = time.monotonic() - self._began > STEADY_MS / 1000
        self._failures = 1 if is_steady else self._failures + 1
        pause_ms = min(RESTART_MS_MAX, RESTART_MS_FIRST << min(self._failures - 1, 16))
        self._begins = time.monotonic() + pause_ms / 1000
        self._error = f"{why}; its log is {self._log.path}"
        _LOG.error("%s; it is started again in %d ms", self._error, pause_ms)

    def _end(self) -> None:
        process, self._process = self._process, None
        self._told = None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(EXIT_MS / 1000)
        except subprocess.TimeoutExpired:
            _LOG.warning("the binding did not end in time and is killed")
            process.kill()
            process.wait()
        if self._relay is not None:
            self._relay.detach()


def ask_report(run: Path) -> JsonObject:
    """What the binding process says of itself.

    Args:
        run: Run directory.

    Raises:
        EdgeError: `network.unreachable`, `network.cut`.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asker:
            asker.settimeout(REPORT_MS / 1000)
            asker.connect(os.fspath(run / SOCKET))
            asker.sendall(b"GET /report HTTP/1.1\r\nHost: binding\r\n\r\n")
            data = b""
            while len(data) <= REPORT_BYTES_MAX and (part := asker.recv(65_536)):
                data += part
    except OSError as error:
        raise EdgeError("network.unreachable", f"the binding does not answer: {error.strerror or error}") from None
    return parse_object(data.partition(b"\r\n\r\n")[2], "the binding's report", REPORT_BYTES_MAX)


def _address(config: BindingConfig) -> BrokerAddress:
    return BrokerAddress(
        config.host,
        config.port,
        config.tls,
        config.ca,
        config.certificate,
        config.key,
        config.username,
        _password(config.password_file),
        config.protocol,
    )


def _password(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise EdgeError("config.file-missing", f"the password file {file} cannot be read: {error}") from None
