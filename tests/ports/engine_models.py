"""Models for the engines' conformance suite: `y = x` of any datatype, and one with two inputs and two outputs."""

from __future__ import annotations

import os
from typing import Any

from edge_contract.tensors import TensorSpec
from tests.support.slots import onnx_model
from tests.unit.worker.tiny_models import require_litert

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# TensorProto.DataType of onnx.proto.
_ONNX_TYPES = {
    "FP32": 1, "UINT8": 2, "INT8": 3, "UINT16": 4, "INT16": 5, "INT32": 6, "INT64": 7, "BYTES": 8, "BOOL": 9,
    "FP16": 10, "FP64": 11, "UINT32": 12, "UINT64": 13,
}  # fmt: skip
_TFLITE_TYPES = {
    "FP32": "FLOAT32", "FP16": "FLOAT16", "FP64": "FLOAT64", "BYTES": "STRING", "BOOL": "BOOL", "INT8": "INT8",
    "INT16": "INT16", "INT32": "INT32", "INT64": "INT64", "UINT8": "UINT8", "UINT16": "UINT16", "UINT32": "UINT32",
    "UINT64": "UINT64",
}  # fmt: skip


def onnx_identity(spec: TensorSpec) -> bytes:
    """An ONNX model that gives its input back as `y`."""

    def build(helper: Any) -> tuple[list[Any], list[Any], list[Any]]:
        kind, shape = _ONNX_TYPES[spec.datatype], [f"d{n}" if size == -1 else size for n, size in enumerate(spec.shape)]
        return (
            [helper.make_node("Identity", [spec.name], ["y"])],
            [helper.make_tensor_value_info(spec.name, kind, shape)],
            [helper.make_tensor_value_info("y", kind, shape)],
        )

    return onnx_model(build)


def onnx_two() -> bytes:
    """`sum = a + b`, `difference = a - b` for FP32 [-1, 3]."""

    def build(helper: Any) -> tuple[list[Any], list[Any], list[Any]]:
        def info(name: str) -> Any:
            return helper.make_tensor_value_info(name, 1, ["rows", 3])

        nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
        return nodes, [info("a"), info("b")], [info("sum"), info("difference")]

    return onnx_model(build)


def script_identity() -> bytes:
    """A script that gives its input back as `y`."""
    return b"def run(data):\n    return {'y': data['x'].copy()}\n"


def script_two() -> bytes:
    """As `onnx_two`."""
    return b"def run(data):\n    a, b = data['a'], data['b']\n    return {'difference': a - b, 'sum': a + b}\n"


def tflite_identity(spec: TensorSpec) -> bytes:
    """A TensorFlow Lite model that gives its input back as `y`: one RESHAPE, which takes every datatype."""
    require_litert()
    import flatbuffers
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    kind = getattr(schema.TensorType, _TFLITE_TYPES[spec.datatype])
    plain = [1 if size == -1 else size for size in spec.shape]

    def tensor(name: str, shape: list[int], buffer: int, kind: int, signature: list[int] | None = None) -> Any:
        made = schema.TensorT()
        made.name, made.shape, made.buffer, made.type = name, shape, buffer, kind
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
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RESHAPE
    reshape = schema.OperatorT()
    reshape.inputs, reshape.outputs = [0, 1], [2]
    options = schema.ReshapeOptionsT()
    options.newShape = list(spec.shape)
    reshape.builtinOptionsType, reshape.builtinOptions = schema.BuiltinOptions.ReshapeOptions, options
    signature = list(spec.shape) or None
    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("x_tensor", plain, 1, kind, signature),
        tensor("shape", [len(spec.shape)], 2, schema.TensorType.INT32),
        tensor("y_tensor", plain, 3, kind, signature),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [2], [reshape]
    named = schema.SignatureDefT()
    named.signatureKey = "serving_default"
    named.inputs, named.outputs = [mapping("x", 0)], [mapping("y", 2)]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.signatureDefs = 3, [code], [graph], [named]
    model.buffers = [buffer(), buffer(), buffer(np.array(spec.shape, np.int32).tobytes()), buffer()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
