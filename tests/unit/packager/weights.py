"""ONNX models with weights worth a delta."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def dense(folder: Path, name: str, matrix: NDArray[Any], note: str = "") -> Path:
    """A model of one matrix product, `x @ w`, whose weights are `matrix` (float32)."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", matrix.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", matrix.shape[1]])],
        [numpy_helper.from_array(matrix, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name=note)
    path = folder / name
    onnx.save(model, path)
    return path


def trained(seed: int = 1, rows: int = 160, columns: int = 120) -> NDArray[Any]:
    """Weights as of a layer."""
    return (np.random.default_rng(seed).standard_normal((rows, columns)) * 0.05).astype(np.float32)


def tuned(matrix: NDArray[Any], size: float = 1e-4, seed: int = 2) -> NDArray[Any]:
    """The same weights after a little more training."""
    change = np.random.default_rng(seed).standard_normal(matrix.shape) * size
    return (matrix.astype(np.float64) + change).astype(np.float32)
