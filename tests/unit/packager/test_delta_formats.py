"""Where tensors lie, judged by each format's own library; and files that lie about it: safetensors, TensorFlow Lite."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packager.delta import formats_tflite
from packager.delta.formats import ELEMENT_BYTES, kind_of, read_tensors
from tests.unit.packager.format_files import (
    LITE_TYPES,
    RANDOM,
    SAFE_TYPES,
    assert_same,
    bounded,
    lite_bytes,
    lite_model,
    look,
    numbers,
    safe_arrays,
    safe_file,
    safetensors,
    safetensors_numpy,
)
from tests.unit.worker.tiny_models import require_litert, tflite_adder


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
