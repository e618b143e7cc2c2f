"""Where tensors lie, judged by each format's own library; and files that lie about it."""

from __future__ import annotations

import contextlib
import json
import struct
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packager.delta.formats import ELEMENT_BYTES, Tensor, apart, is_sound, kind_of, read_external, read_tensors
from tests.unit.worker.tiny_models import require_litert

onnx = pytest.importorskip("onnx")
safetensors = pytest.importorskip("safetensors")
safetensors_numpy = pytest.importorskip("safetensors.numpy")
ml_dtypes = pytest.importorskip("ml_dtypes")
RANDOM = np.random.default_rng(5)
SECONDS_MAX = 10
"""An endless loop, not a benchmark."""


def numbers(data: bytes, tensor: Tensor) -> bytes:
    return data[tensor.start : tensor.end]


# -- ONNX --------------------------------------------------------------------------------------------------------------

ONNX_TYPES = {
    "FLOAT": "f32", "UINT8": "u8", "INT8": "i8", "UINT16": "u16", "INT16": "i16", "INT32": "i32", "INT64": "i64",
    "BOOL": "bool", "FLOAT16": "f16", "DOUBLE": "f64", "UINT32": "u32", "UINT64": "u64", "BFLOAT16": "bf16",
    "FLOAT8E4M3FN": "f8e4m3", "FLOAT8E5M2": "f8e5m2",
}  # fmt: skip


def onnx_tensor(name: str, type_name: str, shape: tuple[int, ...]) -> Any:
    number = getattr(onnx.TensorProto, type_name)
    size = int(np.prod(shape)) * ELEMENT_BYTES[ONNX_TYPES[type_name]]
    raw = RANDOM.integers(0, 2 if type_name == "BOOL" else 256, size, dtype=np.uint8).tobytes()
    return onnx.helper.make_tensor(name, number, shape, raw, raw=True)


def onnx_model(*tensors: Any, nodes: tuple[Any, ...] = ()) -> Any:
    graph = onnx.helper.make_graph(list(nodes), "g", [], [], list(tensors))
    return onnx.helper.make_model(graph)


def test_every_type_of_onnx_lies_where_its_library_finds_it(tmp_path: Path) -> None:
    made = [onnx_tensor(f"t{name}", name, (3, 5)) for name in ONNX_TYPES]
    path = tmp_path / "model.onnx"
    onnx.save_model(onnx_model(*made), str(path))
    data, found = path.read_bytes(), {tensor.name: tensor for tensor in read_tensors(path)}
    assert kind_of(path) == "onnx"
    judged = onnx.load(str(path)).graph.initializer
    assert len(judged) == len(found) == len(ONNX_TYPES)
    for held in judged:
        tensor = found[held.name]
        assert tensor.dtype == ONNX_TYPES[onnx.TensorProto.DataType.Name(held.data_type)]
        assert tensor.shape == tuple(held.dims) == (3, 5)
        assert numbers(data, tensor) == onnx.numpy_helper.to_array(held).tobytes()


def test_numbers_in_packed_fields_lie_there_as_they_are(tmp_path: Path) -> None:
    single, double = RANDOM.standard_normal(40).astype(np.float32), RANDOM.standard_normal(40)
    path = tmp_path / "model.onnx"
    onnx.save_model(
        onnx_model(
            onnx.helper.make_tensor("s", onnx.TensorProto.FLOAT, (8, 5), single),
            onnx.helper.make_tensor("d", onnx.TensorProto.DOUBLE, (40,), double),
            onnx.helper.make_tensor("i", onnx.TensorProto.INT64, (3,), [1, 2, 300]),  # of no fixed width: not found
        ),
        str(path),
    )
    data, found = path.read_bytes(), {tensor.name: tensor for tensor in read_tensors(path)}
    assert found.keys() == {"s", "d"}
    assert numbers(data, found["s"]) == single.tobytes()
    assert numbers(data, found["d"]) == double.tobytes()


def test_tensors_of_nodes_and_of_graphs_within_nodes_are_found(tmp_path: Path) -> None:
    constant = onnx.helper.make_node("Constant", [], ["c"], value=onnx_tensor("value", "FLOAT", (9,)))
    inner = onnx.helper.make_graph([constant], "inner", [], [], [onnx_tensor("deep", "INT8", (70,))])
    branch = onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    function = onnx.helper.make_function("d", "f", [], ["c"], [constant], [onnx.helper.make_opsetid("", 20)])
    model = onnx_model(onnx_tensor("top", "FLOAT16", (4,)), nodes=(branch,))
    model.functions.append(function)
    path = tmp_path / "model.onnx"
    onnx.save_model(model, str(path))
    assert sorted(tensor.name for tensor in read_tensors(path)) == ["deep", "deep", "top", "value", "value", "value"]


def test_tensors_in_other_files_are_found_by_their_location(tmp_path: Path) -> None:
    made = [onnx_tensor(f"w{number}", "FLOAT", (64, 3 + number)) for number in range(4)]
    path = tmp_path / "model.onnx"
    expected = {held.name: onnx.numpy_helper.to_array(held).tobytes() for held in made}
    onnx.save_model(onnx_model(*made), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert read_tensors(path) == ()
    found = read_external(path)
    assert found.keys() == {"weights.bin"}
    data = (tmp_path / "weights.bin").read_bytes()
    assert apart(found["weights.bin"], len(data)) == found["weights.bin"]
    assert {tensor.name: numbers(data, tensor) for tensor in found["weights.bin"]} == expected


def test_other_files_have_no_other_files(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"no model at all")
    assert read_external(path) == {}


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + leb(len(content)) + content


def leb(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def test_a_tensor_of_a_million_dimensions_takes_no_time(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    location = field(13, field(1, b"location") + field(2, b"w"))
    shape = field(1, leb(2**62) * 100_000)
    tensor = shape + b"\x10\x01" + location
    path.write_bytes(b"\x08\x0a" + b"\x12\x00" + field(7, field(5, tensor) + field(5, tensor + field(9, b"1234"))))
    began = time.process_time()
    assert read_external(path) == {}
    assert read_tensors(path) == ()
    assert time.process_time() - began < SECONDS_MAX


def test_graphs_within_graphs_end(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    graph = field(5, b"\x08\x02\x10\x01" + field(9, bytes(8)))
    for _ in range(2_000):
        graph = field(1, field(5, field(6, graph)))
    path.write_bytes(b"\x08\x0a" + b"\x12\x00" + field(7, graph))
    assert kind_of(path) == "onnx"
    assert read_tensors(path) == ()


# -- safetensors -------------------------------------------------------------------------------------------------------

SAFE_TYPES = {
    "float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16", "int64": "i64", "uint64": "u64",
    "int32": "i32", "uint32": "u32", "int16": "i16", "uint16": "u16", "int8": "i8", "uint8": "u8", "bool": "bool",
}  # fmt: skip


def safe_bytes() -> bytes:
    arrays = {}
    for name, dtype in SAFE_TYPES.items():
        data = RANDOM.integers(0, 2, 21 * ELEMENT_BYTES[dtype], dtype=np.uint8)
        arrays[name] = data.view(ml_dtypes.bfloat16 if name == "bfloat16" else name).reshape(3, 7)
    return bytes(safetensors_numpy.save(arrays, {"release": "1"}))


def test_every_type_of_safetensors_lies_where_its_library_finds_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safe_bytes())
    data, found = path.read_bytes(), {tensor.name: tensor for tensor in read_tensors(path)}
    judged = dict(safetensors.deserialize(data))
    assert kind_of(path) == "safetensors"
    assert found.keys() == judged.keys() == SAFE_TYPES.keys()
    for name, tensor in found.items():
        assert tensor.dtype == SAFE_TYPES[name]
        assert list(tensor.shape) == list(judged[name]["shape"])
        assert numbers(data, tensor) == bytes(judged[name]["data"])


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"w": []},
        {"w": {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0.0, 8]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [10**30, 10**30 + 8]}},
        {"w": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [1] * 17 + [2], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}},
        {"w": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}},
    ],
)
def test_a_header_that_makes_no_sense_names_no_tensor(header: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    assert read_tensors(path) == ()


def test_headers_that_are_no_json_name_no_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for text in (b"{" * 100_000, b'{"a":' * 100_000, b"{\xff\xfe}", b'{"w": 1' + b"0" * 10_000 + b"}"):
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
        assert read_tensors(path) == ()


# -- TensorFlow Lite ---------------------------------------------------------------------------------------------------

LITE_TYPES = {
    "FLOAT32": "f32", "FLOAT16": "f16", "INT32": "i32", "UINT8": "u8", "INT64": "i64", "BOOL": "bool", "INT16": "i16",
    "INT8": "i8", "FLOAT64": "f64", "UINT64": "u64", "UINT32": "u32", "UINT16": "u16", "BFLOAT16": "bf16",
}  # fmt: skip


def lite_model(subgraphs: int = 1) -> Any:
    """A model of the schema's own classes; every graph has a tensor of each type, in buffers that they share."""
    require_litert()
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT()
    model.version, model.buffers, model.subgraphs = 3, [schema.BufferT()], []
    for dtype in LITE_TYPES.values():
        buffer = schema.BufferT()
        buffer.data = RANDOM.integers(0, 2, 24 * ELEMENT_BYTES[dtype], dtype=np.uint8)
        model.buffers.append(buffer)
    for _ in range(subgraphs):
        graph = schema.SubGraphT()
        graph.tensors = []
        for number, name in enumerate(LITE_TYPES, 1):
            tensor = schema.TensorT()
            tensor.shape, tensor.type, tensor.buffer = [4, 6], getattr(schema.TensorType, name), number
            tensor.name = name
            graph.tensors.append(tensor)
        empty = schema.TensorT()
        empty.shape, empty.type, empty.buffer, empty.name = [1], schema.TensorType.FLOAT32, 0, "input"
        graph.tensors.append(empty)
        model.subgraphs.append(graph)
    return model


def lite_bytes(model: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("subgraphs", [1, 2])
def test_every_type_of_tflite_lies_where_its_schema_finds_it(subgraphs: int, tmp_path: Path) -> None:
    data = lite_bytes(lite_model(subgraphs))
    from ai_edge_litert import schema_py_generated as schema

    path = tmp_path / "model.tflite"
    path.write_bytes(data)
    found = {tensor.name: tensor for tensor in read_tensors(path)}
    assert kind_of(path) == "tflite"
    judge = schema.Model.GetRootAs(data, 0)
    graph = judge.Subgraphs(0)
    assert found.keys() == LITE_TYPES.keys()
    for place in range(graph.TensorsLength() - 1):
        held = graph.Tensors(place)
        tensor = found[held.Name().decode()]
        assert tensor.dtype == LITE_TYPES[tensor.name]
        assert list(tensor.shape) == held.ShapeAsNumpy().tolist()
        assert numbers(data, tensor) == judge.Buffers(held.Buffer()).DataAsNumpy().tobytes()


def test_numbers_behind_the_flatbuffer_are_found(tmp_path: Path) -> None:
    model = lite_model()
    content = RANDOM.bytes(24 * 4)
    model.buffers[1].data, model.buffers[1].offset, model.buffers[1].size = None, 2, len(content)
    model.buffers[1].offset = len(lite_bytes(model))
    path = tmp_path / "model.tflite"
    path.write_bytes(lite_bytes(model) + content)
    found = {tensor.name: tensor for tensor in read_tensors(path)}
    assert numbers(path.read_bytes(), found["FLOAT32"]) == content


def test_one_graph_many_times_over_is_left_at_some_point(tmp_path: Path) -> None:
    """Fifty thousand graphs, which are one, of fifty thousand tensors, which are one: offsets cost four bytes each."""
    count = 50_000
    model = 24
    parts = [struct.pack("<I", model), b"TFL3", struct.pack("<7H2x", 14, 12, 0, 0, 4, 0, 8)]
    graphs = model + 12
    graph_vtable = graphs + 4 + 4 * count
    graph = graph_vtable + 8
    tensors = graph + 8
    tensor_vtable = tensors + 4 + 4 * count
    tensor = tensor_vtable + 4
    parts.append(struct.pack("<iII", model - 8, graphs - model - 4, tensor + 4 - model - 8))
    parts.append(struct.pack("<I", count))
    parts += [struct.pack("<I", graph - (graphs + 4 + 4 * number)) for number in range(count)]
    parts.append(struct.pack("<3H2xiI", 6, 8, 4, graph - graph_vtable, tensors - graph - 4))
    parts.append(struct.pack("<I", count))
    parts += [struct.pack("<I", tensor - (tensors + 4 + 4 * number)) for number in range(count)]
    parts.append(struct.pack("<2HiI", 4, 4, tensor - tensor_vtable, 0))
    path = tmp_path / "model.tflite"
    path.write_bytes(b"".join(parts))
    began = time.process_time()
    assert read_tensors(path) == ()
    assert time.process_time() - began < SECONDS_MAX


# -- whatever the bytes are --------------------------------------------------------------------------------------------


def samples() -> dict[str, bytes]:
    found = {
        "onnx": onnx_model(*(onnx_tensor(name, name, (3, 5)) for name in ONNX_TYPES)).SerializeToString(),
        "safetensors": safe_bytes(),
    }
    with contextlib.suppress(pytest.skip.Exception):
        found["tflite"] = lite_bytes(lite_model(2))
    return found


def look(path: Path, data: bytes) -> None:
    """What is found lies in the file, apart, and nothing is raised."""
    path.write_bytes(data)
    found = read_tensors(path)
    assert all(is_sound(tensor, len(data)) for tensor in found)
    assert all(one.end <= other.start for one, other in pairwise(found))
    for tensors in read_external(path).values():
        assert all(tensor.start <= tensor.end for tensor in tensors)


def test_files_that_are_cut_off_anywhere(tmp_path: Path) -> None:
    for data in samples().values():
        for length in {*range(min(len(data), 64)), *range(0, len(data), max(1, len(data) // 150))}:
            look(tmp_path / "model", data[:length])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_files_with_damaged_bytes(data: st.DataObject, tmp_path: Path) -> None:
    held = samples()
    content = bytearray(held[data.draw(st.sampled_from(sorted(held)))])
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 8]))
    began = time.process_time()
    look(tmp_path / "model", bytes(content))
    assert time.process_time() - began < SECONDS_MAX


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from([b"\x08\x0a\x12\x00", b"\x1c\x00\x00\x00TFL3", b"\x20\0\0\0\0\0\0\0{", b""]), rest=st.binary()
)
def test_any_bytes_at_all(start: bytes, rest: bytes, tmp_path: Path) -> None:
    look(tmp_path / "model", start + rest)


@pytest.mark.parametrize(
    "data", [b"", b"x", b"PK\x03\x04" + bytes(40), b"\x80\x04\x95" + bytes(40), b"print('hi')\n" * 9]
)
def test_what_is_no_model_has_no_tensors(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(data)
    assert kind_of(path) == "opaque"
    assert read_tensors(path) == ()


def test_tensors_over_each_other_are_told_once() -> None:
    over = [Tensor("a", "u8", (8,), 0, 8), Tensor("b", "u8", (8,), 4, 12), Tensor("c", "u8", (4,), 8, 12)]
    assert [tensor.name for tensor in apart(reversed(over), 12)] == ["a", "c"]
    assert [tensor.name for tensor in apart(over, 11)] == ["a"]
