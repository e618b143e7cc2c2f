"""Micro-batching: requests computed together answer as if each had been alone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edge_agent.worker.batching import Batcher
from edge_agent.worker.limits import WorkerLimits
from edge_contract.errors import EdgeError
from edge_contract.pipeline import Batching
from edge_contract.tensors import TensorSpec
from tests.unit.worker.server import Adder, Array, infer_bytes, read_reply, running_worker

FAR_NS = 1 << 62
PATIENT_US = 10_000_000


class Noting(Adder):
    """Adds, and notes how many rows each run had. Rows that are negative are an error."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        super().__init__(1.0, gate)
        self.rows: list[int] = []

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        self.rows.append(len(inputs["x"]))
        if (inputs["x"] < 0).any():
            raise EdgeError("model.inference-failed", "a negative row")
        return super().run(inputs, wanted)


def _x(value: float, rows: int = 1, columns: int = 2) -> dict[str, Array]:
    return {"x": np.full((rows, columns), value, np.float32)}


def _batcher(engine: Adder, rows_max: int = 4, wait_us: int = PATIENT_US, waiting_max: int = 64) -> Batcher:
    return Batcher("m", lambda: engine, Batching(rows_max, wait_us), waiting_max)


def test_requests_that_come_together_are_computed_together_and_answered_apart() -> None:
    engine = Noting()
    batcher = _batcher(engine)
    futures = [batcher.submit(_x(value), (), FAR_NS) for value in range(4)]
    assert [future.result(10)["y"].tolist() for future in futures] == [[[v + 1] * 2] for v in range(4)]
    assert engine.rows == [4]
    assert (batcher.requests, batcher.runs) == (4, 1)


def test_requests_of_several_rows_get_their_own_rows_back() -> None:
    engine = Noting()
    batcher = _batcher(engine, rows_max=6)
    futures = [batcher.submit(_x(rows, rows), (), FAR_NS) for rows in (1, 2, 3)]
    assert [future.result(10)["y"].shape for future in futures] == [(1, 2), (2, 2), (3, 2)]
    assert [float(future.result()["y"][0, 0]) for future in futures] == [2, 3, 4]
    assert engine.rows == [6]


def test_a_request_waits_no_longer_than_the_bundle_says() -> None:
    batcher = _batcher(Noting(), wait_us=20_000)
    begun = time.monotonic()
    batcher.submit(_x(1), (), FAR_NS).result(10)
    assert 0.015 < time.monotonic() - begun < 5


def test_the_deadline_of_any_request_of_a_batch_is_respected() -> None:
    batcher = _batcher(Noting())
    now_ns = time.monotonic_ns()
    patient = batcher.submit(_x(1), (), FAR_NS)
    hurried = batcher.submit(_x(2), (), now_ns + 300_000_000)
    assert hurried.result(10)["y"].tolist() == [[3, 3]]
    assert patient.result(10)["y"].tolist() == [[2, 2]]
    assert time.monotonic_ns() - now_ns < PATIENT_US * 1000 / 2


def test_a_request_whose_time_was_up_is_not_computed() -> None:
    engine = Noting(gate := threading.Event())
    batcher = _batcher(engine, rows_max=2, wait_us=0)
    first = batcher.submit(_x(1), (), FAR_NS)
    assert engine.started.acquire(timeout=10)
    late = batcher.submit(_x(2), (), time.monotonic_ns())
    gate.set()
    assert first.result(10)["y"].tolist() == [[2, 2]]
    with pytest.raises(EdgeError) as caught:
        late.result(10)
    assert caught.value.code == "model.timeout"
    assert engine.rows == [1]


def test_an_error_of_one_request_fails_no_other() -> None:
    engine = Noting()
    futures = list(map(_batcher(engine).submit, [_x(1), _x(-5), _x(3), _x(4)], [()] * 4, [FAR_NS] * 4))
    answers: list[float | str] = []
    for future in futures:
        try:
            answers.append(float(future.result(10)["y"][0, 0]))
        except EdgeError as error:
            answers.append(error.code)
    assert answers == [2, "model.inference-failed", 4, 5]
    assert engine.rows == [4, 1, 1, 1, 1]


class _Squasher(Noting):
    """Gives one row, however many came."""

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        self.rows.append(len(inputs["x"]))
        return {"y": inputs["x"].sum(axis=0, keepdims=True)}


def test_a_model_that_mixes_rows_is_computed_request_by_request() -> None:
    engine = _Squasher()
    batcher = _batcher(engine, rows_max=2)
    futures = [batcher.submit(_x(value), (), FAR_NS) for value in (1, 2)]
    assert [future.result(10)["y"].tolist() for future in futures] == [[[1, 1]], [[2, 2]]]


def test_requests_that_differ_in_anything_but_rows_are_not_joined() -> None:
    engine = Noting()
    batcher = _batcher(engine, rows_max=2, wait_us=50_000)
    futures = [
        batcher.submit(_x(1), (), FAR_NS),
        batcher.submit(_x(1, columns=3), (), FAR_NS),
        batcher.submit({"x": np.ones((1, 3), np.float64)}, (), FAR_NS),
        batcher.submit({"x": np.ones((1, 3), np.float64)}, ("y",), FAR_NS),
    ]
    for future in futures:
        future.result(10)
    assert engine.rows == [1, 1, 1, 1]


def test_a_request_larger_than_a_batch_is_computed_alone() -> None:
    engine = Noting()
    batcher = _batcher(engine, rows_max=4, wait_us=50_000)
    futures = [batcher.submit(_x(1, rows), (), FAR_NS) for rows in (9, 1)]
    assert [len(future.result(10)["y"]) for future in futures] == [9, 1]
    assert engine.rows == [9, 1]


def test_those_who_wait_are_bounded_and_cancelled_ones_are_left_out() -> None:
    engine = Noting(gate := threading.Event())
    batcher = _batcher(engine, rows_max=2, wait_us=0, waiting_max=2)
    first = batcher.submit(_x(1), (), FAR_NS)
    assert engine.started.acquire(timeout=10)
    waiting = [batcher.submit(_x(value), (), FAR_NS) for value in (2, 3)]
    with pytest.raises(EdgeError) as caught:
        batcher.submit(_x(4), (), FAR_NS)
    assert caught.value.code == "model.overloaded"
    assert waiting[0].cancel()
    gate.set()
    assert first.result(10)["y"].tolist() == [[2, 2]]
    assert waiting[1].result(10)["y"].tolist() == [[4, 4]]
    assert engine.rows == [1, 1]


class _Dense(Adder):
    """A layer whose sums depend on the order of additions, so on how many rows are multiplied at once."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = (TensorSpec("x", "FP32", (-1, 64)),)
        self.weights = np.random.default_rng(5).normal(size=(64, 16)).astype(np.float32)

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        return {"y": np.tanh(inputs["x"] @ self.weights)}


def test_batched_results_are_those_of_single_requests_within_rounding() -> None:
    engine = _Dense()
    batcher = _batcher(engine, rows_max=32, wait_us=20_000)
    rows = np.random.default_rng(6).normal(size=(100, 1, 64)).astype(np.float32)
    futures = [batcher.submit({"x": row}, (), FAR_NS) for row in rows[:60]]
    for row, future in zip(rows, futures, strict=False):
        np.testing.assert_allclose(future.result(10)["y"], engine.run({"x": row}, ())["y"], rtol=1e-4, atol=1e-5)
    assert batcher.runs < 60


def test_clients_of_both_lanes_share_a_batch(tmp_path: Path) -> None:
    engine = Noting()
    with (
        running_worker(tmp_path, engine, batching=Batching(4, PATIENT_US)) as worker,
        ThreadPoolExecutor(2) as threads,
        worker.connect() as one,
        worker.connect() as two,
    ):
        now_ns = time.monotonic_ns()
        others = [threads.submit(worker.service.compute, "m", _x(value), (), now_ns) for value in (10, 20)]
        one.sendall(infer_bytes(1))
        two.sendall(infer_bytes(2))
        for sock, value in ((one, 2), (two, 3)):
            reply = read_reply(sock)
            assert reply is not None
            assert json.loads(reply.body)["outputs"][0]["data"] == [value, value]
        assert [future.result()["y"].tolist() for future in others] == [[[11, 11]], [[21, 21]]]
        assert engine.rows == [4]
        assert worker.call(lambda: worker.metrics.requests) == 4


def test_a_wrong_request_does_not_enter_a_batch(tmp_path: Path) -> None:
    engine = Noting()
    with running_worker(tmp_path, engine, batching=Batching(2, 1_000)) as worker, worker.connect() as sock:
        sock.sendall(infer_bytes(1).replace(b'"x"', b'"z"'))
        reply = read_reply(sock)
        assert reply is not None
        assert reply.status == 400
        sock.sendall(infer_bytes(-1))
        reply = read_reply(sock)
        assert reply is not None
        assert (reply.status, json.loads(reply.body)["code"]) == (500, "model.inference-failed")
        assert worker.call(lambda: (worker.metrics.requests, worker.metrics.failures)) == (1, 1)
        assert engine.rows == [1]


def test_nothing_waits_where_the_bundle_does_not_say_so(tmp_path: Path) -> None:
    engine = Noting()
    with running_worker(tmp_path, engine) as worker, worker.connect() as sock:
        for value in range(3):
            sock.sendall(infer_bytes(value))
            assert read_reply(sock) is not None
        assert engine.rows == [1, 1, 1]


def test_a_batch_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    engine = Noting(gate := threading.Event())
    limits = WorkerLimits(request_run_ms=100)
    with running_worker(tmp_path, engine, limits, batching=Batching(2, 0)) as worker, worker.connect() as sock:
        sock.sendall(infer_bytes(1))
        reply = read_reply(sock)
        gate.set()
        assert reply is not None
        assert (reply.status, json.loads(reply.body)["code"]) == (504, "model.timeout")
