"""Real models on real data: scikit-learn's bundled handwritten digits, trained here in a moment and written as ONNX.

The data are the 1,797 8x8 images of the UCI "Optical Recognition of Handwritten Digits" test set. A fixed third is held
out and never trained on; every accuracy in a demonstration is measured on it. Seeds are fixed, so that two runs on one
machine give the same models. Numpy, ONNX and scikit-learn are imported when a function needs them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edge_contract.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Labels = NDArray[np.int64]

PIXELS: Final = 64
CLASSES: Final = 10
INPUT: Final = TensorSpec("image", "FP32", (-1, PIXELS))
OUTPUT: Final = TensorSpec("scores", "FP32", (-1, CLASSES))

_SPLIT_SEED: Final = 20
_HELD_OUT: Final = 597
_PIXEL_MAX: Final = 16.0
_BATCH: Final = 64
_IR_VERSION: Final = 8
_OPSET: Final = 17
_GOLDEN_COUNT: Final = 16


@dataclass(frozen=True, slots=True)
class Digits:
    """The data, split once and for all.

    Attributes:
        train_images: float32 `[1200, 64]`, row-major 8x8 pixels in `0..1`.
        train_labels: int64 `[1200]`, the digit.
        test_images: float32 `[597, 64]`, held out.
        test_labels: int64 `[597]`.
    """

    train_images: Array
    train_labels: Labels
    test_images: Array
    test_labels: Labels


@dataclass(frozen=True, slots=True)
class Network:
    """A trained chain of affine layers with ReLU between them and softmax at the end.

    Attributes:
        weights: float32 `[inputs, outputs]` of each layer.
        biases: float32 `[outputs]` of each layer.
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]

    def scores(self, images: Array) -> Array:
        """Probabilities of the ten digits, float32 `[n, 10]`, for images float32 `[n, 64]`."""
        return _softmax(_forward(self.weights, self.biases, images)[-1])

    def accuracy(self, images: Array, labels: Labels) -> float:
        """Share of images whose most probable digit is the right one, `0..1`."""
        return float((self.scores(images).argmax(axis=1) == labels).mean())


def load() -> Digits:
    """Read the bundled data and split them; needs no network."""
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.data / _PIXEL_MAX).astype(np.float32)
    labels = bunch.target.astype(np.int64)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(images))
    test, train = order[:_HELD_OUT], order[_HELD_OUT:]
    return Digits(images[train], labels[train], images[test], labels[test])


def train_linear(digits: Digits) -> Network:
    """Softmax regression: right on about 95 of 100 held-out digits; trained in a fraction of a second."""
    return _train(digits.train_images, digits.train_labels, hidden=(), epochs=80, rate=1e-2, seed=1)


def train_mlp(digits: Digits) -> Network:
    """Two hidden layers: right on about 98 of 100 held-out digits; trained in a fraction of a second."""
    return _train(digits.train_images, digits.train_labels, hidden=(256, 128), epochs=60, rate=1e-3, seed=2)


def damaged(network: Network) -> Network:
    """The same network with the weights of its last layer turned round: it loads, runs and answers wrongly.

    What a bad conversion or a flipped sign in an export script does, and what golden vectors are there to catch.
    """
    weights = (*network.weights[:-1], -network.weights[-1])
    return Network(weights, network.biases)


def to_onnx(network: Network, name: str) -> bytes:
    """The network as an ONNX model with `INPUT` and `OUTPUT`; the same network gives the same bytes."""
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes, constants, value = [], [], INPUT.name
    last = len(network.weights) - 1
    for place, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        constants += [
            numpy_helper.from_array(weight, f"weight_{place}"),
            numpy_helper.from_array(bias, f"bias_{place}"),
        ]
        nodes.append(helper.make_node("Gemm", [value, f"weight_{place}", f"bias_{place}"], [f"affine_{place}"]))
        value = f"affine_{place}" if place == last else f"hidden_{place}"
        if place != last:
            nodes.append(helper.make_node("Relu", [f"affine_{place}"], [value]))
    nodes.append(helper.make_node("Softmax", [value], [OUTPUT.name], axis=-1))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(INPUT.name, TensorProto.FLOAT, ["batch", PIXELS])],
        [helper.make_tensor_value_info(OUTPUT.name, TensorProto.FLOAT, ["batch", CLASSES])],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION, producer_name="lighterman"
    )
    checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def golden_vectors(network: Network, digits: Digits, member: str) -> dict[str, Array]:
    """Inputs the network has never seen, and its answers, under the names a bundle's golden file uses.

    Args:
        network: Whose answers count as right.
        digits: Where the inputs come from; the first of the held-out images.
        member: Name of the member in the bundle.

    Returns:
        float32 `[16, 64]` under `<member>/input/image` and float32 `[16, 10]` under `<member>/output/scores`.
    """
    images = digits.test_images[:_GOLDEN_COUNT]
    return {f"{member}/input/{INPUT.name}": images, f"{member}/output/{OUTPUT.name}": network.scores(images)}


def write_golden(path: Path, network: Network, digits: Digits, member: str) -> None:
    """Write `golden_vectors` as a safetensors file, or as npz when the path ends so."""
    tensors = golden_vectors(network, digits, member)
    if path.suffix == ".npz":
        import numpy as np

        with path.open("wb") as file:
            np.savez(file, **tensors)  # type: ignore[arg-type]  # numpy types the keywords after its own flag
        return
    from safetensors.numpy import save

    path.write_bytes(save(tensors))


def _softmax(logits: Array) -> Array:
    import numpy as np

    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: Array = shifted / shifted.sum(axis=1, keepdims=True)
    return result


def _forward(weights: tuple[Array, ...], biases: tuple[Array, ...], images: Array) -> list[Array]:
    """The input and every layer's output, the last without softmax."""
    values = [images]
    for place, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        value = values[-1] @ weight + bias
        values.append(value if place == len(weights) - 1 else value.clip(min=0))
    return values


def _train(images: Array, labels: Labels, *, hidden: tuple[int, ...], epochs: int, rate: float, seed: int) -> Network:
    """Cross-entropy by Adam with a cosine schedule; a loop of our own, because it is short and has no seed but ours."""
    import numpy as np

    draw = np.random.default_rng(seed)
    sizes = (PIXELS, *hidden, CLASSES)
    parameters: list[Array] = []
    for count, following in itertools.pairwise(sizes):
        parameters.append(draw.normal(0, np.sqrt(2 / count), (count, following)).astype(np.float32))
        parameters.append(np.zeros(following, np.float32))
    means = [np.zeros_like(item) for item in parameters]
    squares = [np.zeros_like(item) for item in parameters]
    wanted = np.eye(CLASSES, dtype=np.float32)[labels]
    steps = epochs * -(-len(images) // _BATCH)
    step = 0
    for _ in range(epochs):
        order = draw.permutation(len(images))
        for start in range(0, len(images), _BATCH):
            step += 1
            chosen = order[start : start + _BATCH]
            gradients = _gradients(parameters, images[chosen], wanted[chosen])
            pace = np.float32(rate * 0.5 * (1 + np.cos(np.pi * step / steps)))
            for item, gradient, mean, square in zip(parameters, gradients, means, squares, strict=True):
                mean += 0.1 * (gradient - mean)
                square += 0.001 * (gradient * gradient - square)
                item -= pace * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return Network(tuple(parameters[0::2]), tuple(parameters[1::2]))


def _gradients(parameters: list[Array], images: Array, wanted: Array) -> list[Array]:
    import numpy as np

    weights, biases = tuple(parameters[0::2]), tuple(parameters[1::2])
    values = _forward(weights, biases, images)
    slope: Array = (_softmax(values[-1]) - wanted) / np.float32(len(images))
    result: list[Array] = []
    for place in reversed(range(len(weights))):
        result = [values[place].T @ slope, slope.sum(axis=0), *result]
        slope = (slope @ weights[place].T) * (values[place] > 0)
    return result
