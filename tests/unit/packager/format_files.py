"""Model files made for the tests of where tensors lie, and judges of what is found."""

from __future__ import annotations

import contextlib
import functools
import math
import struct
import time
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from packager.delta.formats import ELEMENT_BYTES, Tensor, read_external, read_tensors
from tests.unit.worker.tiny_models import require_litert

onnx = pytest.importorskip("onnx")
safetensors = pytest.importorskip("safetensors")
safetensors_numpy = pytest.importorskip("safetensors.numpy")
ml_dtypes = pytest.importorskip("ml_dtypes")
RANDOM = np.random.default_rng(5)
SECONDS_MAX = 10
"""An endless loop, not a benchmark."""
MEMORY_BYTES_MAX = 2 * 1024 * 1024
"""What a reader may hold of a file that has next to nothing to find."""
NUMPY_TYPES: dict[str, Any] = {
    "f64": np.float64, "f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16,
    "f8e4m3": ml_dtypes.float8_e4m3fn, "f8e5m2": ml_dtypes.float8_e5m2, "i64": np.int64, "u64": np.uint64,
    "i32": np.int32, "u32": np.uint32, "i16": np.int16, "u16": np.uint16, "i8": np.int8, "u8": np.uint8,
    "bool": np.bool_,
}  # fmt: skip


def numbers(data: bytes, tensor: Tensor) -> bytes:
    return data[tensor.start : tensor.end]


def assert_same(data: bytes, tensor: Tensor, judged: NDArray[Any]) -> None:
    """The span of a tensor, read as its type and shape, is the array that the judge gives."""
    read = np.frombuffer(numbers(data, tensor), NUMPY_TYPES[tensor.dtype]).reshape(tensor.shape)
    assert read.dtype == judged.dtype
    assert read.shape == judged.shape
    assert read.tobytes() == judged.tobytes()


@contextlib.contextmanager
def bounded(memory_bytes_max: int = MEMORY_BYTES_MAX) -> Iterator[None]:
    """What runs within takes neither long nor much memory."""
    tracemalloc.start()
    began = time.process_time()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < SECONDS_MAX
    assert peak < memory_bytes_max


ONNX_TYPES = {
    "FLOAT": "f32", "UINT8": "u8", "INT8": "i8", "UINT16": "u16", "INT16": "i16", "INT32": "i32", "INT64": "i64",
    "BOOL": "bool", "FLOAT16": "f16", "DOUBLE": "f64", "UINT32": "u32", "UINT64": "u64", "BFLOAT16": "bf16",
    "FLOAT8E4M3FN": "f8e4m3", "FLOAT8E5M2": "f8e5m2",
}  # fmt: skip


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + leb(len(content)) + content


def leb(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


HEAD = b"\x08\x0a\x12\x00"
"""The beginning of a ModelProto: its IR version, and a producer without a name."""
BYTE = field(5, b"\x08\x01\x10\x02" + field(8, b"w") + field(9, b"x"))
"""An initializer of one byte."""


def onnx_tensor(name: str, type_name: str, shape: tuple[int, ...]) -> Any:
    number = getattr(onnx.TensorProto, type_name)
    size = int(np.prod(shape)) * ELEMENT_BYTES[ONNX_TYPES[type_name]]
    raw = RANDOM.integers(0, 2 if type_name == "BOOL" else 256, size, dtype=np.uint8).tobytes()
    return onnx.helper.make_tensor(name, number, shape, raw, raw=True)


def onnx_model(*tensors: Any, nodes: tuple[Any, ...] = ()) -> Any:
    graph = onnx.helper.make_graph(list(nodes), "g", [], [], list(tensors))
    return onnx.helper.make_model(graph)


def outside(name: str, location: str, **entries: str) -> Any:
    """A float32 tensor of two by three in another file."""
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[2, 3])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def nested(depth: int) -> bytes:
    """A model with a graph within a node of a graph, and so on, and a tensor in the innermost."""
    graph = BYTE
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))
    return HEAD + field(7, graph)


SAFE_TYPES = {
    "F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "F8_E4M3": "f8e4m3", "F8_E5M2": "f8e5m2", "I64": "i64",
    "U64": "u64", "I32": "i32", "U32": "u32", "I16": "i16", "U16": "u16", "I8": "i8", "U8": "u8", "BOOL": "bool",
}  # fmt: skip


def safe_arrays() -> dict[str, NDArray[Any]]:
    return {
        name: RANDOM.integers(0, 2, 21 * ELEMENT_BYTES[dtype], dtype=np.uint8).view(NUMPY_TYPES[dtype]).reshape(3, 7)
        for name, dtype in SAFE_TYPES.items()
    }


def safe_file(path: Path, text: bytes, numbers_bytes: int = 16) -> None:
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(numbers_bytes))


LITE_TYPES = {
    "FLOAT32": "f32", "FLOAT16": "f16", "INT32": "i32", "UINT8": "u8", "INT64": "i64", "BOOL": "bool", "INT16": "i16",
    "INT8": "i8", "FLOAT64": "f64", "UINT64": "u64", "UINT32": "u32", "UINT16": "u16", "BFLOAT16": "bf16",
}  # fmt: skip


def lite_model(subgraphs: int = 1) -> Any:
    """A model of the schema's own classes; every graph has a tensor of each type, in buffers that they share."""
    require_litert()
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT()
    model.version, model.buffers, model.subgraphs = 3, [schema.BufferT()], []
    for dtype in LITE_TYPES.values():
        buffer = schema.BufferT()
        buffer.data = RANDOM.integers(0, 2, 24 * ELEMENT_BYTES[dtype], dtype=np.uint8)
        model.buffers.append(buffer)
    for _ in range(subgraphs):
        graph = schema.SubGraphT()
        graph.tensors = []
        for number, name in enumerate(LITE_TYPES, 1):
            tensor = schema.TensorT()
            tensor.shape, tensor.type, tensor.buffer = [4, 6], getattr(schema.TensorType, name), number
            tensor.name = name
            graph.tensors.append(tensor)
        empty = schema.TensorT()
        empty.shape, empty.type, empty.buffer, empty.name = [1], schema.TensorType.FLOAT32, 0, "input"
        graph.tensors.append(empty)
        model.subgraphs.append(graph)
    return model


def lite_bytes(model: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@functools.cache
def samples() -> dict[str, bytes]:
    found = {
        "onnx": onnx_model(*(onnx_tensor(name, name, (3, 5)) for name in ONNX_TYPES)).SerializeToString(),
        "external": onnx_model(
            *(outside(f"w{number}", "w.bin", offset=str(24 * number), length="24") for number in range(5))
        ).SerializeToString(),
        "safetensors": bytes(safetensors_numpy.save(safe_arrays(), {"release": "1"})),
    }
    with contextlib.suppress(pytest.skip.Exception):
        found["tflite"] = lite_bytes(lite_model(2))
    return found


def sample(kind: str) -> bytes:
    if kind not in samples():
        pytest.skip("no TensorFlow Lite model can be made here")
    return samples()[kind]


def look(path: Path, data: bytes) -> tuple[Tensor, ...]:
    """What is found lies in the file, apart, and nothing is raised."""
    path.write_bytes(data)
    began = time.process_time()
    found, outer = read_tensors(path), read_external(path)
    assert time.process_time() - began < SECONDS_MAX
    for tensor in found:
        size = ELEMENT_BYTES[tensor.dtype] * math.prod(tensor.shape)
        assert 0 <= tensor.start < tensor.end == tensor.start + size <= len(data)
    assert all(one.end <= other.start for one, other in pairwise(found))
    for tensors in outer.values():
        assert all(0 <= tensor.start <= tensor.end for tensor in tensors)
    return found
