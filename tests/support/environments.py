"""Environments with other versions of libraries than the one the tests run in: made once from a hashed lock, kept."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.require import REPOSITORY_ROOT

_MAKE_DEADLINE_S = 300


def require_environment(folder: str, lock: Path, what: str, *, built: tuple[str, ...] = ()) -> Path:
    """The interpreter of an environment, made with uv where it is not there yet or its lock has changed.

    Skips where it cannot be made, for want of uv or of a package index; with LIGHTERMAN_REQUIRE_SYSTEM=1 fails.

    Args:
        folder: Where it lies, in the repository unless absolute; git does not see names that begin with `.venv-`.
        lock: What is in it, with hashes.
        what: What it is for, in messages.
        built: Packages that have no wheels and are built from their sources.
    """
    place = (REPOSITORY_ROOT / folder).absolute()
    python, stamp = place / "bin" / "python", place / "lighterman.lock"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    place.parent.mkdir(parents=True, exist_ok=True)
    # Two test processes may want it at once.
    with place.with_name(f"{place.name}.making.log").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not (python.exists() and stamp.exists() and stamp.read_text() == wanted):
            _make(place, python, lock, what, built)
            stamp.write_text(wanted)
    return python


def _make(folder: Path, python: Path, lock: Path, what: str, built: tuple[str, ...]) -> None:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.is_file() else shutil.which("uv") or ""
    if not uv:
        _missing(what, "uv is not installed")
    sync = [uv, "pip", "sync", "--quiet", "--python", str(python), "--require-hashes", "--only-binary", ":all:"]
    for package in built:
        sync += ["--no-binary", package]
    for command in ([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], [*sync, str(lock)]):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_MAKE_DEADLINE_S)
        except subprocess.CalledProcessError as error:
            _missing(what, error.stderr[-2000:])
        except subprocess.TimeoutExpired:
            _missing(what, f"{command[1]} took longer than {_MAKE_DEADLINE_S} s")


def _missing(what: str, why: str) -> None:
    text = f"the environment of {what} cannot be made: {why}"
    if os.environ.get("LIGHTERMAN_REQUIRE_SYSTEM") == "1":
        pytest.fail(text)
    pytest.skip(text)
