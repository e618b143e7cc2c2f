"""One device of a test: its folders, its `edge-agent run` process, and what it says of itself."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from edge_agent.control import ask
from edge_agent.serving.limits import ORPHAN_FOLDER
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from tests.e2e.asker import Asker
from tests.support.net import free_low_port, wait_until
from tests.support.processes import Child, start_process
from tests.support.require import REPOSITORY_ROOT

_T = TypeVar("_T")
_WAIT_S = 60.0
_POLL_S = 0.05
_JOURNAL_POLL_S = 0.0005
_RESERVE_BYTES = 64 * 1024


class Device:
    """A device. Used by one thread."""

    def __init__(
        self,
        folder: Path,
        name: str,
        model: str,
        *,
        data: Path | None = None,
        is_clocked: bool = False,
        more_models: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Choose folders and a port; it has to be enrolled before it can start.

        Args:
            folder: For everything of it.
            name: Its name.
            model: The model it serves, and that the questions of this class are about.
            data: Its data directory; below `folder` when none.
            is_clocked: Run with a clock that `set_clock` sets.
            more_models: Further models it serves.
            variables: Added to the environment of the agent.
        """
        folder.mkdir(parents=True)
        self.name = name
        self.model = model
        self.data = data or folder / "data"
        self.ports = {name: free_low_port() for name in (model, *more_models)}
        self.port = self.ports[model]
        self.child: Child | None = None
        self._variables = dict(variables or {})
        self._folder = folder
        self._is_clocked = is_clocked
        self._starts = 0
        self.config = folder / "edge-agent.toml"
        self.config.write_text(
            f'data = "{self.data}"\nrun = "{folder / "run"}"\npoll_ms = 1000\nreport_ms = 2000\n'
            f"reserve_bytes = {_RESERVE_BYTES}\n[serve.ports]\n"
            + "".join(f"{name} = {port}\n" for name, port in self.ports.items()),
            encoding="utf-8",
        )
        self.set_clock()

    # -- the process -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the agent; returns at once."""
        if self._is_clocked:
            argv = [sys.executable, "-m", "tests.e2e.clocked_agent", str(self._clock), str(self.config)]
        else:
            argv = [str(Path(sys.executable).with_name("edge-agent")), "run", "--config", str(self.config)]
        self.child = start_process(
            argv, log_path=self._folder / "agent.log", env={**os.environ, **self._variables}, cwd=REPOSITORY_ROOT
        )

    def kill(self) -> None:
        """End the agent as a power cut would, and whatever it started."""
        if self.child is not None:
            self.child.kill()
            for pid in self.workers():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.child.stop()
            self.child = None

    def kill_agent(self) -> None:
        """End the agent at once; its workers go on."""
        assert self.child is not None
        self.child.kill()
        self.child.stop()
        self.child = None

    def workers(self) -> list[int]:
        """Process ids of the workers that serve, by the names of the sockets at which they wait for an agent."""
        return sorted(int(path.name.split(".")[-2]) for path in (self._folder / "run" / ORPHAN_FOLDER).glob("*.sock"))

    def stop(self) -> None:
        """Ask the agent to end."""
        if self.child is not None:
            self.child.stop()
            self.child = None

    def set_clock(self, wall_ms: int | None = None, passed_ms: int = 0) -> None:
        """Set the clock of a device that is clocked: the time of day, and how much more time than ours has passed."""
        fresh = self._clock.with_suffix(".new")
        fresh.write_text(json.dumps({"wall_ms": wall_ms, "passed_ms": passed_ms}), encoding="ascii")
        fresh.replace(self._clock)

    @property
    def _clock(self) -> Path:
        return self._folder / "clock.json"

    # -- what it says ----------------------------------------------------------------------------------------------

    def status(self) -> JsonObject:
        """Its status over the control socket; empty while it does not answer."""
        with suppress(EdgeError):
            found: JsonObject = ask(self._folder / "run", {"op": "status"})["status"]
            return found
        return {}

    def module(self) -> JsonObject:
        """What it says of its module; empty while there is none."""
        found: JsonObject = self.status().get("modules", {}).get(self.model, {})
        return found

    def wait(self, predicate: Callable[[], _T], what: str, poll_s: float = _POLL_S, deadline_s: float = _WAIT_S) -> _T:
        """Wait for a condition; the failure shows the agent's status and the end of its log."""
        try:
            return wait_until(predicate, deadline_s, what=what, poll_s=poll_s)
        except AssertionError as error:
            tail = self.child.tail() if self.child is not None else "(it does not run)"
            raise AssertionError(f"{error}\nstatus: {json.dumps(self.status())}\nlog: {tail}") from None

    def wait_confirmed(self, manifest: Digest) -> None:
        """Wait until this bundle is live, confirmed and serving."""

        def is_so() -> bool:
            module = self.module()
            deployment = module.get("deployment") or {}
            return bool(
                module.get("live") == str(manifest)
                and module["serving"]
                and deployment["manifest"] == str(manifest)
                and deployment["outcome"] == "confirmed"
            )

        self.wait(is_so, f"{self.name} to confirm {manifest.short}")

    def wait_error(self, code: str) -> None:
        """Wait until the device itself names this error, of the agent or of its module's deployment."""
        self.wait(lambda: code in self.errors(), f"{self.name} to report {code}")

    def errors(self) -> set[str]:
        """Codes of the errors it names now."""
        status = self.status()
        deployment = (status.get("modules", {}).get(self.model) or {}).get("deployment") or {}
        return {error["code"] for error in (status.get("error"), deployment.get("error")) if error}

    def phase(self) -> str:
        """The phase that its journal names, empty when there is none."""
        with suppress(OSError, ValueError, KeyError):
            record = json.loads((self.data / "journal.json").read_bytes())["record"]
            return str(record["modules"][self.model]["phase"])
        return ""

    def wait_phase(self, *phases: str) -> str:
        """Watch the journal closely until it names one of these phases."""
        end = time.monotonic() + _WAIT_S
        while (phase := self.phase()) not in phases:
            assert time.monotonic() < end, f"{self.name} never was in {phases}: {self.status()}"
            time.sleep(_JOURNAL_POLL_S)
        return phase

    def partial_bytes(self) -> int:
        """Bytes that have come of blobs that are not whole."""
        with suppress(OSError):
            return sum(path.stat().st_size for path in (self.data / "partial").iterdir())
        return 0

    def asker(self) -> Asker:
        """A client of its model; a context manager."""
        self._starts += 1
        return Asker(self.model, self.port, f"{self.name}-{self._starts}")
