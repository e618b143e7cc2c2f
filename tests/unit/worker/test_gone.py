"""Clients that leave before their answer, and a worker that nobody asks anything."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

from edge_agent.inference_pool import InferencePool
from edge_agent.worker.limits import WorkerLimits
from tests.support.net import wait_until
from tests.unit.worker.frame_peer import key_of
from tests.unit.worker.server import Adder, Worker, infer_bytes, read_reply, running_worker


def _cancelled(worker: Worker) -> int:
    return worker.call(lambda: worker.metrics._counts["m"]["cancelled"])


def _busy(worker: Worker, engine: Adder) -> list[socket.socket]:
    """Connections whose requests keep every thread of the model busy."""
    socks = [worker.connect() for _ in range(2)]
    for sock in socks:
        sock.sendall(infer_bytes(1))
        assert engine.started.acquire(timeout=5)
    return socks


def test_a_request_whose_client_left_while_it_waited_is_never_computed(tmp_path: Path) -> None:
    gate = threading.Event()
    engine = Adder(gate=gate)
    with running_worker(tmp_path, engine) as worker:
        busy = _busy(worker, engine)
        for connect in (worker.connect, worker.connect_tcp):
            sock = connect()
            sock.sendall(infer_bytes(7))
            wait_until(lambda: worker.call(lambda: worker.service.waiting) == 3, 5)
            sock.close()
            wait_until(lambda: worker.call(lambda: worker.service.waiting) == 2, 5, what="its place to be free again")
        assert _cancelled(worker) == 2
        gate.set()
        for sock in busy:
            reply = read_reply(sock)
            assert reply is not None
            assert reply.status == 200
            sock.close()
        assert not engine.started.acquire(blocking=False)
        assert worker.call(lambda: worker.metrics.requests) == 2


def test_a_client_that_left_while_its_request_ran_is_counted(tmp_path: Path) -> None:
    gate = threading.Event()
    engine = Adder(gate=gate)
    with running_worker(tmp_path, engine) as worker:
        for sock in _busy(worker, engine):
            sock.close()
        wait_until(lambda: worker.call(lambda: worker.door.connections) == 0, 5)
        gate.set()
        wait_until(lambda: _cancelled(worker) == 2, 5)
        assert worker.call(lambda: worker.metrics.requests) == 0
        assert worker.call(lambda: worker.metrics.failures) == 0


def test_the_next_request_behind_one_that_runs_is_no_sign_of_leaving(tmp_path: Path) -> None:
    gate = threading.Event()
    engine = Adder(gate=gate)
    with running_worker(tmp_path, engine) as worker, worker.connect() as sock:
        sock.sendall(infer_bytes(1))
        assert engine.started.acquire(timeout=5)
        sock.sendall(infer_bytes(2))
        gate.set()
        for _ in range(2):
            reply = read_reply(sock)
            assert reply is not None
            assert reply.status == 200
        assert _cancelled(worker) == 0


def test_what_timed_out_in_the_queue_is_not_computed_later(tmp_path: Path) -> None:
    gate = threading.Event()
    engine = Adder(gate=gate)
    with running_worker(tmp_path, engine, WorkerLimits(request_run_ms=50)) as worker:
        busy = _busy(worker, engine)
        with worker.connect() as sock:
            sock.sendall(infer_bytes(7))
            reply = read_reply(sock)
            assert reply is not None
            assert reply.status == 504
        wait_until(lambda: worker.call(lambda: worker.service.waiting) == 2, 5)
        gate.set()
        for sock in busy:
            sock.close()
        wait_until(lambda: worker.call(lambda: worker.service.waiting) == 0, 5)
        assert not engine.started.acquire(blocking=False)


def test_with_nobody_connected_the_worker_sleeps(tmp_path: Path) -> None:
    """No timer is left after the last HTTP connection, and connections of frames need none."""
    limits = WorkerLimits(sweep_ms=5)
    with running_worker(tmp_path, Adder(), limits) as worker, InferencePool(worker.path) as pool:
        assert worker.door._sweeper is None
        with worker.connect() as http:
            http.sendall(infer_bytes(1))
            assert read_reply(http) is not None
            assert worker.call(lambda: worker.door._sweeper is not None)
        wait_until(lambda: worker.call(lambda: worker.door._sweeper is None), 5)
        pool.infer_arrays({"x": [[1, 2]]}, "m")
        with worker.connect() as frames:
            key_of(frames)
            wait_until(lambda: worker.call(lambda: worker.door._sweeper is None), 5)
            before = time.process_time()
            time.sleep(0.5)  # there is nothing to wait for: that is what is measured
            assert time.process_time() - before < 0.05
