"""A real MLflow tracking server in an environment of its own, which is made once and kept."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.net import free_low_port, wait_until
from tests.support.processes import child_process
from tests.support.require import REPOSITORY_ROOT

VENV_VARIABLE = "LIGHTERMAN_MLFLOW_VENV"
LOCK = Path(__file__).with_name("mlflow_server.lock")
_START_DEADLINE_S = 90.0
_MAKE_DEADLINE_S = 300
_AUTHOR_DEADLINE_S = 110
_ATTEMPTS_MAX = 3


@dataclass(frozen=True)
class MlflowServer:
    """A running server.

    Attributes:
        url: Its address, on 127.0.0.1.
        python: The interpreter of its environment, for scripts that log models as MLflow does.
        environment: For those scripts.
    """

    url: str
    python: Path
    environment: dict[str, str]

    def run(self, script: Path, *arguments: str) -> None:
        """Run a script in the server's environment; its output is the failure's text."""
        done = subprocess.run(
            [str(self.python), str(script), self.url, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_AUTHOR_DEADLINE_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def require_mlflow() -> Path:
    """The interpreter of the environment, made with uv where it is not there yet.

    Skips where it cannot be made, for want of uv or of a package index; with LIGHTERMAN_REQUIRE_SYSTEM=1 fails.
    """
    folder = Path(os.environ.get(VENV_VARIABLE) or REPOSITORY_ROOT / ".venv-mlflow").absolute()
    python, stamp = folder / "bin" / "python", folder / "lighterman.lock"
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Two test processes may want it at once.
    with folder.with_name(f"{folder.name}.making.log").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not (python.exists() and stamp.exists() and stamp.read_text() == wanted):
            _make(folder, python)
            stamp.write_text(wanted)
    return python


def _make(folder: Path, python: Path) -> None:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.is_file() else shutil.which("uv") or ""
    if not uv:
        _missing("uv is not installed")
    commands = [
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
        [
            uv,
            "pip",
            "sync",
            "--quiet",
            "--python",
            str(python),
            "--require-hashes",
            "--only-binary",
            ":all:",
            str(LOCK),
        ],
    ]
    for command in commands:
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_MAKE_DEADLINE_S)
        except subprocess.CalledProcessError as error:
            _missing(error.stderr[-2000:])
        except subprocess.TimeoutExpired:
            _missing(f"{command[1]} took longer than {_MAKE_DEADLINE_S} s")


def _missing(why: str) -> None:
    text = f"the environment of the MLflow server cannot be made: {why}"
    if os.environ.get("LIGHTERMAN_REQUIRE_SYSTEM") == "1":
        pytest.fail(text)
    pytest.skip(text)


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    """Start a server that keeps everything in a folder; it is ended with the block."""
    python = require_mlflow()
    environment = {
        "PATH": f"{python.parent}:/usr/bin:/bin",
        "HOME": str(folder),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    for attempt in range(_ATTEMPTS_MAX):
        port = free_low_port()
        url = f"http://127.0.0.1:{port}"
        command = [str(python), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--serve-artifacts"]
        command += ["--artifacts-destination", str(folder / "artifacts")]
        log = folder / f"mlflow-{attempt}.log"
        with child_process(command, log_path=log, env=environment, cwd=folder) as child:
            wait_until(
                lambda url=url, child=child: _is_up(url) or not child.is_running,  # type: ignore[misc]
                _START_DEADLINE_S,
                what="the MLflow server to answer",
            )
            if child.is_running:
                yield MlflowServer(url, python, environment)
                return
            assert attempt + 1 < _ATTEMPTS_MAX, child.tail()


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).text == "OK"
    except httpx.HTTPError:
        return False
