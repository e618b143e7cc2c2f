"""Before the model: image files to pixels. Nothing but the standard library and numpy, so the bundle needs no wheels.

Grey PNG files of 8 bits without interlacing. Real cameras send more: put a wheel of Pillow into `[dependencies]`.
"""

import struct
import zlib
from typing import Any

import numpy as np

_SIDE = 8
_MARK = b"\x89PNG\r\n\x1a\n"


class NotAnImageError(Exception):
    """What came is not an image that this script reads."""

    # Whoever asked is told that the input is wrong, and the model is not blamed for it.
    is_input_invalid = True


def run(data: dict[str, Any]) -> dict[str, Any]:
    """Decode: BYTES `[n]` image files to float32 `[n, 64]` pixels from 0 to 1."""
    return {"pixels": np.stack([_pixels(item) for item in data["image"]]).astype(np.float32)}


def _pixels(file: bytes) -> np.ndarray:
    try:
        width, height, packed = _read(file)
        rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width)
    except (struct.error, zlib.error, ValueError, IndexError) as error:
        raise NotAnImageError(f"not a readable PNG file: {error}") from None
    if (height, width) != (_SIDE, _SIDE) or rows[:, 0].any():
        raise NotAnImageError(f"the image has to be {_SIDE} by {_SIDE} plain grey pixels")
    return rows[:, 1:].ravel() / 255


def _read(file: bytes) -> tuple[int, int, bytes]:
    if not file.startswith(_MARK):
        raise ValueError("it lacks the mark of one")
    place, size, packed = len(_MARK), (0, 0), b""
    while place + 8 <= len(file):
        length, kind = struct.unpack_from(">I4s", file, place)
        content = file[place + 8 : place + 8 + length]
        if kind == b"IHDR":
            width, height, *rest = struct.unpack(">IIBBBBB", content)
            if rest != [8, 0, 0, 0, 0] or max(width, height) > _SIDE:
                raise ValueError("it is too large, or not of 8-bit grey")
            size = (width, height)
        elif kind == b"IDAT":
            packed += content
        place += 12 + length
    return *size, packed
