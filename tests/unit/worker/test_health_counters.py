"""What a worker counts for probation and for monitoring: latencies, answers that are not finite, drift, metrics."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from edge_agent.worker.bundle import LoadedMember
from edge_agent.worker.drift import Drift
from edge_agent.worker.limits import DRIFT_INTERVAL_MS, DRIFT_ROWS_MIN
from edge_agent.worker.metrics import Latencies, Metrics
from edge_contract.errors import EdgeError
from edge_contract.pipeline import Batching
from tests.support.require import require_program
from tests.unit.worker.server import Adder, Array, Worker, infer_bytes, read_reply, running_worker

_STEP_NS = DRIFT_INTERVAL_MS * 1_000_000


def test_every_latency_lies_in_a_bucket_that_begins_at_most_an_eighth_below_it() -> None:
    numbers = random.Random(7)
    for us in [*range(300), *(numbers.randrange(2 ** numbers.randrange(1, 27)) for _ in range(3_000))]:
        latencies = Latencies()
        latencies.add(us)
        ((least_us, count),) = latencies.to_pairs()
        assert count == 1
        assert least_us <= us <= max(1, least_us * 9 / 8)


def test_buckets_ascend_and_lose_nothing() -> None:
    latencies = Latencies()
    for us in [0, 1, 2, 16, 17, 1_000, 1_000_000, 10**9, 10**12]:
        latencies.add(us)
    pairs = latencies.to_pairs()
    assert pairs == sorted(pairs)
    assert sum(count for _least_us, count in pairs) == latencies.count == 9


def test_latencies_of_all_models_are_put_together() -> None:
    metrics = Metrics(["a", "b"])
    metrics.count("a", "ok", 10)
    metrics.count("b", "failed", 10)
    metrics.count("b", "invalid", 10)
    assert metrics.latencies().to_pairs() == [(10, 2)]


class _Divider(Adder):
    """Divides by `x`."""

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return {"y": np.float32(1) / inputs["x"]}


def _binary(values: Sequence[float]) -> bytes:
    data = np.array(values, dtype="<f4").tobytes()
    document = (
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}],'
        b'"parameters":{"binary_data_output":true}}'
    )
    length = f"Inference-Header-Content-Length: {len(document)}\r\nContent-Length: {len(document) + 8}\r\n"
    return f"POST /v2/models/m/infer HTTP/1.1\r\nHost: d\r\n{length}\r\n".encode() + document + data


def _status(worker: Worker, request: bytes) -> int:
    with worker.connect() as sock:
        sock.sendall(request)
        reply = read_reply(sock)
        assert reply is not None
        return reply.status


def test_an_answer_that_is_not_finite_is_the_models_fault_only_for_finite_inputs(tmp_path: Path) -> None:
    with running_worker(tmp_path, _Divider()) as worker:
        assert _status(worker, _binary([1, 2])) == 200
        assert _status(worker, _binary([0, 2])) == 500
        assert worker.call(lambda: (worker.metrics.requests, worker.metrics.failures)) == (2, 1)
        assert worker.call(lambda: worker.metrics.nonfinite) == 1
        assert _status(worker, _binary([float("nan"), 2])) == 400
        assert worker.call(lambda: (worker.metrics.requests, worker.metrics.nonfinite)) == (2, 1)


def test_the_same_is_counted_for_other_lanes(tmp_path: Path) -> None:
    with running_worker(tmp_path, _Divider()) as worker:
        for value, code in ((0.0, "model.output-invalid"), (np.nan, "model.input-invalid")):
            with pytest.raises(EdgeError) as caught:
                worker.service.compute("m", {"x": np.full((1, 2), value, np.float32)}, (), 0)
            assert caught.value.code == code
        assert worker.metrics.nonfinite == 1


def test_outputs_that_are_meant_to_be_infinite_are_not_counted(tmp_path: Path) -> None:
    with running_worker(tmp_path, _Divider(), allow_nonfinite=True) as worker:
        assert _status(worker, _binary([0, 2])) == 200
        assert worker.call(lambda: worker.metrics.nonfinite) == 0


# --- drift

_GOLDEN = np.random.default_rng(1).normal([0.0, 5.0, -3.0], [1.0, 2.0, 0.5], (200, 3)).astype(np.float32)


def _drift_of(rows: Array, golden: Array = _GOLDEN) -> float:
    drift = Drift({"y": golden})
    for number, row in enumerate(rows):
        drift.look({"y": row[None]}, (number + 1) * _STEP_NS)
    return drift.value


def test_a_model_that_goes_on_as_it_was_has_little_drift() -> None:
    live = np.random.default_rng(2).normal([0.0, 5.0, -3.0], [1.0, 2.0, 0.5], (400, 3))
    assert _drift_of(live) < 0.2


def test_drift_is_how_many_deviations_the_outputs_moved() -> None:
    moved = _GOLDEN + 1.5 * _GOLDEN.std(axis=0)
    assert _drift_of(moved) == pytest.approx(1.5, rel=1e-3)


def test_drift_shows_when_one_class_takes_the_place_of_another() -> None:
    numbers = np.random.default_rng(3)
    golden = np.eye(4, dtype=np.float32)[numbers.integers(0, 4, 100)]
    stuck = np.eye(4)[np.zeros(100, dtype=int)]  # the mean over all elements is the same
    assert _drift_of(golden, golden) < 1e-6
    assert _drift_of(stuck, golden) > 0.7


def test_nothing_is_said_of_too_few_rows_of_flat_outputs_or_without_golden_ones() -> None:
    assert _drift_of(_GOLDEN[: DRIFT_ROWS_MIN - 1] + 100) == 0.0
    assert _drift_of(_GOLDEN + 100, _GOLDEN[: DRIFT_ROWS_MIN - 1]) == 0.0
    assert _drift_of(_GOLDEN + 100, np.ones((50, 3), np.float32)) == 0.0
    without = Drift()
    without.look({"y": _GOLDEN}, 1 << 62)
    assert without.value == 0.0


def test_drift_is_sampled_and_takes_no_harm_from_odd_outputs() -> None:
    drift = Drift({"y": _GOLDEN})
    for _ in range(1_000):
        drift.look({"y": _GOLDEN[:1] + 100}, 5)  # all in one moment: one is looked at
    assert drift.value == 0.0
    odd = [
        np.full((20, 3), np.nan),
        np.zeros((20, 7)),
        np.array([[b"x"]], dtype=object),
        np.zeros((0, 3)),
        np.zeros(()),
    ]
    for number, array in enumerate(odd):
        drift.look({"y": array, "z": _GOLDEN}, 10**12 * (number + 1))
    assert drift.value == 0.0


def test_drift_bounds_what_it_looks_at() -> None:
    drift = Drift({"y": _GOLDEN})
    drift.look({"y": np.tile(_GOLDEN, (1_000, 1))}, 1)
    output = drift._outputs["y"]
    assert output.count <= 4_096 // 3


# --- metrics


@pytest.mark.system
def test_promtool_finds_nothing_wrong_with_the_metrics(tmp_path: Path) -> None:
    promtool = require_program("promtool")
    with running_worker(tmp_path, {"m": Adder(), "other": Adder()}, batching=Batching(4, 0)) as worker:
        for value in range(5):
            assert _status(worker, infer_bytes(value)) == 200
        with worker.connect() as sock:
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: d\r\n\r\n")
            reply = read_reply(sock)
        assert reply is not None
    checked = subprocess.run([promtool, "check", "metrics"], input=reply.body, capture_output=True, timeout=60)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
    assert b"lighterman_batched_requests_total" in reply.body


def test_a_loaded_member_knows_no_drift_without_golden_vectors() -> None:
    assert LoadedMember("m", Adder()).drift.value == 0.0
