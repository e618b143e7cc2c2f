"""The worker's account of its clients' connections, written where it outlives the worker; see ADR 0023.

The agent holds a duplicate of every connection and reads from the shared page how each stood when the worker ended.
"""

import contextlib
import mmap
import os
import socket
from collections.abc import Callable, Sequence

from edge_agent.serving.page import BEAT, BEAT_AT, BUSY, CLOSED, IDLE, PAGE_BYTES, SLOTS_MAX, STATES_AT
from edge_contract.jsonio import JsonObject

Send = Callable[[JsonObject, Sequence[int]], None]
"""`Control.send`."""


class Ledger:
    """How each connection stands, by descriptor number. On the event loop, but for `states` and `leave`: any thread.

    Attributes:
        states: A byte for each slot; whoever owns a connection writes its own.
    """

    def __init__(self, send: Send | None = None) -> None:
        """Make an empty account.

        Args:
            send: Sends events to the agent; without it nobody keeps anything.
        """
        self._send = send
        self._is_kept = False
        self._kinds: dict[int, str] = {}
        self._fd = -1
        self._beats = 0
        page: bytearray | mmap.mmap
        if send is None:
            page = bytearray(PAGE_BYTES)
        else:
            self._fd = os.memfd_create("connections", os.MFD_CLOEXEC)
            os.ftruncate(self._fd, PAGE_BYTES)
            page = mmap.mmap(self._fd, PAGE_BYTES)
        self._page = memoryview(page)
        self.states = self._page[STATES_AT:]

    @staticmethod
    def slot(fd: int) -> int:
        """Where the state of a connection stands."""
        return fd if fd < SLOTS_MAX else SLOTS_MAX

    def enter(self, fd: int, kind: str, *, is_adopted: bool = False, has_begun: bool = False) -> None:
        """Note a connection and give the agent a duplicate, before anything is received on it.

        Args:
            fd: Its descriptor.
            kind: How the next worker is to take it: `unix`, `tcp` or `frames`.
            is_adopted: Whether the agent sent it, and so has it.
            has_begun: Whether a part of a request has been received.
        """
        slot = self.slot(fd)
        self.states[slot] = BUSY if has_begun else IDLE
        self._kinds[slot] = kind
        if not self._is_kept:
            return
        event: JsonObject = {"event": "keep", "slot": slot, "transport": kind}
        if is_adopted:
            assert self._send is not None
            self._send({**event, "adopted": True}, ())
        elif slot < SLOTS_MAX:
            self._offer(event, fd)

    def _offer(self, event: JsonObject, fd: int) -> None:
        assert self._send is not None
        try:
            duplicate = os.dup(fd)
        except OSError:  # no descriptor left: this one is cut if the worker crashes
            return
        self._send(event, (duplicate,))

    def leave(self, fd: int) -> None:
        """Note that a connection is closed, or somebody else's from now on. Before its descriptor is closed."""
        self.states[self.slot(fd)] = CLOSED

    def gave_away(self, fd: int) -> None:
        """Note that a connection is on its way to another worker. What it says of itself counts until it has left."""
        self._kinds.pop(self.slot(fd), None)

    def close(self, sock: socket.socket) -> None:
        """Close a connection, so that its client sees it although the agent holds a duplicate."""
        fd = sock.fileno()
        if fd >= 0:
            self.leave(fd)
            if self._is_kept:
                with contextlib.suppress(OSError):  # the client was faster
                    sock.shutdown(socket.SHUT_RDWR)
        sock.close()

    def introduce(self) -> None:
        """Give the page and every connection to an agent that asks for it, and from now on every new one."""
        if self._send is None:
            return
        self._is_kept = True
        self._send({"event": "ledger"}, (os.dup(self._fd),))
        for slot, kind in list(self._kinds.items()):
            if slot < SLOTS_MAX and self.states[slot] != CLOSED:
                self._offer({"event": "keep", "slot": slot, "transport": kind}, slot)

    def beat(self) -> None:
        """Count a turn of the event loop."""
        self._beats = (self._beats + 1) & 0xFFFF_FFFF
        BEAT.pack_into(self._page, BEAT_AT, self._beats)
