"""Where tensors lie, judged by each format's own library; and files that lie about it."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from packager.delta import formats, formats_onnx, formats_tflite
from packager.delta.formats import ELEMENT_BYTES, Tensor, apart, is_sound, kind_of, read_external, read_tensors
from tests.unit.worker.tiny_models import require_litert, tflite_adder

onnx = pytest.importorskip("onnx")
safetensors = pytest.importorskip("safetensors")
safetensors_numpy = pytest.importorskip("safetensors.numpy")
ml_dtypes = pytest.importorskip("ml_dtypes")
RANDOM = np.random.default_rng(5)
SECONDS_MAX = 10
"""An endless loop, not a benchmark."""
MEMORY_BYTES_MAX = 2 * 1024 * 1024
"""What a reader may hold of a file that has next to nothing to find."""
NUMPY_TYPES: dict[str, Any] = {
    "f64": np.float64, "f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16,
    "f8e4m3": ml_dtypes.float8_e4m3fn, "f8e5m2": ml_dtypes.float8_e5m2, "i64": np.int64, "u64": np.uint64,
    "i32": np.int32, "u32": np.uint32, "i16": np.int16, "u16": np.uint16, "i8": np.int8, "u8": np.uint8,
    "bool": np.bool_,
}  # fmt: skip


def numbers(data: bytes, tensor: Tensor) -> bytes:
    return data[tensor.start : tensor.end]


def assert_same(data: bytes, tensor: Tensor, judged: NDArray[Any]) -> None:
    """The span of a tensor, read as its type and shape, is the array that the judge gives."""
    read = np.frombuffer(numbers(data, tensor), NUMPY_TYPES[tensor.dtype]).reshape(tensor.shape)
    assert read.dtype == judged.dtype
    assert read.shape == judged.shape
    assert read.tobytes() == judged.tobytes()


@contextlib.contextmanager
def bounded(memory_bytes_max: int = MEMORY_BYTES_MAX) -> Iterator[None]:
    """What runs within takes neither long nor much memory."""
    tracemalloc.start()
    began = time.process_time()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < SECONDS_MAX
    assert peak < memory_bytes_max


# -- ONNX --------------------------------------------------------------------------------------------------------------

ONNX_TYPES = {
    "FLOAT": "f32", "UINT8": "u8", "INT8": "i8", "UINT16": "u16", "INT16": "i16", "INT32": "i32", "INT64": "i64",
    "BOOL": "bool", "FLOAT16": "f16", "DOUBLE": "f64", "UINT32": "u32", "UINT64": "u64", "BFLOAT16": "bf16",
    "FLOAT8E4M3FN": "f8e4m3", "FLOAT8E5M2": "f8e5m2",
}  # fmt: skip


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + leb(len(content)) + content


def leb(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


HEAD = b"\x08\x0a\x12\x00"
"""The beginning of a ModelProto: its IR version, and a producer without a name."""
BYTE = field(5, b"\x08\x01\x10\x02" + field(8, b"w") + field(9, b"x"))
"""An initializer of one byte."""


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
        assert_same(data, tensor, onnx.numpy_helper.to_array(held))


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


def test_tensors_wherever_a_model_may_keep_them_are_found(tmp_path: Path) -> None:
    constant = onnx.helper.make_node("Constant", [], ["c"], value=onnx_tensor("value", "FLOAT", (9,)))
    inner = onnx.helper.make_graph([constant], "inner", [], [], [onnx_tensor("deep", "INT8", (70,))])
    branch = onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    several = onnx.helper.make_node("Custom", ["x"], ["y"], domain="d")
    held = several.attribute.add(name="tensors", type=onnx.AttributeProto.TENSORS)
    held.tensors.extend([onnx_tensor("one", "INT16", (2,)), onnx_tensor("two", "INT16", (3,))])
    graphs = several.attribute.add(name="graphs", type=onnx.AttributeProto.GRAPHS)
    graphs.graphs.append(onnx.helper.make_graph([], "g", [], [], [onnx_tensor("listed", "INT8", (5,))]))
    model = onnx_model(onnx_tensor("top", "FLOAT16", (4,)), nodes=(branch, several))
    model.functions.append(
        onnx.helper.make_function("d", "f", [], ["c"], [constant], [onnx.helper.make_opsetid("", 20)])
    )
    training = model.training_info.add()
    training.initialization.initializer.append(onnx_tensor("begin", "INT32", (2,)))
    training.algorithm.initializer.append(onnx_tensor("step", "INT32", (2,)))
    path = tmp_path / "model.onnx"
    onnx.save_model(model, str(path))
    assert sorted(tensor.name for tensor in read_tensors(path)) == [
        "begin", "deep", "deep", "listed", "one", "step", "top", "two", "value", "value", "value",
    ]  # fmt: skip


def test_fields_that_are_not_known_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    strange = b"\x79" + b"\xff" * 8 + b"\x7d" + b"\xff" * 4 + b"\x78" + leb(2**64 - 1) + b"\x7a\x03abc"
    tensor = b"\x08\x01\x10\x02" + strange + field(8, b"w" * 5_000) + field(9, b"x")
    path.write_bytes(HEAD + strange + field(7, strange + field(5, tensor)))
    (found,) = read_tensors(path)
    assert numbers(path.read_bytes(), found) == b"x"
    assert found.name == "w" * 1_024


def test_tensors_in_other_files_are_found_by_their_location(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save_model(onnx_model(*(onnx_tensor(name, name, (64, 3)) for name in ONNX_TYPES)), str(path), **options)
    assert read_tensors(path) == ()
    found = read_external(path)
    assert found.keys() == {"weights.bin"}
    data = (tmp_path / "weights.bin").read_bytes()
    assert apart(found["weights.bin"], len(data)) == found["weights.bin"]
    judged = {held.name: onnx.numpy_helper.to_array(held) for held in onnx.load(str(path)).graph.initializer}
    assert judged.keys() == {tensor.name for tensor in found["weights.bin"]} == ONNX_TYPES.keys()
    for tensor in found["weights.bin"]:
        assert tensor.dtype == ONNX_TYPES[tensor.name]
        assert_same(data, tensor, judged[tensor.name])


def outside(name: str, location: str, **entries: str) -> Any:
    """A float32 tensor of two by three in another file."""
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[2, 3])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_parts_of_several_files_are_found_with_and_without_their_length(tmp_path: Path) -> None:
    whole, part = RANDOM.standard_normal(6).astype(np.float32), RANDOM.standard_normal(6).astype(np.float32)
    (tmp_path / "whole.bin").write_bytes(whole.tobytes())
    (tmp_path / "parts.bin").write_bytes(bytes(64) + part.tobytes() + bytes(64))
    path = tmp_path / "model.onnx"
    made = [
        outside("part", "parts.bin", offset="64", length="24", checksum="0"),
        outside("rest", "parts.bin", length="24"),
        outside("whole", "whole.bin"),
    ]
    path.write_bytes(onnx_model(*made).SerializeToString())
    judged = {held.name: onnx.numpy_helper.to_array(held) for held in onnx.load(str(path)).graph.initializer}
    found = read_external(path)
    assert {location: [tensor.name for tensor in tensors] for location, tensors in found.items()} == {
        "parts.bin": ["rest", "part"],
        "whole.bin": ["whole"],
    }
    for location, tensors in found.items():
        for tensor in tensors:
            assert_same((tmp_path / location).read_bytes(), tensor, judged[tensor.name])


def test_a_location_that_a_tensor_no_longer_uses_is_not_looked_at(tmp_path: Path) -> None:
    """What tells where the numbers are is `data_location`; the library looks at nothing else."""
    tensor = outside("w", "gone.bin", offset="8")
    tensor.data_location = onnx.TensorProto.DEFAULT
    tensor.raw_data = RANDOM.bytes(24)
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_model(tensor).SerializeToString())
    (held,) = onnx.load(str(path)).graph.initializer
    (found,) = read_tensors(path)
    assert_same(path.read_bytes(), found, onnx.numpy_helper.to_array(held))
    assert read_external(path) == {}


def test_numbers_in_a_file_that_keeps_them_elsewhere_are_not_its_own(tmp_path: Path) -> None:
    content = RANDOM.bytes(24)
    (tmp_path / "w.bin").write_bytes(content)
    tensor = outside("w", "w.bin")
    tensor.raw_data = bytes(24)
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_model(tensor).SerializeToString())
    (held,) = onnx.load(str(path)).graph.initializer
    assert held.raw_data == content
    assert read_tensors(path) == ()
    (found,) = read_external(path)["w.bin"]
    assert_same(content, found, onnx.numpy_helper.to_array(held))


def test_external_tensors_without_a_location_or_without_numbers_are_none(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    empty = outside("empty", "w.bin")
    empty.dims[:] = [0, 3]
    path.write_bytes(onnx_model(outside("nowhere", ""), empty).SerializeToString())
    assert read_external(path) == {}


@pytest.mark.parametrize("text", ["-8", "1e3", "0x10", " 8", "", "٣", "9" * 16, "8\n"])
def test_offsets_that_are_no_plain_numbers_are_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_model(outside("w", "w.bin", offset=text, length=text)).SerializeToString())
    (tensor,) = read_external(path)["w.bin"]
    assert (tensor.start, tensor.end) == (0, 24)


def test_external_tensors_that_lie_outside_their_file_or_over_another_are_dropped(tmp_path: Path) -> None:
    made = [
        outside("far", "w.bin", offset="9" * 15),
        outside("long", "w.bin", length="9" * 15),
        outside("here", "w.bin", offset="4"),
        outside("over", "w.bin", offset="8"),
    ]
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_model(*made).SerializeToString())
    found = read_external(path)["w.bin"]
    assert len(found) == 4
    assert [tensor.name for tensor in apart(found, 28)] == ["here"]
    assert apart(found, 27) == ()


def test_other_files_have_no_other_files(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"no model at all")
    assert read_external(path) == {}


def test_a_tensor_of_a_million_dimensions_takes_no_time_and_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    outer = b"\x10\x01\x70\x01" + field(13, field(1, b"location") + field(2, b"w"))
    for shape in (field(1, leb(2**62) * 100_000), (b"\x08" + leb(2**62)) * 30_000):
        path.write_bytes(HEAD + field(7, field(5, shape + outer) + field(5, shape + b"\x10\x01" + field(9, b"1234"))))
        with bounded():
            assert read_external(path) == {}
            assert read_tensors(path) == ()


def test_absurd_dimensions_of_an_external_tensor_fit_no_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    tensor = outside("w", "w.bin")
    tensor.dims[:] = [2**63 - 1] * 16
    path.write_bytes(onnx_model(tensor).SerializeToString())
    (found,) = read_external(path)["w.bin"]
    assert apart([found], 2**63) == ()


@pytest.mark.parametrize(
    "dimensions", [[-1, -1], [2**63 - 1, 2], [2**62, 4], [0], [2], [1] * 17], ids=lambda sizes: str(sizes)[:30]
)
def test_a_shape_that_has_not_as_many_bytes_is_no_tensor(dimensions: list[int], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.UINT8, raw_data=b"x")
    good = onnx.TensorProto(name="good", data_type=onnx.TensorProto.UINT8, raw_data=b"x", dims=[1] * 16)
    tensor.dims[:] = dimensions
    path.write_bytes(onnx_model(tensor, good).SerializeToString())
    assert [found.name for found in read_tensors(path)] == ["good"]


@pytest.mark.parametrize(
    "damage",
    [
        b"\x3a" + leb(2**64 - 1),  # longer than any file
        b"\x3a" + leb(2**63),
        b"\x3a" + leb(2**70 - 1),
        b"\x3a" + b"\xff" * 40,  # a number without an end
        b"\x10" + b"\x80" * 10 + b"\x00" + field(7, BYTE),  # one of eleven bytes that is small
        b"\x3a\x7f",
        b"\x3b",  # the beginning of a group
        b"\x3e",  # a kind of field that there is none of
        b"\x3d\x00",  # a fixed number that is cut off
        b"\xff",
    ],
)
def test_what_comes_before_the_damage_is_found(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(HEAD + field(7, BYTE) + damage)
    (tensor,) = read_tensors(path)
    assert numbers(path.read_bytes(), tensor) == b"x"


def nested(depth: int) -> bytes:
    """A model with a graph within a node of a graph, and so on, and a tensor in the innermost."""
    graph = BYTE
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))
    return HEAD + field(7, graph)


def test_graphs_within_graphs_end(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(nested(10))
    assert len(read_tensors(path)) == 1
    path.write_bytes(nested(2_000))
    assert kind_of(path) == "onnx"
    with bounded():
        assert read_tensors(path) == ()


def test_a_walk_ends_after_so_many_fields(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(HEAD + field(7, BYTE + b"\x10\x01" * 1_000 + BYTE))
    assert len(read_tensors(path)) == 2
    monkeypatch.setattr(formats_onnx, "_FIELDS_MAX", 1_000)
    assert len(read_tensors(path)) == 1


# -- safetensors -------------------------------------------------------------------------------------------------------

SAFE_TYPES = {
    "F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "F8_E4M3": "f8e4m3", "F8_E5M2": "f8e5m2", "I64": "i64",
    "U64": "u64", "I32": "i32", "U32": "u32", "I16": "i16", "U16": "u16", "I8": "i8", "U8": "u8", "BOOL": "bool",
}  # fmt: skip


def safe_arrays() -> dict[str, NDArray[Any]]:
    return {
        name: RANDOM.integers(0, 2, 21 * ELEMENT_BYTES[dtype], dtype=np.uint8).view(NUMPY_TYPES[dtype]).reshape(3, 7)
        for name, dtype in SAFE_TYPES.items()
    }


def test_every_type_of_safetensors_lies_where_its_library_finds_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    arrays = safe_arrays()
    path.write_bytes(safetensors_numpy.save(arrays, {"release": "1"}))
    data, found = path.read_bytes(), {tensor.name: tensor for tensor in read_tensors(path)}
    judged = dict(safetensors.deserialize(data))
    assert kind_of(path) == "safetensors"
    assert found.keys() == judged.keys() == SAFE_TYPES.keys()
    for name, tensor in found.items():
        assert judged[name]["dtype"] == name
        assert tensor.dtype == SAFE_TYPES[name]
        assert list(tensor.shape) == list(judged[name]["shape"])
        assert numbers(data, tensor) == bytes(judged[name]["data"])
        assert_same(data, tensor, arrays[name])


def safe_file(path: Path, text: bytes, numbers_bytes: int = 16) -> None:
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(numbers_bytes))


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
    safe_file(path, json.dumps(header).encode())
    assert read_tensors(path) == ()


def test_a_header_that_lies_of_one_tensor_still_names_the_others(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    entries = {
        "__metadata__": {"format": "np"},
        "good": ("U8", [4], [4, 8]),
        "over": ("U8", [4], [6, 10]),
        "twice": ("U8", [4], [4, 8]),
        "longer than its shape": ("U8", [4], [8, 16]),
        "behind the end": ("U8", [4], [14, 18]),
        "into the header": ("U8", [4], [-4, 0]),
        "last": ("U16", [2, 1], [12, 16]),
    }
    header = {
        name: dict(zip(("dtype", "shape", "data_offsets"), entry, strict=True)) if isinstance(entry, tuple) else entry
        for name, entry in entries.items()
    }
    safe_file(path, json.dumps(header).encode())
    start = path.stat().st_size - 16
    assert [(tensor.name, tensor.start - start, tensor.end - start) for tensor in read_tensors(path)] == [
        ("good", 4, 8),
        ("last", 12, 16),
    ]


@pytest.mark.parametrize("length", [0, 1, 2**16, 2**31, 2**63, 2**64 - 1])
def test_a_header_of_another_length_than_it_says_names_no_tensor(length: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    data = safetensors_numpy.save({"w": np.zeros(4, np.uint8)})
    path.write_bytes(struct.pack("<Q", length) + data[8:])
    with bounded():
        assert read_tensors(path) == ()


def test_a_header_longer_than_any_models_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    entry = b'{"w": {"dtype": "U8", "shape": [16], "data_offsets": [0, 16]}'
    safe_file(path, entry + b" " * 16 * 1024 * 1024 + b"}")
    with bounded():
        assert read_tensors(path) == ()
    safe_file(path, entry + b" " * 1024 * 1024 + b"}")
    assert len(read_tensors(path)) == 1


def test_a_name_that_could_not_be_printed_becomes_one_that_can(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safe_file(path, b'{"a\\ud800": {"dtype": "U8", "shape": [16], "data_offsets": [0, 16]}}')
    (tensor,) = read_tensors(path)
    assert tensor.name.encode().startswith(b"a")


def test_headers_that_are_no_json_name_no_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for text in (b"{" * 100_000, b'{"a":' * 100_000, b"{\xff\xfe}", b'{"w": 1' + b"0" * 10_000 + b"}"):
        safe_file(path, text)
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


def test_every_type_of_tflite_lies_where_the_runtime_finds_it(tmp_path: Path) -> None:
    data = lite_bytes(lite_model())
    from ai_edge_litert.interpreter import Interpreter

    path = tmp_path / "model.tflite"
    path.write_bytes(data)
    found = {tensor.name: tensor for tensor in read_tensors(path)}
    judge = Interpreter(model_content=data)
    details = {held["name"]: held for held in judge.get_tensor_details()}
    assert found.keys() == details.keys() - {"input"} == LITE_TYPES.keys()
    for name, tensor in found.items():
        assert_same(data, tensor, judge.get_tensor(details[name]["index"]))


def test_the_constant_of_a_model_that_runs_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(tflite_adder(12.5))
    (tensor,) = read_tensors(path)
    assert tensor.name == "c"
    assert_same(path.read_bytes(), tensor, np.array([12.5], np.float32))


@pytest.mark.parametrize(
    "shape", [[-4, -6], [2**31 - 1] * 16, [1] * 100 + [4, 6], [4, 6] + [1] * 15, [0], [4, 7], [4]], ids=len
)
def test_a_shape_that_does_not_fit_its_buffer_is_no_tensor(shape: list[int], tmp_path: Path) -> None:
    model = lite_model()
    model.subgraphs[0].tensors[0].shape = shape
    model.subgraphs[0].tensors[1].shape = [4, 6] + [1] * 14
    path = tmp_path / "model.tflite"
    path.write_bytes(lite_bytes(model))
    assert {tensor.name for tensor in read_tensors(path)} == LITE_TYPES.keys() - {"FLOAT32"}


def test_one_long_shape_of_many_tensors_takes_no_time(tmp_path: Path) -> None:
    """Like a graph that is met many times: what is shared costs nothing in the file."""
    require_litert()
    import flatbuffers

    builder = flatbuffers.Builder(0)
    content, shape = builder.CreateNumpyVector(np.zeros(8, np.uint8)), builder.CreateNumpyVector(np.ones(200_000, "i4"))

    def table(fields: dict[int, int], number: int = 0) -> int:
        builder.StartObject(5)
        for slot, offset in fields.items():
            builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        if number:
            builder.PrependInt8Slot(1, 3, 0)
            builder.PrependUint32Slot(2, number, 0)
        return int(builder.EndObject())

    def vector(items: list[int]) -> int:
        builder.StartVector(4, len(items), 4)
        for item in reversed(items):
            builder.PrependUOffsetTRelative(item)
        return int(builder.EndVector())

    buffers = vector([table({0: content})] * 1_001)
    tensors = vector([table({0: shape}, number) for number in range(1, 1_001)])
    builder.Finish(table({2: vector([table({0: tensors})]), 4: buffers}), b"TFL3")
    path = tmp_path / "model.tflite"
    path.write_bytes(bytes(builder.Output()))
    with bounded():
        assert read_tensors(path) == ()


def test_buffers_that_lie_elsewhere_than_in_the_file_are_no_tensors(tmp_path: Path) -> None:
    model = lite_model()
    for buffer, offset, dtype in zip(
        model.buffers[1:], [2**64 - 1, 2**64 - 96, 2**63, 0, 1], LITE_TYPES.values(), strict=False
    ):
        buffer.data, buffer.offset, buffer.size = None, offset, 24 * ELEMENT_BYTES[dtype]
    model.buffers[6].data, model.buffers[6].offset, model.buffers[6].size = None, 8, 2**64 - 1
    path = tmp_path / "model.tflite"
    path.write_bytes(lite_bytes(model))
    assert {tensor.name for tensor in read_tensors(path)} == set(list(LITE_TYPES)[6:])


def test_a_table_whose_layout_lies_before_the_file_ends_the_search(tmp_path: Path) -> None:
    data = lite_bytes(lite_model())
    (root,) = struct.unpack_from("<I", data, 0)
    (back,) = struct.unpack_from("<i", data, root)
    # As far before the beginning as it lay before the end, where an index below zero would find it.
    look_like = data[:root] + struct.pack("<i", back + len(data)) + data[root + 4 :]
    assert len(look(tmp_path / "model", data)) == len(LITE_TYPES)
    assert look(tmp_path / "model", look_like) == ()


@pytest.mark.parametrize("value", [2**32 - 1, 2**31, 2**31 - 1, 0x00FFFFFF])
def test_lengths_and_offsets_that_overflow_end_the_search(value: int, tmp_path: Path) -> None:
    """Each four bytes of a file in their turn, whatever they mean."""
    data = lite_bytes(lite_model())
    assert len(look(tmp_path / "model", data)) == len(LITE_TYPES)
    for place in range(0, len(data) - 3, 4):
        look(tmp_path / "model", data[:place] + struct.pack("<I", value) + data[place + 4 :])


def test_numbers_behind_the_flatbuffer_are_found(tmp_path: Path) -> None:
    model = lite_model()
    content = RANDOM.bytes(24 * 4)
    model.buffers[1].data, model.buffers[1].offset, model.buffers[1].size = None, 2, len(content)
    model.buffers[1].offset = len(lite_bytes(model))
    path = tmp_path / "model.tflite"
    path.write_bytes(lite_bytes(model) + content)
    found = {tensor.name: tensor for tensor in read_tensors(path)}
    assert numbers(path.read_bytes(), found["FLOAT32"]) == content


def test_numbers_behind_the_first_four_gigabytes_are_found(tmp_path: Path) -> None:
    model, place = lite_model(), 2**32 + 64
    model.buffers[1].data, model.buffers[1].offset, model.buffers[1].size = None, place, 96
    path = tmp_path / "model.tflite"
    path.write_bytes(lite_bytes(model))
    os.truncate(path, place + 96)  # a hole, which takes no room
    found = {tensor.name: tensor for tensor in read_tensors(path)}
    assert (found["FLOAT32"].start, found["FLOAT32"].end) == (place, place + 96)


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
    with bounded(64 * len(path.read_bytes())):
        assert read_tensors(path) == ()


def test_no_more_buffers_are_looked_at_than_tensors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(lite_bytes(lite_model()))
    monkeypatch.setattr(formats_tflite, "TENSORS_MAX", 3)  # the first buffer is empty
    assert {tensor.name for tensor in read_tensors(path)} == set(list(LITE_TYPES)[:2])


def test_names_are_kept_up_to_a_size_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One name may be that of every tensor."""
    model = lite_model()
    for tensor in model.subgraphs[0].tensors:
        tensor.name = "n" * 5_000
    path = tmp_path / "model.tflite"
    path.write_bytes(lite_bytes(model))
    assert {len(tensor.name) for tensor in read_tensors(path)} == {1_024}
    monkeypatch.setattr(formats_tflite, "_NAMES_BYTES_MAX", 3_000)
    assert sum(len(tensor.name) for tensor in read_tensors(path)) == 3_000
    assert len(read_tensors(path)) == len(LITE_TYPES)


# -- whatever the bytes are --------------------------------------------------------------------------------------------


@functools.cache
def samples() -> dict[str, bytes]:
    found = {
        "onnx": onnx_model(*(onnx_tensor(name, name, (3, 5)) for name in ONNX_TYPES)).SerializeToString(),
        "external": onnx_model(
            *(outside(f"w{number}", "w.bin", offset=str(24 * number), length="24") for number in range(5))
        ).SerializeToString(),
        "safetensors": bytes(safetensors_numpy.save(safe_arrays(), {"release": "1"})),
    }
    with contextlib.suppress(pytest.skip.Exception):
        found["tflite"] = lite_bytes(lite_model(2))
    return found


def sample(kind: str) -> bytes:
    if kind not in samples():
        pytest.skip("no TensorFlow Lite model can be made here")
    return samples()[kind]


def look(path: Path, data: bytes) -> tuple[Tensor, ...]:
    """What is found lies in the file, apart, and nothing is raised."""
    path.write_bytes(data)
    began = time.process_time()
    found, outer = read_tensors(path), read_external(path)
    assert time.process_time() - began < SECONDS_MAX
    for tensor in found:
        size = ELEMENT_BYTES[tensor.dtype] * math.prod(tensor.shape)
        assert 0 <= tensor.start < tensor.end == tensor.start + size <= len(data)
    assert all(one.end <= other.start for one, other in pairwise(found))
    for tensors in outer.values():
        assert all(0 <= tensor.start <= tensor.end for tensor in tensors)
    return found


@pytest.mark.parametrize("kind", ["onnx", "external", "safetensors", "tflite"])
def test_files_that_are_cut_off_anywhere_have_no_tensors_but_their_own(kind: str, tmp_path: Path) -> None:
    data = sample(kind)
    whole = set(look(tmp_path / "model", data))
    assert len(whole) == {"external": 0, "tflite": len(LITE_TYPES)}.get(kind, len(ONNX_TYPES))
    for length in {*range(64), *range(0, len(data), max(1, len(data) // 300)), len(data) - 1}:
        assert whole.issuperset(look(tmp_path / "model", data[:length]))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_files_with_damaged_bytes(data: st.DataObject, tmp_path: Path) -> None:
    held = samples()
    content = bytearray(held[data.draw(st.sampled_from(sorted(held)))])
    value = st.one_of(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 8]), st.integers(0, 255))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(value)
    look(tmp_path / "model", bytes(content))


@pytest.mark.parametrize("kind", ["onnx", "external", "safetensors", "tflite"])
def test_files_with_flipped_bits_and_bytes_put_in_or_left_out(kind: str, tmp_path: Path) -> None:
    random, data = np.random.default_rng(17), sample(kind)
    for way in [0, 1, 2] * 170:
        content = bytearray(data)
        for place in random.integers(0, len(data), random.integers(1, 9)).tolist():
            content[place] ^= 1 << int(random.integers(8))
        place, size = int(random.integers(len(data))), int(random.integers(1, 20))
        if way:
            content[place : place + (size if way == 1 else 0)] = b"" if way == 1 else random.bytes(size)
        look(tmp_path / "model", bytes(content))


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


@pytest.mark.parametrize(
    "data",
    [
        b"TFL3" + bytes(60),  # the mark in another place
        b"\x1c\0\0\0TFL4" + bytes(60),
        struct.pack("<Q", 80) + b"{" + bytes(71),  # a header as long as the file
        struct.pack("<Q", 20) + b"[" + bytes(71),
        struct.pack("<Q", 0),
        b"\x08",
        b"\x08\x0a",
        b"\x08\x0a\x3b" + bytes(60),
        b"\x0a\x08\x12\x00" + bytes(60),
        bytes(64),
    ],
)
def test_what_only_resembles_a_model_is_opaque(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(data)
    assert kind_of(path) == "opaque"
    assert read_tensors(path) == ()
    assert read_external(path) == {}


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("tflite", b"\x1c\0\0\0TFL3"),
        ("tflite", b"\x1c\0\0\0TFL3" + bytes(90)),
        ("safetensors", b"\x09\0\0\0\0\0\0\0{" + b" " * 9),
        ("onnx", b"\x08\x0a\x12"),
        ("onnx", b"\x08\x0a\x3a\x00"),
    ],
)
def test_a_beginning_alone_has_no_tensors(kind: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(data)
    assert kind_of(path) == kind
    assert read_tensors(path) == ()
    assert read_external(path) == {}


@pytest.mark.parametrize("ask", [kind_of, read_tensors, read_external])
def test_a_file_that_cannot_be_read_is_told(ask: Callable[[Path], object], tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(OSError, match=re.escape(str(path))):
            ask(path)


@pytest.mark.parametrize("kind", ["onnx", "safetensors", "tflite"])
def test_so_many_tensors_are_found_and_no_more(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = sample(kind)
    monkeypatch.setattr(formats, "TENSORS_MAX", 3)
    assert len(look(tmp_path / "model", data)) == 3


def test_so_many_tensors_of_other_files_are_found_and_no_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(sample("external"))
    assert len(read_external(path)["w.bin"]) == 5
    monkeypatch.setattr(formats, "TENSORS_MAX", 3)
    assert len(read_external(path)["w.bin"]) == 3


@given(
    places=st.lists(st.tuples(st.integers(-4, 40), st.integers(-2, 12), st.integers(0, 2)), max_size=12),
    file_bytes=st.integers(0, 40),
)
def test_tensors_that_are_left_lie_apart_and_none_is_left_out_without_need(
    places: list[tuple[int, int, int]], file_bytes: int
) -> None:
    tensors = [Tensor("", "u8", (size + (more == 2),), start, start + size) for start, size, more in places]
    found = apart(tensors, file_bytes)
    assert all(one.end <= other.start for one, other in pairwise(found))
    for tensor in tensors:
        sound = 0 <= tensor.start < tensor.end <= file_bytes and tensor.shape == (tensor.end - tensor.start,)
        assert is_sound(tensor, file_bytes) == sound
        over = any(tensor.start < other.end and other.start < tensor.end for other in found)
        assert over if sound else tensor not in found, tensor  # over itself, where it was left


def test_tensors_over_each_other_are_told_once() -> None:
    over = [Tensor("a", "u8", (8,), 0, 8), Tensor("b", "u8", (8,), 4, 12), Tensor("c", "u8", (4,), 8, 12)]
    assert [tensor.name for tensor in apart(reversed(over), 12)] == ["a", "c"]
    assert [tensor.name for tensor in apart(over, 11)] == ["a"]
    same = [Tensor("long", "u8", (8,), 0, 8), Tensor("short", "u8", (4,), 0, 4)]
    assert [tensor.name for tensor in apart(same, 8)] == ["short"]
