"""Files that are whole or absent, whatever instant the power fails at: write, sync, rename, sync the folder."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edge_contract.errors import EdgeError

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn what the disk refuses into coded errors.

    Args:
        what: What was being done, for the message: "write the blob sha256:…".

    Raises:
        EdgeError: `device.disk-full` or `device.disk-error`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise EdgeError(
                "device.disk-full", f"cannot {what}: no space is left", "Make space on the registry's disk."
            ) from None
        raise EdgeError("device.disk-error", f"cannot {what}: {error.strerror or error}") from None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o755) -> None:
    """Create a folder with its parents, durably; nothing happens if it is there."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=mode, exist_ok=True)
    sync_folder(folder.parent)


def write_file(path: Path, data: bytes, mode: int = 0o644, scratch: Path | None = None) -> None:
    """Replace a file in one step, durably.

    Args:
        path: The file.
        data: All its bytes.
        mode: Permission bits, set before the first byte is written.
        scratch: Folder on the same file system for the temporary file; its own by default.
    """
    temporary = (scratch or path.parent) / f".{path.name}.{secrets.token_hex(8)}"
    try:
        _write_new(temporary, data, mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def create_file(path: Path, data: bytes, mode: int) -> bool:
    """Create a file durably unless it is there, as a whole and by exactly one of several processes.

    Returns:
        Whether this call made it.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    try:
        _write_new(temporary, data, mode)
        try:
            # Unlike a rename, a link never replaces what somebody else made meanwhile.
            os.link(temporary, path)
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        # The process's mask may have taken bits away.
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
