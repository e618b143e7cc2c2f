"""Child processes that always end: started in their own process group, ended by pid, their output kept in a file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_KILL_WAIT_S = 10.0
_TAIL_BYTES_MAX = 8_192


@dataclass
class Child:
    """A running (or ended) child process. Used by the thread that started it."""

    popen: subprocess.Popen[bytes]
    log_path: Path

    @property
    def pid(self) -> int:
        """The process id; also the id of its process group."""
        return self.popen.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self.popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; none while it runs."""
        return self.popen.poll()

    def output(self) -> str:
        """Everything it has written to its standard output and error so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def tail(self) -> str:
        """The end of its output, short enough for a failure's text."""
        return self.log_path.read_bytes()[-_TAIL_BYTES_MAX:].decode("utf-8", errors="replace")

    def wait(self, deadline_s: float) -> int:
        """Wait for it to end by itself and return the exit code.

        Raises:
            AssertionError: It still runs after ``deadline_s`` seconds.
        """
        try:
            return self.popen.wait(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"process {self.pid} still runs after {deadline_s:g} s; its output ends:\n{self.tail()}"
            ) from None

    def send(self, number: signal.Signals) -> None:
        """Send one signal to the process itself; nothing happens when it has ended."""
        self.popen.send_signal(number)

    def kill(self) -> None:
        """End it at once, as a power cut would, and wait until it is gone. Its own children are left alone."""
        self.popen.kill()
        self.popen.wait(timeout=_KILL_WAIT_S)

    def stop(self, *, stop_signal: signal.Signals = signal.SIGTERM, deadline_s: float = 10.0) -> int:
        """Ask it to end, insist after ``deadline_s`` seconds, and end what is left of its process group."""
        if self.popen.poll() is None:
            self.popen.send_signal(stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(timeout=deadline_s)
        # The group bears the child's own pid and holds only what it started. Signalling it also reaches a worker whose
        # parent was killed by the test.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        return self.popen.wait(timeout=_KILL_WAIT_S)


def start_process(
    argv: Sequence[str | os.PathLike[str]],
    *,
    log_path: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    user: str | None = None,
    group: int | str | None = None,
    pass_fds: Sequence[int] = (),
    stdin: int = subprocess.DEVNULL,
) -> Child:
    """Start a child; the caller must call :meth:`Child.stop`. Prefer :func:`child_process`.

    Args:
        argv: Program and arguments; no shell is involved.
        log_path: Receives standard output and error, appended.
        env: The whole environment; inherited when none.
        cwd: Its working directory.
        user: Run as this user (needs root).
        group: And this group, without supplementary ones.
        pass_fds: Descriptors it keeps.
        stdin: Descriptor of its standard input; nothing by default.
    """
    with log_path.open("ab") as log:
        popen = subprocess.Popen(
            [os.fspath(part) for part in argv],
            stdin=stdin,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
            user=user,
            group=group,
            extra_groups=[] if user is not None else None,
            pass_fds=tuple(pass_fds),
        )
    return Child(popen, log_path)


@contextlib.contextmanager
def child_process(
    argv: Sequence[str | os.PathLike[str]],
    *,
    log_path: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    user: str | None = None,
    group: int | str | None = None,
    pass_fds: Sequence[int] = (),
    stop_signal: signal.Signals = signal.SIGTERM,
    stop_deadline_s: float = 10.0,
) -> Iterator[Child]:
    """Start a child and end it, and whatever it left behind, when the block ends.

    Args:
        argv: See :func:`start_process`, as for the arguments that follow.
        log_path: See :func:`start_process`.
        env: See :func:`start_process`.
        cwd: See :func:`start_process`.
        user: See :func:`start_process`.
        group: See :func:`start_process`.
        pass_fds: See :func:`start_process`.
        stop_signal: How it is asked to end.
        stop_deadline_s: How long it may take before it is killed.
    """
    child = start_process(argv, log_path=log_path, env=env, cwd=cwd, user=user, group=group, pass_fds=pass_fds)
    try:
        yield child
    finally:
        child.stop(stop_signal=stop_signal, deadline_s=stop_deadline_s)
