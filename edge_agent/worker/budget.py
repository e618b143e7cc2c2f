"""Memory for large requests, over all connections of a worker: how much at once, and places that are used again."""

import threading
from typing import Final

from edge_agent.worker.limits import BUFFER_KEPT_BYTES_MAX, BUFFERS_KEPT

_STEP: Final = 64 * 1024
"""Places have multiples of this size, so that requests of about the same size fit the same one."""
_ALIGNMENT: Final = 8


class Budget:
    """Room for requests. Any thread."""

    def __init__(self, bytes_max: int) -> None:
        """Have so much room."""
        self._bytes_max = bytes_max
        self._used = 0
        self._kept: list[bytearray] = []
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """Bytes taken."""
        return self._used

    def take(self, byte_count: int) -> bool:
        """Take room (negative: give it back); false when there is not so much."""
        with self._lock:
            if byte_count > 0 and self._used + byte_count > self._bytes_max:
                return False
            self._used += byte_count
            return True

    def lend(self, size: int, offset: int = 0) -> memoryview:
        """A place for `size` bytes, with anything in it.

        Args:
            size: Bytes.
            offset: Which of them is to lie at a multiple of 8, as tensors want it.
        """
        shift = -offset % _ALIGNMENT
        length = -(-(size + shift) // _STEP) * _STEP
        return memoryview(self._find(length) or bytearray(length))[shift : shift + size]

    def _find(self, length: int) -> bytearray | None:
        with self._lock:
            for index, buffer in enumerate(self._kept):
                if len(buffer) == length and _is_free(buffer):
                    return self._kept.pop(index)
        return None

    def keep(self, place: memoryview) -> None:
        """Leave a place to another request; it is not lent before all who look at it are done."""
        buffer = place.obj
        if not isinstance(buffer, bytearray) or len(buffer) > BUFFER_KEPT_BYTES_MAX:
            return
        with self._lock:
            self._kept.append(buffer)
            if len(self._kept) > BUFFERS_KEPT:
                del self._kept[0]


def _is_free(buffer: bytearray) -> bool:
    """Whether no view and no array looks at it: a bytearray does not change its size before."""
    try:
        del buffer[-1:]
    except BufferError:
        return False
    buffer.append(0)
    return True
