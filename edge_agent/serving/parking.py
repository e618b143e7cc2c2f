"""Clients' connections while no worker runs: kept by the agent, so that a model that stops before the next one starts
costs its clients time and nothing else.
"""

import contextlib
import logging
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
