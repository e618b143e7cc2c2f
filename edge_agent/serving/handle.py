"""A process that the agent may end and whose end it notices: one it started, or one that an agent before it did.

An adopted process is held by a pidfd (pidfd_open(2)): a number that means this very process for ever, unlike a process
id, which another process may bear a moment after the first one is gone.
"""

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

UNKNOWN_EXIT: Final = 256
"""Exit code of an adopted process that was somebody else's child: the kernel tells it to its parent alone."""

_PROC: Final = Path("/proc")


class Process(Protocol):
    """What the agent knows of a worker's process. Any thread."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    def poll(self) -> int | None:
        """Its exit code, negative for a signal, `UNKNOWN_EXIT` when nobody told; none while it runs."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended within this time."""
        ...

    def kill(self) -> None:
        """End it at once; nothing happens when it has ended."""
        ...

    @property
    def end_fd(self) -> int | None:
        """Becomes readable when it ends, also when what it started keeps its sockets open; none where there is none."""
        ...

    def close(self) -> None:
        """Let go of it. Called once, last."""
        ...


class StartedProcess:
    """A child that this program started."""

    def __init__(self, popen: "subprocess.Popen[bytes]") -> None:
        """Take it over."""
        self._popen = popen
        self._fd: int | None = None
        with contextlib.suppress(OSError):  # kernels before 5.3
            self._fd = os.pidfd_open(popen.pid)

    @property
    def pid(self) -> int:
        """See `Process`."""
        return self._popen.pid

    def poll(self) -> int | None:
        """See `Process`."""
        return self._popen.poll()

    def wait(self, timeout_s: float) -> bool:
        """See `Process`."""
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """See `Process`."""
        self._popen.kill()

    @property
    def end_fd(self) -> int | None:
        """See `Process`."""
        return self._fd

    def close(self) -> None:
        """See `Process`."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class AdoptedProcess:
    """A process that an agent before this one started.

    It is a child all the same when that agent was this very process before it re-executed itself; then it is reaped.
    """

    def __init__(self, pid: int) -> None:
        """Take hold of a running process.

        Raises:
            OSError: `ESRCH` when it is gone, `ENOSYS` where the kernel knows no pidfds.
        """
        self._pid = pid
        self._fd = os.pidfd_open(pid)
        self._lock = threading.Lock()  # guards the descriptor and the code
        self._code: int | None = None

    @property
    def pid(self) -> int:
        """See `Process`."""
        return self._pid

    def poll(self) -> int | None:
        """See `Process`."""
        return self._look(0)

    def wait(self, timeout_s: float) -> bool:
        """See `Process`. Looks now and then, so that another thread may kill it meanwhile."""
        end = time.monotonic() + timeout_s
        while self._look(20) is None:
            if time.monotonic() > end:
                return False
        return True

    def kill(self) -> None:
        """See `Process`."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._code is None:
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    @property
    def end_fd(self) -> int | None:
        """See `Process`."""
        return self._fd

    def close(self) -> None:
        """See `Process`; what still runs goes on."""
        with self._lock:
            if self._code is None:
                self._code = UNKNOWN_EXIT
            os.close(self._fd)

    def _look(self, timeout_ms: int) -> int | None:
        with self._lock:
            if self._code is not None:
                return self._code
            poller = select.poll()
            poller.register(self._fd, select.POLLIN)
            if poller.poll(timeout_ms):
                self._code = _reap(self._fd)
            return self._code


def _reap(pidfd: int) -> int:
    """Exit code of a process that has ended, as far as it can be known."""
    try:
        found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return UNKNOWN_EXIT
    if found is None:
        return UNKNOWN_EXIT
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def inherited_children() -> frozenset[int]:
    """Children that this process has before it started any: those of the program that it was before."""
    found: set[int] = set()
    with contextlib.suppress(OSError, ValueError):
        for children in (_PROC / "self" / "task").glob("*/children"):
            found |= {int(pid) for pid in children.read_text(encoding="ascii").split()}
    return frozenset(found)


def reap_in_background(pids: Iterable[int]) -> None:
    """Reap children that nobody else waits for, each when it ends."""

    def wait(pid: int) -> None:
        with contextlib.suppress(OSError):
            os.waitpid(pid, 0)

    for pid in pids:
        threading.Thread(target=wait, args=(pid,), name="reaper", daemon=True).start()


def can_adopt() -> bool:
    """Whether this system has pidfds; without them a process that is nobody's child cannot be watched safely."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True
