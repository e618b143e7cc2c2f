"""Durable writing and hashing of files, in steady memory."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from packager.limits import COPY_BYTES

Advance = Callable[[int], None]
"""Called with the number of bytes that were just handled."""


def quiet(count: int) -> None:
    """An `Advance` that tells nobody."""
    del count


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Translate what the disk says into coded errors.

    Raises:
        EdgeError: `config.file-missing` for a file that is not there or not ours, `device.disk-full`,
            `device.disk-error`.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise EdgeError("config.file-missing", f"cannot use {error.filename or path}: {error.strerror}") from None
    except OSError as error:
        code = "device.disk-full" if error.errno in (28, 122) else "device.disk-error"
        raise EdgeError(code, f"cannot write {error.filename or path}: {error.strerror}") from None


def chunks_of(path: Path) -> Iterator[bytes]:
    """The bytes of a file in chunks of at most `COPY_BYTES`."""
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(COPY_BYTES):
            yield chunk


def digest_of(path: Path, advance: Advance = quiet) -> tuple[Digest, int]:
    """Digest and size of a file, in one pass.

    Raises:
        EdgeError: `config.file-missing`.
    """
    state, size = hashlib.sha256(), 0
    with disk_errors(path):
        for chunk in chunks_of(path):
            state.update(chunk)
            size += len(chunk)
            advance(len(chunk))
    return Digest.from_hex(state.hexdigest()), size


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace a small file so that it has the old content or the new one, whenever the power fails.

    Raises:
        EdgeError: `device.disk-full`, `device.disk-error`, `config.file-missing`.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with disk_errors(path):
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        try:
            os.fchmod(descriptor, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)
        sync_folder(path.parent)


def replace_folder(built: Path, target: Path) -> None:
    """Put a finished folder in the place of another one or of none; both have to be in one file system.

    Raises:
        EdgeError: `device.disk-error`.
    """
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    with disk_errors(target):
        if target.exists():
            os.rename(target, old)
        os.rename(built, target)
        sync_folder(target.parent)
        shutil.rmtree(old, ignore_errors=True)


def total_size(paths: Iterable[Path]) -> int:
    """Bytes of all files; those that are missing count nothing."""
    return sum(path.stat().st_size for path in paths if path.is_file())
