"""The same tiny model for every engine: `y = x + 10` for `x` of FP32 [batch, 4]."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.worker.engines import NOTHING_SPECIAL, Allowance, Engine, Place, load_engine
from edge_contract.runtime import Member, Runtime
from edge_contract.tensors import TensorSpec
from tests.support.slots import adder

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

X, Y = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 4))

SCRIPT = b"""
import numpy as np

constant = None

def init():
    global constant
    constant = np.float32(10)

def run(data):
    return {"y": data["x"] + constant}
"""


def require_litert() -> None:
    """Skip where no TensorFlow Lite model can be made and run."""
    for name in ("ai_edge_litert", "flatbuffers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed here")


def tflite_adder(constant: float = 10.0, *, has_signature: bool = True) -> bytes:
    """A TensorFlow Lite model `y = x + constant`, put together table by table.

    Args:
        constant: What it adds.
        has_signature: Whether it has a signature calling its tensors `x` and `y`; they are `x_tensor` and `y_tensor`.
    """
    require_litert()
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name: str, shape: list[int], buffer: int, signature: list[int] | None = None) -> Any:
        made = schema.TensorT()
        made.name, made.shape, made.buffer, made.type = name, shape, buffer, schema.TensorType.FLOAT32
        made.shapeSignature, made.hasRank = signature, True
        return made

    def buffer(data: bytes = b"") -> Any:
        made = schema.BufferT()
        made.data = list(data) or None
        return made

    def mapping(name: str, index: int) -> Any:
        made = schema.TensorMapT()
        made.name, made.tensorIndex = name, index
        return made

    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    add = schema.OperatorT()
    add.inputs, add.outputs = [0, 1], [2]
    add.builtinOptionsType, add.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("x_tensor", [1, 4], 1, [-1, 4]),
        tensor("c", [1], 2),
        tensor("y_tensor", [1, 4], 3, [-1, 4]),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [2], [add]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [buffer(), buffer(), buffer(np.float32(constant).tobytes()), buffer()]
    if has_signature:
        signature = schema.SignatureDefT()
        signature.signatureKey = "serving_default"
        signature.inputs, signature.outputs = [mapping("x", 0)], [mapping("y", 2)]
        model.signatureDefs = [signature]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


@dataclass(frozen=True)
class Kind:
    """One engine and how to make the tiny model for it.

    Attributes:
        engine: Name in the runtime descriptor.
        entry: File of the model.
        make: Its content.
        declared: Signature that the descriptor has to declare, if any.
        options: Engine options.
    """

    engine: str
    entry: str
    make: Callable[[], bytes]
    declared: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]] = ((), ())
    options: dict[str, str] = field(default_factory=dict)

    def member(self, **changes: Any) -> Member:
        """The member `m`."""
        fields: dict[str, Any] = {
            "name": "m",
            "engine": self.engine,
            "entry": self.entry,
            "inputs": self.declared[0],
            "outputs": self.declared[1],
            "options": self.options,
        }
        return Member(**{**fields, **changes})


KINDS = (
    Kind("onnx", "model.onnx", lambda: adder(10)),
    Kind("litert", "model.tflite", tflite_adder),
    Kind("script", "score.py", lambda: SCRIPT, ((X,), (Y,))),
)


def load(
    folder: Path,
    member: Member,
    files: Mapping[str, bytes],
    *,
    site: Mapping[str, bytes] | None = None,
    allowance: Allowance = NOTHING_SPECIAL,
    **runtime: Any,
) -> Engine:
    """Load a member from files written for it."""
    for base, contents in (("files", files), ("site", site or {})):
        for path, data in contents.items():
            (folder / base / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / base / path).write_bytes(data)
    (folder / "files").mkdir(exist_ok=True)
    place = Place(folder / "files", folder / "site")
    return load_engine(member, place, Runtime("digits", 1, (member,), **runtime), allowance)
