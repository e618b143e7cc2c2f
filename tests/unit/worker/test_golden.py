"""Loading and proving a bundle: right models pass, each kind of wrong one is refused with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.worker.bundle import load_bundle, prove_bundle
from edge_agent.worker.golden import Proof
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.runtime import GOLDEN_PATH, Member
from edge_contract.tensors import TensorSpec
from tests.support.scripts import python_as_before
from tests.support.slots import adder, adder_golden, adder_slot, onnx_model, write_slot
from tests.unit.worker.tiny_models import KINDS, Kind

Array = NDArray[Any]


@pytest.fixture(autouse=True)
def _python_as_before() -> Iterator[None]:
    with python_as_before():
        yield


def _prove(slot: Path) -> Proof | None:
    return prove_bundle(load_bundle(slot))


def _refused(slot: Path) -> EdgeError:
    with pytest.raises(EdgeError) as caught:
        _prove(slot)
    return caught.value


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.engine)
def test_every_engine_proves_the_same_outputs(tmp_path: Path, kind: Kind) -> None:
    golden = adder_golden(10, member="m")
    _manifest, slot = write_slot(tmp_path, [kind.member()], {kind.entry: kind.make()}, golden=golden)
    proof = _prove(slot)
    assert proof is not None
    assert proof.error_max == 0
    assert proof.digest == Digest.of(golden["m/output/y"].tobytes())


def test_a_model_with_a_fixed_batch_is_proved_piece_by_piece(tmp_path: Path) -> None:
    files = {"model.onnx": adder(1, batch=1)}
    golden = adder_golden(1, rows=3)
    _manifest, slot = write_slot(tmp_path, [Member("digits", "onnx", "model.onnx")], files, golden=golden)
    proof = _prove(slot)
    assert proof is not None
    assert proof.digest == Digest.of(golden["digits/output/y"].tobytes())


def test_a_difference_within_the_tolerance_passes_and_is_reported(tmp_path: Path) -> None:
    golden = adder_golden(1)
    golden["digits/output/y"] = golden["digits/output/y"] + np.float32(5e-5)
    _manifest, slot = write_slot(
        tmp_path, [Member("digits", "onnx", "model.onnx")], {"model.onnx": adder(1)}, golden=golden
    )
    proof = _prove(slot)
    assert proof is not None
    assert 4e-5 < proof.error_max < 6e-5


def test_wrong_outputs_are_refused_with_tensor_and_largest_error(tmp_path: Path) -> None:
    _manifest, slot = write_slot(
        tmp_path, [Member("digits", "onnx", "model.onnx")], {"model.onnx": adder(1.5)}, golden=adder_golden(1)
    )
    error = _refused(slot)
    assert error.code == "model.golden-mismatch"
    assert "'y'" in error.detail
    assert "12 of 12 elements" in error.detail
    assert "largest error is 0.5 " in error.detail


def test_a_label_that_is_one_off_is_wrong_whatever_the_tolerance(tmp_path: Path) -> None:
    def build(helper: Any) -> tuple[list[Any], list[Any], list[Any]]:
        node = helper.make_node("Add", ["n", "c"], ["label"])
        shape = ["batch"]
        return (
            [node],
            [helper.make_tensor_value_info("n", 7, shape)],
            [helper.make_tensor_value_info("label", 7, shape)],
        )

    files = {"model.onnx": onnx_model(build, {"c": np.array(1, dtype=np.int64)})}
    n = np.array([10_000, 20_000], dtype=np.int64)
    golden = {"digits/input/n": n, "digits/output/label": n + 2}
    _manifest, slot = write_slot(tmp_path, [Member("digits", "onnx", "model.onnx")], files, golden=golden)
    assert _refused(slot).code == "model.golden-mismatch"


def test_nan_where_the_author_saw_a_number_is_invalid_output(tmp_path: Path) -> None:
    _manifest, slot = write_slot(
        tmp_path, [Member("digits", "onnx", "model.onnx")], {"model.onnx": adder(float("nan"))}, golden=adder_golden(1)
    )
    assert _refused(slot).code == "model.output-invalid"


def test_nan_where_the_author_saw_nan_is_right(tmp_path: Path) -> None:
    nan = float("nan")
    _manifest, slot = write_slot(
        tmp_path, [Member("digits", "onnx", "model.onnx")], {"model.onnx": adder(nan)}, golden=adder_golden(nan)
    )
    proof = _prove(slot)
    assert proof is not None
    assert proof.error_max == 0


def test_without_golden_vectors_a_model_that_gives_nan_is_refused_unless_it_is_meant(tmp_path: Path) -> None:
    files = {"model.onnx": adder(float("nan"))}
    _manifest, slot = write_slot(tmp_path / "a", [Member("digits", "onnx", "model.onnx")], files)
    error = _refused(slot)
    assert error.code == "model.output-invalid"
    assert "golden" in error.hint
    meant = Member("digits", "onnx", "model.onnx", options={"allow_nonfinite": "true"})
    _manifest, slot = write_slot(tmp_path / "b", [meant], files)
    assert _prove(slot) is None


def test_without_golden_vectors_a_good_model_is_warm_and_measured(tmp_path: Path) -> None:
    _manifest, slot = adder_slot(tmp_path, 1, golden=False)
    bundle = load_bundle(slot)
    assert prove_bundle(bundle) is None
    assert bundle.members["digits"].run_us > 0


def test_a_script_that_refuses_made_up_inputs_is_not_held_to_them(tmp_path: Path) -> None:
    source = b"def run(data):\n    raise ValueError('only real images')\n"
    x = TensorSpec("x", "FP32", (1, 4))
    _manifest, slot = write_slot(tmp_path, [Member("m", "script", "score.py", inputs=(x,))], {"score.py": source})
    assert _prove(slot) is None


def test_members_are_proved_together_in_order_of_their_names(tmp_path: Path) -> None:
    members = [Member("b", "onnx", "b.onnx"), Member("a", "onnx", "a.onnx")]
    golden = {**adder_golden(2, member="b"), **adder_golden(1, member="a")}
    _manifest, slot = write_slot(tmp_path, members, {"a.onnx": adder(1), "b.onnx": adder(2)}, golden=golden)
    proof = _prove(slot)
    assert proof is not None
    assert proof.digest == Digest.of(golden["a/output/y"].tobytes() + golden["b/output/y"].tobytes())


_X = np.zeros((2, 4), dtype=np.float32)


@pytest.mark.parametrize(
    "golden",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"digits/input/x": _X}, id="no outputs"),
        pytest.param({"digits/output/y": _X}, id="no inputs"),
        pytest.param({"digits/input/z": _X, "digits/output/y": _X}, id="other input"),
        pytest.param({"digits/input/x": _X, "digits/output/z": _X}, id="other output"),
        pytest.param({"other/input/x": _X, "other/output/y": _X}, id="other member"),
        pytest.param({"digits/input/x": _X.astype(np.float64), "digits/output/y": _X}, id="other datatype"),
        pytest.param({"digits/input/x": _X[:, :3], "digits/output/y": _X}, id="other shape"),
        pytest.param({"digits/x": _X}, id="other names"),
        pytest.param({"digits/input/": _X}, id="empty name"),
    ],
)
def test_golden_vectors_that_do_not_fit_are_the_publishers_mistake(tmp_path: Path, golden: Mapping[str, Array]) -> None:
    _manifest, slot = write_slot(
        tmp_path, [Member("digits", "onnx", "model.onnx")], {"model.onnx": adder(0)}, golden=golden
    )
    assert _refused(slot).code == "artifact.golden-invalid"


def test_a_golden_output_of_another_shape_is_a_mismatch(tmp_path: Path) -> None:
    golden = {"digits/input/x": _X, "digits/output/y": _X[:1]}
    _manifest, slot = write_slot(
        tmp_path, [Member("digits", "onnx", "model.onnx")], {"model.onnx": adder(0)}, golden=golden
    )
    assert _refused(slot).code == "model.golden-mismatch"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[:-1], id="a byte short"),
        pytest.param(lambda data: data + b"x", id="a byte long"),
        pytest.param(lambda data: b"\xff" * 8 + data[8:], id="endless header"),
        pytest.param(lambda _data: b"", id="empty"),
    ],
)
def test_a_damaged_golden_file_is_refused(tmp_path: Path, damage: Any) -> None:
    _manifest, slot = adder_slot(tmp_path, 1)
    path = slot / "files" / GOLDEN_PATH
    path.write_bytes(damage(path.read_bytes()))
    assert _refused(slot).code == "artifact.golden-invalid"


@pytest.mark.parametrize("missing", ["slot.json", "files/lighterman/runtime.json", "files/model.onnx"])
def test_a_slot_that_lacks_a_file_is_refused(tmp_path: Path, missing: str) -> None:
    _manifest, slot = adder_slot(tmp_path, 1)
    (slot / missing).unlink()
    assert _refused(slot).code == "model.load-failed"


# --- text


def _text_slot(folder: Path, want: list[bytes]) -> Path:
    from packager.golden import to_safetensors

    text = TensorSpec("text", "BYTES", (-1,))
    source = b"def run(data):\n    return {'loud': [item.upper() for item in data['text']]}\n"
    member = Member("m", "script", "score.py", (text,), (TensorSpec("loud", "BYTES", (-1,)),))
    _manifest, slot = write_slot(folder, [member], {"score.py": source}, golden={})
    vectors = {"m/input/text": np.array([b"one", b""], dtype=object), "m/output/loud": np.array(want, dtype=object)}
    (slot / "files" / GOLDEN_PATH).write_bytes(to_safetensors(vectors))
    return slot


def test_text_is_proved_word_by_word(tmp_path: Path) -> None:
    proof = _prove(_text_slot(tmp_path / "right", [b"ONE", b""]))
    assert proof is not None
    error = _refused(_text_slot(tmp_path / "wrong", [b"TWO", b""]))
    assert error.code == "model.golden-mismatch"
    assert "b'ONE'" in error.detail


@pytest.mark.parametrize("mark", ["BYTES 3", "BYTES 2x2", "BYTES -1", "BYTES x" + "9" * 9])
def test_text_that_is_not_of_its_shape_is_refused(tmp_path: Path, mark: str) -> None:
    slot = _text_slot(tmp_path, [b"ONE", b""])
    path = slot / "files" / GOLDEN_PATH
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    head = data[8 : 8 + size].replace(b"BYTES 2", mark.encode(), 1)
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + size :])
    assert _refused(slot).code == "artifact.golden-invalid"
