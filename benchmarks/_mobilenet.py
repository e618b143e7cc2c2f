"""Writes an ONNX model of MobileNetV2's shape with random weights: 14 MB, one image in, a thousand scores out.

    python -m benchmarks._mobilenet FILE [SEED [WIDTH]]

In a process of its own, because the onnx library holds the whole model in memory.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_IR_VERSION = 8
_OPSET = 17
# Expansion, channels, repeats, stride of each stage (MobileNetV2, table 2).
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_CLASSES = 1_000


class _Graph:
    """Nodes and weights in the making."""

    def __init__(self, seed: int) -> None:
        self._numbers = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, array: NDArray[Any]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def random(self, *shape: int) -> str:
        scale = np.sqrt(2.0 / max(1, int(np.prod(shape[1:]))))
        return self.constant((self._numbers.standard_normal(shape) * scale).astype(np.float32))

    def convolution(self, x: str, shape: tuple[int, int, int], stride: int, groups: int, is_bounded: bool) -> str:
        """Convolution and normalisation as exporters write them, with ReLU6 where it is `is_bounded`."""
        inputs, outputs, kernel = shape
        weight = self.random(outputs, inputs // groups, kernel, kernel)
        pad = kernel // 2
        x = self.add("Conv", x, weight, strides=[stride] * 2, pads=[pad] * 4, group=groups)
        normal = [self.constant(np.full(outputs, value, np.float32)) for value in (1.0, 0.0, 0.0, 1.0)]
        x = self.add("BatchNormalization", x, *normal)
        if not is_bounded:
            return x
        return self.add("Clip", x, self.constant(np.array(0, np.float32)), self.constant(np.array(6, np.float32)))


def model_bytes(seed: int = 0, width: float = 1.0) -> bytes:
    """The model: `image` FP32 [1, 3, 224, 224] to `scores` FP32 [1, 1000]; `width` multiplies the channels between."""
    graph = _Graph(seed)
    x = graph.convolution("image", (3, 32, 3), 2, 1, True)
    channels = 32
    for expansion, plain, repeats, first_stride in _STAGES:
        outputs = 8 * round(plain * width / 8)
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            before, wide = x, channels * expansion
            if expansion != 1:
                x = graph.convolution(x, (channels, wide, 1), 1, 1, True)
            x = graph.convolution(x, (wide, wide, 3), stride, wide, True)
            x = graph.convolution(x, (wide, outputs, 1), 1, 1, False)
            if stride == 1 and channels == outputs:
                x = graph.add("Add", x, before)
            channels = outputs
    x = graph.convolution(x, (channels, 1280, 1), 1, 1, True)
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    x = graph.add("Gemm", x, graph.random(_CLASSES, 1280), graph.random(_CLASSES), transB=1)
    graph.nodes[-1].output[0] = "scores"
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 224, 224])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, _CLASSES])
    made = helper.make_graph(graph.nodes, "mobilenet", [image], [scores], graph.weights)
    model = helper.make_model(made, ir_version=_IR_VERSION, opset_imports=[helper.make_opsetid("", _OPSET)])
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


if __name__ == "__main__":
    told = dict(enumerate(sys.argv))
    Path(told[1]).write_bytes(model_bytes(int(told.get(2, 0)), float(told.get(3, 1.0))))
