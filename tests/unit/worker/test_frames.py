"""Frames: the bytes as the document says, every datatype there and back, signatures that change, nothing else taken."""

from __future__ import annotations

import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.frames import DESCRIBE, ERROR, NAMED, PREFIX, STALE, Layout
from edge_agent.inference import InferenceClient, Tensor
from edge_agent.inference_pool import InferencePool
from edge_contract.errors import EdgeError
from edge_contract.tensors import ITEM_BYTES, TensorSpec
from tests.support.net import wait_until
from tests.unit.worker.frame_peer import Mirror, frame, key_of, read_frame, receive, rows_of, value_of
from tests.unit.worker.server import MANIFEST, Adder, running_worker

X = np.array([[1.0, 2.0]], dtype=np.float32)
DTYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "u2", "UINT32": "u4", "UINT64": "u8", "INT8": "i1", "INT16": "i2",
    "INT32": "i4", "INT64": "i8", "FP16": "f2", "FP32": "f4", "FP64": "f8",
}  # fmt: skip


def test_the_bytes_are_those_of_the_document(tmp_path: Path) -> None:
    """The example of docs/frames.md, put together by hand."""
    with running_worker(tmp_path, Adder()) as worker, worker.connect() as sock:
        key = key_of(sock)
        request = (
            b"\xf5LM\x01" + b"\x02\x00" + b"\x02\x00" + struct.pack("<IIQ", 18, 250, 7) + struct.pack("<QQ", key, 1)
            + struct.pack("<II", 1, 0) + struct.pack("<ff", 1, 2) + b"r1"
        )  # fmt: skip
        sock.sendall(request)
        assert receive(sock, 80) == (
            b"\xf5LM\x01" + b"\x82\x00\x00\x00" + struct.pack("<IIQ", 16, 0, 7) + struct.pack("<Q", 3)
            + bytes.fromhex(MANIFEST.hex) + struct.pack("<II", 1, 0) + struct.pack("<ff", 2, 3)
        )  # fmt: skip


def test_a_description_says_what_a_client_needs(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder()) as worker, worker.connect() as sock:
        sock.sendall(frame(kind=DESCRIBE, number=5))
        reply = read_frame(sock)
        assert reply is not None
        assert (reply.number, reply.version, reply.manifest.hex()) == (5, 3, MANIFEST.hex)
        about = reply.document
        assert (about["module"], about["model"], about["version"], about["manifest"]) == (
            "line", "digits", 3, str(MANIFEST),
        )  # fmt: skip
        (model,) = about["models"]
        assert (model["name"], model["aliases"], model["platform"]) == ("m", ["line"], "test")
        assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
        assert model["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}]


def test_several_frames_at_once_are_answered_in_order(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder()) as worker, worker.connect() as sock:
        key = key_of(sock)
        requests = [frame(rows_of((value, 0)), key=key, number=value) for value in range(1, 200)]
        sock.sendall(b"".join(requests))
        for value in range(1, 200):
            reply = read_frame(sock)
            assert reply is not None
            assert (reply.number, value_of(reply)) == (value, value + 1)


def test_a_frame_in_single_bytes(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder()) as worker, worker.connect() as sock:
        key = key_of(sock)
        for byte in frame(rows_of((1, 2)), key=key):
            sock.sendall(bytes((byte,)))
        assert value_of(read_frame(sock)) == 2


def test_http_and_frames_share_the_socket_and_the_counters(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder()) as worker, InferenceClient(worker.path) as client:
        worker.sampler.set_ratio(1.0)
        assert client.infer_arrays({"x": X}, "m", request_id="äpfel")["y"].tolist() == [[2.0, 3.0]]
        assert client.metadata("m")["versions"] == ["3"]
        assert worker.call(lambda: worker.metrics.requests) == 1
        assert worker.call(lambda: worker.door.connections) == 2
        assert worker.call(lambda: worker.door.frame_connections) == 1
        assert worker.sampler.flush(5_000)
        assert [record["body"]["request_id"] for record in worker.samples] == ["äpfel"]
        assert worker.samples[0]["body"]["outputs"]["y"]["data"] == [2.0, 3.0]


# --- datatypes and shapes


def _arrays(spec: TensorSpec) -> st.SearchStrategy[Any]:
    """Any array that fits: every bit pattern of the type."""
    sizes = [st.integers(0, 4) if size == -1 else st.just(size) for size in spec.shape]

    @st.composite
    def draw(pull: Any) -> Any:
        shape = tuple(pull(size) for size in sizes)
        count = int(np.prod(shape, dtype=int))
        if spec.datatype == "BYTES":
            array = np.empty(count, dtype=object)
            array[:] = pull(st.lists(st.binary(max_size=9), min_size=count, max_size=count))
            return array.reshape(shape)
        size = count * ITEM_BYTES[spec.datatype]
        raw = pull(st.binary(min_size=size, max_size=size))
        if spec.datatype == "BOOL":
            raw = bytes(byte & 1 for byte in raw)
        return np.frombuffer(raw, dtype=DTYPES[spec.datatype]).reshape(shape)

    return draw()


@st.composite
def _specs(draw: Any) -> list[TensorSpec]:
    datatypes = draw(st.lists(st.sampled_from([*DTYPES, "BYTES"]), min_size=1, max_size=5))
    shapes = st.lists(st.sampled_from([-1, 0, 1, 2, 3]), max_size=3).map(tuple)
    return [TensorSpec(f"t{place}", datatype, draw(shapes)) for place, datatype in enumerate(datatypes)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(specs=_specs(), declares_outputs=st.booleans(), data=st.data())
def test_any_tensors_come_back_as_they_went(
    tmp_path: Path, specs: list[TensorSpec], declares_outputs: bool, data: st.DataObject
) -> None:
    path = tmp_path / "w.sock"
    path.unlink(missing_ok=True)
    engine = Mirror(*specs, declares_outputs=declares_outputs)
    with running_worker(tmp_path, engine, allow_nonfinite=True) as worker, InferenceClient(worker.path) as client:
        for _ in range(2):
            arrays = {spec.name: data.draw(_arrays(spec)) for spec in specs}
            outputs = client.infer_arrays(arrays, "m")
            assert list(outputs) == [f"out_{spec.name}" for spec in specs]
            for spec in specs:
                sent, got = arrays[spec.name], outputs[f"out_{spec.name}"]
                assert got.shape == sent.shape
                if spec.datatype == "BYTES":
                    assert got.tolist() == sent.tolist()
                else:
                    assert (got.dtype, got.tobytes()) == (sent.dtype, sent.tobytes())
                    assert got.flags.writeable
            assert outputs.manifest == MANIFEST
        assert client._frames is not None, "frames were spoken all the way"


@given(data=st.binary(max_size=64), specs=_specs())
def test_no_table_of_sizes_is_too_odd(data: bytes, specs: list[TensorSpec]) -> None:
    layout = Layout(specs)
    try:
        plan = layout.find(data)
    except EdgeError:
        return
    ends = [layout.table_bytes]
    for place in plan.places:
        assert place.start % 8 == 0
        assert ends[-1] <= place.start <= place.end
        ends.append(place.end)
    assert plan.size == ends[-1]
    assert plan.table == data[: layout.table_bytes]


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("BOOL", [True, False]),
        ("INT8", [-1, 2]),
        ("UINT64", [2**64 - 1, 0]),
        ("FP16", [1.5, -2.0]),
        ("FP64", [0.1, 3.0]),
        ("BYTES", ["ä", ""]),
    ],
)
def test_lists_do_without_numpy(tmp_path: Path, datatype: str, values: list[Any]) -> None:
    engine = Mirror(TensorSpec("x", datatype, (-1,)))
    with running_worker(tmp_path, engine) as worker, InferenceClient(worker.path) as client:
        got = client.infer("m", [Tensor("x", datatype, (2,), values)])
        assert got.outputs["out_x"].data == values
        raw = client.infer("m", [Tensor("x", datatype, (2,), values)], is_binary=True).outputs["out_x"].data
        assert client.infer("m", [Tensor("x", datatype, (2,), raw)]).outputs["out_x"].data == values


def test_wanted_outputs_alone_come_back(tmp_path: Path) -> None:
    specs = [TensorSpec(name, "INT64", (1,)) for name in "abc"]
    with running_worker(tmp_path, Mirror(*specs)) as worker, InferenceClient(worker.path) as client:
        inputs = {name: np.array([number]) for number, name in enumerate("abc")}
        assert list(client.infer_arrays(inputs, "m", ["out_c", "out_a"])) == ["out_a", "out_c"]
        with pytest.raises(EdgeError, match="out_z"):
            client.infer_arrays(inputs, "m", ["out_z"])


# --- what a client gets wrong


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": np.array([[1, 2]])},
        {"x": np.array([1, 2], dtype=np.float32)},
        {"x": np.zeros((1, 3), dtype=np.float32)},
        {"z": X},
        {"x": X, "z": X},
        {"x": [["a", "b"]]},
        {},
    ],
    ids=["type", "rank", "size", "name", "one more", "no numbers", "none"],
)
@pytest.mark.parametrize("is_unix", [True, False])
def test_inputs_that_do_not_fit_are_refused_and_the_connection_goes_on(
    tmp_path: Path, inputs: dict[str, Any], is_unix: bool
) -> None:
    with (
        running_worker(tmp_path, Adder()) as worker,
        InferenceClient(worker.path if is_unix else ("127.0.0.1", worker.port)) as client,
    ):
        with pytest.raises(EdgeError) as caught:
            client.infer_arrays(inputs, "m")
        assert caught.value.code == "model.input-invalid"
        assert client.infer_arrays({"x": [[1, 2]]}, "line")["y"].tolist() == [[2.0, 3.0]]


def test_a_number_that_would_change_is_not_sent(tmp_path: Path) -> None:
    engine = Mirror(TensorSpec("x", "INT32", (1,)))
    with running_worker(tmp_path, engine) as worker, InferenceClient(worker.path) as client:
        with pytest.raises(EdgeError, match="would change"):
            client.infer_arrays({"x": [1.5]}, "m")
        assert client.infer_arrays({"x": [1.0]}, "m")["out_x"].tolist() == [1]


def test_a_model_nobody_has_is_said_as_over_http(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder()) as worker, InferenceClient(worker.path) as client:
        with pytest.raises(EdgeError) as caught:
            client.infer_arrays({"x": X}, "other")
        assert caught.value.code == "model.not-serving"


def test_a_signature_that_is_old_is_answered_with_the_new_one(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder()) as worker, worker.connect() as sock:
        sock.sendall(frame(rows_of((1, 2)), key=12345, number=9))
        reply = read_frame(sock)
        assert reply is not None
        assert (reply.kind, reply.number) == (STALE, 9)
        key = int(reply.document["models"][0]["key"], 16)
        sock.sendall(frame(rows_of((1, 2)), key=key))
        assert value_of(read_frame(sock)) == 2
        assert worker.call(lambda: worker.metrics.requests) == 1


def test_nan_is_the_models_fault_and_counts(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder(float("nan"))) as worker, InferenceClient(worker.path) as client:
        with pytest.raises(EdgeError) as caught:
            client.infer_arrays({"x": X}, "m")
        assert caught.value.code == "model.output-invalid"
        assert worker.call(lambda: worker.metrics.failures) == 1


def test_a_deadline_that_passes_before_the_turn_comes(tmp_path: Path) -> None:
    gate = threading.Event()
    engine = Adder(gate=gate)
    engine.is_quick = True  # in the connection's own thread, two at once
    with running_worker(tmp_path, engine) as worker, InferencePool(worker.path) as pool:
        busy = [threading.Thread(target=pool.infer_arrays, args=({"x": X}, "m"), daemon=True) for _ in range(2)]
        for thread in busy:
            thread.start()
            assert engine.started.acquire(timeout=5)
        with pytest.raises(EdgeError) as caught:
            pool.infer_arrays({"x": X}, "m", deadline_ms=20)
        assert caught.value.code == "model.timeout"
        gate.set()
        for thread in busy:
            thread.join(5)
        assert worker.call(lambda: worker.metrics.requests) == 2
        assert worker.call(lambda: worker.metrics.failures) == 0


def test_a_client_that_leaves_while_it_waits_is_not_computed(tmp_path: Path) -> None:
    gate = threading.Event()
    engine = Adder(gate=gate)
    engine.is_quick = True
    with running_worker(tmp_path, engine) as worker, InferencePool(worker.path) as pool:
        busy = [threading.Thread(target=pool.infer_arrays, args=({"x": X}, "m"), daemon=True) for _ in range(2)]
        for thread in busy:
            thread.start()
            assert engine.started.acquire(timeout=5)
        with worker.connect() as sock:
            sock.sendall(frame(rows_of((1, 2)), key=key_of(sock)))
            wait_until(lambda: worker.service._served["m"].turns.waiting == 1, 5)
        gate.set()
        for thread in busy:
            thread.join(5)
        wait_until(lambda: worker.call(lambda: worker.metrics._counts["m"]["cancelled"]) == 1, 5)
        assert not engine.started.acquire(blocking=False)


def test_outputs_that_break_the_signature_come_with_their_names(tmp_path: Path) -> None:
    class Odd(Adder):
        def run(self, inputs: Any, wanted: Any) -> Any:
            return {"y": inputs["x"].astype(np.float64).sum(axis=1)}

    with running_worker(tmp_path, Odd()) as worker:
        with worker.connect() as sock:
            sock.sendall(frame(rows_of((1, 2)), key=key_of(sock)))
            reply = read_frame(sock)
            assert reply is not None
            assert reply.flags == NAMED
        with InferenceClient(worker.path) as client:
            for _ in range(3):
                y = client.infer_arrays({"x": X}, "m")["y"]
                assert (y.dtype.name, y.tolist()) == ("float64", [3.0])
        assert worker.call(lambda: worker.metrics.requests) == 4, "each is computed once"


def test_an_unknown_kind_is_refused_and_the_connection_goes_on(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder()) as worker, worker.connect() as sock:
        sock.sendall(frame(b"what is this?", kind=0x66, number=4))
        reply = read_frame(sock)
        assert reply is not None
        assert (reply.kind, reply.number, reply.code) == (ERROR, 4, "model.input-invalid")
        sock.sendall(frame(rows_of((1, 2)), key=key_of(sock), prefix=PREFIX))
        assert value_of(read_frame(sock)) == 2
