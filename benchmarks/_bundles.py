"""Bundles for the serving benchmarks: a tiny perceptron and a network of MobileNetV2's size, in any number of versions.

Versions of a model differ in a constant that is added to the output, so that every answer tells who computed it.
"""

import json
import struct
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.frames import INFER, PREFIX, REQUEST, signature_key
from edge_contract.digest import Digest
from edge_contract.runtime import RUNTIME_PATH, Member, Runtime
from edge_contract.tensors import TensorSpec

MEMBER: Final = "model"
_FILE: Final = "model.onnx"
_IR_VERSION: Final = 8
_OPSET: Final = 17
_TINY: Final = (16, 32, 32, 4)


@dataclass(frozen=True, slots=True)
class Bundle:
    """One slot.

    Attributes:
        manifest: Its digest.
        slot: Its folder.
        model: The ONNX file.
    """

    manifest: Digest
    slot: Path
    model: Path


@dataclass(frozen=True, slots=True)
class Subject:
    """A model as a client sees it.

    Attributes:
        input: Its only input.
        output: Its only output.
        array: What is sent.
    """

    input: TensorSpec
    output: TensorSpec
    array: NDArray[Any]

    def http(self, is_binary: bool = True) -> bytes:
        """An inference request of the Open Inference Protocol, whole."""
        data = self.array.tobytes()
        tensor: dict[str, Any] = {"name": self.input.name, "shape": list(self.array.shape), "datatype": "FP32"}
        document: dict[str, Any] = {"inputs": [tensor]}
        if not is_binary:
            tensor["data"] = [round(float(value), 4) for value in self.array.ravel()]
            return post(f"/v2/models/{MEMBER}/infer", json.dumps(document).encode(), "application/json")
        tensor["parameters"] = {"binary_data_size": len(data)}
        document["parameters"] = {"binary_data_output": True}
        head = json.dumps(document, separators=(",", ":")).encode()
        more = f"Inference-Header-Content-Length: {len(head)}\r\n"
        return post(f"/v2/models/{MEMBER}/infer", head + data, "application/octet-stream", more)

    def frame(self) -> bytes:
        """The same as a frame (docs/frames.md): a fixed shape needs no table."""
        data = self.array.tobytes()
        key = signature_key(MEMBER, [self.input], [self.output])
        return REQUEST.pack(PREFIX, INFER, 0, 0, len(data), 0, 1, key, 0) + data


def post(path: str, body: bytes, content_type: str, more: str = "") -> bytes:
    """An HTTP request."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{more}Content-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


TINY: Final = Subject(
    TensorSpec("x", "FP32", (1, _TINY[0])),
    TensorSpec("y", "FP32", (1, _TINY[-1])),
    np.linspace(0, 1, _TINY[0], dtype=np.float32).reshape(1, -1),
)
IMAGE: Final = Subject(
    TensorSpec("image", "FP32", (1, 3, 224, 224)),
    TensorSpec("scores", "FP32", (1, 1000)),
    np.random.default_rng(1).random((1, 3, 224, 224), dtype=np.float32),
)


def tiny_model(version: int) -> bytes:
    """A perceptron 16-32-32-4 whose output is raised by the number of its version."""
    numbers = np.random.default_rng(0)
    nodes, weights, name = [], [], "x"
    for layer, (wide, narrow) in enumerate(pairwise(_TINY)):
        matrix = numbers.standard_normal((wide, narrow)).astype(np.float32)
        bias = np.full(narrow, version if narrow == _TINY[-1] else 0.1, np.float32)
        weights += [numpy_helper.from_array(matrix, f"w{layer}"), numpy_helper.from_array(bias, f"b{layer}")]
        is_last = layer == len(_TINY) - 2
        nodes.append(helper.make_node("Gemm", [name, f"w{layer}", f"b{layer}"], ["y" if is_last else f"g{layer}"]))
        if not is_last:
            nodes.append(helper.make_node("Relu", [f"g{layer}"], [f"r{layer}"]))
            name = f"r{layer}"
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 16]), ("y", [1, 4]))]
    graph = helper.make_graph(nodes, "tiny", values[:1], values[1:], weights)
    model = helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=[helper.make_opsetid("", _OPSET)])
    data: bytes = model.SerializeToString()
    return data


def tiny_bundle(folder: Path, version: int) -> Bundle:
    """A slot with a version of the tiny model."""
    return _slot(folder, tiny_model(version), version, "tiny", TINY)


def image_bundle(folder: Path, version: int, width: float = 1.0) -> Bundle:
    """A slot with a version of a network of MobileNetV2's shape; other weights in every version.

    Args:
        folder: Where slots go.
        version: Its number.
        width: Multiplies the channels, and so what a run takes; 1.0 has 14 MB.
    """
    file = folder / f"mobilenet-{version}-{width}.onnx"
    if not file.exists():
        subprocess.run([sys.executable, "-m", "benchmarks._mobilenet", str(file), str(version), str(width)], check=True)
    return _slot(folder, file.read_bytes(), version, "image", IMAGE)


def _slot(folder: Path, model: bytes, version: int, name: str, subject: Subject) -> Bundle:
    # One thread, as all other servers of a comparison get.
    member = Member(MEMBER, "onnx", _FILE, (subject.input,), (subject.output,), options={"threads": "1"})
    runtime = Runtime(name, version, (member,), sampling_ratio=1.0).to_bytes()
    manifest = Digest.of(runtime + model)
    files = folder / manifest.hex / "files"
    (files / RUNTIME_PATH).parent.mkdir(parents=True, exist_ok=True)
    (files / RUNTIME_PATH).write_bytes(runtime)
    (files / _FILE).write_bytes(model)
    (files.parent / "slot.json").write_text(json.dumps({"manifest": str(manifest)}), encoding="utf-8")
    return Bundle(manifest, files.parent, files / _FILE)


def read_frame_tensor(answer: bytes) -> NDArray[Any]:
    """The floats of an answer frame without a table."""
    (size,) = struct.unpack_from("<I", answer, 8)
    return np.frombuffer(answer[64 : 64 + size], np.float32)
