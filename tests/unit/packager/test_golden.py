"""Golden vectors: names, datatypes, bytes that never vary, and the comparison."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_contract.errors import EdgeError
from edge_contract.runtime import Member
from edge_contract.tensors import TensorSpec, read_safetensors_header
from packager.golden import Array, Tensors, compare, fit, from_safetensors, load_tensors, to_safetensors

MEMBER = Member("m", "onnx", "m.onnx", (TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "INT64", (-1,)),))
X: Array = np.array([[1, 2], [3, 4]], np.float32)
Y: Array = np.array([1, 0], np.int64)


def code_of(call: Any, *arguments: Any) -> str:
    with pytest.raises(EdgeError) as caught:
        call(*arguments)
    return caught.value.code


@pytest.mark.parametrize(
    "names",
    [("m/input/x", "m/output/y"), ("input/x", "output/y"), ("x", "y")],
    ids=["whole", "without member", "bare"],
)
def test_names_may_be_short_when_there_is_one_member(names: tuple[str, str]) -> None:
    assert set(fit({names[0]: X, names[1]: Y}, [MEMBER])) == {"m/input/x", "m/output/y"}


def test_short_names_are_refused_where_they_are_ambiguous() -> None:
    other = Member("n", "onnx", "n.onnx", MEMBER.inputs, MEMBER.outputs)
    assert code_of(fit, {"x": X}, [MEMBER, other]) == "artifact.golden-invalid"
    same = Member("s", "onnx", "s.onnx", MEMBER.inputs, (TensorSpec("x", "FP32", (-1, 2)),))
    assert code_of(fit, {"x": X}, [same]) == "artifact.golden-invalid"


def test_two_names_for_one_tensor_are_refused() -> None:
    assert code_of(fit, {"x": X, "m/input/x": X}, [MEMBER]) == "artifact.golden-invalid"


def test_numbers_are_converted_within_their_kind_only() -> None:
    assert fit({"x": X.astype(np.float64), "y": Y.astype(np.int8)}, [MEMBER])["m/input/x"].dtype == np.float32
    assert code_of(fit, {"x": X.astype(np.complex64)}, [MEMBER]) == "artifact.golden-invalid"
    assert code_of(fit, {"x": X, "y": np.array([0.5, 1.5])}, [MEMBER]) == "artifact.golden-invalid"
    small = Member("m", "onnx", "m.onnx", MEMBER.inputs, (TensorSpec("y", "INT8", (-1,)),))
    assert code_of(fit, {"x": X, "y": np.array([300, 1], np.int64)}, [small]) == "artifact.golden-invalid"


@pytest.mark.parametrize(
    "tensors",
    [
        {"y": Y},
        {"x": X, "z": Y},
        {"x": X[:, :1]},
        {"x": X[0]},
        {"x": np.zeros((0, 2), np.float32)},
        {"x": np.full((1, 2), np.nan, np.float32)},
    ],
    ids=["no input", "unknown", "wrong width", "wrong rank", "empty", "not finite"],
)
def test_vectors_that_do_not_fit_are_refused(tensors: dict[str, Any]) -> None:
    assert code_of(fit, tensors, [MEMBER]) == "artifact.golden-invalid"


def test_a_member_may_mean_its_infinities() -> None:
    member = Member("m", "onnx", "m.onnx", MEMBER.inputs, MEMBER.outputs, {"allow_nonfinite": "true"})
    assert np.isinf(fit({"x": np.full((1, 2), np.inf, np.float32)}, [member])["m/input/x"]).all()


def test_several_rows_fit_a_model_of_fixed_batch() -> None:
    fixed = Member("m", "onnx", "m.onnx", (TensorSpec("x", "FP32", (1, 2)),), ())
    assert fit({"x": X}, [fixed])["m/input/x"].shape == (2, 2)
    three = Member("m", "onnx", "m.onnx", (TensorSpec("x", "FP32", (3, 2)),), ())
    assert code_of(fit, {"x": X}, [three]) == "artifact.golden-invalid"


def test_the_file_has_the_same_bytes_whatever_the_order() -> None:
    tensors: Tensors = {"b": X, "a": Y, "c": np.ones(3, np.uint8), "d": np.float16(1.5).reshape(1)}
    data = to_safetensors(tensors)
    assert data == to_safetensors(dict(reversed(tensors.items())))
    assert data == to_safetensors({name: np.asfortranarray(array) for name, array in tensors.items()})
    assert data == to_safetensors(
        {name: array.astype(array.dtype.newbyteorder(">")) for name, array in tensors.items()}
    )
    back = from_safetensors(data)
    assert all(np.array_equal(back[name], array) for name, array in tensors.items())
    entries, _ = read_safetensors_header(data)
    assert all(entry.start % (8 if name == "a" else 1) == 0 for name, entry in entries.items())


def test_the_reference_library_reads_what_is_written() -> None:
    from safetensors.numpy import load, save

    tensors: Tensors = {"m/input/x": X, "m/output/y": Y, "flag": np.array([True, False])}
    assert all(np.array_equal(load(to_safetensors(tensors))[name], array) for name, array in tensors.items())
    assert all(np.array_equal(from_safetensors(save(tensors))[name], array) for name, array in tensors.items())


def test_an_npz_with_pickled_objects_is_refused_without_running_them(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    with path.open("wb") as file:
        np.savez(file, x=np.array([_Marker(str(tmp_path / "ran"))], dtype=object))
    assert code_of(load_tensors, path) == "artifact.golden-invalid"
    assert not (tmp_path / "ran").exists()


class _Marker:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def test_the_marker_above_would_have_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(_Marker(str(tmp_path / "ran")))).close()
    assert (tmp_path / "ran").exists()


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    single = tmp_path / "x.npy"
    np.save(single, X)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(single, "x.npy")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.write(single, "x.npy")
    assert code_of(load_tensors, path) == "artifact.golden-invalid"


@pytest.mark.parametrize("name", ["golden.npz", "golden.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\xff" * 64])
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert code_of(load_tensors, tmp_path / name) == "artifact.golden-invalid"


def test_a_missing_file_is_a_matter_of_configuration(tmp_path: Path) -> None:
    assert code_of(load_tensors, tmp_path / "golden.npz") == "config.file-missing"


def test_differences_within_tolerance_are_reported() -> None:
    want = {"m/output/y": np.array([1.0, 100.0])}
    comparison = compare(want, {"m/output/y": np.array([1.0, 100.05])}, rtol=1e-3, atol=0)
    assert comparison.max_error == pytest.approx(0.05)
    assert comparison.vectors == {"m": 2}


def test_a_wrong_number_is_named_with_its_place() -> None:
    want = {"m/output/y": np.zeros((2, 3))}
    got = np.zeros((2, 3))
    got[1, 2] = 0.5
    with pytest.raises(EdgeError) as caught:
        compare(want, {"m/output/y": got}, rtol=0, atol=0.1)
    assert caught.value.code == "model.golden-mismatch"
    assert "[1, 2]" in caught.value.detail
    assert "0.5" in caught.value.detail


@pytest.mark.parametrize(
    ("got", "code"),
    [
        (np.array([np.nan, 1.0]), "model.output-invalid"),
        (np.array([np.inf, 1.0]), "model.output-invalid"),
        (np.array([1.0]), "model.golden-mismatch"),
        (None, "model.golden-mismatch"),
    ],
)
def test_outputs_that_cannot_be_compared(got: Any, code: str) -> None:
    outputs = {} if got is None else {"m/output/y": got}
    assert code_of(compare, {"m/output/y": np.array([1.0, 1.0])}, outputs, 1e-3, 1e-3) == code


def test_infinities_have_to_be_equal() -> None:
    want = {"m/output/y": np.array([np.inf, np.nan, 1.0])}
    assert compare(want, want, 0, 0).max_error == 0
    assert code_of(compare, want, {"m/output/y": np.array([-np.inf, np.nan, 1.0])}, 1, 1) == "model.golden-mismatch"
