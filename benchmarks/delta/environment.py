"""The benchmark's own environment, made from its hashed lock: torch to train with, and the peers written in Python."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).with_name("requirements.lock")
_MAKE_DEADLINE_S = 1_800


def python_of(folder: Path) -> Path:
    """The interpreter of the environment in ``folder``, made where it is not there or the lock has changed.

    Raises:
        RuntimeError: It cannot be made; the message says why.
    """
    python, stamp = folder / "bin" / "python", folder / "lighterman.lock"
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.making.log").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not (python.exists() and stamp.exists() and stamp.read_text(encoding="ascii") == wanted):
            _make(folder, python)
            stamp.write_text(wanted, encoding="ascii")
    return python


def _make(folder: Path, python: Path) -> None:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    if not uv:
        raise RuntimeError("uv is not installed: it makes the benchmark's environment")
    made = [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)]
    # detools and zipnn come as sources for some interpreters.
    filled = [uv, "pip", "sync", "--quiet", "--python", str(python), "--require-hashes", str(LOCK)]
    for command in (made, filled):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_MAKE_DEADLINE_S)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"the benchmark's environment cannot be made: {error.stderr[-2000:]}") from error
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{command[1]} took longer than {_MAKE_DEADLINE_S} s") from error
