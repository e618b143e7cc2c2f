"""Tiny ONNX models whose answers tell which version computed them: `y = x + offset`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

WIDTH = 3
_IR_VERSION = 8
_OPSET = 17
_FLOAT_BYTES = 4


def adder(offset: float, padding_bytes: int = 0, weights: NDArray[np.float32] | None = None) -> bytes:
    """A model that adds a number to its input.

    Args:
        offset: What it adds.
        padding_bytes: About how many bytes of weights, never the same twice, it has beside; their sum, times nothing,
            is added too.
        weights: Those weights themselves.
    """
    if weights is None and padding_bytes:
        weights = np.random.default_rng().random(padding_bytes // _FLOAT_BYTES, np.float32)
    nodes = [helper.make_node("Add", ["x", "offset"], ["y" if weights is None else "plain"])]
    constants = [numpy_helper.from_array(np.array([offset], np.float32), "offset")]
    if weights is not None:
        constants += [
            numpy_helper.from_array(weights, "padding"),
            numpy_helper.from_array(np.zeros(1, np.float32), "nothing"),
        ]
        nodes += [
            helper.make_node("ReduceSum", ["padding"], ["total"]),
            helper.make_node("Mul", ["total", "nothing"], ["zero"]),
            helper.make_node("Add", ["plain", "zero"], ["y"]),
        ]
    shape: list[str | int | None] = ["batch", WIDTH]
    graph = helper.make_graph(
        nodes,
        "adder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def write_golden(path: Path, offset: float) -> Path:
    """Golden vectors of a model that adds `offset`, as an npz file."""
    inputs = np.arange(4 * WIDTH, dtype=np.float32).reshape(4, WIDTH)
    np.savez(path, x=inputs, y=inputs + np.float32(offset))
    return path
