"""Small file systems that really fill up and really lose what was not synced: ext4 in a file, where one may mount it.

ext4 has a call that stops it dead without writing anything back (`EXT4_IOC_SHUTDOWN` without flushing the log); mounted
again, it shows what a power cut leaves on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.net import wait_until

_IMAGE_BYTES: Final = 16 * 1024 * 1024
_SHUTDOWN: Final = 0x8004587D  # _IOR('X', 125, __u32)
_NO_FLUSH: Final = 2
_TOOL_S: Final = 30.0
_FILLER: Final = ".filler"


class CannotMountError(Exception):
    """This machine or user may not mount a file system; the message says why."""


class SmallDisk:
    """An ext4 of 16 MiB in a file, mounted at a folder. Used by one thread.

    Attributes:
        place: Where it is mounted.
        kind: `ext4`, or `tmpfs` where that was asked for and no ext4 can be mounted; a tmpfs only fills up.
    """

    def __init__(self, image: Path, place: Path, is_tmpfs_enough: bool = False) -> None:
        """Make it, and mount it.

        Raises:
            CannotMountError: It cannot be mounted here.
        """
        self._image = image
        self.place = place
        self.kind = "ext4"
        place.mkdir(parents=True, exist_ok=True)
        try:
            with image.open("wb") as file:
                file.truncate(_IMAGE_BYTES)
            # Nothing is kept for root, so that full is full for everybody.
            _tool("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
            self.mount()
        except CannotMountError:
            if not is_tmpfs_enough:
                raise
            _tool("mount", "-t", "tmpfs", "-o", f"size={_IMAGE_BYTES}", "tmpfs", str(place))
            self.kind = "tmpfs"

    def mount(self) -> None:
        """Mount it; its journal is replayed then."""
        _tool("mount", "-o", "loop", str(self._image), str(self.place))

    def unmount(self) -> None:
        """Unmount it, as soon as the processes that were killed have let go of it.

        Raises:
            AssertionError: Somebody still holds it.
        """

        def is_unmounted() -> bool:
            with contextlib.suppress(CannotMountError):
                _tool("umount", str(self.place))
            return not os.path.ismount(self.place)

        wait_until(is_unmounted, _TOOL_S, what=f"{self.place} to be let go of", poll_s=0.05)

    def sync(self) -> None:
        """Write everything back."""
        descriptor = os.open(self.place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.sync()

    def cut_power(self) -> None:
        """Stop it dead and mount it again: what was not synced is lost."""
        self.stop_dead()
        self.remount()

    def stop_dead(self) -> None:
        """From now on every access fails, and nothing more is written back."""
        descriptor = os.open(self.place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_FLUSH))
        finally:
            os.close(descriptor)

    def remount(self) -> None:
        """Unmount it and mount it again."""
        self.unmount()
        self.mount()

    def fill(self) -> None:
        """Take every free byte."""
        with contextlib.suppress(OSError), (self.place / _FILLER).open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * size)

    def free(self) -> None:
        """Give back what `fill` took."""
        (self.place / _FILLER).unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, name: str, is_tmpfs_enough: bool = False) -> Iterator[SmallDisk]:
    """A small disk for the length of a block.

    Raises:
        CannotMountError: There can be none here.
    """
    disk = SmallDisk(folder / f"{name}.img", folder / f"{name}.mnt", is_tmpfs_enough)
    try:
        yield disk
    finally:
        disk.unmount()


def _tool(name: str, *arguments: str) -> None:
    program = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))
    if program is None:
        raise CannotMountError(f"{name} is not installed")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=_TOOL_S, check=False)
    if done.returncode != 0:
        raise CannotMountError(f"{name}: {done.stderr.strip()}")
