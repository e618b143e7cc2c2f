"""Connections move from one worker to another at any moment, and no request is lost on the way."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from edge_agent.worker.limits import WorkerLimits
from tests.support.net import wait_until
from tests.unit.worker.server import Adder, Reply, Worker, infer_bytes, read_reply, running_worker

OLD, NEW = 100.0, 200.0


def _y(reply: Reply | None) -> float:
    assert reply is not None
    assert reply.status == 200, reply.body
    value: float = json.loads(reply.body)["outputs"][0]["data"][0]
    return value


def _begin_swap(old: Worker, new: Worker, deadline_ms: int = 5_000) -> Future[None]:
    """Drain the old worker into the new one, as the agent does by way of the control channel."""

    def hand_over(fd: int, kind: str, pending: bytes) -> None:
        new.loop.call_soon_threadsafe(new.door.adopt, fd, kind, pending)

    return asyncio.run_coroutine_threadsafe(old.door.drain(deadline_ms, hand_over), old.loop)


def test_idle_connections_go_over_at_once(tmp_path: Path) -> None:
    with (
        running_worker(tmp_path, Adder(OLD), name="old") as old,
        running_worker(tmp_path, Adder(NEW), name="new") as new,
        old.connect() as unix,
        old.connect_tcp() as tcp,
    ):
        for sock in (unix, tcp):
            sock.sendall(infer_bytes(1))
            assert _y(read_reply(sock)) == OLD + 1
        _begin_swap(old, new).result(5)
        for sock in (unix, tcp):
            sock.sendall(infer_bytes(2))
            assert _y(read_reply(sock)) == NEW + 2
        assert old.call(lambda: old.door.connections) == 0


_CHUNKED = (
    b"POST /v2/models/m/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"19\r\n"
    b'{"inputs":[{"name":"x","d'
    b"\r\n"
    b"27\r\n"
    b'atatype":"FP32","shape":[1,2],"data":[2'
    b"\r\n6\r\n,2]}]}\r\n0\r\n\r\n"
)


@pytest.mark.parametrize("request_bytes", [infer_bytes(2), _CHUNKED], ids=["length", "chunked"])
def test_a_request_goes_over_in_the_middle_wherever_it_is_cut(tmp_path: Path, request_bytes: bytes) -> None:
    """Every 7th byte is tried as the cut; the rest comes after the swap and the new worker answers."""
    with (
        running_worker(tmp_path, Adder(OLD), name="old") as old,
        running_worker(tmp_path, Adder(NEW), name="new") as new,
    ):
        for cut in range(1, len(request_bytes), 7):
            with old.connect() as sock:
                sock.sendall(request_bytes[:cut])
                wait_until(lambda: old.call(lambda: old.door.connections) == 1, 5)
                _begin_swap(old, new).result(5)
                sock.sendall(request_bytes[cut:])
                assert _y(read_reply(sock)) == NEW + 2
            old.call(old.door.open)


def test_a_request_being_computed_is_answered_by_the_old_worker_and_the_next_by_the_new(tmp_path: Path) -> None:
    gate = threading.Event()
    engine = Adder(OLD, gate=gate)
    with (
        running_worker(tmp_path, engine, name="old") as old,
        running_worker(tmp_path, Adder(NEW), name="new") as new,
        old.connect() as sock,
    ):
        # The second request waits in the kernel or behind the first one; either way it must not get lost.
        sock.sendall(infer_bytes(1) + infer_bytes(2))
        assert engine.started.acquire(timeout=5)
        swap = _begin_swap(old, new)
        gate.set()
        assert _y(read_reply(sock)) == OLD + 1
        assert _y(read_reply(sock)) == NEW + 2
        swap.result(5)
        assert old.call(lambda: old.metrics.requests) == 1


def test_a_request_still_being_computed_at_the_deadline_is_computed_by_the_new_worker(tmp_path: Path) -> None:
    gate = threading.Event()
    engine = Adder(OLD, gate=gate)
    with (
        running_worker(tmp_path, engine, name="old") as old,
        running_worker(tmp_path, Adder(NEW), name="new") as new,
        old.connect() as sock,
        old.connect() as chunked,
    ):
        sock.sendall(infer_bytes(1) + infer_bytes(2)[:20])
        chunked.sendall(_CHUNKED)
        for _ in range(2):
            assert engine.started.acquire(timeout=5)
        _begin_swap(old, new, deadline_ms=50).result(5)
        assert _y(read_reply(sock)) == NEW + 1
        assert _y(read_reply(chunked)) == NEW + 2
        sock.sendall(infer_bytes(2)[20:])
        assert _y(read_reply(sock)) == NEW + 2
        gate.set()
        # What the old worker computed in vain goes nowhere and counts for nothing.
        assert old.call(lambda: old.metrics.requests) == 0


def test_an_answer_on_its_way_is_finished_first(tmp_path: Path) -> None:
    rows = 200_000
    with (
        running_worker(tmp_path, Adder(OLD), name="old") as old,
        running_worker(tmp_path, Adder(NEW), name="new") as new,
        old.connect() as sock,
    ):
        sock.sendall(infer_bytes(1, rows=rows))
        first = sock.recv(1, socket.MSG_PEEK)  # the answer has begun and does not fit in the kernel
        assert first == b"H"
        swap = _begin_swap(old, new)
        assert _y(read_reply(sock)) == OLD + 1
        swap.result(5)
        sock.sendall(infer_bytes(2))
        assert _y(read_reply(sock)) == NEW + 2


def test_a_client_that_never_takes_its_answer_does_not_hold_the_swap_up(tmp_path: Path) -> None:
    with (
        running_worker(tmp_path, Adder(OLD), name="old") as old,
        running_worker(tmp_path, Adder(NEW), name="new") as new,
        old.connect() as sock,
    ):
        sock.sendall(infer_bytes(1, rows=200_000))
        assert sock.recv(1, socket.MSG_PEEK) == b"H"
        _begin_swap(old, new, deadline_ms=50).result(5)
        assert old.call(lambda: old.door.connections) == 0


def test_a_drain_can_be_taken_back(tmp_path: Path) -> None:
    gate = threading.Event()
    engine = Adder(OLD, gate=gate)
    with (
        running_worker(tmp_path, engine, name="old") as old,
        running_worker(tmp_path, Adder(NEW), name="new") as new,
        old.connect() as sock,
    ):
        sock.sendall(infer_bytes(1))
        assert engine.started.acquire(timeout=5)
        swap = _begin_swap(old, new)
        swap.cancel()
        old.call(old.door.open)
        gate.set()
        assert _y(read_reply(sock)) == OLD + 1
        sock.sendall(infer_bytes(2))
        assert _y(read_reply(sock)) == OLD + 2
        with old.connect() as another:
            another.sendall(infer_bytes(3))
            assert _y(read_reply(another)) == OLD + 3


def test_without_a_successor_requests_are_finished_and_connections_ended(tmp_path: Path) -> None:
    gate = threading.Event()
    engine = Adder(OLD, gate=gate)
    with (
        running_worker(tmp_path, engine, WorkerLimits(), name="old") as old,
        old.connect() as busy,
        old.connect() as idle,
    ):
        busy.sendall(infer_bytes(1))
        assert engine.started.acquire(timeout=5)
        end = asyncio.run_coroutine_threadsafe(old.door.drain(5_000, None), old.loop)
        assert read_reply(idle) is None
        gate.set()
        reply = read_reply(busy)
        assert _y(reply) == OLD + 1
        assert reply is not None
        assert reply.headers["connection"] == "close"
        assert read_reply(busy) is None
        end.result(5)
