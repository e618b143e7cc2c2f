"""Clients' connections while no worker runs: kept by the agent, so that a model that stops before the next one starts
costs its clients time and nothing else.
"""

import contextlib
import logging
import threading
from collections.abc import Iterable
from typing import Protocol

from edge_agent.serving.channel import close_fds
from edge_agent.serving.limits import CONNECTIONS_PARKED_MAX

_log = logging.getLogger(__name__)

Connection = tuple[str, list[int]]
"""A client's connection on its way from one worker to another: `unix` or `tcp`, and its descriptors."""


class Adopter(Protocol):
    """Takes connections that a worker gives away. Any thread."""

    def adopt(self, connection: Connection) -> None:
        """Take a connection and its descriptors.

        Raises:
            EdgeError: `model.worker-crashed`; the descriptors are still the caller's then.
        """
        ...


class Parking:
    """Holds the connections of one module between two workers; what clients send meanwhile waits in the kernel.

    `adopt` is called on the thread of the worker that gives them away, everything else once that worker is gone.

    Attributes:
        connections_max: How many it holds; those beyond it are closed.
    """

    def __init__(self, module: str, connections_max: int = CONNECTIONS_PARKED_MAX) -> None:
        """Hold at most so many."""
        self.connections_max = connections_max
        self._module = module
        self._connections: list[Connection] = []

    @property
    def connections(self) -> list[Connection]:
        """What is held; still owned here."""
        return list(self._connections)

    def __len__(self) -> int:
        """Connections held."""
        return len(self._connections)

    def adopt(self, connection: Connection) -> None:
        """Hold a connection; see `Adopter`."""
        if len(self._connections) < self.connections_max:
            self._connections.append(connection)
            return
        _log.warning("module %s: more connections than can wait for the next worker; one was closed", self._module)
        close_fds(connection[1])

    def leave_to(self, adopter: Adopter) -> None:
        """Give every connection away, the oldest first.

        Raises:
            EdgeError: As `adopt`; what was not taken stays here.
        """
        while self._connections:
            adopter.adopt(self._connections[0])
            del self._connections[0]

    def close(self) -> None:
        """Close what is held."""
        connections, self._connections = self._connections, []
        for _transport, fds in connections:
            with contextlib.suppress(OSError):
                close_fds(fds)


class ParkingLot:
    """The connections of all modules that wait for a worker. Any thread.

    They move under one lock, so that each is in one place.
    """

    def __init__(self) -> None:
        """Hold nothing."""
        self._lock = threading.Lock()
        self._parkings: dict[str, Parking] = {}

    def of(self, module: str) -> Parking:
        """Where a module's connections wait, with as much room as those of the others leave."""
        parking = self._parkings.setdefault(module, Parking(module))
        others = sum(len(other) for other in list(self._parkings.values()) if other is not parking)
        parking.connections_max = CONNECTIONS_PARKED_MAX - others
        return parking

    def park(self, module: str, connections: Iterable[Connection]) -> None:
        """Hold connections; owned from now on."""
        with self._lock:
            parking = self.of(module)
            for connection in connections:
                parking.adopt(connection)

    def leave_to(self, module: str, adopter: Adopter) -> None:
        """Give a module's connections away.

        Raises:
            EdgeError: As `Adopter.adopt`; what was not taken stays here.
        """
        with self._lock:
            if (parking := self._parkings.get(module)) is not None:
                parking.leave_to(adopter)

    def held(self) -> dict[str, list[Connection]]:
        """What is held, by module; still owned here."""
        return {module: parking.connections for module, parking in list(self._parkings.items())}

    def close(self, module: str) -> None:
        """Close a module's connections."""
        if (parking := self._parkings.pop(module, None)) is not None:
            parking.close()

    def close_all(self) -> None:
        """Close everything."""
        for module in list(self._parkings):
            self.close(module)
