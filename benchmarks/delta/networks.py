"""The three networks of the pairs, each written once over operations that train it in torch or export it to ONNX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

_STAGES = ((64, 1), (128, 2), (256, 2))
_BLOCKS = 2
_WIDTH = 384
_DEPTH = 4
_HEADS = 6
_TOKENS = 16
_WAVE = 256
_FUNNEL = (512, 256, 64, 256, 512)


class Operations(Protocol):
    """What a network is made of; ``name`` is where the weights of an operation are found."""

    def convolution(self, name: str, x: Any, shape: tuple[int, int, int], stride: int, is_padded: bool = True) -> Any:
        """Convolution with a bias; ``shape`` is inputs, outputs, kernel."""

    def normalised(self, name: str, x: Any, shape: tuple[int, int, int], stride: int) -> Any:
        """Convolution and batch normalisation."""

    def linear(self, name: str, x: Any, inputs: int, outputs: int) -> Any:
        """Rows of weights, and a bias."""

    def layer_norm(self, name: str, x: Any, width: int) -> Any:
        """Normalisation over the last dimension."""

    def offset(self, name: str, x: Any, shape: tuple[int, ...]) -> Any:
        """Adds a learnt constant."""

    def relu(self, x: Any) -> Any:
        """Rectifier."""

    def gelu(self, x: Any) -> Any:
        """Gaussian error linear unit."""

    def softmax(self, x: Any) -> Any:
        """Over the last dimension."""

    def add(self, x: Any, y: Any) -> Any:
        """Sum."""

    def matmul(self, x: Any, y: Any, scale: float = 1.0) -> Any:
        """Product of the last two dimensions, times a constant."""

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        """Another shape; 0 keeps the first dimension, -1 is what is left."""

    def transpose(self, x: Any, order: tuple[int, ...]) -> Any:
        """Dimensions in another order."""

    def part(self, x: Any, index: int, of: int) -> Any:
        """One of the equal parts of the last dimension."""

    def mean(self, x: Any, axes: tuple[int, ...]) -> Any:
        """Over these dimensions, which go."""


def residual(ops: Operations, x: Any, classes: int) -> Any:
    """Residual convolutional network of 2.8 M weights: images [n, 1, 8, 8] to scores [n, classes]."""
    channels = _STAGES[0][0]
    x = ops.relu(ops.normalised("stem", x, (1, channels, 3), 1))
    for stage, (wide, first_stride) in enumerate(_STAGES):
        for block in range(_BLOCKS):
            name, stride = f"stage{stage}.block{block}", first_stride if block == 0 else 1
            inner = ops.relu(ops.normalised(f"{name}.first", x, (channels, wide, 3), stride))
            inner = ops.normalised(f"{name}.second", inner, (wide, wide, 3), 1)
            if channels != wide:
                x = ops.normalised(f"{name}.shortcut", x, (channels, wide, 1), stride)
            x, channels = ops.relu(ops.add(inner, x)), wide
    return ops.linear("head", ops.mean(x, (2, 3)), channels, classes)


def transformer(ops: Operations, x: Any, classes: int) -> Any:
    """Vision transformer of 7.1 M weights: images [n, 1, 8, 8] in patches of 2x2 to scores [n, classes]."""
    each = _WIDTH // _HEADS
    x = ops.convolution("patches", x, (1, _WIDTH, 2), 2, is_padded=False)
    x = ops.transpose(ops.reshape(x, (0, _WIDTH, _TOKENS)), (0, 2, 1))
    x = ops.offset("positions", x, (1, _TOKENS, _WIDTH))
    for depth in range(_DEPTH):
        name = f"layer{depth}"
        mixed = ops.linear(f"{name}.mixed", ops.layer_norm(f"{name}.before", x, _WIDTH), _WIDTH, 3 * _WIDTH)
        query, key, value = (ops.reshape(ops.part(mixed, n, 3), (0, _TOKENS, _HEADS, each)) for n in range(3))
        query, key = ops.transpose(query, (0, 2, 1, 3)), ops.transpose(key, (0, 2, 3, 1))
        seen = ops.matmul(ops.softmax(ops.matmul(query, key, each**-0.5)), ops.transpose(value, (0, 2, 1, 3)))
        seen = ops.reshape(ops.transpose(seen, (0, 2, 1, 3)), (0, _TOKENS, _WIDTH))
        x = ops.add(x, ops.linear(f"{name}.out", seen, _WIDTH, _WIDTH))
        wide = ops.linear(f"{name}.wide", ops.layer_norm(f"{name}.between", x, _WIDTH), _WIDTH, 4 * _WIDTH)
        x = ops.add(x, ops.linear(f"{name}.narrow", ops.gelu(wide), 4 * _WIDTH, _WIDTH))
    return ops.linear("head", ops.mean(ops.layer_norm("last", x, _WIDTH), (1,)), _WIDTH, classes)


def auto_encoder(ops: Operations, x: Any, _classes: int = 0) -> Any:
    """Auto-encoder of 0.56 M weights: windows [n, 256] of a sensor to themselves."""
    width = _WAVE
    for index, wide in enumerate(_FUNNEL):
        x, width = ops.relu(ops.linear(f"layer{index}", x, width, wide)), wide
    return ops.linear("out", x, width, _WAVE)


@dataclass(frozen=True)
class Network:
    """One of them.

    Attributes:
        name: In file names and in the graph.
        make: Its definition.
        shape: Of one input.
    """

    name: str
    make: Callable[[Operations, Any, int], Any]
    shape: tuple[int, ...]


CNN = Network("cnn", residual, (1, 8, 8))
VIT = Network("vit", transformer, (1, 8, 8))
AE = Network("ae", auto_encoder, (_WAVE,))
