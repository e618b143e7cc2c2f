"""Child processes of a demonstration: each in a session of its own, ended by its own id, its output kept in a file."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_contract.errors import EdgeError

LOOPBACK: Final = "127.0.0.1"
STOP_S: Final = 10.0
_KILL_S: Final = 5.0
_POLL_S: Final = 0.05
_TAIL_CHARS: Final = 2_000
# Below the range Linux hands out for outgoing connections, so that nobody is given our port between look and use.
_PORT_LOW: Final = 20_000
_PORT_HIGH: Final = 32_000
_PORT_TRIES: Final = 200


@dataclass(slots=True)
class Child:
    """A child process. Used by the thread that started it.

    Attributes:
        name: What it is, for messages.
        popen: The process.
        log: File with its standard error, and output unless that was piped.
    """

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.popen.poll() is None

    def tail(self) -> str:
        """The end of its log."""
        try:
            return self.log.read_text(encoding="utf-8", errors="replace")[-_TAIL_CHARS:].strip()
        except OSError:
            return ""

    def stop(self, stop_s: float = STOP_S) -> None:
        """Ask it to end, and end it when it has not after `stop_s` seconds."""
        if self.popen.poll() is not None:
            return
        self.popen.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(stop_s)
            return
        self.popen.kill()
        self.popen.wait(_KILL_S)


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Let an interrupt wait until the block is left, so that nothing is started that nobody would end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    former = {
        number: signal.signal(number, lambda number, _frame: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


def spawn(
    name: str,
    argv: Sequence[str],
    log: Path,
    env: Mapping[str, str] | None = None,
    children: list[Child] | None = None,
) -> Child:
    """Start a child whose output is appended to a file.

    Args:
        name: What it is, for messages.
        argv: Program and arguments; no shell.
        log: Receives standard output and error; made with mode 0600, because a first start may print a token.
        env: Variables to add to this process's own.
        children: Gets the child before any interrupt can come between.

    Raises:
        EdgeError: `config.dependency-missing` when the program cannot be started.
    """
    with _held_back():
        child = Child(name, _start(name, argv, log, env), log)
        if children is not None:
            children.append(child)
    return child


def _start(name: str, argv: Sequence[str], log: Path, env: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            env=None if env is None else {**os.environ, **env},
            start_new_session=True,  # Ctrl-C is for the demonstration, which ends its children in order
        )
    except OSError as error:
        raise EdgeError("config.dependency-missing", f"cannot start {name} ({argv[0]}): {error.strerror}") from None
    finally:
        os.close(descriptor)


def wait_until(
    is_ready: Callable[[], bool], deadline_s: float, what: str, child: Child | None = None, poll_s: float = _POLL_S
) -> None:
    """Poll a condition until it holds.

    Args:
        is_ready: The condition.
        deadline_s: Give up after this many seconds.
        what: What is waited for, for the message.
        child: When this process ends meanwhile, waiting is over.
        poll_s: How long to wait between two looks.

    Raises:
        EdgeError: `network.timeout`, with the end of the child's log.
    """
    end = time.monotonic() + deadline_s
    while not is_ready():
        has_ended = child is not None and not child.is_running
        if has_ended or time.monotonic() > end:
            why = "its process ended" if has_ended else f"waited {deadline_s:g} s"
            detail = f"{what} did not come: {why}"
            if child is not None and (tail := child.tail()):
                detail += f"; the log of {child.name} ends: {tail[-300:]}"
            raise EdgeError("network.timeout", detail)
        time.sleep(poll_s)


def is_listening(port: int, host: str = LOOPBACK) -> bool:
    """Whether something accepts TCP connections there."""
    try:
        with socket.create_connection((host, port), timeout=0.5):
            return True
    except OSError:
        return False


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listened on a moment ago; whoever uses it has to be ready to try another.

    Raises:
        EdgeError: `network.unreachable` when none was found.
    """
    start = os.getpid() * 37 + time.monotonic_ns() % 9_973
    for step in range(_PORT_TRIES):
        port = _PORT_LOW + (start + step * 61) % (_PORT_HIGH - _PORT_LOW)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port
    raise EdgeError("network.unreachable", f"no free port between {_PORT_LOW} and {_PORT_HIGH} on {LOOPBACK}")
