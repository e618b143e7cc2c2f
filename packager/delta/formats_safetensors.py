"""Tensors of a safetensors file (https://github.com/huggingface/safetensors, "Format")."""

import json
from collections.abc import Iterator
from mmap import mmap
from typing import Final

from packager.delta.formats import Tensor

_HEADER_BYTES_MAX: Final = 16 * 1024 * 1024
"""The format allows 100 MB, which as Python objects may be some 2.5 GB. This is enough for 100,000 tensors."""
_TYPES: Final = {
    "F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "F8_E4M3": "f8e4m3", "F8_E5M2": "f8e5m2", "I64": "i64",
    "U64": "u64", "I32": "i32", "U32": "u32", "I16": "i16", "U16": "u16", "I8": "i8", "U8": "u8", "BOOL": "bool",
}  # fmt: skip


def safetensors_tensors(data: mmap) -> Iterator[Tensor]:
    """Every tensor that the header names.

    Args:
        data: The file.
    """
    length = int.from_bytes(data[:8], "little")
    if length > min(_HEADER_BYTES_MAX, len(data) - 8):
        return
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        return
    for name, entry in header.items() if isinstance(header, dict) else ():
        if not isinstance(entry, dict):
            continue
        shape, offsets = _numbers(entry.get("shape")), _numbers(entry.get("data_offsets"))
        said = entry.get("dtype")
        dtype = _TYPES.get(said) if isinstance(said, str) else None
        if dtype is None or shape is None or offsets is None:
            continue
        if len(offsets) == 2 and offsets[0] >= 0:
            start, end = (8 + length + offset for offset in offsets)
            yield Tensor(_printable(name), dtype, tuple(shape), start, end)


def _printable(name: str) -> str:
    """JSON can name half of a character, which could not be written anywhere."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _numbers(value: object) -> list[int] | None:
    return value if isinstance(value, list) and all(type(item) is int for item in value) else None
