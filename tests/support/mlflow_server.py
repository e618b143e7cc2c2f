"""A real MLflow tracking server in an environment of its own, which is made once and kept."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.environments import require_environment
from tests.support.net import free_low_port, wait_until
from tests.support.processes import child_process

VENV_VARIABLE = "LIGHTERMAN_MLFLOW_VENV"
LOCK = Path(__file__).with_name("mlflow_server.lock")
_START_DEADLINE_S = 90.0
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
    """The interpreter of the environment; see `require_environment`."""
    return require_environment(os.environ.get(VENV_VARIABLE) or ".venv-mlflow", LOCK, "the MLflow server")


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
