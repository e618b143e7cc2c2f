"""A mosquitto broker of one's own: a child process on 127.0.0.1 with its configuration in a temporary folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.support.net import LOOPBACK, free_low_port, wait_until
from tests.support.processes import Child, start_process
from tests.support.require import require_program

_START_ATTEMPTS_MAX = 10
_START_DEADLINE_S = 10.0
# It says so once every listener accepts connections: "mosquitto version 2.0.11 running".
_READY = b" running\n"


@dataclass
class MosquittoBroker:
    """A broker that can be stopped and started again on the same port. Used by one thread."""

    directory: Path
    global_lines: Sequence[str] = ()
    listener_lines: Sequence[str] = ("allow_anonymous true",)
    is_persistent: bool = False
    host: str = LOOPBACK
    port: int = 0
    child: Child | None = field(default=None, repr=False)

    @property
    def log_path(self) -> Path:
        """Where its log goes, over all restarts."""
        return self.directory / "mosquitto.log"

    @property
    def pid(self) -> int:
        """The process id of the running broker."""
        if self.child is None:
            raise RuntimeError("the broker is not running: call start()")
        return self.child.pid

    def start(self) -> None:
        """Start it and wait until it accepts connections; the first start chooses the port."""
        program = require_program("mosquitto")
        attempts = 1 if self.port else _START_ATTEMPTS_MAX
        for _ in range(attempts):
            port = self.port or free_low_port()
            log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
            child = start_process([program, "-c", self._write_config(port)], log_path=self.log_path)
            try:
                wait_until(partial(_has_settled, child, log_start), _START_DEADLINE_S, what="mosquitto to listen")
            except BaseException:
                child.stop()
                raise
            # Ended: somebody else took the port first.
            if child.is_running:
                self.child, self.port = child, port
                return
            child.stop()
        raise AssertionError(f"mosquitto did not start; its log ends:\n{self.log_path.read_text()[-2_000:]}")

    def stop(self) -> None:
        """End it in order; a persistent broker writes its store first."""
        if self.child is not None:
            self.child.stop()
            self.child = None

    def kill(self) -> None:
        """End it without warning."""
        if self.child is not None:
            self.child.kill()
            self.stop()

    def _write_config(self, port: int) -> Path:
        lines = [
            # As root it would drop to a user who may not enter a test's folder.
            *(["user root"] if os.geteuid() == 0 else []),
            # Not stdout: it is buffered when it is a file.
            "log_dest stderr",
            "log_type all",
            "connection_messages true",
            "sys_interval 0",
            "set_tcp_nodelay true",
        ]
        if self.is_persistent:
            lines += [
                "persistence true",
                f"persistence_location {self.directory}/",
                "autosave_on_changes true",
                "autosave_interval 1",
            ]
        else:
            lines.append("persistence false")
        lines += [*self.global_lines, f"listener {port} {self.host}", *self.listener_lines]
        path = self.directory / "mosquitto.conf"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        path.chmod(0o600)
        return path


@contextlib.contextmanager
def mosquitto(
    directory: Path,
    *,
    global_lines: Sequence[str] = (),
    listener_lines: Sequence[str] = ("allow_anonymous true",),
    is_persistent: bool = False,
) -> Iterator[MosquittoBroker]:
    """A running broker for the length of the block; skips the test where mosquitto is not installed.

    Args:
        directory: An existing folder for its configuration, log and store.
        global_lines: Configuration before the listener (``max_queued_messages 0``, ``per_listener_settings true``).
        listener_lines: Configuration of the one listener (certificates, ``require_certificate``, plugins). Giving any
            replaces ``allow_anonymous true``.
        is_persistent: Keep sessions, queued and retained messages over restarts, even over a kill.
    """
    broker = MosquittoBroker(
        directory, global_lines=global_lines, listener_lines=listener_lines, is_persistent=is_persistent
    )
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def _has_settled(child: Child, log_start: int) -> bool:
    return not child.is_running or _READY in child.log_path.read_bytes()[log_start:]
