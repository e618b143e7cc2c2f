"""Loopback ports and bounded waiting."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

LOOPBACK = "127.0.0.1"

_LOW_PORT_FIRST = 15_000
_LOW_PORT_ATTEMPTS_MAX = 200
_EPHEMERAL_FIRST_USUAL = 32_768
_CONNECT_TIMEOUT_S = 1.0
_POLL_S = 0.01


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago, chosen by the kernel.

    For servers that cannot take port 0 themselves and start at once. One that may be stopped and started again on the
    same port wants :func:`free_low_port`.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def free_low_port() -> int:
    """A free TCP port of 127.0.0.1 below the range the kernel hands to outgoing connections.

    No client's connection can take it between this call and the server's bind, nor while the server is down for a
    restart. Another test process still can: start the server, and retry with a new port when it cannot bind.
    """
    first_ephemeral = _first_ephemeral_port()
    for _ in range(_LOW_PORT_ATTEMPTS_MAX):
        port = _LOW_PORT_FIRST + secrets.randbelow(first_ephemeral - _LOW_PORT_FIRST)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port found between {_LOW_PORT_FIRST} and {first_ephemeral}")


def _first_ephemeral_port() -> int:
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        first = _EPHEMERAL_FIRST_USUAL
    # A machine tuned for many connections may start its range lower than our first port.
    return first if first > _LOW_PORT_FIRST else _EPHEMERAL_FIRST_USUAL


def is_listening(port: int, host: str = LOOPBACK) -> bool:
    """Whether something accepts TCP connections there."""
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False


def wait_until(
    predicate: Callable[[], T],
    deadline_s: float,
    *,
    what: str = "the condition",
    poll_s: float = _POLL_S,
) -> T:
    """Poll until the predicate gives something true, and return that.

    Args:
        predicate: Called at once and then every ``poll_s`` seconds; what it raises is passed on.
        deadline_s: The longest wait. The predicate is asked once more after it has passed.
        what: What was waited for, for the failure's text.
        poll_s: Seconds between two calls.

    Raises:
        AssertionError: The deadline passed first.
    """
    deadline = time.monotonic() + deadline_s
    while True:
        is_last = time.monotonic() >= deadline
        value = predicate()
        if value:
            return value
        if is_last:
            raise AssertionError(f"waited {deadline_s:g} s for {what}; last value: {value!r}")
        time.sleep(poll_s)
