"""Writes weights as safetensors and as the flatbuffer of TensorFlow Lite."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 16
# Slots of the tables in TensorFlow Lite's schema, and numbers of its types.
_MODEL_SLOTS, _GRAPH_SLOTS, _TENSOR_SLOTS, _QUANT_SLOTS, _CODE_SLOTS = 8, 6, 10, 7, 4
_TYPES = {"float32": 0, "int32": 2, "int8": 9}


def as_bf16(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bits of the nearest BF16, ties to even."""
    bits = array.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)


def write_safetensors_bf16(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """All of them in BF16, in order of their names."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts, offset = [], 0
    for name in sorted(arrays):
        data = as_bf16(arrays[name]).astype("<u2").tobytes()
        header[name] = {
            "dtype": "BF16",
            "shape": list(arrays[name].shape),
            "data_offsets": [offset, offset + len(data)],
        }
        parts.append(data)
        offset += len(data)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(parts))


def by_channel(array: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """INT8 and a scale for every channel, symmetric as TensorFlow Lite wants its weights."""
    flat = array.reshape(len(array), -1)
    scales = (np.maximum(np.abs(flat).max(1), np.float32(1e-8)) / np.float32(127)).astype(np.float32)
    codes = np.clip(np.rint(flat / scales[:, None]), -127, 127).astype(np.int8)
    return codes.reshape(array.shape), scales


def write_tflite(path: Path, arrays: Mapping[str, NDArray[Any]], *, is_quantised: bool) -> None:
    """A file of TensorFlow Lite's layout: buffers at multiples of 16, a table of tensors, no operators to run.

    Args:
        path: Where.
        arrays: FP32 by name; of more than two dimensions the channels in go last.
        is_quantised: Weights of two dimensions and more as INT8 by channel, the others as they are.
    """
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    buffers, tensors = [_table(builder, 1, {})], []
    for index, (name, array) in enumerate(arrays.items(), start=1):
        kept, scales = np.moveaxis(array, 1, -1) if array.ndim > 2 else array, None
        if is_quantised and kept.ndim > 1:
            kept, scales = by_channel(kept)
        buffers.append(_buffer(builder, np.ascontiguousarray(kept).tobytes()))
        tensors.append(_tensor(builder, name, kept, index, scales))
    description = builder.CreateString("weights of a pair")
    graph = _table(builder, _GRAPH_SLOTS, {0: _vector(builder, tensors)})
    code = _table(builder, _CODE_SLOTS, {})
    fields = {1: _vector(builder, [code]), 2: _vector(builder, [graph]), 3: description, 4: _vector(builder, buffers)}
    builder.Finish(_table(builder, _MODEL_SLOTS, fields, version=3), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def _tensor(builder: Any, name: str, kept: NDArray[Any], buffer: int, scales: NDArray[np.float32] | None) -> int:
    fields: dict[int, int] = {}
    if scales is not None:
        points = builder.CreateNumpyVector(np.zeros(len(scales), np.int64))
        fields[4] = _table(builder, _QUANT_SLOTS, {2: builder.CreateNumpyVector(scales), 3: points})
    fields[3] = builder.CreateString(name)
    fields[0] = builder.CreateNumpyVector(np.array(kept.shape, np.int32))
    builder.StartObject(_TENSOR_SLOTS)
    for slot, offset in fields.items():
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    builder.PrependInt8Slot(1, _TYPES[kept.dtype.name], 0)
    builder.PrependUint32Slot(2, buffer, 0)
    return int(builder.EndObject())


def _buffer(builder: Any, data: bytes) -> int:
    builder.StartVector(1, len(data), _ALIGNMENT)
    builder.head -= len(data)
    builder.Bytes[builder.head : builder.head + len(data)] = data
    return _table(builder, 1, {0: builder.EndVector()})


def _table(builder: Any, slots: int, offsets: Mapping[int, int], version: int | None = None) -> int:
    builder.StartObject(slots)
    for slot, offset in offsets.items():
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    if version is not None:
        builder.PrependUint32Slot(0, version, 0)
    return int(builder.EndObject())


def _vector(builder: Any, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())
