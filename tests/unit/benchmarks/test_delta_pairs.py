"""Pairs of releases are of the kinds they claim, and their files hold the weights where readers look for them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks.delta import containers, exports
from benchmarks.delta.networks import AE, CNN, VIT, Network
from benchmarks.delta.recipes import PAIRS, RECIPES
from packager.delta.formats import read_tensors
from tests.unit.worker.tiny_models import require_litert

# Of the study: what a release may change, and how many pairs stand for it.
_KINDS = {"a": 7, "b": 1, "c": 1, "d": 5, "e": 1, "f": 1, "g": 1, "h": 4, "j": 1, "k": 1}


def test_every_kind_of_change_has_its_pairs() -> None:
    counted = Counter(pair.kind for pair in PAIRS)
    assert {kind: count for kind, count in counted.items() if kind != "t"} == _KINDS
    assert len({pair.name for pair in PAIRS}) == len(PAIRS)


def test_every_pair_can_be_made() -> None:
    assert {name for pair in PAIRS for name in (pair.base, pair.new) if name} <= set(RECIPES)
    for recipe in RECIPES.values():
        assert not recipe.after or RECIPES[recipe.after].network is recipe.network


class _Drawn(dict[str, Any]):
    """Weights of whatever shape the graph asks for, drawn at random."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        network.make(_Shapes(self), (1, *network.shape), 10)


class _Shapes:
    """Runs a network over shapes alone, and draws the weights that it names."""

    def __init__(self, drawn: dict[str, Any]) -> None:
        self._drawn, self._numbers = drawn, np.random.default_rng(5)

    def _draw(self, name: str, *shape: int) -> None:
        self._drawn[name] = self._numbers.uniform(0.1, 1, shape).astype(np.float32)

    def convolution(self, name: str, x: Any, shape: tuple[int, int, int], stride: int, is_padded: bool = True) -> Any:
        inputs, outputs, kernel = shape
        self._draw(f"{name}.weight", outputs, inputs, kernel, kernel)
        self._draw(f"{name}.bias", outputs)
        return (x[0], outputs, -(-x[2] // stride), -(-x[3] // stride))

    def normalised(self, name: str, x: Any, shape: tuple[int, int, int], stride: int) -> Any:
        made = self.convolution(name, x, shape, stride)
        for part in ("scale", "shift", "mean", "var"):
            self._draw(f"{name}.{part}", shape[1])
        return made

    def linear(self, name: str, x: Any, inputs: int, outputs: int) -> Any:
        assert x[-1] == inputs
        self._draw(f"{name}.weight", outputs, inputs)
        self._draw(f"{name}.bias", outputs)
        return (*x[:-1], outputs)

    def layer_norm(self, name: str, x: Any, width: int) -> Any:
        self._draw(f"{name}.scale", width)
        self._draw(f"{name}.shift", width)
        return x

    def offset(self, name: str, x: Any, shape: tuple[int, ...]) -> Any:
        self._draw(f"{name}.weight", *shape)
        return x

    def relu(self, x: Any) -> Any:
        return x

    gelu = softmax = relu

    def add(self, x: Any, y: Any) -> Any:
        assert x == y
        return x

    def matmul(self, x: Any, y: Any, scale: float = 1.0) -> Any:
        return (*x[:-1], y[-1])

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        return (x[0], *shape[1:])

    def transpose(self, x: Any, order: tuple[int, ...]) -> Any:
        return tuple(x[place] for place in order)

    def part(self, x: Any, index: int, of: int) -> Any:
        return (*x[:-1], x[-1] // of)

    def mean(self, x: Any, axes: tuple[int, ...]) -> Any:
        return tuple(size for place, size in enumerate(x) if place not in axes)


@pytest.mark.parametrize(("network", "classes"), [(CNN, 10), (VIT, 10), (AE, 0)])
def test_an_exported_network_runs_and_its_weights_are_found(network: Network, classes: int, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    exports.write_onnx(path, exports.onnx_model(network, _Drawn(network), classes), {"release": "1"})
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.zeros((2, *network.shape), np.float32)})
    assert found.shape == (2, classes or network.shape[0])
    covered = sum(tensor.end - tensor.start for tensor in read_tensors(path))
    assert covered > 0.99 * path.stat().st_size


def test_normalisation_is_folded_into_the_convolution_before_it() -> None:
    drawn = _Drawn(CNN)
    weight, bias = exports.folded(drawn["stem.weight"], drawn, "stem")
    x = np.random.default_rng(6).normal(size=drawn["stem.weight"].shape[1:]).astype(np.float32)
    plain = (drawn["stem.weight"] * x).sum((1, 2, 3))
    wanted = (plain - drawn["stem.mean"]) / np.sqrt(drawn["stem.var"] + 1e-5) * drawn["stem.scale"] + drawn[
        "stem.shift"
    ]
    assert np.allclose((weight * x).sum((1, 2, 3)) + bias, wanted, atol=1e-4)


def test_half_precision_is_in_the_weights_and_at_both_ends() -> None:
    model = exports.halved(exports.onnx_model(AE, _Drawn(AE), 0))
    kinds = {held.data_type for held in model.graph.initializer}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == kinds


def test_bf16_rounds_to_the_nearest_and_ties_to_even(tmp_path: Path) -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, 1.004], np.float32)
    assert containers.as_bf16(values).tolist() == [0x3F80, 0x3F80, 0x3F82, 0x3F81]
    path = tmp_path / "model.safetensors"
    containers.write_safetensors_bf16(path, {"b": values.reshape(2, 2), "a": values[:1]})
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in read_tensors(path)] == [
        ("a", "bf16", (1,)),
        ("b", "bf16", (2, 2)),
    ]


@pytest.mark.parametrize("is_quantised", [False, True])
def test_a_tensorflow_lite_file_holds_its_buffers_where_its_tables_say(is_quantised: bool, tmp_path: Path) -> None:
    require_litert()
    weight = np.random.default_rng(8).normal(size=(6, 5, 3, 3)).astype(np.float32)
    path = tmp_path / "model.tflite"
    containers.write_tflite(path, {"w": weight, "b": weight[:, 0, 0, 0]}, is_quantised=is_quantised)
    data, found = path.read_bytes(), {tensor.name: tensor for tensor in read_tensors(path)}
    assert found["w"].shape == (6, 3, 3, 5)
    assert all(tensor.start % 16 == 0 for tensor in found.values())
    held = np.frombuffer(data[found["w"].start : found["w"].end], np.int8 if is_quantised else np.float32)
    kept = np.moveaxis(weight, 1, -1)
    wanted = containers.by_channel(kept)[0] if is_quantised else kept
    assert np.array_equal(held.reshape(wanted.shape), wanted)
    assert found["b"].dtype == "f32"
