"""Two published ideas for deltas of tensors, written anew: XOR with the base, and subtraction of ordered integers.

Both put the bytes of a number's every place together (planes) and give them to zstd at level 19. BitX (ZipLLM) is the
first, FM-Delta the second with zstd for its coder. What lies between tensors is packed by zstd with the base's
counterpart for a dictionary. The layout of the base travels with the delta, as it does in those systems.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from packager.delta.formats import Tensor, read_tensors

_LEVEL = 19
_HEAD = 8
_FLOATS = ("f64", "f32", "f16", "bf16")


def _width(tensor: Tensor) -> int:
    count = int(np.prod(tensor.shape, dtype=np.int64))
    size = tensor.end - tensor.start
    return size // count if count and size % count == 0 and size // count in (1, 2, 4, 8) else 1


def _planes(numbers: NDArray[Any]) -> bytes:
    return numbers.view(np.uint8).reshape(-1, numbers.itemsize).T.tobytes()


def _from_planes(data: bytes, width: int) -> NDArray[Any]:
    rows = np.frombuffer(data, np.uint8).reshape(width, -1).T
    return np.ascontiguousarray(rows).view(f"<u{width}").reshape(-1)


def _ordered(bits: NDArray[Any], is_float: bool) -> NDArray[Any]:
    """Unsigned numbers in the order of the values that the bits stand for; of whole numbers a shift changes nothing."""
    if not is_float:
        return bits
    top = bits.dtype.type(1 << (bits.dtype.itemsize * 8 - 1))
    return np.where(bits & top != 0, ~bits, bits | top).astype(bits.dtype)


def _unordered(numbers: NDArray[Any], is_float: bool) -> NDArray[Any]:
    if not is_float:
        return numbers
    top = numbers.dtype.type(1 << (numbers.dtype.itemsize * 8 - 1))
    return np.where(numbers & top != 0, numbers ^ top, ~numbers).astype(numbers.dtype)


def _zigzag(numbers: NDArray[Any]) -> NDArray[Any]:
    signed = numbers.view(f"<i{numbers.itemsize}")
    return ((signed << 1) ^ (signed >> (8 * numbers.itemsize - 1))).view(numbers.dtype)


def _unzigzag(numbers: NDArray[Any]) -> NDArray[Any]:
    one = numbers.dtype.type(1)
    undone: NDArray[Any] = (numbers >> one) ^ (~(numbers & one) + one)
    return undone


def _numbers(data: bytes, width: int) -> NDArray[Any]:
    return np.frombuffer(data, f"<u{width}")


def _difference(base: bytes, new: bytes, width: int, is_float: bool, method: str) -> bytes:
    held, wanted = _numbers(base, width), _numbers(new, width)
    if method == "bitx":
        return _planes(held ^ wanted)
    return _planes(_zigzag(_ordered(wanted, is_float) - _ordered(held, is_float)))


def _sum(base: bytes, planes: bytes, width: int, is_float: bool, method: str) -> bytes:
    held, change = _numbers(base, width), _from_planes(planes, width)
    if method == "bitx":
        return bytes((held ^ change).data)
    return bytes(_unordered(_ordered(held, is_float) + _unzigzag(change), is_float).data)


def _matches(base: Path, new: Path) -> list[tuple[Tensor, Tensor]]:
    held: dict[tuple[object, ...], list[Tensor]] = {}
    for tensor in read_tensors(base):
        held.setdefault((tensor.name, tensor.dtype, tensor.shape), []).append(tensor)
        held.setdefault(("", tensor.dtype, tensor.shape), []).append(tensor)
    pairs, used = [], set()
    for tensor in read_tensors(new):
        for name in (tensor.name, ""):
            left = [each for each in held.get((name, tensor.dtype, tensor.shape), []) if each.start not in used]
            if left:
                used.add(left[0].start)
                pairs.append((left[0], tensor))
                break
    return pairs


def _gap(base: bytes, wanted: bytes, end: int) -> tuple[bytes, list[Any]]:
    """What lies between tensors, packed beside as many bytes of the base, which end at ``end``."""
    start = max(0, end - len(wanted))
    known = base[start:end]
    packed = zstandard.ZstdCompressor(level=_LEVEL, dict_data=_dictionary(known)).compress(wanted)
    return packed, ["gap", start, len(known), len(wanted), len(packed)]


def _dictionary(known: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(known, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def encode(base_path: Path, new_path: Path, out: Path, method: str) -> None:
    """Write the delta; ``method`` is ``bitx`` or ``fm-delta``."""
    base, new = base_path.read_bytes(), new_path.read_bytes()
    parts: list[tuple[bytes, list[Any]]] = []
    place = 0
    for held, wanted in _matches(base_path, new_path):
        if wanted.start > place:
            parts.append(_gap(base, new[place : wanted.start], held.start))
        width, is_float = _width(wanted), wanted.dtype in _FLOATS
        before, after = base[held.start : held.end], new[wanted.start : wanted.end]
        packed = zstandard.ZstdCompressor(level=_LEVEL).compress(_difference(before, after, width, is_float, method))
        parts.append((packed, ["tensor", held.start, width, int(is_float), len(after), len(packed)]))
        place = wanted.end
    if place < len(new):
        parts.append(_gap(base, new[place:], len(base)))
    plan = json.dumps([entry for _, entry in parts], separators=(",", ":"))
    head = zstandard.ZstdCompressor(level=_LEVEL).compress(plan.encode())
    out.write_bytes(len(head).to_bytes(_HEAD, "little") + head + b"".join(packed for packed, _ in parts))


def decode(base_path: Path, delta_path: Path, out: Path, method: str) -> None:
    """Write the new file."""
    base, delta = base_path.read_bytes(), delta_path.read_bytes()
    size = int.from_bytes(delta[:_HEAD], "little")
    place = _HEAD + size
    with out.open("wb") as file:
        for entry in json.loads(zstandard.ZstdDecompressor().decompress(delta[_HEAD:place])):
            packed = delta[place : place + entry[-1]]
            place += entry[-1]
            if entry[0] == "gap":
                unpacker = zstandard.ZstdDecompressor(dict_data=_dictionary(base[entry[1] : entry[1] + entry[2]]))
                file.write(unpacker.decompress(packed, max_output_size=entry[3]))
                continue
            _, start, width, is_float, length, _ = entry
            planes = zstandard.ZstdDecompressor().decompress(packed, max_output_size=length)
            file.write(_sum(base[start : start + length], planes, width, bool(is_float), method))
