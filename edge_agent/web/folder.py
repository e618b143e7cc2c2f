"""The one folder that a service writes to: private, and gone when the service ends, however it ended.

A service that is killed cannot clean up after itself. The kernel drops its lock on the folder, so the next service that
begins in the same place sees that nobody is in there any more and removes it.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edge_agent.store.durable import disk_error
from edge_agent.web.limits import STALE_FOLDERS_MAX
from edge_contract.errors import EdgeError

PREFIX: Final = "lighterman-serve-"
_LOCK: Final = "lock"
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def private_folder(base: Path | None) -> Iterator[Path]:
    """A new folder that its owner alone may look into; removed at the end.

    Args:
        base: Existing folder to make it in; the system's folder for temporary files when none.

    Raises:
        EdgeError: `device.disk-full`, `device.disk-error`.
    """
    place = Path(tempfile.gettempdir()) if base is None else base
    _sweep(place)
    try:
        folder, lock = _make(place.resolve())
    except OSError as error:
        found = disk_error(error, f"making a folder in {place}")
        raise EdgeError(found.code, found.detail, "Name a folder that may be written: --work-dir DIR.") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make(place: Path) -> tuple[Path, int]:
    """A locked folder. It gets a name that `_sweep` looks at only once it is locked."""
    made = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=place))
    lock = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return made.rename(place / made.name.removeprefix(".")), lock


def _sweep(place: Path) -> None:
    """Remove what services of ours left here that were killed. Best effort: this keeps nobody from serving."""
    with contextlib.suppress(OSError):
        found = sorted(place.glob(f"{PREFIX}*"))[:STALE_FOLDERS_MAX]
        for folder in found:
            with contextlib.suppress(OSError):
                if folder.lstat().st_uid == os.geteuid() and not folder.is_symlink():
                    _remove_if_left(folder)


def _remove_if_left(folder: Path) -> None:
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _log.info("removing %s, which a service that was killed has left", folder)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
