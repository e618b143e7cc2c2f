"""What a worker and the kernel tell each other: how urgent it is, whom to end when memory is short, how big it got."""

import contextlib
import ctypes
import gc
import os
import resource
from pathlib import Path
from typing import Final

_CANDIDATE_NICE: Final = 10
_CAP_SYS_NICE_BIT: Final = 23
_RLIMIT_NICE_FOR_ZERO: Final = 20
# The kernel ends the process with the highest value first: a candidate before a live worker before the agent.
_OOM_CANDIDATE: Final = 700
_OOM_LIVE: Final = 300


def _status_field(name: str) -> str:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(name + ":"):
            return line.partition(":")[2].strip()
    return ""


def _may_raise_priority() -> bool:
    """Whether a lowered priority can be raised again; without it a worker would stay slow for ever."""
    try:
        if int(_status_field("CapEff"), 16) >> _CAP_SYS_NICE_BIT & 1:
            return True
        return resource.getrlimit(resource.RLIMIT_NICE)[0] >= _RLIMIT_NICE_FOR_ZERO
    except (OSError, ValueError):
        return False


class Priority:
    """The priority of the whole process, threads of libraries included. Used by the main thread."""

    def __init__(self) -> None:
        """Step back behind the live worker while loading, where that can be undone."""
        self._normal = os.getpriority(os.PRIO_PROCESS, 0)
        self._is_lowered = self._normal < _CANDIDATE_NICE and _may_raise_priority()
        if self._is_lowered:
            self._set_all(_CANDIDATE_NICE)
        _write_oom(_OOM_CANDIDATE)

    def hurry(self) -> None:
        """Take the normal priority already for loading: nobody else serves this module, and its clients wait."""
        if self._is_lowered:
            self._is_lowered = False
            self._set_all(self._normal)

    def restore(self) -> None:
        """Take the normal priority; before the first connection is accepted."""
        self.hurry()
        _write_oom(_OOM_LIVE)

    @staticmethod
    def _set_all(nice: int) -> None:
        # setpriority() reaches one thread only on Linux.
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError, ValueError):
                os.setpriority(os.PRIO_PROCESS, int(task.name), nice)


def _write_oom(value: int) -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(value), encoding="ascii")


def peak_bytes() -> int:
    """Most memory this process ever had resident; 0 where the kernel does not say.

    Not `getrusage`: its figure begins with that of the process that started this one.
    """
    try:
        return int(_status_field("VmHWM").split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return 0


def resident_bytes() -> int:
    """Memory this process has resident now; 0 where the kernel does not say."""
    try:
        return int(_status_field("VmRSS").split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return 0


def give_memory_back() -> None:
    """Return what loading left behind to the kernel, and keep what stays out of the collector's way."""
    gc.collect()
    gc.freeze()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc; musl has no such function
