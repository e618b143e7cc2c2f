"""Control groups (version 2) of workers, where this process may make them. Source: the kernel's cgroup-v2 page.

They are made beside our own group, below one that is ours:
- our group is called `agent` and the one above it may be written: systemd's `DelegateSubgroup=agent`, or an earlier
  start of ours;
- we are in the root of what we can see, a container or a machine without systemd: we move to `agent` ourselves;
- our group was delegated to us by somebody else than systemd's service manager, which marks it so: likewise.

Nothing else is touched. In a systemd service that is delegated without a group of its own below, workers that outlive a
crash of the agent would keep systemd from starting it again: a group whose controllers are handed down holds no
processes itself.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

_PROC: Final = Path("/proc")
OWN: Final = "agent"
"""Our own group, beside those of the workers."""
_OURS: Final = "lighterman"
"""What the groups hang below on a machine whose root group we are in."""
WANTED: Final = ("memory", "cpu", "cpuset", "pids")
_DELEGATED: Final = ("user.delegate", "trusted.delegate")
_END_POLL_S: Final = 0.01
_PROCESSES_MAX: Final = 64
"""Processes of our own group that are moved when it is divided."""


class CgroupError(Exception):
    """What the kernel or the machine does not permit; the text is for people."""


class Cgroup:
    """One worker's group. Used by one thread at a time."""

    def __init__(self, folder: Path) -> None:
        """Make the group, or take one that is there.

        Raises:
            CgroupError: It cannot be made.
        """
        self.folder = folder
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise CgroupError(f"the control group {folder} cannot be made: {error.strerror}") from error

    def write(self, name: str, value: str) -> None:
        """Set one file of it.

        Raises:
            CgroupError: The kernel does not have it or refuses the value.
        """
        _write(self.folder / name, value)

    def add(self, pid: int) -> None:
        """Move a process into it.

        Raises:
            CgroupError: It may not be moved.
        """
        self.write("cgroup.procs", str(pid))

    def memory_kills(self) -> int:
        """How often the kernel ended a process of it because its memory was used up."""
        return _counts(self.folder / "memory.events").get("oom_kill", 0)

    def kill(self) -> None:
        """End every process of it, those that are being started included."""
        try:
            _write(self.folder / "cgroup.kill", "1")
        except CgroupError:  # Linux before 5.14
            for pid in _numbers(self.folder / "cgroup.procs"):
                with contextlib.suppress(OSError):
                    os.kill(pid, 9)

    def remove(self, timeout_ms: int) -> bool:
        """End what is in it and remove it; false when the kernel took longer."""
        self.kill()
        end = time.monotonic() + timeout_ms / 1000
        while True:
            try:
                self.folder.rmdir()
                return True
            except FileNotFoundError:
                return True
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > end:
                    _log.warning("the control group %s stays: %s", self.folder, error.strerror)
                    return False
            time.sleep(_END_POLL_S)


class CgroupTree:
    """Where the workers' groups are made.

    Attributes:
        controllers: Those of `WANTED` that can be used below it.
    """

    def __init__(self, base: Path) -> None:
        """Hand the controllers down to the groups below `base`.

        Raises:
            CgroupError: None can be.
        """
        self._base = base
        offered = _words(base / "cgroup.controllers")
        reasons = []
        for name in WANTED:
            if name in offered:
                try:
                    _write(base / "cgroup.subtree_control", f"+{name}")
                except CgroupError as error:
                    reasons.append(str(error))
        self.controllers = frozenset(_words(base / "cgroup.subtree_control")) & frozenset(WANTED)
        if not self.controllers:
            raise CgroupError(reasons[0] if reasons else f"{base} offers none of the controllers {', '.join(WANTED)}")

    def group(self, name: str) -> Cgroup:
        """The group of this name, made when it is not there.

        Raises:
            CgroupError: It cannot be made.
        """
        return Cgroup(self._base / name)

    def remove_empty(self) -> None:
        """Remove groups that a former agent left behind; those in which something runs stay."""
        with contextlib.suppress(OSError):
            for folder in self._base.iterdir():
                if folder.name != OWN and folder.is_dir():
                    with contextlib.suppress(OSError):  # the kernel removes no group with processes
                        folder.rmdir()

    @classmethod
    def find(cls, proc: Path = _PROC) -> "CgroupTree":
        """Find where groups may be made, and make room there; see the module.

        Raises:
            CgroupError: Nowhere; the text says why.
        """
        mount, root = _mount(proc)
        path = _own_path(proc)
        own = mount / path.removeprefix(root).strip("/")
        if not own.is_dir():
            raise CgroupError(f"our control group {path} cannot be seen from here")
        if own.name == OWN and own != mount and _may_write(own.parent):
            return cls(own.parent)
        if not _may_write(own):
            raise CgroupError(f"the control group {own} is not ours to divide (in a service: Delegate=yes)")
        if own == mount:
            # The machine's own root, unlike that of a container, may hold processes beside groups.
            is_root_of_all = not (own / "cgroup.type").exists()
            return cls._below_root(own) if is_root_of_all else cls._divide(own)
        if own.suffix != ".service" and _is_delegated(own):
            return cls._divide(own)
        raise CgroupError(
            f"the control group {own} was not delegated with a group of its own for the agent "
            f"(in a service: Delegate=yes and DelegateSubgroup={OWN})"
        )

    @classmethod
    def _below_root(cls, root: Path) -> "CgroupTree":
        if not set(_words(root / "cgroup.controllers")) & set(WANTED):
            raise CgroupError(f"{root} offers none of the controllers {', '.join(WANTED)}")
        ours = Cgroup(root / _OURS)
        cls(root)
        return cls(ours.folder)

    @classmethod
    def _divide(cls, own: Path) -> "CgroupTree":
        """Move what runs in our group one down, so that it can hold groups."""
        if not set(_words(own / "cgroup.controllers")) & set(WANTED):
            raise CgroupError(f"{own} offers none of the controllers {', '.join(WANTED)}")
        leaf = Cgroup(own / OWN)
        for pid in list(_numbers(own / "cgroup.procs"))[:_PROCESSES_MAX]:
            with contextlib.suppress(CgroupError):  # one that just ended, or is not ours: told of by what follows
                leaf.add(pid)
        return cls(own)


def _mount(proc: Path) -> tuple[Path, str]:
    """Where version 2 is mounted, and which group is its root there."""
    for line in _lines(proc / "self" / "mountinfo"):
        before, _, after = line.partition(" - ")
        fields = before.split()
        if after.split(" ")[0] == "cgroup2" and len(fields) > 4:
            return Path(fields[4]), fields[3].rstrip("/")
    raise CgroupError("there are no control groups of version 2 here")


def _own_path(proc: Path) -> str:
    for line in _lines(proc / "self" / "cgroup"):
        if line.startswith("0::") and ".." not in line.split("/"):
            return line[3:]
    raise CgroupError("this process is in no control group of version 2 that can be seen")


def _is_delegated(folder: Path) -> bool:
    for name in _DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def _may_write(folder: Path) -> bool:
    """Whether groups can be made and processes moved there; also false for one that is mounted read-only."""
    return all(os.access(path, os.W_OK) for path in (folder, folder / "cgroup.procs"))


def _write(path: Path, value: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise CgroupError(f"{path} does not take {value!r}: {error.strerror}") from error


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _numbers(path: Path) -> Iterable[int]:
    return (int(word) for word in _words(path) if word.isdigit())


def _counts(path: Path) -> Mapping[str, int]:
    pairs = (line.split() for line in _lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
