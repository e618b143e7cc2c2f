"""Bytes of requests that may be in memory at once, over all connections of a worker."""

import threading


class Budget:
    """Room for requests. Any thread."""

    def __init__(self, bytes_max: int) -> None:
        """Have so much room."""
        self._bytes_max = bytes_max
        self._used = 0
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
