"""A registry in a child process, with links that carry tokens of different roles."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.support.net import wait_until
from tests.support.processes import Child, start_process
from tests.support.require import REPOSITORY_ROOT

_START_DEADLINE_S = 60.0
_TIMEOUT_S = 30.0


@dataclass
class RegistryProcess:
    """A registry that can be killed and started again on the same data. Used by one thread."""

    directory: Path
    child: Child | None = field(default=None, repr=False)
    url: str = ""

    @property
    def data(self) -> Path:
        """Its data folder."""
        return self.directory / "data"

    @property
    def pid(self) -> int:
        """The process id of the running registry."""
        if self.child is None:
            raise RuntimeError("the registry is not running: call start()")
        return self.child.pid

    @property
    def admin_token(self) -> str:
        """The token of the first start."""
        return (self.data / "admin.token").read_text()

    def start(self) -> None:
        """Start it on a new port and wait until it answers."""
        self.data.mkdir(parents=True, exist_ok=True)
        port_file = self.data / "port"
        port_file.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "tests.support.registry_process", str(self.data)]
        child = start_process(argv, log_path=self.directory / "registry.log", cwd=REPOSITORY_ROOT)
        self.child = child
        try:
            wait_until(
                lambda: port_file.exists() or not child.is_running, _START_DEADLINE_S, what="the registry to listen"
            )
            assert child.is_running, child.tail()
        except BaseException:
            child.stop()
            raise
        self.url = f"http://127.0.0.1:{port_file.read_text()}"

    def kill(self) -> None:
        """End it the hard way, as the kernel or a power cut would."""
        if self.child is not None:
            self.child.stop(stop_signal=signal.SIGKILL)
            self.child = None

    def stop(self) -> None:
        """Ask it to end."""
        if self.child is not None:
            self.child.stop()
            self.child = None

    @contextlib.contextmanager
    def link(self, token: str | None = None) -> Iterator[httpx.Client]:
        """An HTTP client with a token, the admin's unless another one (or none, by an empty one) is given."""
        used = self.admin_token if token is None else token
        headers = {"Authorization": f"Bearer {used}"} if used else {}
        with httpx.Client(base_url=self.url, headers=headers, timeout=_TIMEOUT_S, trust_env=False) as client:
            yield client

    def token(self, role: str) -> str:
        """A new token of a role."""
        with self.link() as admin:
            answer = admin.post("/api/v1/tokens", json={"name": f"{role}-of-test", "role": role})
            assert answer.status_code == 201, answer.text
            return str(answer.json()["token"])


@contextlib.contextmanager
def registry_process(directory: Path) -> Iterator[RegistryProcess]:
    """A running registry that ends with the block."""
    directory.mkdir(parents=True, exist_ok=True)
    registry = RegistryProcess(directory)
    registry.start()
    try:
        yield registry
    finally:
        registry.stop()
