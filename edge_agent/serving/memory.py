"""How much memory this device can still give: the kernel's estimate, and the limits of the cgroups we are in.

A container or a systemd service with `MemoryMax=` ends processes long before the machine itself is short, so the
smallest room counts. Sources: proc(5) for `MemAvailable`; the kernel's cgroup-v2 documentation for the files read here.
"""

from pathlib import Path
from typing import Final

from edge_agent.ports import MemoryGauge
from edge_agent.serving.limits import MEMORY_SHARE_MAX
from edge_contract.errors import EdgeError
from edge_contract.runtime import RUNTIME_PATH, Runtime

_PROC: Final = Path("/proc")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_LEVELS_MAX: Final = 32
"""Nested cgroups that are looked at, from ours upwards."""


class SystemMemory:
    """Implements `edge_agent.ports.MemoryGauge` for Linux. Any thread."""

    def __init__(self, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> None:
        """Read from these mount points.

        Args:
            proc: Of the process information.
            cgroups: Of the cgroup-v2 hierarchy; without one only the machine's memory counts.
        """
        self._proc = proc
        self._cgroups = cgroups

    def available_bytes(self) -> int | None:
        """See `MemoryGauge.available_bytes`; swap does not count."""
        rooms = [room for room in (self._machine_bytes(), *self._cgroup_rooms()) if room is not None]
        return max(0, min(rooms)) if rooms else None

    def _machine_bytes(self) -> int | None:
        try:
            for line in (self._proc / "meminfo").read_text(encoding="ascii").splitlines():
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        except (OSError, ValueError, IndexError):
            pass
        return None

    def _cgroup_rooms(self) -> list[int | None]:
        """What is left in our cgroup and in each above it, as far as they have limits."""
        try:
            lines = (self._proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return []
        # `0::<path>` is the line of version 2; the path is relative to the root of our cgroup namespace.
        path = next((line[3:] for line in lines if line.startswith("0::")), None)
        if path is None or ".." in path.split("/"):
            return []
        folder = self._cgroups / path.lstrip("/")
        rooms = []
        for _ in range(_LEVELS_MAX):
            rooms.append(_room(folder))
            if folder == self._cgroups:
                break
            folder = folder.parent
        return rooms


def _room(folder: Path) -> int | None:
    """Bytes left in one cgroup; none without a limit."""
    limits = [limit for name in ("memory.max", "memory.high") if (limit := _number(folder / name)) is not None]
    used = _number(folder / "memory.current")
    if not limits or used is None:
        return None
    # File pages that nobody used lately are counted as used and are given up before anything fails.
    return min(limits) - max(0, used - _inactive_file_bytes(folder))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # `max` means no limit
        return None


def _inactive_file_bytes(folder: Path) -> int:
    try:
        for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == "inactive_file":
                return int(value)
    except (OSError, ValueError):
        pass
    return 0


def process_own_bytes(pid: int, proc: Path = _PROC) -> int:
    """Resident memory that comes back when a process ends: all but the pages of files. 0 when it is gone."""
    try:
        lines = (proc / str(pid) / "status").read_text(encoding="ascii", errors="replace").splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
    except (OSError, ValueError, IndexError):
        return 0


def read_runtime(slot: Path) -> Runtime:
    """The descriptor of the bundle in a slot.

    Raises:
        EdgeError: `artifact.*`, `model.load-failed`.
    """
    try:
        return Runtime.parse((slot / "files" / RUNTIME_PATH).read_bytes())
    except OSError as error:
        raise EdgeError("model.load-failed", f"the slot cannot be read: {error.strerror}: {error.filename}") from error


def require_room(memory: MemoryGauge, slot: Path) -> None:
    """Refuse a bundle that cannot be loaded beside what runs.

    Raises:
        EdgeError: `device.memory-short`, `artifact.*`, `model.load-failed`.
    """
    runtime = read_runtime(slot)
    available = memory.available_bytes()
    if available is not None and runtime.load_peak_bytes > available * MEMORY_SHARE_MAX:
        raise EdgeError(
            "device.memory-short",
            f"loading {runtime.model!r} version {runtime.version} needs {runtime.load_peak_bytes} bytes of memory, "
            f"{available} are free",
            "Stop other programs, or deploy a smaller model.",
        )
