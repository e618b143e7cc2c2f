"""Runs programs one at a time and measures each: processor seconds, wall seconds, peak memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_LAUNCHER = Path(__file__).with_name("launcher.py")
_DEADLINE_S = 3_600.0
_THREADS = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"
ONE_THREAD = dict.fromkeys(_THREADS, "1")
"""Environment of whatever would start as many threads as there are cores."""


class FailedError(Exception):
    """A program that ended badly, or not in time."""


@dataclass(frozen=True)
class Cost:
    """What one run of a program took.

    Attributes:
        cpu_s: User and system, of it and its children.
        wall_s: From start to end.
        peak_bytes: Largest resident memory of any of its processes.
        stdout: What it printed.
    """

    cpu_s: float
    wall_s: float
    peak_bytes: int
    stdout: str = ""


def run(command: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path | None = None) -> Cost:
    """Run a program to its end.

    Args:
        command: Its first word is the program's path.
        environment: Beside what this process has and `ONE_THREAD`.
        folder: Working folder.

    Raises:
        FailedError: It ended badly, or took longer than an hour.
    """
    with tempfile.NamedTemporaryFile() as result:
        launched = [sys.executable, "-S", "-E", str(_LAUNCHER), result.name, *command]
        started = time.monotonic()
        process = subprocess.Popen(
            launched,
            env={**os.environ, **ONE_THREAD, **(environment or {})},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(timeout=_DEADLINE_S)
        except subprocess.TimeoutExpired as error:
            raise FailedError(f"{command[0]} took longer than {_DEADLINE_S:.0f} s") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        wall_s = time.monotonic() - started
        lines = Path(result.name).read_text(encoding="ascii").split()
    if process.returncode or len(lines) != 3 or lines[0] != "0":
        ended = lines[0] if lines else str(process.returncode)
        said = stderr.strip().splitlines() or ["it said nothing"]
        raise FailedError(f"{Path(command[0]).name} ended with {ended}: {said[-1][:300]}")
    return Cost(float(lines[1]), wall_s, int(lines[2]), stdout)
