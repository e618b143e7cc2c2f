"""The one place that writes durably: write to a temporary name, sync, rename, sync the folder.

After any of these functions has returned its effect survives a power cut; before that, the old state does. Safe to call
from several threads as long as no two of them write the same path.
"""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from edge_contract.errors import EdgeError

TEMPORARY_PREFIX: Final = ".tmp-"
"""Names with this prefix are leftovers of an interrupted write and may be removed by whoever owns the folder."""

UNREADABLE: Final = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN})
"""What a disk answers for a sector that is lost: the file is damaged, and a fresh copy heals it."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ_ONLY_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_CREATE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


def disk_error(error: OSError, doing: str) -> EdgeError:
    """An operating error for what the disk refused.

    Args:
        error: What the system said.
        doing: What was being done and to which path, for example "writing /var/lib/x".
    """
    reason = error.strerror or type(error).__name__
    if error.errno in _FULL:
        return EdgeError("device.disk-full", f"{doing}: {reason}", "Free some space on the device's data partition.")
    return EdgeError("device.disk-error", f"{doing}: {reason}", "Check the disk, its mount options and permissions.")


@contextlib.contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn every `OSError` of the block into `device.disk-full` or `device.disk-error`."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, doing) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        OSError: The disk refused.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Make a folder and its missing parents durable; an existing folder stays as it is.

    Raises:
        OSError: The disk refused, or something else has the name.
    """
    missing: list[Path] = []
    place = folder
    while not place.is_dir():
        missing.append(place)
        place = place.parent
    for item in reversed(missing):
        with contextlib.suppress(FileExistsError):
            item.mkdir(mode=mode)
        sync_folder(item.parent)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


def create_file(path: Path, mode: int = 0o600) -> int:
    """Open a new file for writing; never follows a link, never opens what is there.

    Returns:
        The descriptor, which the caller closes.

    Raises:
        OSError: The disk refused, or the name is taken.
    """
    return os.open(path, _CREATE_FLAGS, mode)


def open_file(path: Path) -> int:
    """Open a file for reading; never follows a link.

    Raises:
        OSError: It is not there or cannot be opened.
    """
    return os.open(path, _READ_ONLY_FLAGS)


def forget_cached(descriptor: int) -> None:
    """Have the next reads of a file come from the disk, as far as the kernel goes along with it."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte.

    Raises:
        OSError: The disk refused; part of the bytes may have been written.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a small file as a whole, durably. A reader sees the old bytes or the new ones.

    Raises:
        OSError: The disk refused; the old file is untouched and no leftover stays.
    """
    temporary = path.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    try:
        descriptor = create_file(temporary, mode)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def read_file(path: Path, bytes_max: int) -> bytes | None:
    """The bytes of a small file, or none when it is not there.

    Raises:
        OSError: It cannot be read, is no plain file, or is longer than `bytes_max` (`EFBIG` is not used for that).
    """
    try:
        descriptor = open_file(path)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise OSError(errno.EOVERFLOW, f"longer than {bytes_max} bytes", str(path))
    return data


def rename(source: Path, target: Path) -> None:
    """Rename within one file system, durably on both sides.

    Raises:
        OSError: The disk refused.
    """
    source.rename(target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


def remove_file(path: Path) -> bool:
    """Remove a file durably; says whether it was there.

    Raises:
        OSError: The disk refused.
    """
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    sync_folder(path.parent)
    return True


def remove_tree(folder: Path) -> None:
    """Remove a folder with all it holds; nothing happens when it is not there.

    The folder is renamed to a temporary name first, so that an interruption never leaves half of it under its own name.

    Raises:
        OSError: The disk refused.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    doomed = folder
    if not folder.name.startswith(TEMPORARY_PREFIX):
        doomed = folder.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        folder.rename(doomed)
        # Nothing may be gone from under the name before the name is.
        sync_folder(folder.parent)
    shutil.rmtree(doomed)
    sync_folder(folder.parent)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all it holds, durably; nothing happens when it is not there.

    Raises:
        OSError: The disk refused.
    """
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        remove_file(path)


def remove_leftovers(folder: Path) -> None:
    """Remove what interrupted writes left in a folder.

    Raises:
        OSError: The disk refused.
    """
    for item in list_folder(folder):
        if item.name.startswith(TEMPORARY_PREFIX):
            remove(item)


def settle(folder: Path, depth: int) -> None:
    """Begin where a process was killed: what it did is made durable, what it had not finished is removed.

    A name that it made and could not sync is seen by us and would still be lost with the power, after we had relied on
    it. Only for the owner of the folder, before anything in it is used.

    Args:
        folder: The folder.
        depth: How many levels of folders below it are settled too.

    Raises:
        OSError: The disk refused.
    """
    remove_leftovers(folder)
    for item in list_folder(folder):
        if depth > 0 and item.is_dir() and not item.is_symlink():
            settle(item, depth - 1)
    sync_folder(folder)


def list_folder(folder: Path) -> list[Path]:
    """What a folder holds, in order of name; empty when it is not there.

    Raises:
        OSError: The disk refused.
    """
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def walk(folder: Path) -> Iterator[Path]:
    """Every file and folder below a folder.

    Raises:
        OSError: The disk refused.
    """
    for item in list_folder(folder):
        yield item
        if item.is_dir() and not item.is_symlink():
            yield from walk(item)


def sync_tree(folder: Path) -> None:
    """Make a folder, the files in it and its folders durable, innermost first.

    Files with more than one name are hard links to blobs that were synced before, and are passed over.

    Raises:
        OSError: The disk refused.
    """
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync_file(Path(place, name))
        sync_folder(Path(place))


def _sync_file(path: Path) -> None:
    if path.lstat().st_nlink > 1:
        return
    descriptor = open_file(path)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def total_bytes(paths: Iterable[Path]) -> int:
    """Lengths of files, those that vanish meanwhile left out."""
    total = 0
    for path in paths:
        with contextlib.suppress(OSError):
            total += path.lstat().st_size
    return total
