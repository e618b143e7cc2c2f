"""Connections that speak frames against clients that are slow, wrong or hostile, and on their way to another worker."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.frames import DESCRIBE, ERROR, LAST
from edge_agent.inference import InferenceClient
from edge_agent.inference_pool import InferencePool
from edge_agent.worker.limits import WorkerLimits
from edge_contract.errors import EdgeError
from edge_contract.tensors import TensorSpec
from tests.support.net import wait_until
from tests.unit.worker.frame_peer import FrameReply, Mirror, frame, key_of, read_frame, rows_of, value_of
from tests.unit.worker.server import Adder, Worker, infer_bytes, read_reply, running_worker

OLD, NEW = 100.0, 200.0
X = np.array([[1.0, 2.0]], dtype=np.float32)
QUICK = WorkerLimits(
    body_bytes_max=100_000,
    receiving_bytes_max=150_000,
    connections_max=4,
    frame_connections_max=3,
    requests_waiting_max=1,
    request_read_ms=150,
    response_write_ms=150,
    idle_ms=10_000,
    linger_ms=150,
    sweep_ms=20,
)


def _refused(reply: FrameReply | None) -> str:
    assert reply is not None
    assert (reply.kind, reply.flags) == (ERROR, LAST)
    return reply.code


def _is_still_good(worker: Worker) -> None:
    # Places of clients that are gone come free a moment later; until then the next one may be told to come again.
    wait_until(lambda: worker.call(lambda: worker.door.frame_connections) < 8, 20)
    with worker.connect() as sock:
        sock.sendall(frame(rows_of((1, 2)), key=key_of(sock)))
        assert value_of(read_frame(sock)) == 2


# --- hostile


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\xf5" * 100, id="first byte again and again"),
        pytest.param(b"\xf5GET / HTTP/1.1\r\n\r\n", id="http behind it"),
        pytest.param(frame(prefix=int.from_bytes(b"\xf5LM\x02", "little")), id="another version"),
        pytest.param(frame(size=0xFFFF_FFFF), id="four gigabytes"),
        pytest.param(frame(size=100_001), id="a byte too many"),
        pytest.param(frame(flags=1), id="a flag"),
        pytest.param(frame(b"ab", id_bytes=3), id="an id longer than the payload"),
        pytest.param(frame(b"a" * 2000, id_bytes=2000), id="a long id"),
        pytest.param(b"\xf5" + os.urandom(5000), id="noise"),
    ],
)
def test_what_is_no_frame_is_refused_with_a_reason_and_the_end(tmp_path: Path, garbage: bytes) -> None:
    with running_worker(tmp_path, Adder(), QUICK) as worker:
        with worker.connect() as sock:
            sock.sendall(garbage)
            assert _refused(read_frame(sock)) == "model.input-invalid"
            assert read_frame(sock) is None
        _is_still_good(worker)
        wait_until(lambda: worker.call(lambda: worker.door.connections) == 0, 5)


@pytest.mark.parametrize("first", [b"\x00", b"\x16\x03\x01", b"\xf4", b"\xff", b" "])
def test_other_first_bytes_are_refused_as_http(tmp_path: Path, first: bytes) -> None:
    with running_worker(tmp_path, Adder(), QUICK) as worker:
        with worker.connect() as sock:
            sock.sendall(first + b"hello\r\n\r\n")
            reply = read_reply(sock)
            assert reply is not None
            assert reply.status == 400
        with worker.connect_tcp() as sock:
            sock.sendall(frame(kind=DESCRIBE) + b"\r\n\r\n")
            reply = read_reply(sock)
            assert reply is not None
            assert reply.status == 400, "frames are for the unix socket"
        _is_still_good(worker)


_FREE = (2).to_bytes(4, "little")
_LONG_TEXT = struct.pack("<II", 2, 8) + struct.pack("<I", 0xFFFF_FFFF) + b"abcd"
_FEW_TEXTS = struct.pack("<II", 2, 8) + struct.pack("<I", 4) + b"abcd"


@pytest.mark.parametrize(
    ("spec", "payload"),
    [
        pytest.param(("FP32", (-1, 2)), b"", id="no table"),
        pytest.param(("FP32", (-1, 2)), b"\x01\0\0", id="half a table"),
        pytest.param(("FP32", (-1, 2)), (1).to_bytes(8, "little") + b"1234", id="half a row"),
        pytest.param(("FP32", (-1, 2)), (1).to_bytes(8, "little") + bytes(9), id="a byte more"),
        pytest.param(("FP32", (-1, 2)), (2**31 - 1).to_bytes(8, "little") + bytes(8), id="two billion rows"),
        pytest.param(("FP32", (-1, 2)), b"\xff" * 4 + bytes(4), id="minus one rows"),
        pytest.param(("FP32", (-1, 2)), _FREE + b"\1\0\0\0" + bytes(16), id="padding that says something"),
        pytest.param(("FP64", (-1, -1, -1)), b"\xff\xff\xff\x7f" * 3 + bytes(4), id="a shape without end"),
        pytest.param(("BOOL", (2,)), b"\1\2", id="neither true nor false"),
        pytest.param(("BYTES", (-1,)), _LONG_TEXT, id="a text longer than all"),
        pytest.param(("BYTES", (-1,)), _FEW_TEXTS, id="fewer texts than announced"),
        pytest.param(("BYTES", (-1,)), struct.pack("<II", 2**30, 8) + bytes(8), id="a billion texts"),
        pytest.param(("BYTES", (-1,)), struct.pack("<II", 1, 2**30) + bytes(8), id="a text of a gigabyte"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_the_connection_goes_on(
    tmp_path: Path, spec: tuple[str, tuple[int, ...]], payload: bytes
) -> None:
    engine = Mirror(TensorSpec("x", *spec))
    with running_worker(tmp_path, engine, QUICK) as worker, worker.connect() as sock:
        key = key_of(sock)
        for number in (1, 2):
            sock.sendall(frame(payload, key=key, number=number))
            reply = read_frame(sock)
            assert reply is not None
            assert (reply.kind, reply.flags, reply.number, reply.code) == (ERROR, 0, number, "model.input-invalid")
        assert worker.call(lambda: worker.metrics.requests) == 0


def test_an_id_that_is_no_text_and_an_output_nobody_has(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder(), QUICK) as worker, worker.connect() as sock:
        key = key_of(sock)
        for request in (
            frame(rows_of((1, 2)) + b"\xff\xff", key=key, id_bytes=2),
            frame(rows_of((1, 2)) + b"i" * 300, key=key, id_bytes=300),
            frame(rows_of((1, 2)), key=key, wanted=2),
            frame(rows_of((1, 2)), key=key, wanted=2**63),
            frame(rows_of((1, 2)), key=key, deadline_ms=2**32 - 1),
        ):
            sock.sendall(request)
            reply = read_frame(sock)
            assert reply is not None
            assert (reply.kind, reply.code) == (ERROR, "model.input-invalid")


@pytest.mark.parametrize("sent", [1, 39, 40, 45])
def test_half_a_frame_is_waited_for_and_not_for_ever(tmp_path: Path, sent: int) -> None:
    with running_worker(tmp_path, Adder(), QUICK) as worker, worker.connect() as sock:
        begun = time.monotonic()
        sock.sendall(frame(rows_of((1, 2)))[:sent])
        assert _refused(read_frame(sock)) == "model.input-invalid"
        assert time.monotonic() - begun >= 0.15
        _is_still_good(worker)


def test_drop_by_drop_is_too_slow_however_often_a_drop_comes(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder(), QUICK) as worker, worker.connect() as sock:
        is_over = threading.Event()

        def drip() -> None:
            for byte in frame(bytes(50_000)):
                if is_over.wait(0.01):
                    return
                sock.sendall(bytes((byte,)))

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        assert _refused(read_frame(sock)) == "model.input-invalid"
        is_over.set()
        thread.join(5)


def test_a_client_that_does_not_take_its_answer_is_cut_off(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder(), QUICK) as worker, worker.connect() as sock:
        key = key_of(sock)
        requests = frame(rows_of(*[(1.0, 2.0)] * 12_000), key=key) * 100
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            sock.sendall(requests)
        wait_until(lambda: worker.call(lambda: worker.door.connections) == 0, 5)
        assert worker.door.receiving_bytes == 0


def test_an_idle_connection_ends(tmp_path: Path) -> None:
    limits = WorkerLimits(idle_ms=50)
    with running_worker(tmp_path, Adder(), limits) as worker, worker.connect() as sock:
        key_of(sock)
        assert read_frame(sock) is None


def test_one_connection_too_many_speaks_http_instead(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder(), QUICK) as worker:
        clients = [InferenceClient(worker.path) for _ in range(3)]
        for client in clients:
            client.infer_arrays({"x": X}, "m")
        with worker.connect() as sock:
            sock.sendall(frame(kind=DESCRIBE))
            assert _refused(read_frame(sock)) == "model.overloaded"
        with InferenceClient(worker.path) as late:
            assert late.infer_arrays({"x": X}, "m")["y"].tolist() == [[2.0, 3.0]]
            assert worker.call(lambda: worker.door.connections) == 4
        for client in clients:
            client.close()


def test_too_many_large_requests_at_once(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder(), QUICK) as worker, worker.connect() as one, worker.connect() as two:
        one.sendall(frame(bytes(80_000), size=90_000))
        wait_until(lambda: worker.door.receiving_bytes == 90_000, 5)
        two.sendall(frame(bytes(80_000), size=90_000))
        assert _refused(read_frame(two)) == "model.overloaded"
        assert _refused(read_frame(one)) == "model.input-invalid"
        wait_until(lambda: worker.door.receiving_bytes == 0, 5)


def test_more_than_can_wait_are_refused_at_once_and_counted(tmp_path: Path) -> None:
    gate = threading.Event()
    engine = Adder(gate=gate)
    engine.is_quick = True
    limits = WorkerLimits(requests_waiting_max=1)
    with running_worker(tmp_path, engine, limits) as worker, InferencePool(worker.path, connections_max=4) as pool:
        busy = [threading.Thread(target=pool.infer_arrays, args=({"x": X}, "m"), daemon=True) for _ in range(3)]
        for thread in busy:
            thread.start()
        for _ in range(2):
            assert engine.started.acquire(timeout=5)
        wait_until(lambda: worker.service._served["m"].turns.waiting == 1, 5)
        with pytest.raises(EdgeError) as caught:
            pool.infer_arrays({"x": X}, "m")
        assert caught.value.code == "model.overloaded"
        assert worker.call(lambda: worker.metrics._counts["m"]["overloaded"]) == 1
        gate.set()
        for thread in busy:
            thread.join(5)
        assert worker.call(lambda: worker.metrics.requests) == 3


# --- to another worker


def _begin_swap(old: Worker, new: Worker, deadline_ms: int = 5_000) -> Future[None]:
    def hand_over(fd: int, kind: str, pending: bytes) -> None:
        new.loop.call_soon_threadsafe(new.door.adopt, fd, kind, pending)

    return asyncio.run_coroutine_threadsafe(old.door.drain(deadline_ms, hand_over), old.loop)


def test_idle_connections_go_over_and_clients_learn_of_it(tmp_path: Path) -> None:
    with (
        running_worker(tmp_path, Adder(OLD), name="old") as old,
        running_worker(tmp_path, Mirror(TensorSpec("x", "FP32", (1, 2))), name="new") as new,
        InferenceClient(old.path) as client,
    ):
        assert client.infer_arrays({"x": X}, "m")["y"][0, 0] == OLD + 1
        assert client._frames is not None
        sock = client._frames._sock
        _begin_swap(old, new).result(5)
        assert list(client.infer_arrays({"x": X}, "m")) == ["out_x"], "another signature, asked for on the way"
        assert client._frames._sock is sock
        assert old.call(lambda: old.door.connections) == 0
        assert new.call(lambda: new.door.frame_connections) == 1


@pytest.mark.parametrize("rows", [1, 10_000], ids=["small", "large"])
def test_a_frame_goes_over_in_the_middle_wherever_it_is_cut(tmp_path: Path, rows: int) -> None:
    with (
        running_worker(tmp_path, Adder(OLD), name="old") as old,
        running_worker(tmp_path, Adder(NEW), name="new") as new,
    ):
        with old.connect() as sock:
            request = frame(rows_of(*[(1.0, 2.0)] * rows), key=key_of(sock))
        for cut in (*range(1, 56, 5), len(request) // 2, len(request) - 1):
            with old.connect() as sock:
                sock.sendall(request[:cut])
                wait_until(lambda: old.call(lambda: old.door.frame_connections) == 1, 5)
                _begin_swap(old, new).result(5)
                sock.sendall(request[cut:])
                assert value_of(read_frame(sock)) == NEW + 1
                sock.sendall(request)
                assert value_of(read_frame(sock)) == NEW + 1
            old.call(old.door.open)
        wait_until(lambda: new.call(lambda: new.door.connections) == 0, 5)
        assert (old.door.receiving_bytes, new.door.receiving_bytes) == (0, 0)


def test_a_frame_being_computed_is_answered_by_the_old_worker_and_the_next_by_the_new(tmp_path: Path) -> None:
    gate = threading.Event()
    engine = Adder(OLD, gate=gate)
    with (
        running_worker(tmp_path, engine, name="old") as old,
        running_worker(tmp_path, Adder(NEW), name="new") as new,
        old.connect() as sock,
    ):
        key = key_of(sock)
        sock.sendall(frame(rows_of((1, 2)), key=key, number=1) + frame(rows_of((2, 2)), key=key, number=2))
        assert engine.started.acquire(timeout=5)
        swap = _begin_swap(old, new)
        wait_until(lambda: old.door._lane is not None and old.door._lane.is_draining, 5)
        gate.set()
        for number, value in ((1, OLD + 1), (2, NEW + 2)):
            reply = read_frame(sock)
            assert reply is not None
            assert (reply.number, value_of(reply)) == (number, value)
        swap.result(5)
        assert old.call(lambda: old.metrics.requests) == 1


@pytest.mark.parametrize("rows", [1, 10_000], ids=["small", "large"])
def test_a_frame_still_being_computed_at_the_deadline_is_computed_by_the_new_worker(tmp_path: Path, rows: int) -> None:
    gate = threading.Event()
    engine = Adder(OLD, gate=gate)
    with (
        running_worker(tmp_path, engine, name="old") as old,
        running_worker(tmp_path, Adder(NEW), name="new") as new,
        old.connect() as sock,
    ):
        key = key_of(sock)
        following = frame(rows_of((5, 2)), key=key, number=2)
        sock.sendall(frame(rows_of(*[(1.0, 2.0)] * rows), key=key) + following[:50])
        assert engine.started.acquire(timeout=5)
        _begin_swap(old, new, deadline_ms=50).result(5)
        assert value_of(read_frame(sock)) == NEW + 1
        sock.sendall(following[50:])
        assert value_of(read_frame(sock)) == NEW + 5
        gate.set()
        wait_until(lambda: old.door.receiving_bytes == 0, 5)
        sock.sendall(following)
        assert value_of(read_frame(sock)) == NEW + 5


def test_without_a_successor_what_is_computed_is_answered_and_the_rest_closed(tmp_path: Path) -> None:
    gate = threading.Event()
    engine = Adder(gate=gate)
    with running_worker(tmp_path, engine) as worker, worker.connect() as busy, worker.connect() as idle:
        key = key_of(idle)
        busy.sendall(frame(rows_of((1, 2)), key=key))
        assert engine.started.acquire(timeout=5)
        drain = asyncio.run_coroutine_threadsafe(worker.door.drain(5_000, None), worker.loop)
        assert read_frame(idle) is None
        gate.set()
        assert value_of(read_frame(busy)) == 2
        assert read_frame(busy) is None
        drain.result(5)


def test_without_a_successor_what_does_not_end_is_refused(tmp_path: Path) -> None:
    gate = threading.Event()
    engine = Adder(gate=gate)
    with running_worker(tmp_path, engine) as worker, worker.connect() as sock:
        sock.sendall(frame(rows_of((1, 2)), key=key_of(sock)))
        assert engine.started.acquire(timeout=5)
        asyncio.run_coroutine_threadsafe(worker.door.drain(50, None), worker.loop).result(10)
        assert _refused(read_frame(sock)) == "model.overloaded"
        gate.set()


def test_a_drain_that_is_called_off_keeps_the_connections(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder()) as worker, InferenceClient(worker.path) as client:
        for _ in range(3):
            assert client.infer_arrays({"x": X}, "m")["y"][0, 0] == 2
            given: list[tuple[int, str, bytes]] = []

            def keep(fd: int, kind: str, pending: bytes, given: list[tuple[int, str, bytes]] = given) -> None:
                given.append((fd, kind, pending))

            asyncio.run_coroutine_threadsafe(worker.door.drain(5_000, keep), worker.loop).result(5)
            worker.call(worker.door.open)
            for item in given:
                worker.call(lambda item=item: worker.door.adopt(*item))  # type: ignore[misc]
            assert [kind for _fd, kind, _pending in given] == ["frames"]


def test_no_frame_is_lost_in_swaps_back_and_forth_under_load(tmp_path: Path) -> None:
    with (
        running_worker(tmp_path, Adder(OLD), name="old") as old,
        running_worker(tmp_path, Adder(NEW), name="new") as new,
    ):
        new.call(new.door.shut)
        is_over = threading.Event()
        seen: list[list[float]] = [[] for _ in range(6)]
        socks = []
        for _ in seen:
            sock = old.connect()
            key = key_of(sock)
            socks.append(sock)

        def ask(sock: socket.socket, mine: list[float]) -> None:
            number = 0
            while not is_over.is_set():
                number += 1
                sock.sendall(frame(rows_of((0, number % 7)), key=key, number=number))
                reply = read_frame(sock)
                assert reply is not None
                assert reply.number == number
                mine.append(value_of(reply))

        threads = [threading.Thread(target=ask, args=pair, daemon=True) for pair in zip(socks, seen, strict=True)]
        for thread in threads:
            thread.start()
        workers = [old, new]
        for swap in range(30):
            source, target = workers[swap % 2], workers[(swap + 1) % 2]
            counts = [len(mine) for mine in seen]
            wait_until(lambda: all(len(m) > c for m, c in zip(seen, counts, strict=True)), 10)  # noqa: B023
            target.call(target.door.open)
            _begin_swap(source, target).result(10)
        is_over.set()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        for mine in seen:
            turns = sum(a != b for a, b in pairwise(mine))
            assert turns <= 30, "an answer of the worker that was left came after one of the worker that took over"
            assert turns > 10
        for sock in socks:
            sock.close()


def test_http_goes_on_beside_frames(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder(), QUICK) as worker, worker.connect() as frames, worker.connect() as http:
        key = key_of(frames)
        for value in range(5):
            frames.sendall(frame(rows_of((value, 0)), key=key))
            http.sendall(infer_bytes(value))
            assert value_of(read_frame(frames)) == value + 1
            reply = read_reply(http)
            assert reply is not None
            assert reply.status == 200


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_frames_with_bytes_changed_never_hurt_anybody_else(shared: Worker, data: st.DataObject) -> None:
    """Whatever comes: it is answered or refused, the connection goes on or ends, and the next client is served."""
    with shared.connect() as sock:
        good = frame(rows_of((1, 2)) + b"id", key=key_of(sock), id_bytes=2)
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 6))):
        changed[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with shared.connect() as sock:
        sock.sendall(changed[: data.draw(st.integers(0, len(good)))])
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65_536):
            pass
    _is_still_good(shared)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One worker for many clients."""
    with running_worker(tmp_path_factory.mktemp("w"), Adder(), QUICK) as worker:
        yield worker
