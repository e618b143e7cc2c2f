"""Tells systemd how the agent is (sd_notify(3)), or nobody when it was not started by systemd, and takes the sockets
that systemd passes (sd_listen_fds(3)).
"""

import array
import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from typing import Final

_STATUS_CHARS_MAX: Final = 200
_UNWATCHED_S: Final = 30.0  # how often the status line is refreshed without a watchdog
_LISTEN_FDS_START: Final = 3
_LISTEN_FDS_MAX: Final = 1_024
_FDNAME_CHARS_MAX: Final = 255


def take_listen_fds(environment: MutableMapping[str, str]) -> list[tuple[str, int]]:
    """Take the descriptors that systemd, or systemd-socket-activate, passed to this very process, with their names.

    Args:
        environment: The process's own; `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES` are removed, so that no child
            takes them for its own.

    Returns:
        Names and descriptors, which no child inherits; `unknown` where there is no name.
    """
    pid, count, names = (environment.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES"))
    try:
        if int(pid) != os.getpid():
            return []
        fds = range(_LISTEN_FDS_START, _LISTEN_FDS_START + min(int(count), _LISTEN_FDS_MAX))
    except ValueError:
        return []
    told = names.split(":") if names else []
    found = []
    for index, fd in enumerate(fds):
        os.set_inheritable(fd, False)
        found.append((told[index] if index < len(told) else "unknown", fd))
    return found


class SystemdSupervisor:
    """Implements the shell's `Supervisor`, and `SocketKeeper` by systemd's descriptor store. Any thread, but `alive`:
    one alone.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """Read what systemd put into the environment.

        Args:
            environment: The process's own when none. `NOTIFY_SOCKET` names the socket; `WATCHDOG_USEC` and
                `WATCHDOG_PID` ask for a sign of life.
        """
        values = os.environ if environment is None else environment
        self._address = _address(values.get("NOTIFY_SOCKET", ""))
        self._period_s = _period_s(values)
        self._due = 0.0
        self._status = ""

    @property
    def is_supervised(self) -> bool:
        """Whether somebody listens."""
        return self._address is not None

    @property
    def watchdog_ms(self) -> int | None:
        """Within which time a sign of life is expected, or none."""
        return None if self._period_s is None else int(self._period_s * 1000)

    def ready(self) -> None:
        """The agent is up."""
        self._send("READY=1")

    def alive(self, status: str) -> None:
        """The loop turned. Cheap enough to be called on every turn.

        Args:
            status: A line for people, shown by `systemctl status`.
        """
        now = time.monotonic()
        if now < self._due and status == self._status:
            return
        # Twice within the period, as the protocol advises.
        self._due = now + (_UNWATCHED_S if self._period_s is None else self._period_s / 2)
        self._status = status
        line = status.replace("\n", " ")[:_STATUS_CHARS_MAX]
        self._send(f"WATCHDOG=1\nSTATUS={line}" if self._period_s is not None else f"STATUS={line}")

    def stopping(self) -> None:
        """The agent is about to end."""
        self._send("STOPPING=1")

    def reloading(self) -> None:
        """The agent is about to start anew in the same process."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def keep(self, name: str, fd: int) -> None:
        """Leave a duplicate of a descriptor with systemd, for the next start after a crash; see `SocketKeeper`."""
        if ":" not in name and len(name) <= _FDNAME_CHARS_MAX:
            self._send(f"FDSTORE=1\nFDNAME={name}", fd)

    def forget(self, name: str) -> None:
        """Have systemd close what it keeps under this name; see `SocketKeeper`."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def _send(self, message: str, fd: int | None = None) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                # A supervisor that does not read must not hold up the loop.
                sender.setblocking(False)
                ancillary = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
                sender.sendmsg([message.encode()], ancillary, 0, self._address)
        except OSError:
            return


def _address(name: str) -> str | None:
    if name.startswith("@"):
        return "\0" + name[1:]  # Linux's abstract namespace
    return name if name.startswith("/") else None


def _period_s(values: Mapping[str, str]) -> float | None:
    try:
        period_s = int(values["WATCHDOG_USEC"]) / 1e6
        is_for_us = int(values.get("WATCHDOG_PID", os.getpid())) == os.getpid()
    except (KeyError, ValueError):
        return None
    return period_s if is_for_us and period_s > 0 else None
