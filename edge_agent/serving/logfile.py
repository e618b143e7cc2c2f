"""What workers write to their standard output and error, in a file of bounded size."""

import contextlib
import threading
from pathlib import Path

from edge_agent.serving.limits import LOG_BYTES_MAX


class BoundedLog:
    """Appends to `<module>.log`; when that is full it becomes `<module>.log.1`. Any thread.

    A disk that is full or gone loses log lines and nothing else: no method raises.
    """

    def __init__(self, path: Path, bytes_max: int = LOG_BYTES_MAX) -> None:
        """Append to the file at `path`, up to `bytes_max` bytes."""
        self.path = path
        self._bytes_max = bytes_max
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Append some bytes."""
        with self._lock, contextlib.suppress(OSError):
            data = data[-self._bytes_max :]
            size = self.path.stat().st_size if self.path.exists() else 0
            if size and size + len(data) > self._bytes_max:
                self.path.replace(self.path.with_name(self.path.name + ".1"))
            with self.path.open("ab") as file:
                self.path.chmod(0o640)
                file.write(data)
