"""Telemetry of predictions: the right share, within its bounds, never in the way."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_agent.worker.limits import (
    SAMPLE_CPU_SHARE_MAX,
    SAMPLE_CUT_ELEMENTS,
    SAMPLE_ELEMENTS_MAX,
    SAMPLES_PER_S_MAX,
    SAMPLES_WAITING_MAX,
)
from edge_agent.worker.sampler import Cut, Sampler, Taken, make_body
from edge_contract.digest import Digest
from edge_contract.jsonio import JsonObject, dump
from edge_contract.limits import SAMPLE_BYTES_MAX, TENSORS_MAX
from edge_contract.telemetry import Sample
from tests.unit.worker.server import Adder, infer_bytes, read_reply, running_worker


def _taken(inputs: Any, outputs: Any) -> Taken:
    return Taken("m", inputs, outputs, 120, "id")


def test_a_prediction_becomes_a_valid_record(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder()) as worker, worker.connect() as sock:
        worker.sampler.set_ratio(1)
        sock.sendall(infer_bytes(1.1))
        assert read_reply(sock) is not None
        assert worker.sampler.flush(5_000)
        (record,) = worker.samples
        sample = Sample.from_json({**record, "seq": 1})
        assert (sample.kind, sample.module, sample.model, sample.version) == ("prediction", "line", "digits", 3)
        # FP32 as short as it reads back, not as the wider number that Python makes of it.
        assert sample.body["inputs"]["x"] == {"datatype": "FP32", "shape": [1, 2], "data": [1.1, 1.1]}
        assert sample.body["outputs"]["y"]["data"] == [2.1, 2.1]
        assert sample.body["latency_us"] > 0


@pytest.mark.parametrize(("ratio", "low", "high"), [(0.0, 0, 0), (1.0, 400, 400), (0.25, 60, 140)])
def test_the_share_is_as_asked(ratio: float, low: int, high: int) -> None:
    sampler = Sampler("line", "digits", 1, Digest.of(b""), lambda _records: None)
    sampler.set_ratio(ratio)
    assert low <= sum(sampler.wants() for _ in range(400)) <= high


def test_no_more_than_so_many_a_second() -> None:
    sampler = Sampler("line", "digits", 1, Digest.of(b""), lambda _records: None)
    sampler.set_ratio(1)
    wanted = sum(sampler.wants() for _ in range(5 * SAMPLES_PER_S_MAX))
    assert SAMPLES_PER_S_MAX <= wanted <= 2 * SAMPLES_PER_S_MAX  # the test may run across the turn of a second
    assert sampler.dropped == 5 * SAMPLES_PER_S_MAX - wanted


def test_an_agent_that_does_not_keep_up_costs_samples_and_nothing_else() -> None:
    gate = threading.Event()
    delivered: list[JsonObject] = []

    def deliver(records: Any) -> None:
        gate.wait(10)
        delivered.extend(records)

    sampler = Sampler("line", "digits", 1, Digest.of(b""), deliver)
    x = {"x": np.zeros(2, np.float32)}
    count = 4 * SAMPLES_WAITING_MAX
    for _ in range(count):
        sampler.offer_tensors("m", x, x, 1, "")
    dropped = sampler.dropped
    assert dropped > 0
    gate.set()
    assert sampler.flush(10_000)
    assert len(delivered) == count - dropped


def test_a_large_tensor_is_cut_and_says_so() -> None:
    image = np.arange(150_528, dtype=np.float32).reshape(1, 3, 224, 224)
    body = make_body(_taken({"image": Cut.of(image)}, {"y": Cut.of(np.ones(10, np.float32))}))
    assert len(dump(body)) <= SAMPLE_BYTES_MAX
    kept = body["inputs"]["image"]
    assert kept["truncated"] is True
    assert kept["shape"] == [1, 3, 224, 224]
    assert kept["data"] == list(range(len(kept["data"])))
    assert len(kept["data"]) <= SAMPLE_ELEMENTS_MAX
    assert "truncated" not in body["outputs"]["y"]


def test_as_many_tensors_as_there_can_be_stay_within_the_bound() -> None:
    wide = {f"tensor {n}": Cut.of(np.full(5000, -1.2345678e-30, np.float64)) for n in range(TENSORS_MAX)}
    text = {f"text {n}": Cut.of(np.array([b"x" * 100_000] * 2, dtype=object)) for n in range(TENSORS_MAX)}
    assert len(dump(make_body(_taken(wide, text)))) <= SAMPLE_BYTES_MAX


def test_values_json_does_not_have_become_null() -> None:
    body = make_body(_taken({"x": Cut.of(np.array([np.nan, np.inf, 1], np.float32))}, {}))
    assert body["inputs"]["x"]["data"] == [None, None, 1.0]


def test_any_json_of_a_script_is_kept_when_it_fits() -> None:
    body = make_body(_taken({"text": "hello"}, {"score": np.float32(0.5), "all": np.arange(3)}))
    assert body["inputs"] == {"json": {"text": "hello"}}
    assert body["outputs"] == {"json": {"score": 0.5, "all": [0, 1, 2]}}
    large = make_body(_taken("x" * 1_000_000, {}))
    assert large["inputs"] == {"truncated": True, "bytes": 1_000_002}
    json.dumps(large)


def test_what_is_not_json_is_dropped_and_counted() -> None:
    delivered: list[JsonObject] = []
    sampler = Sampler("line", "digits", 1, Digest.of(b""), delivered.extend)
    sampler.offer_json("m", {"a": {1, 2}}, {}, 1, "")
    sampler.offer_json("m", {}, {}, 1, "")
    assert sampler.flush(5_000)
    assert (len(delivered), sampler.dropped) == (1, 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numbers_are_short_and_read_back_as_they_were(dtype: type) -> None:
    numbers = np.random.default_rng(1)
    with np.errstate(over="ignore"):
        values: Any = np.concatenate(
            [numbers.standard_normal(300), numbers.standard_normal(300) * 1e30, [0.1, 1 / 3, 16777216.0, 65504.0, -0.0]]
        ).astype(dtype)
    values = values[np.isfinite(values)]
    body = make_body(Taken("m", {"x": Cut.of(values)}, {"y": Cut.of(values)}, 1, ""))
    data = json.loads(json.dumps(body))["inputs"]["x"]["data"]
    assert np.array_equal(np.array(data).astype(dtype), values)
    assert data[-5] == 0.1 or dtype is np.float16


def test_what_json_cannot_say_is_left_out() -> None:
    values = np.array([1.5, np.nan, np.inf, -np.inf], np.float32)
    body = make_body(Taken("m", {"x": Cut.of(values)}, {"y": Cut.of(values)}, 1, ""))
    assert body["inputs"]["x"]["data"] == [1.5, None, None, None]


def test_of_a_large_tensor_less_is_kept_than_of_a_small_one() -> None:
    small, large = np.zeros(SAMPLE_ELEMENTS_MAX, np.float32), np.zeros(SAMPLE_ELEMENTS_MAX + 1, np.float32)
    assert Cut.of(small).array.size == SAMPLE_ELEMENTS_MAX
    assert Cut.of(large).array.size == SAMPLE_CUT_ELEMENTS


def test_making_samples_takes_no_more_processor_time_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that costs a second is made as long as the burst lasts, and then dropped until time has passed."""
    sampler = Sampler("line", "digits", 1, Digest.of(b""), lambda _records: None)
    clock = {"now": time.monotonic(), "cpu": 0.0}

    def make(_taken: Taken) -> Any:
        clock["cpu"] += 1.0
        return {}

    monkeypatch.setattr(sampler, "_make", make)
    monkeypatch.setattr(
        "edge_agent.worker.sampler.time",
        SimpleNamespace(
            monotonic=lambda: clock["now"], thread_time=lambda: clock["cpu"], sleep=time.sleep, time_ns=time.time_ns
        ),
    )
    taken = Taken("m", 1, 1, 1, "")
    assert [sampler._record(taken) is not None for _ in range(4)] == [True, False, False, False]
    assert sampler.dropped == 3
    clock["now"] += 1.0 / SAMPLE_CPU_SHARE_MAX  # what the first one took beyond the burst is earned, and a little more
    assert [sampler._record(taken) is not None for _ in range(2)] == [True, False]


def test_small_samples_are_bounded_by_their_number_alone() -> None:
    """A collector that was away gets every prediction of a small model, however fast they came."""
    delivered: list[JsonObject] = []
    sampler = Sampler("line", "digits", 1, Digest.of(b""), delivered.extend)
    sampler._budget_s = -1.0
    small, large = Cut.of(np.zeros(8, np.float32)), Cut.of(np.zeros(SAMPLE_ELEMENTS_MAX, np.float32))
    assert sampler._record(Taken("m", {"x": small}, {"y": small}, 1, "")) is not None
    assert sampler._record(Taken("m", {"x": large}, {"y": small}, 1, "")) is None
    assert sampler.dropped == 1
