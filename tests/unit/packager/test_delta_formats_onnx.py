"""Where tensors lie in ONNX files and beside them, judged by ONNX's own library; and files that lie about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from packager.delta import formats_onnx
from packager.delta.formats import apart, kind_of, read_external, read_tensors
from tests.unit.packager.format_files import (
    BYTE,
    HEAD,
    ONNX_TYPES,
    RANDOM,
    assert_same,
    bounded,
    field,
    leb,
    nested,
    numbers,
    onnx,
    onnx_model,
    onnx_tensor,
    outside,
)


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
