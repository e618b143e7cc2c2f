"""Telemetry of predictions: the right share, within its bounds, never in the way."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.worker.limits import SAMPLE_ELEMENTS_MAX, SAMPLES_PER_S_MAX, SAMPLES_WAITING_MAX
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
