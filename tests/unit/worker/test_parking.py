"""Connections that wait for the next worker."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from edge_agent.serving.parking import Connection, Parking
from edge_contract.errors import EdgeError


@contextlib.contextmanager
def _clients(count: int) -> Iterator[tuple[list[socket.socket], list[Connection]]]:
    """Clients' ends, and the other ends on their way."""
    pairs = [socket.socketpair() for _ in range(count)]
    ours = [pair[0] for pair in pairs]
    for sock in ours:
        sock.settimeout(10)
    try:
        yield ours, [("unix", [pair[1].detach()]) for pair in pairs]
    finally:
        for sock in ours:
            sock.close()


class _Worker:
    """Takes some connections, then dies."""

    def __init__(self, takes: int) -> None:
        self.takes = takes
        self.taken: list[Connection] = []

    def adopt(self, connection: Connection) -> None:
        """Take it, or not."""
        if len(self.taken) == self.takes:
            raise EdgeError("model.worker-crashed", "it died")
        self.taken.append(connection)
        for fd in connection[1]:
            os.close(fd)


def test_connections_leave_in_the_order_they_came() -> None:
    parking, worker = Parking("line"), _Worker(3)
    with _clients(3) as (_ours, connections):
        for connection in connections:
            parking.adopt(connection)
        assert len(parking) == 3
        parking.leave_to(worker)
        assert worker.taken == connections
        assert len(parking) == 0


def test_what_a_dying_worker_did_not_take_waits_for_the_next() -> None:
    parking, first, second = Parking("line"), _Worker(1), _Worker(9)
    with _clients(3) as (_ours, connections):
        for connection in connections:
            parking.adopt(connection)
        with pytest.raises(EdgeError):
            parking.leave_to(first)
        assert len(parking) == 2
        parking.leave_to(second)
        assert second.taken == connections[1:]


def test_connections_beyond_the_bound_are_closed_and_the_others_kept() -> None:
    parking = Parking("line", connections_max=2)
    with _clients(3) as (ours, connections):
        for connection in connections:
            parking.adopt(connection)
        assert len(parking) == 2
        assert ours[2].recv(1) == b""
        parking.close()
        assert len(parking) == 0
        assert [sock.recv(1) for sock in ours] == [b""] * 3
