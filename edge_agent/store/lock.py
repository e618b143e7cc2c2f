"""One agent process a data directory, held by a file lock that the kernel drops with the process.

Whoever gets it settles the directory first: the owner before may have been killed between any two instructions.
"""

import contextlib
import errno
import fcntl
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from edge_agent.store import durable
from edge_contract.errors import EdgeError

_LOG: Final = logging.getLogger(__name__)
OWNER: Final = "lock"
"""Name of the lock of a whole data directory; other names are for parts of it, which may change meanwhile."""

_DEPTH: Final = 2  # blobs/sha256 and trust/director are the deepest folders whose names matter by themselves


class DataLock:
    """Exclusive ownership of a data directory: `with DataLock(data / "lock"): ...`. Used by one thread."""

    def __init__(self, path: Path) -> None:
        """Name the lock file; nothing is taken yet.

        Args:
            path: The file; its folder is made when missing.
        """
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock at once or fail.

        Raises:
            EdgeError: `device.busy` when another process has it, `device.disk-error`.
        """
        with durable.disk_errors(f"opening {self._path}"):
            durable.make_folder(self._path.parent)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise EdgeError(
                    "device.busy",
                    f"another process owns {self._path.parent}",
                    "Stop the running agent first (systemctl stop lighterman-agent), or use another --data.",
                ) from None
            raise durable.disk_error(error, f"locking {self._path}") from error
        self._descriptor = descriptor
        if self._path.name == OWNER:
            self._settle()

    def _settle(self) -> None:
        try:
            durable.settle(self._path.parent, _DEPTH)
        except OSError as error:
            # Worth a try at every start and no reason not to serve the live model.
            _LOG.warning("%s", durable.disk_error(error, f"settling {self._path.parent}"))

    def release(self) -> None:
        """Give the lock back; nothing happens when it was not taken."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        """Take the lock."""
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        self.release()
