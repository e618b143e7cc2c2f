"""Writes trained networks as ONNX: normalisation folded into the convolution before it, as exporters do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.delta.networks import Network

Arrays = Mapping[str, NDArray[Any]]

_IR_VERSION = 8
_OPSET = 17
_EPSILON = 1e-5


def folded(weight: NDArray[Any], arrays: Arrays, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weight and bias of one convolution that does what convolution and normalisation did."""
    scale, shift, mean, var = (arrays[f"{name}.{part}"] for part in ("scale", "shift", "mean", "var"))
    factor = (scale / np.sqrt(var + np.float32(_EPSILON))).astype(np.float32)
    return weight * factor[:, None, None, None], shift - mean * factor


@dataclass
class OnnxOperations:
    """Collects the nodes and initialisers of a graph.

    Attributes:
        arrays: Weights by name.
        nodes: In order.
        initialisers: In the order of their use.
    """

    arrays: Arrays
    nodes: list[Any] = field(default_factory=list)
    initialisers: list[Any] = field(default_factory=list)

    def _node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        number = len(self.nodes)
        output = f"/{operator.lower()}_{number}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], f"{operator}_{number}", **attributes))
        return output

    def _keep(self, name: str, array: NDArray[Any]) -> str:
        self.initialisers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _small(self, array: Any) -> str:
        return self._keep(f"constant_{len(self.initialisers)}", np.asarray(array))

    def _conv(self, name: str, x: str, weight: NDArray[Any], bias: NDArray[Any], stride: int, pad: int) -> str:
        inputs = x, self._keep(f"{name}.weight", weight), self._keep(f"{name}.bias", bias)
        return self._node("Conv", *inputs, strides=[stride] * 2, pads=[pad] * 4, kernel_shape=list(weight.shape[2:]))

    def convolution(self, name: str, x: Any, shape: tuple[int, int, int], stride: int, is_padded: bool = True) -> Any:
        weight, bias = self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"]
        return self._conv(name, x, weight, bias, stride, shape[2] // 2 if is_padded else 0)

    def normalised(self, name: str, x: Any, shape: tuple[int, int, int], stride: int) -> Any:
        weight, bias = folded(self.arrays[f"{name}.weight"], self.arrays, name)
        return self._conv(name, x, weight, bias, stride, shape[2] // 2)

    def linear(self, name: str, x: Any, inputs: int, outputs: int) -> Any:
        weight = self.arrays[f"{name}.weight"].reshape(outputs, inputs)
        bias = self.arrays[f"{name}.bias"]
        # As torch exports them: inside of layers, where there are more than two dimensions, the product takes the
        # weights the other way round.
        if "." not in name:
            kept = self._keep(f"{name}.weight", weight), self._keep(f"{name}.bias", bias)
            return self._node("Gemm", x, *kept, transB=1)
        product = self._node("MatMul", x, self._keep(f"{name}.weight_t", weight.T))
        return self._node("Add", product, self._keep(f"{name}.bias", bias))

    def layer_norm(self, name: str, x: Any, width: int) -> Any:
        scale, shift = (self.arrays[f"{name}.{part}"].reshape(width) for part in ("scale", "shift"))
        inputs = x, self._keep(f"{name}.scale", scale), self._keep(f"{name}.shift", shift)
        return self._node("LayerNormalization", *inputs, axis=-1, epsilon=_EPSILON)

    def offset(self, name: str, x: Any, shape: tuple[int, ...]) -> Any:
        return self._node("Add", x, self._keep(f"{name}.weight", self.arrays[f"{name}.weight"].reshape(shape)))

    def relu(self, x: Any) -> Any:
        return self._node("Relu", x)

    def gelu(self, x: Any) -> Any:
        inner = self._node("Erf", self._node("Mul", x, self._small(np.float32(0.5**0.5))))
        inner = self._node("Add", inner, self._small(np.float32(1)))
        return self._node("Mul", self._node("Mul", x, inner), self._small(np.float32(0.5)))

    def softmax(self, x: Any) -> Any:
        return self._node("Softmax", x, axis=-1)

    def add(self, x: Any, y: Any) -> Any:
        return self._node("Add", x, y)

    def matmul(self, x: Any, y: Any, scale: float = 1.0) -> Any:
        product = self._node("MatMul", x, y)
        return product if scale == 1 else self._node("Mul", product, self._small(np.float32(scale)))

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        return self._node("Reshape", x, self._small(np.array(shape, np.int64)))

    def transpose(self, x: Any, order: tuple[int, ...]) -> Any:
        return self._node("Transpose", x, perm=list(order))

    def part(self, x: Any, index: int, of: int) -> Any:
        made = next((node for node in self.nodes if node.op_type == "Split" and node.input[0] == x), None)
        if made is None:
            self._node("Split", x, axis=-1)
            made = self.nodes[-1]
            first = made.output[0]
            del made.output[:]
            made.output.extend(f"{first}_{n}" for n in range(of))
        return made.output[index]

    def mean(self, x: Any, axes: tuple[int, ...]) -> Any:
        return self._node("ReduceMean", x, axes=list(axes), keepdims=0)


def onnx_model(network: Network, arrays: Arrays, classes: int) -> Any:
    """The model as a message of the onnx library: ``x`` FP32 [n, ...] to ``y``."""
    ops = OnnxOperations(arrays)
    found = network.make(ops, "x", classes)
    ops.nodes[-1].output[0] = "y"
    del found
    outputs = network.shape if not classes else (classes,)
    graph = helper.make_graph(
        ops.nodes,
        network.name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *network.shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *outputs])],
        ops.initialisers,
    )
    model = helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.producer_name, model.producer_version = "pairs", "1.0"
    onnx.checker.check_model(model)
    return model


def write_onnx(path: Path, model: Any, notes: Mapping[str, str] | None = None) -> None:
    """Write it, with notes for whoever reads its metadata."""
    for key, value in (notes or {}).items():
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString(deterministic=True))


def halved(model: Any) -> Any:
    """The same model in FP16, inputs and outputs too."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for index, held in enumerate(made.graph.initializer):
        if held.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(held).astype(np.float16)
            made.graph.initializer[index].CopyFrom(numpy_helper.from_array(array, held.name))
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.checker.check_model(made)
    return made


def quantised(source: Path, path: Path, samples: NDArray[np.float32], *, is_per_channel: bool) -> None:
    """INT8 with QDQ nodes; scales of activations from ``samples``."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Samples(CalibrationDataReader):  # type: ignore[misc]
        """A few batches, once."""

        def __init__(self) -> None:
            self._left = [samples[start : start + 32] for start in range(0, min(len(samples), 256), 32)]

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return {"x": self._left.pop(0)} if self._left else None

    quantize_static(
        str(source),
        str(path),
        Samples(),
        quant_format=QuantFormat.QDQ,
        per_channel=is_per_channel,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
    )


def quantised_dynamically(source: Path, path: Path) -> None:
    """INT8 weights; activations are quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(source), str(path), weight_type=QuantType.QInt8)
