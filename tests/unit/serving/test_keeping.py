"""What is kept of a worker's connections, and what becomes of each when the worker has ended."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from edge_agent.frames import ANSWER, ERROR, LAST, PREFIX
from edge_agent.serving import page
from edge_agent.serving.guard import Guard
from edge_agent.serving.keeping import Keeping, KeptBudget
from edge_agent.serving.limits import ServingLimits
from edge_agent.worker.ledger import Ledger
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject


@dataclass
class Pair:
    """A worker's account and what the agent keeps of it, connected without a process in between."""

    ledger: Ledger
    keeping: Keeping
    stack: ExitStack

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """A client's end and the worker's end of a connection."""
        ours, theirs = socket.socketpair()
        self.stack.callback(ours.close)
        self.stack.callback(theirs.close)
        ours.settimeout(10)
        return ours, theirs

    def enter(self) -> tuple[socket.socket, socket.socket]:
        """The same, accepted by the worker."""
        ours, theirs = self.connect()
        self.ledger.enter(theirs.fileno(), "unix")
        return ours, theirs

    def set(self, sock: socket.socket, state: int) -> None:
        """As the worker's connection does."""
        self.ledger.states[self.ledger.slot(sock.fileno())] = state

    def die(self, *sockets: socket.socket) -> list[tuple[str, list[int]]]:
        """The worker's process ends; what is salvaged is closed with the test."""
        for sock in sockets:
            sock.close()
        found = self.keeping.salvage("it ended.")
        for _kind, fds in found:
            for fd in fds:
                self.stack.callback(os.close, fd)
        return found


@pytest.fixture
def budget() -> KeptBudget:
    return KeptBudget(8)


@pytest.fixture
def pair(budget: KeptBudget) -> Iterator[Pair]:
    keeping = Keeping("line", budget)

    def send(message: JsonObject, fds: Sequence[int]) -> None:
        assert keeping.take(message, fds)

    ledger = Ledger(send)
    ledger.introduce()
    with ExitStack() as stack:
        yield Pair(ledger, keeping, stack)
        keeping.close()


def test_an_idle_connection_goes_to_the_next_worker(pair: Pair) -> None:
    client, theirs = pair.enter()
    ((kind, (fd,)),) = pair.die(theirs)
    assert kind == "unix"
    client.sendall(b"still there")
    assert os.read(fd, 100) == b"still there"


def test_a_request_under_way_is_answered_and_its_connection_ends(pair: Pair) -> None:
    client, theirs = pair.enter()
    client.sendall(b"POST / HTTP/1.1\r\n")
    pair.set(theirs, page.BUSY)
    assert pair.die(theirs) == []
    answer = b""
    while data := client.recv(4096):
        answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body)["code"] == "model.worker-crashed"
    assert json.loads(body)["error"].startswith("it ended.")


def test_a_frame_under_way_is_answered_by_a_frame(pair: Pair) -> None:
    client, theirs = pair.enter()
    pair.set(theirs, page.BUSY | page.FRAMES)
    pair.die(theirs)
    answer = client.recv(4096)
    head = ANSWER.unpack_from(answer)
    assert head[:3] == (PREFIX, ERROR, LAST)
    body = answer[ANSWER.size :]
    assert head[4] == len(body)
    assert json.loads(body)["code"] == "model.worker-crashed"
    assert client.recv(1) == b""


@pytest.mark.parametrize("state", [page.WRITING, page.WRITING | page.FRAMES, 200])
def test_an_answer_that_has_begun_is_cut(pair: Pair, state: int) -> None:
    client, theirs = pair.enter()
    pair.set(theirs, state)
    assert pair.die(theirs) == []
    assert client.recv(1) == b""


def test_closing_reaches_the_client_although_the_agent_has_a_duplicate(pair: Pair) -> None:
    client, theirs = pair.enter()
    pair.ledger.close(theirs)
    assert client.recv(1) == b""
    assert len(pair.keeping) == 1
    pair.keeping.prune()
    assert len(pair.keeping) == 0
    assert pair.die() == []


def test_a_number_that_is_used_again_is_another_connection(pair: Pair) -> None:
    first, theirs = pair.enter()
    number = theirs.fileno()
    pair.ledger.close(theirs)
    second, again = pair.connect()
    pair.keeping.take({"event": "keep", "slot": number, "transport": "tcp"}, [os.dup(again.fileno())])
    pair.ledger.states[number] = page.IDLE
    ((kind, (fd,)),) = pair.die()
    assert kind == "tcp"
    second.sendall(b"second")
    assert os.read(fd, 100) == b"second"
    assert first.recv(1) == b""


def test_what_was_handed_over_is_not_salvaged(pair: Pair) -> None:
    client, theirs = pair.enter()
    pair.ledger.gave_away(theirs.fileno())
    pair.keeping.gave_away({"event": "connection", "slot": theirs.fileno()})
    assert pair.die() == []
    theirs.sendall(b"by the next worker")
    assert client.recv(100) == b"by the next worker"


def test_a_later_agent_gets_everything_again(pair: Pair, budget: KeptBudget) -> None:
    _client, theirs = pair.enter()
    _gone, closed = pair.enter()
    _moved, moved = pair.enter()
    pair.ledger.close(closed)
    pair.ledger.gave_away(moved.fileno())
    later = Keeping("line", budget)
    pair.ledger._send = later.take  # type: ignore[assignment]
    pair.ledger.introduce()
    assert len(later) == 1
    pair.ledger.beat()
    assert later.beat() == 1
    ((_kind, (fd,)),) = later.salvage("it ended.")
    os.close(fd)
    later.close()
    theirs.close()


def test_a_connection_on_its_way_to_a_worker_is_not_lost_with_it(pair: Pair) -> None:
    client, theirs = pair.connect()
    guard = Guard("line", ServingLimits())
    guard.keeping = pair.keeping
    sent: list[tuple[str, list[int]]] = []
    fds = [os.dup(theirs.fileno()), os.memfd_create("pending")]
    guard.send(("tcp", fds), sent.append)
    assert sent == [("tcp", fds)]
    assert pair.die() == [("tcp", fds)], "with what was received on it"
    assert client.fileno() > 0


def test_a_connection_that_arrived_is_kept_without_being_sent_back(pair: Pair) -> None:
    client, theirs = pair.connect()
    fds = [os.dup(theirs.fileno()), os.memfd_create("pending")]
    assert pair.keeping.arriving(("tcp", fds))
    pair.ledger.enter(theirs.fileno(), "tcp", is_adopted=True)
    assert len(pair.keeping) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fds[1])
    ((kind, (fd,)),) = pair.die(theirs)
    client.sendall(b"on")
    assert (kind, os.read(fd, 10)) == ("tcp", b"on")


def test_a_connection_that_could_not_be_sent_stays_the_owners(pair: Pair, budget: KeptBudget) -> None:
    guard = Guard("line", ServingLimits())
    guard.keeping = pair.keeping

    def fail(_connection: object) -> None:
        raise EdgeError("model.worker-crashed", "it is gone")

    fds = [os.memfd_create("any")]
    with pytest.raises(EdgeError):
        guard.send(("tcp", fds), fail)
    assert pair.die() == []
    os.close(fds[0])
    assert all(budget.take() for _ in range(8))


def test_a_connection_that_was_salvaged_while_it_was_sent_has_one_owner(pair: Pair) -> None:
    guard = Guard("line", ServingLimits())
    guard.keeping = pair.keeping
    found: list[tuple[str, list[int]]] = []

    def fail(_connection: object) -> None:
        found.extend(pair.die())
        raise EdgeError("model.worker-crashed", "it is gone")

    connection = ("tcp", [os.memfd_create("any")])
    guard.send(connection, fail)  # without an error: the sender has nothing more to do with it
    assert found == [connection]


def test_more_connections_than_there_is_room_for_are_served_and_not_kept(pair: Pair, budget: KeptBudget) -> None:
    ends = [pair.enter() for _ in range(10)]
    assert len(pair.keeping) == 8
    assert not budget.take()
    pair.keeping.close()
    assert all(budget.take() for _ in range(8))
    assert len(ends) == 10


@pytest.mark.parametrize(
    "message",
    [
        {"event": "keep", "slot": -1, "transport": "tcp"},
        {"event": "keep", "slot": "x"},
        {"event": "keep", "slot": 10**9, "transport": "tcp"},
        {"event": "keep", "slot": 3, "adopted": True},
        {"event": "ledger"},
    ],
)
def test_nonsense_keeps_nothing_and_leaks_nothing(pair: Pair, message: JsonObject) -> None:
    before = len(os.listdir("/proc/self/fd"))
    fd = os.memfd_create("any")
    assert pair.keeping.take(message, [fd])
    assert len(pair.keeping) == 0
    if message["event"] == "keep":
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_page_that_was_cut_short_is_no_signal_but_closed_connections(pair: Pair) -> None:
    _client, theirs = pair.enter()
    os.ftruncate(pair.ledger._fd, 1)
    assert pair.keeping.beat() == 0
    assert pair.die(theirs) == []
    os.ftruncate(pair.ledger._fd, page.PAGE_BYTES)


def test_what_is_no_socket_is_closed(pair: Pair) -> None:
    fd = os.memfd_create("any")
    slot = pair.ledger.slot(fd)
    pair.keeping.take({"event": "keep", "slot": slot, "transport": "tcp"}, [fd])
    pair.ledger.states[slot] = page.BUSY
    assert pair.die() == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
