"""What the agent learns of a real worker: counters, latencies, drift; and batches in a real process."""

from __future__ import annotations

import http.client
import json
from pathlib import Path

import pytest

from edge_agent.inference import Tensor
from edge_contract.pipeline import Batching
from edge_contract.runtime import Member
from tests.integration.serving import MODULE, X, serving
from tests.support.net import wait_until
from tests.support.slots import adder, adder_golden, write_slot

pytestmark = pytest.mark.slow

_ROWS = 40


def test_the_agent_learns_how_the_live_model_is(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        golden = adder_golden(10.0, rows=_ROWS)
        slot = write_slot(
            state.slots, [Member("digits", "onnx", "model.onnx")], {"model.onnx": adder(10.0)}, golden=golden
        )
        state.supervisor.ensure(MODULE, *slot)
        before = state.supervisor.health(MODULE)
        assert (before.is_alive, before.requests, before.latencies, before.drift) == (True, 0, (), 0.0)

        # What the author saw, all of it at once: no drift.
        x = golden["digits/input/x"]
        with state.client() as client:
            client.infer("digits", [Tensor("x", "FP32", (_ROWS, 4), x.ravel().tolist())])
            for _ in range(29):
                client.infer("digits", [X])
        after = state.supervisor.health(MODULE)
        assert (after.requests, after.failures, after.nonfinite) == (30, 0, 0)
        assert sum(count for _least_us, count in after.latencies) == 30
        bounds = [least_us for least_us, _count in after.latencies]
        assert bounds == sorted(set(bounds))
        assert 0.0 <= after.drift < 1.5

        # A scene far from what the author saw.
        with state.client() as client:

            def is_drift_seen() -> bool:  # one request in 20 ms is looked at
                client.infer("digits", [Tensor("x", "FP32", (400, 4), [1_000.0] * 1_600)])
                return state.supervisor.health(MODULE).drift > 5

            wait_until(is_drift_seen, 20, what="the drift to show")


def test_inputs_that_are_not_finite_are_not_the_models_fault(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        slot = write_slot(state.slots, [Member("digits", "onnx", "model.onnx")], {"model.onnx": adder(10.0)})
        state.supervisor.ensure(MODULE, *slot)
        document = {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}]
        }
        head = json.dumps(document).encode()
        _path, host, port = state.supervisor.addresses(MODULE)
        connection = http.client.HTTPConnection(host, port, timeout=60)
        headers = {"Inference-Header-Content-Length": str(len(head))}
        connection.request("POST", "/v2/models/digits/infer", head + b"\x00\x00\xc0\x7f" * 4, headers)
        reply = connection.getresponse()
        assert (reply.status, json.loads(reply.read())["code"]) == (400, "model.input-invalid")
        connection.close()
        health = state.supervisor.health(MODULE)
        assert (health.requests, health.failures, health.nonfinite) == (0, 0, 0)


def test_a_bundle_that_asks_for_it_is_batched(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        member = Member("digits", "onnx", "model.onnx", batching=Batching(4, 1_000_000))
        golden = adder_golden(10.0)
        slot = write_slot(state.slots, [member], {"model.onnx": adder(10.0)}, golden=golden)
        state.supervisor.ensure(MODULE, *slot)
        _path, host, port = state.supervisor.addresses(MODULE)
        clients = [http.client.HTTPConnection(host, port, timeout=60) for _ in range(4)]
        for number, client in enumerate(clients):
            tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [number] * 4}
            client.request("POST", "/v2/models/digits/infer", json.dumps({"inputs": [tensor]}))
        for number, client in enumerate(clients):
            assert json.loads(client.getresponse().read())["outputs"][0]["data"] == [number + 10.0] * 4
            client.close()
        connection = http.client.HTTPConnection(host, port, timeout=60)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        batches = [line for line in lines if line.startswith("lighterman_batch_runs_total{")]
        assert len(batches) == 1
        assert 1 <= int(batches[0].rpartition(" ")[2]) < 4
        assert state.supervisor.health(MODULE).requests == 4
