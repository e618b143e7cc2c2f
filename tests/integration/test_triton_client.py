"""NVIDIA's client of the Open Inference Protocol against a worker: every call that is offered, and clean refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from edge_agent.worker.arrays import DTYPES
from edge_agent.worker.engines import Engine
from edge_contract.tensors import TensorSpec
from tests.unit.worker.server import MANIFEST, Adder, Array, Worker, running_worker

pytestmark = pytest.mark.slow

_NUMBERS = [name for name in DTYPES if name != "BYTES"]


class _Echo:
    """Gives every input back under the name `<input>_back`."""

    platform = "test"
    is_concurrent = True
    is_quick = True

    def __init__(self, datatypes: Sequence[str]) -> None:
        self.inputs = tuple(TensorSpec(f"x{number}", name, (-1, -1)) for number, name in enumerate(datatypes))
        self.outputs = tuple(TensorSpec(f"{spec.name}_back", spec.datatype, spec.shape) for spec in self.inputs)

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Compute."""
        names = wanted or [spec.name for spec in self.outputs]
        return {name: inputs[name.removesuffix("_back")] for name in names}


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    engines: dict[str, Engine] = {
        "adder": Adder(),
        **{name: _Echo([name]) for name in DTYPES},
        "two": _Echo(["FP32", "BYTES"]),
    }
    with running_worker(tmp_path, engines) as running:
        yield running


@pytest.fixture
def client(worker: Worker) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{worker.port}", concurrency=4) as made:
        yield made


def _values(datatype: str) -> Array:
    if datatype == "BYTES":
        return np.array([[b"", b"\x00\xff"], [b"strand", "Möwe".encode()]], dtype=object)
    if datatype == "BOOL":
        return np.array([[True, False], [False, True]])
    dtype = DTYPES[datatype]
    if dtype.kind == "f":
        return np.array([[0.5, -1.25], [3, 1024]], dtype=dtype)
    return np.array([[0, 1], [np.iinfo(dtype).max, np.iinfo(dtype).min]], dtype=dtype)


def _input(name: str, array: Array, datatype: str, *, binary: bool = True) -> Any:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def _x(value: float = 1.0) -> Any:
    return _input("x", np.full((1, 2), value, np.float32), "FP32")


def test_the_server_and_its_models_say_what_they_are(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("adder")
    assert client.is_model_ready("adder", "3")
    assert not client.is_model_ready("adder", "2")
    assert not client.is_model_ready("nobody")
    server = client.get_server_metadata()
    assert server["name"] == "lighterman"
    assert {"binary_tensor_data", "model_repository"} <= set(server["extensions"])
    model = client.get_model_metadata("adder", "3")
    assert model["versions"] == ["3"]
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    index = client.get_model_repository_index()
    assert {"name": "adder", "version": "3", "state": "READY", "reason": ""} in index
    assert len(index) == len(DTYPES) + 2


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_datatype_goes_there_and_back_as_binary_data(client: Any, datatype: str) -> None:
    sent = _values(datatype)
    reply = client.infer(datatype, [_input("x0", sent, datatype)])
    got = reply.as_numpy("x0_back")
    assert got.dtype == sent.dtype
    np.testing.assert_array_equal(got, sent)
    assert reply.get_response()["model_version"] == "3"
    assert reply.get_output("x0_back")["datatype"] == datatype


@pytest.mark.parametrize(
    "datatype", [name for name in DTYPES if name != "FP16"]
)  # which the client sends as binary only
def test_every_datatype_goes_there_and_back_as_json(client: Any, datatype: str) -> None:
    sent = np.array([["strand", "Möwe"]], dtype=object) if datatype == "BYTES" else _values(datatype)
    wanted = [triton.InferRequestedOutput("x0_back", binary_data=False)]
    reply = client.infer(datatype, [_input("x0", sent, datatype, binary=False)], outputs=wanted)
    got = reply.as_numpy("x0_back")
    expected = [text.encode() for text in sent.ravel()] if datatype == "BYTES" else sent.ravel().tolist()
    assert [item.encode() if isinstance(item, str) else item for item in got.ravel().tolist()] == expected


def test_half_precision_can_be_answered_as_json(client: Any) -> None:
    wanted = [triton.InferRequestedOutput("x0_back", binary_data=False)]
    reply = client.infer("FP16", [_input("x0", _values("FP16"), "FP16")], outputs=wanted)
    assert reply.get_output("x0_back")["data"] == [0.5, -1.25, 3, 1024]


def test_brain_floats_are_refused_by_name(client: Any) -> None:
    made = _input("x0", np.ones((1, 4), np.float16), "FP16")
    made._datatype = "BF16"  # the client's releases do not agree on how to make one
    with pytest.raises(InferenceServerException, match="BF16"):
        client.infer("FP32", [made])


def test_binary_data_and_json_go_together(client: Any) -> None:
    inputs = [
        _input("x0", np.array([[1.5]], np.float32), "FP32", binary=False),
        _input("x1", np.array([[b"raw"]], object), "BYTES", binary=True),
    ]
    wanted = [
        triton.InferRequestedOutput("x1_back", binary_data=True),
        triton.InferRequestedOutput("x0_back", binary_data=False),
    ]
    reply = client.infer("two", inputs, outputs=wanted, request_id="r-1")
    assert reply.get_response()["id"] == "r-1"
    assert [item["name"] for item in reply.get_response()["outputs"]] == ["x1_back", "x0_back"]
    assert reply.as_numpy("x1_back").tolist() == [[b"raw"]]
    assert reply.as_numpy("x0_back").tolist() == [[1.5]]


def test_versions_timeouts_and_query_parameters(client: Any) -> None:
    assert client.infer("adder", [_x(2)], model_version="3").as_numpy("y").tolist() == [[3, 3]]
    assert client.infer("adder", [_x(2)], timeout=5_000_000, query_params={"a": 1}).as_numpy("y").tolist() == [[3, 3]]
    with pytest.raises(InferenceServerException, match="version 3"):
        client.infer("adder", [_x(2)], model_version="2")


def test_many_requests_are_under_way_at_once(client: Any) -> None:
    pending = [client.async_infer("adder", [_x(value)], request_id=str(value)) for value in range(20)]
    for value, request in enumerate(pending):
        reply = request.get_result()
        assert reply.as_numpy("y").tolist() == [[value + 1, value + 1]]
        assert reply.get_response()["id"] == str(value)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_requests_are_understood(client: Any, coding: str) -> None:
    big = np.random.default_rng(0).random((500, 2)).astype(np.float32)
    for binary in (True, False):
        reply = client.infer(
            "adder",
            [_input("x", big, "FP32", binary=binary)],
            request_compression_algorithm=coding,
            response_compression_algorithm=coding,  # a wish; answers are sent as they are
        )
        np.testing.assert_array_equal(reply.as_numpy("y"), big + np.float32(1))


def test_bodies_made_and_read_without_the_client_fit(client: Any) -> None:
    body, json_size = triton.InferenceServerClient.generate_request_body([_x(4)])
    reply = client._post("v2/models/adder/infer", body, {"Inference-Header-Content-Length": str(json_size)}, None)
    assert reply.status_code == 200
    assert reply.get("Lighterman-Manifest") == str(MANIFEST)
    size = int(reply.get("Inference-Header-Content-Length"))
    parsed = triton.InferenceServerClient.parse_response_body(bytes(reply.read()), header_length=size)
    assert parsed.as_numpy("y").tolist() == [[5, 5]]


_REFUSED: dict[str, Callable[[Any], Any]] = {
    "load": lambda client: client.load_model("adder"),
    "load with a file": lambda client: client.load_model("adder", config="{}", files={"file:1/model.onnx": b"x"}),
    "unload": lambda client: client.unload_model("adder"),
    "shared memory": lambda client: client.register_system_shared_memory("r", "/r", 64),
    "shared memory, its end": lambda client: client.unregister_system_shared_memory("r"),
    "shared memory, all of it": lambda client: client.get_system_shared_memory_status(),
    "memory of a GPU": lambda client: client.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 64),
    "memory of a GPU, all of it": lambda client: client.get_cuda_shared_memory_status(),
    "configuration": lambda client: client.get_model_config("adder"),
    "statistics": lambda client: client.get_inference_statistics("adder"),
    "traces": lambda client: client.get_trace_settings("adder"),
    "traces of all": lambda client: client.update_trace_settings(settings={"trace_rate": "1"}),
    "logging": lambda client: client.get_log_settings(),
}


@pytest.mark.parametrize("what", _REFUSED)
def test_what_is_not_offered_is_refused_and_changes_nothing(client: Any, what: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        _REFUSED[what](client)
    assert caught.value.status() == ("403" if what.startswith(("load", "unload")) else "501")
    assert client.infer("adder", [_x(1)]).as_numpy("y").tolist() == [[2, 2]]


def _shared_input() -> Any:
    made = triton.InferInput("x", [1, 2], "FP32")
    made.set_shared_memory("region", 8)
    return made


def _shared_output() -> Any:
    made = triton.InferRequestedOutput("y")
    made.set_shared_memory("region", 8)
    return made


_NOT_OFFERED: dict[str, Callable[[Any], Any]] = {
    "an input in shared memory": lambda client: client.infer("adder", [_shared_input()]),
    "an output in shared memory": lambda client: client.infer("adder", [_x()], outputs=[_shared_output()]),
    "sequences": lambda client: client.infer("adder", [_x()], sequence_id=7, sequence_start=True),
    "priority": lambda client: client.infer("adder", [_x()], priority=1),
    "classification": lambda client: client.infer(
        "adder", [_x()], outputs=[triton.InferRequestedOutput("y", class_count=1)]
    ),
}


@pytest.mark.parametrize("what", _NOT_OFFERED)
def test_requests_for_more_than_is_offered_are_refused_by_name(client: Any, worker: Worker, what: str) -> None:
    with pytest.raises(InferenceServerException, match="not offered here") as caught:
        _NOT_OFFERED[what](client)
    assert caught.value.status() == "501"
    assert worker.call(lambda: (worker.metrics.requests, worker.metrics.failures)) == (0, 0)


def test_wrong_requests_say_what_is_wrong(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="adder") as caught:
        client.infer("nobody", [_x()])
    assert caught.value.status() == "404"
    with pytest.raises(InferenceServerException, match="FP32") as caught:
        client.infer("adder", [_input("x", np.zeros((1, 2), np.int64), "INT64")])
    assert caught.value.status() == "400"
    with pytest.raises(InferenceServerException, match="no output"):
        client.infer("adder", [_x()], outputs=[triton.InferRequestedOutput("z")])
    with pytest.raises(InferenceServerException, match="'note' is not known"):
        client.infer("adder", [_x()], parameters={"note": "a"})
