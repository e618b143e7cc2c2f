"""What is read of model files, and what is refused as none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_contract.errors import EdgeError
from edge_contract.tensors import TensorSpec
from packager import protoscan
from packager.signature import check_script, engine_for, merged_signature, read_facts
from tests.unit.packager.support import model_proto, write_external_model, write_model


def refusal(path: Path, engine: str = "onnx") -> EdgeError:
    with pytest.raises(EdgeError) as caught:
        read_facts(path, engine)
    return caught.value


def test_the_signature_and_the_size_of_the_weights_are_read(tmp_path: Path) -> None:
    facts = read_facts(write_model(tmp_path), "onnx")
    assert facts.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    assert facts.outputs == (TensorSpec("y", "FP32", (-1, 3)),)
    assert (facts.parameters, facts.precision) == (12, ("float32",))
    assert facts.notes == {"ir_version": "8", "opset": "ai.onnx:17"}


def test_weights_are_skipped_not_read(tmp_path: Path) -> None:
    path = write_model(tmp_path, weight=np.ones((4096, 256), np.float32))
    assert path.stat().st_size > 4 * 2**20
    skeleton = protoscan.read_skeleton(path)
    assert len(skeleton) < 1000
    assert onnx.ModelProto.FromString(skeleton).graph.initializer[0].dims == [4096, 256]


def test_structure_has_a_bound_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protoscan, "PROTO_KEPT_BYTES_MAX", 64)
    assert refusal(write_model(tmp_path)).code == "artifact.not-a-model"


def test_external_weights_belong_to_the_model(tmp_path: Path) -> None:
    facts = read_facts(write_external_model(tmp_path), "onnx")
    assert facts.extra_files == ("weights/part.bin",)
    assert facts.parameters == 12


def test_missing_external_weights_are_named(tmp_path: Path) -> None:
    path = write_external_model(tmp_path)
    (tmp_path / "weights" / "part.bin").unlink()
    error = refusal(path)
    assert error.code == "config.file-missing"
    assert "weights/part.bin" in error.detail


def test_external_weights_that_end_early_are_not_a_model(tmp_path: Path) -> None:
    path = write_external_model(tmp_path)
    (tmp_path / "weights" / "part.bin").write_bytes(b"\0" * 20)
    assert refusal(path).code == "artifact.not-a-model"


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../b", ""])
def test_external_weights_stay_below_the_model(tmp_path: Path, location: str) -> None:
    proto = onnx.ModelProto.FromString(write_external_model(tmp_path).read_bytes())
    proto.graph.initializer[0].external_data[0].value = location
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert refusal(tmp_path / "model.onnx").code == "artifact.path-unsafe"


def test_external_weights_inside_a_branch_are_found(tmp_path: Path) -> None:
    tensor = TensorProto(name="inner", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "inner.bin"
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["out"], value=tensor)],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [4])],
    )
    proto = model_proto()
    proto.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch))
    (tmp_path / "inner.bin").write_bytes(b"\0" * 16)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert read_facts(tmp_path / "model.onnx", "onnx").extra_files == ("inner.bin",)


@pytest.mark.parametrize("kept", [1, 10, 60, 120, -1])
def test_a_truncated_model_is_not_one(tmp_path: Path, kept: int) -> None:
    path = write_model(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    error = refusal(path)
    assert error.code == "artifact.not-a-model"
    assert "model.onnx" in error.detail


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 a zip", b"\x80\x04\x95 a pickle", b"hello, world", b"\xff" * 64, b"\0" * 64, b"\x0f" * 8],
    ids=["empty", "zip", "pickle", "text", "ones", "zeros", "wire-type"],
)
def test_other_files_are_not_models(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert refusal(path).code == "artifact.not-a-model"


def test_deep_nesting_is_bounded(tmp_path: Path) -> None:
    body = b""
    for _ in range(400):  # a node with an attribute with a graph, again and again
        for tag in (0x32, 0x2A, 0x0A):
            body = _field(tag, body)
    path = tmp_path / "model.onnx"
    path.write_bytes(_field(0x3A, body))
    assert refusal(path).code == "artifact.not-a-model"


def _field(tag: int, body: bytes) -> bytes:
    size, raw = len(body), bytearray([tag])
    while size > 0x7F:
        raw.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(raw) + bytes([size]) + body


def test_an_output_that_is_no_tensor_is_left_out(tmp_path: Path) -> None:
    proto = model_proto()
    proto.graph.output.append(helper.make_tensor_sequence_value_info("sequence", TensorProto.FLOAT, None))
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert [item.name for item in read_facts(tmp_path / "model.onnx", "onnx").outputs] == ["y"]


def test_a_datatype_that_requests_cannot_carry_is_named(tmp_path: Path) -> None:
    proto = model_proto()
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    error = refusal(tmp_path / "model.onnx")
    assert error.code == "config.invalid"
    assert "'x'" in error.detail


def test_long_lists_of_numbers_in_attributes_are_skipped(tmp_path: Path) -> None:
    proto = model_proto()
    proto.graph.node.append(helper.make_node("Trees", ["x"], ["t"], values=[1.5] * 100_000, nodes=list(range(100_000))))
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    assert path.stat().st_size > 500_000
    assert len(protoscan.read_skeleton(path)) < 1000
    assert read_facts(path, "onnx").outputs


def test_quantised_weights_show_in_the_precision(tmp_path: Path) -> None:
    proto = model_proto()
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((3, 3), np.int8), "q"))
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert read_facts(tmp_path / "model.onnx", "onnx").precision == ("float32", "int8")


def test_a_tflite_file_is_known_by_its_mark(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"\x1c\0\0\0TFL2" + b"\0" * 64)
    assert refusal(path, "litert").code == "artifact.not-a-model"


def test_a_broken_tflite_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    path = tmp_path / "model.tflite"
    path.write_bytes(b"\x1c\0\0\0TFL3" + b"\0" * 64)
    assert refusal(path, "litert").code == "artifact.not-a-model"


@pytest.mark.parametrize("text", ["def run(data): return data", "from helpers import run", "run = lambda data: data"])
def test_a_script_defines_run(tmp_path: Path, text: str) -> None:
    path = tmp_path / "score.py"
    path.write_text(text)
    check_script(path)


@pytest.mark.parametrize("text", ["def init(): pass", "def run(data:", "\0", "class run: pass\ndef go(): pass"])
def test_a_script_without_run_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "score.py"
    path.write_text(text)
    assert refusal(path, "script").code == "artifact.not-a-model"


def test_reading_a_script_does_not_run_it(tmp_path: Path) -> None:
    path = tmp_path / "score.py"
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef run(data): return data")
    read_facts(path, "script")
    assert not (tmp_path / "ran").exists()


def test_an_unknown_ending_asks_for_the_engine() -> None:
    with pytest.raises(EdgeError) as caught:
        engine_for(Path("model.pkl"))
    assert caught.value.code == "config.invalid"
    assert ".onnx" in caught.value.hint


def test_a_declared_signature_may_only_fix_what_is_free() -> None:
    read = (TensorSpec("x", "FP32", (-1, 4)),)
    assert merged_signature((TensorSpec("x", "FP32", (8, 4)),), read, "inputs")[0].shape == (8, 4)
    for wrong in (
        TensorSpec("x", "FP32", (-1, 5)),
        TensorSpec("x", "FP32", (-1, -1)),
        TensorSpec("x", "FP64", (-1, 4)),
        TensorSpec("x", "FP32", (4,)),
        TensorSpec("z", "FP32", (-1, 4)),
    ):
        with pytest.raises(EdgeError, match=r"config\.invalid"):
            merged_signature((wrong,), read, "inputs")
