"""Writes an ONNX model of about a given size for benchmarks: random weights behind an identity, cheap to run.

    python -m benchmarks._model FILE BYTES SEED

In a process of its own, because the onnx library holds the whole model in memory.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

_IR_VERSION = 8
_OPSET = 17


def main(file: str, size: str, seed: str) -> None:
    """Write the model; see the module."""
    weights = np.random.default_rng(int(seed)).integers(0, 256, int(size), dtype=np.uint8)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [-1, 4])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [-1, 4])
    ballast = helper.make_tensor("ballast", TensorProto.UINT8, [len(weights)], weights.tobytes(), raw=True)
    node = helper.make_node("Identity", ["image"], ["scores"])
    graph = helper.make_graph([node], "ballast", [image], [scores], [ballast])
    model = helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=[helper.make_opsetid("", _OPSET)])
    Path(file).write_bytes(model.SerializeToString())
    onnx.checker.check_model(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
