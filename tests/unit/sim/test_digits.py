"""The demonstration's models are real: trained on real data, measured on what they never saw, the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from device_sim import digits
from edge_contract.runtime import Golden
from edge_contract.tensors import read_safetensors_header


@pytest.fixture(scope="module")
def data() -> digits.Digits:
    return digits.load()


@pytest.fixture(scope="module")
def mlp(data: digits.Digits) -> digits.Network:
    return digits.train_mlp(data)


def _run(model: bytes, images: digits.Array) -> digits.Array:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (scores,) = session.run([digits.OUTPUT.name], {digits.INPUT.name: images})
    return np.asarray(scores)


def test_nothing_held_out_was_trained_on(data: digits.Digits) -> None:
    assert len(data.train_images) + len(data.test_images) == 1797
    seen = {image.tobytes() for image in data.train_images}
    assert not [image for image in data.test_images if image.tobytes() in seen]


def test_both_models_are_good_and_the_second_is_better(data: digits.Digits, mlp: digits.Network) -> None:
    linear = digits.train_linear(data).accuracy(data.test_images, data.test_labels)
    assert 0.93 < linear < mlp.accuracy(data.test_images, data.test_labels)


def test_training_twice_gives_the_same_bytes(data: digits.Digits, mlp: digits.Network) -> None:
    assert digits.to_onnx(digits.train_mlp(data), "digits") == digits.to_onnx(mlp, "digits")


def test_the_exported_model_computes_what_was_trained(data: digits.Digits, mlp: digits.Network) -> None:
    scores = _run(digits.to_onnx(mlp, "digits"), data.test_images)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, mlp.scores(data.test_images), atol=1e-5)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)


def test_the_damaged_model_runs_and_misses_the_golden_vectors(data: digits.Digits, mlp: digits.Network) -> None:
    vectors = digits.golden_vectors(mlp, data, "digits")
    want = vectors["digits/output/scores"]
    got = _run(digits.to_onnx(digits.damaged(mlp), "digits"), vectors["digits/input/image"])
    golden = Golden()
    assert np.isfinite(got).all()
    assert (np.abs(got - want) > golden.atol + golden.rtol * np.abs(want)).any()
    assert (got.argmax(axis=1) != want.argmax(axis=1)).mean() > 0.5


@pytest.mark.parametrize("name", ["golden.safetensors", "golden.npz"])
def test_golden_files_hold_inputs_and_outputs(
    name: str, data: digits.Digits, mlp: digits.Network, tmp_path: Path
) -> None:
    path = tmp_path / name
    digits.write_golden(path, mlp, data, "digits")
    if path.suffix == ".npz":
        with np.load(path) as file:
            shapes = {key: file[key].shape for key in file}
    else:
        entries, _ = read_safetensors_header(path.read_bytes())
        shapes = {key: entry.shape for key, entry in entries.items()}
    assert shapes == {"digits/input/image": (16, 64), "digits/output/scores": (16, 10)}
