"""Raw bits of varying width, packed one behind the other, lowest bit first."""

import numpy as np

from edge_delta.elements import Array


def unpack(data: bytes | memoryview, widths: Array) -> Array:
    """Numbers out of packed bits.

    Args:
        data: At least `packed_bytes(widths)` bytes.
        widths: uint8, `0..32` each.

    Returns:
        uint32, one for each width.
    """
    if not widths.any():
        return np.zeros(widths.size, np.uint32)
    ends = np.cumsum(widths, dtype=np.int64)
    starts = ends - widths
    padded = bytes(data) + bytes(8 + -len(data) % 4)
    words = np.frombuffer(padded, "<u4").astype(np.uint64)
    pairs = words[:-1] | (words[1:] << np.uint64(32))
    found = pairs[starts >> 5] >> (starts & 31).astype(np.uint64)
    mask = (np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1)
    numbers: Array = (found & mask).astype(np.uint32)
    return numbers


def packed_bytes(widths: Array) -> int:
    """How many bytes numbers of these widths take."""
    return (int(widths.sum(dtype=np.int64)) + 7) // 8


def pack(numbers: Array, widths: Array) -> bytes:
    """What `unpack` reads.

    Args:
        numbers: uint32, each below 2 ** its width.
        widths: uint8, `0..32` each.
    """
    total = packed_bytes(widths)
    if not total:
        return b""
    ends = np.cumsum(widths, dtype=np.int64)
    starts = ends - widths
    shifted = numbers.astype(np.uint64) << (starts & 31).astype(np.uint64)
    place = starts >> 5
    size = total // 4 + 3
    # Two halves of 32 bits; no bit is set twice, so sums are unions. float64 sums are exact below 2**53.
    low = np.bincount(place, (shifted & np.uint64(0xFFFFFFFF)).astype(np.float64), size)
    high = np.bincount(place + 1, (shifted >> np.uint64(32)).astype(np.float64), size)
    return (low + high).astype(np.uint64).astype("<u4").tobytes()[:total]
