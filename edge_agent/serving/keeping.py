"""Duplicates of a worker's client connections, so that they outlive a worker that ends by itself; see ADR 0023.

Idle connections go to the next worker and their clients see nothing. Those with a request under way are told at once
that it failed. Those in the middle of an answer are cut: nobody knows how much of it has left.
"""

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Sequence
from typing import Final

from edge_agent.serving import page
from edge_agent.serving.channel import close_fds
from edge_agent.serving.farewell import Farewell
from edge_agent.serving.limits import CONNECTIONS_KEPT_MAX
from edge_agent.serving.parking import Connection
from edge_contract.jsonio import JsonObject

_log = logging.getLogger(__name__)


class KeptBudget:
    """How many connections of all modules are kept. Any thread."""

    def __init__(self, most: int = CONNECTIONS_KEPT_MAX) -> None:
        """Allow so many."""
        self._left = most
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Take one place, if there is one."""
        with self._lock:
            if self._left <= 0:
                return False
            self._left -= 1
            return True

    def give(self, count: int = 1) -> None:
        """Give places back."""
        with self._lock:
            self._left += count


ALL_MODULES: Final = KeptBudget()
"""Of this process: descriptors are its own resource."""


class Keeping:
    """What is kept of one worker. Any thread; `salvage` once its process is gone."""

    def __init__(self, module: str, budget: KeptBudget = ALL_MODULES) -> None:
        """Keep nothing yet.

        Args:
            module: Name of the module, for logs.
            budget: Places for connections of all modules.
        """
        self._module = module
        self._budget = budget
        self._lock = threading.Lock()
        self._page: int | None = None
        self._kept: dict[int, tuple[str, int]] = {}
        self._arriving: deque[Connection | None] = deque()  # adopted by the worker, which has not said so yet
        self._is_closed = False

    def __len__(self) -> int:
        """Connections kept."""
        with self._lock:
            return len(self._kept)

    # --- while the worker runs

    def take(self, message: JsonObject, fds: Sequence[int]) -> bool:
        """Take an event of the worker and own its descriptors, if it is about what is kept.

        Returns:
            Whether it was.
        """
        name = message.get("event")
        if name == "keep":
            self._keep(_slot(message), str(message.get("transport")), fds, bool(message.get("adopted")))
        elif name == "ledger":
            with self._lock:
                old, self._page = self._page, (fds[0] if fds and not self._is_closed else None)
                close_fds([] if old is None else [old])
                close_fds(fds if self._page is None else fds[1:])
        else:
            return False
        return True

    def _keep(self, slot: int, kind: str, fds: Sequence[int], is_adopted: bool) -> None:
        with self._lock:
            self._forget(slot)  # the descriptor's number is used again, so it was closed
            if is_adopted:
                close_fds(fds)  # there are none, unless the worker has lost its mind
                arrived = self._arriving.popleft() if self._arriving else None
                if arrived is None:
                    return
                fds = arrived[1]
                self._budget.give()
            close_fds(fds[1:])
            if not fds:
                return
            if self._is_closed or not 0 <= slot < page.SLOTS_MAX or not self._budget.take():
                close_fds(fds[:1])
                return
            self._kept[slot] = (kind, fds[0])

    def arriving(self, connection: Connection) -> bool:
        """Own a connection that is sent to the worker now, until the worker tells where it keeps it. In order.

        Returns:
            Whether it is owned; it has to be told of in any case.
        """
        with self._lock:
            is_kept = not self._is_closed and self._budget.take()
            self._arriving.append(connection if is_kept else None)
            return is_kept

    def not_sent(self, connection: Connection) -> bool:
        """Give the connection of the last `arriving` back to its owner: the worker did not get it.

        Returns:
            Whether it is the owner's again; false when it was salvaged meanwhile, because the worker has ended.
        """
        with self._lock:
            if not self._arriving or self._arriving[-1] is not connection:
                return False
            self._arriving.pop()
            self._budget.give()
            return True

    def gave_away(self, message: JsonObject) -> None:
        """Let go of a connection that the worker has handed over with this event."""
        with self._lock:
            self._forget(_slot(message))

    def _forget(self, slot: int) -> None:
        kept = self._kept.pop(slot, None)
        if kept is not None:
            close_fds(kept[1:])
            self._budget.give()

    def prune(self) -> None:
        """Let go of connections that the worker has closed."""
        with self._lock:
            if self._page is None:
                return
            states = page.read_states(self._page)
            for slot in [slot for slot in self._kept if states[slot] == page.CLOSED]:
                self._forget(slot)

    def beat(self) -> int:
        """The worker's count of turns."""
        with self._lock:
            return 0 if self._page is None else page.read_beat(self._page)

    # --- when it is gone

    def salvage(self, detail: str) -> list[Connection]:
        """Fail the requests that were under way, and give out what the next worker can go on with.

        Args:
            detail: Why they fail, for the clients.

        Returns:
            Connections with nothing under way, and those that the worker had not taken yet; the caller owns them.
        """
        with self._lock:
            states = b"" if self._page is None else page.read_states(self._page)
            found: list[Connection] = []
            farewell = Farewell(self._module, detail)
            for slot, (kind, fd) in self._kept.items():
                state = states[slot] if states else page.CLOSED
                if state == page.IDLE:
                    found.append((kind, [fd]))
                elif state in _BUSY:
                    farewell.add(fd, is_frames=bool(state & page.FRAMES))
                elif state == page.CLOSED:
                    close_fds([fd])
                else:
                    farewell.cut(fd)
            found += [connection for connection in self._arriving if connection is not None]
            self._budget.give(len(self._kept) + sum(connection is not None for connection in self._arriving))
            self._kept.clear()
            self._arriving.clear()
        if found or farewell.count:
            _log.warning(
                "module %s: %d idle connections wait for the next worker, %d requests under way failed",
                self._module, len(found), farewell.count,
            )  # fmt: skip
        farewell.begin()
        return found

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._is_closed = True
            for slot in list(self._kept):
                self._forget(slot)
            for connection in self._arriving:
                if connection is not None:
                    close_fds(connection[1])
                    self._budget.give()
            self._arriving.clear()
            if self._page is not None:
                with contextlib.suppress(OSError):
                    os.close(self._page)
                self._page = None


_BUSY: Final = frozenset({page.BUSY, page.BUSY | page.FRAMES})


def _slot(message: JsonObject) -> int:
    slot = message.get("slot")
    return slot if type(slot) is int else -1
