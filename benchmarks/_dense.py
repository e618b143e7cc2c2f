"""Writes slots with a dense ONNX model of about a given size and its golden vectors, as the agent's store makes them.

    python -m benchmarks._dense FOLDER BYTES COUNT

Prints a JSON array of [manifest digest, slot folder], one for each version. In a process of its own, because the onnx
library holds the whole model in memory.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_contract.digest import Digest
from edge_contract.runtime import GOLDEN_PATH, RUNTIME_PATH, Golden, Member, Runtime
from packager.golden import to_safetensors

MEMBER = "dense"
ROWS = 8
"""Golden vectors."""

_IR_VERSION = 8
_OPSET = 17
_WIDTH_MAX = 1024
_FLOAT_BYTES = 4


def width_of(size: int) -> int:
    """Elements of the input and of every layer, for a model of so many bytes."""
    return min(_WIDTH_MAX, max(4, int((size / _FLOAT_BYTES) ** 0.5)))


def main(folder: str, size_text: str, count: str) -> None:
    """Write the slots; see the module."""
    made = [_write(Path(folder), int(size_text), version) for version in range(1, int(count) + 1)]
    sys.stdout.write(json.dumps([[str(digest), str(slot)] for digest, slot in made]))


def _write(folder: Path, size: int, version: int) -> tuple[Digest, Path]:
    width = width_of(size)
    layers = max(1, round(size / (width * width * _FLOAT_BYTES)))
    numbers = np.random.default_rng(version)
    weights = [numbers.normal(0, width**-0.5, (width, width)).astype(np.float32) for _ in range(layers)]
    x = numbers.random((ROWS, width), dtype=np.float32)
    y = x
    for matrix in weights:
        y = y @ matrix
    descriptor = Runtime(MEMBER, version, (Member(MEMBER, "onnx", "model.onnx"),), golden=Golden()).to_bytes()
    manifest = Digest.of(descriptor + weights[0].tobytes())
    slot = folder / manifest.hex
    contents = {
        "model.onnx": _model(weights),
        RUNTIME_PATH: descriptor,
        GOLDEN_PATH: to_safetensors({f"{MEMBER}/input/x": x, f"{MEMBER}/output/y": y}),
    }
    for path, data in contents.items():
        (slot / "files" / path).parent.mkdir(parents=True, exist_ok=True)
        (slot / "files" / path).write_bytes(data)
    label = {"manifest": str(manifest), "model": MEMBER, "version": version}
    (slot / "slot.json").write_text(json.dumps(label), encoding="utf-8")
    return manifest, slot


def _model(weights: list[NDArray[Any]]) -> bytes:
    width = weights[0].shape[0]
    names = ["x", *(f"h{index}" for index in range(1, len(weights))), "y"]
    nodes = [
        helper.make_node("MatMul", [names[index], f"w{index}"], [names[index + 1]]) for index in range(len(weights))
    ]
    graph = helper.make_graph(
        nodes,
        MEMBER,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(matrix, f"w{index}") for index, matrix in enumerate(weights)],
    )
    model = helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=[helper.make_opsetid("", _OPSET)])
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


if __name__ == "__main__":
    main(*sys.argv[1:])
