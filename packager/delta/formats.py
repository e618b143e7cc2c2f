"""Where tensors lie in a model file: ONNX, TensorFlow Lite, safetensors; nothing for anything else.

Only the encoder knows formats. A reader that does not understand a file, or meets bytes that make no sense, finds fewer
tensors, and the delta gets larger: it never fails.
"""

import mmap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path
from typing import Final

ELEMENT_BYTES: Final[dict[str, int]] = {
    "f64": 8, "f32": 4, "f16": 2, "bf16": 2, "f8e4m3": 1, "f8e5m2": 1, "i64": 8, "u64": 8, "i32": 4, "u32": 4,
    "i16": 2, "u16": 2, "i8": 1, "u8": 1, "bool": 1,
}  # fmt: skip
"""Bytes of one element, by the name of its type here."""

RANK_MAX: Final = 16
"""Dimensions of a tensor; more are no model's."""
TENSORS_MAX: Final = 250_000
"""Tensors that are looked at in a file, and items of each of its lists: each costs more here than the few bytes in the
file that make one."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """The numbers of one tensor in a file: little-endian, row-major, nothing between them.

    Attributes:
        name: As the model names it; may be empty.
        dtype: A key of `ELEMENT_BYTES`.
        shape: Row-major dimensions.
        start: Offset of the first byte.
        end: Offset behind the last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def is_sound(tensor: Tensor, file_bytes: int) -> bool:
    """Whether a tensor lies in its file and has as many bytes as its shape says."""
    if tensor.dtype not in ELEMENT_BYTES or len(tensor.shape) > RANK_MAX or any(size < 0 for size in tensor.shape):
        return False
    size = prod(tensor.shape) * ELEMENT_BYTES[tensor.dtype]
    return 0 <= tensor.start < tensor.end <= file_bytes and tensor.end - tensor.start == size


def kind_of(path: Path) -> str:
    """The format that a file looks like: `onnx`, `tflite`, `safetensors` or `opaque`.

    Raises:
        OSError: When it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if head[4:8] == b"TFL3":
        return "tflite"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "safetensors"
    # ModelProto begins with its IR version, a small number in field 1.
    if head[:1] == b"\x08" and len(head) > 2 and head[2] & 7 in (0, 2):
        return "onnx"
    return "opaque"


def read_tensors(path: Path) -> tuple[Tensor, ...]:
    """The tensors of a file, in the order in which they lie, none over another.

    Args:
        path: Any file.

    Returns:
        None for a file of another format. Bytes that make no sense end the search, and so do more than `TENSORS_MAX`.

    Raises:
        OSError: When the file cannot be read.
    """
    # Imported where they are used: a table of them at the top would be a circle.
    from packager.delta.formats_onnx import onnx_tensors
    from packager.delta.formats_safetensors import safetensors_tensors
    from packager.delta.formats_tflite import tflite_tensors

    readers: dict[str, Callable[[mmap.mmap], Iterable[Tensor]]] = {
        "onnx": onnx_tensors,
        "tflite": tflite_tensors,
        "safetensors": safetensors_tensors,
    }
    reader = readers.get(kind_of(path))
    if reader is None:
        return ()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return apart(islice(reader(data), TENSORS_MAX), len(data))


def read_external(onnx: Path) -> dict[str, tuple[Tensor, ...]]:
    """The tensors that an ONNX file keeps in other files, by the location that it names.

    At most `TENSORS_MAX` of them. Whether they lie within that file is for the caller to see: `apart` with its length.

    Args:
        onnx: The ONNX file.

    Raises:
        OSError: When it cannot be read.
    """
    from packager.delta.formats_onnx import onnx_external

    if kind_of(onnx) != "onnx":
        return {}
    with onnx.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found: dict[str, list[Tensor]] = {}
        for location, tensor in islice(onnx_external(data), TENSORS_MAX):
            found.setdefault(location, []).append(tensor)
    return {location: tuple(sorted(items, key=_place)) for location, items in found.items()}


def apart(tensors: Iterable[Tensor], file_bytes: int) -> tuple[Tensor, ...]:
    """Sound tensors in order of place, without those that lie over an earlier one.

    Args:
        tensors: As a reader found them.
        file_bytes: Length of their file.
    """
    found: list[Tensor] = []
    for tensor in sorted((tensor for tensor in tensors if is_sound(tensor, file_bytes)), key=_place):
        if not found or tensor.start >= found[-1].end:
            found.append(tensor)
    return tuple(found)


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.start, tensor.end
