"""An agent's part of serving as a process of its own that can be killed, and started again."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edge_agent.serving.limits import ORPHAN_FOLDER
from edge_contract.digest import Digest
from tests.support.net import wait_until
from tests.support.processes import Child, start_process
from tests.support.require import REPOSITORY_ROOT

MODULE = "line"
_WAIT_S = 60.0

_PROGRAM = """
import json, os, sys, threading
from pathlib import Path
sys.path.insert(0, {root!r})
from edge_agent.serving.inherited import read_inherited
from edge_agent.serving.limits import ServingLimits
from edge_agent.serving.supervisor import WorkerSupervisor
from edge_agent.shell.reexec import reexec, take_passed, take_signals
from edge_agent.systemd import SystemdSupervisor, take_listen_fds
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError

named = take_listen_fds(os.environ) + (take_passed(os.environ) or [])
take_signals()
said = threading.Lock()

def say(**facts):
    with said:
        print(json.dumps(facts), flush=True)

server = WorkerSupervisor(
    Path({run!r}),
    lambda module, record: say(sample=record["body"]["request_id"]),
    lambda module, manifest: say(ended=str(manifest)),
    limits=ServingLimits(**{limits!r}),
    is_outlived=True,
    inherited=read_inherited(named),
    keeper=SystemdSupervisor(),
)
server.adopt()
say(ready=os.getpid(), workers=server.worker_pids)
for line in sys.stdin:
    op, *words = json.loads(line)
    try:
        if op == "close":
            server.close()
            say(done=op)
            break
        if op == "reload":
            reexec(server.release(), lambda: True)
        if op in ("ensure", "prove", "restart"):
            answer = getattr(server, op)(words[0], Digest(words[1]), Path(words[2]))
        elif op == "activate":
            answer = server.activate(words[0], Digest(words[1]))
        elif op == "attest":
            answer = str(server.attest(words[0]).manifest)
        elif op == "health":
            answer = [server.health(words[0]).is_alive, server.health(words[0]).requests]
        elif op == "addresses":
            answer = [str(part) for part in server.addresses(words[0])]
        else:
            answer = getattr(server, op)(*words)
    except EdgeError as error:
        say(failed=error.code, detail=error.detail)
    else:
        say(done=op, answer=answer if isinstance(answer, (int, list, type(None))) else str(answer))
"""

Bundle = tuple[Digest, Path]


class AgentProcess:
    """The serving part of an agent in a process of its own. Used by one thread."""

    def __init__(self, folder: Path, limits: dict[str, int] | None = None) -> None:
        """Choose folders.

        Args:
            folder: For everything of it.
            limits: Bounds that are not the defaults.
        """
        self.run_dir = folder / "run"
        self.run_dir.mkdir(exist_ok=True)
        self._folder = folder
        self._limits = limits or {}
        self._child: Child | None = None
        self._input = -1
        self._log = folder / "agent.log"
        self._seen = 0

    @property
    def orphans(self) -> Path:
        """Where workers wait."""
        return self.run_dir / ORPHAN_FOLDER

    @property
    def pid(self) -> int:
        """Of the agent."""
        assert self._child is not None
        return self._child.pid

    def start(
        self,
        wrapper: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        variables: Mapping[str, str] | None = None,
    ) -> list[int]:
        """Start it; gives the workers that it has adopted.

        Args:
            wrapper: A program and arguments to start it with.
            pass_fds: Descriptors it keeps.
            variables: Added to its environment.
        """
        self.begin(wrapper, pass_fds, variables)
        return self.wait_ready()

    def begin(
        self,
        wrapper: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Start it, as `start`, without waiting."""
        program = _PROGRAM.format(root=str(REPOSITORY_ROOT), run=str(self.run_dir), limits=self._limits)
        theirs, self._input = os.pipe()
        self._seen = self._log.stat().st_size if self._log.exists() else 0
        try:
            self._child = start_process(
                [*wrapper, sys.executable, "-c", program],
                log_path=self._log,
                cwd=REPOSITORY_ROOT,
                pass_fds=pass_fds,
                stdin=theirs,
                env={**os.environ, **(variables or {})},
            )
        finally:
            os.close(theirs)

    def wait_ready(self) -> list[int]:
        """Wait until it is up; gives the workers that it has adopted."""
        found: list[int] = self.wait_said("ready")["workers"]
        return found

    def say(self, *words: object) -> None:
        """Ask for something, without waiting."""
        os.write(self._input, json.dumps([str(word) for word in words]).encode() + b"\n")

    def ask(self, *words: object) -> Any:
        """Ask for something; gives the answer."""
        self.say(*words)
        return self.wait_said("done").get("answer")

    def ask_failing(self, *words: object) -> str:
        """Ask for something that fails; gives the code."""
        self.say(*words)
        return str(self.wait_said("failed")["failed"])

    def said(self, key: str) -> list[dict[str, Any]]:
        """Everything it has said with this key since it was last heard."""
        return [fact for fact, _end in self._facts() if key in fact]

    def wait_said(self, key: str) -> dict[str, Any]:
        """Wait until it says something with this key; what it said before that is not heard again."""

        def found() -> dict[str, Any] | None:
            for fact, end in self._facts():
                if key in fact:
                    self._seen = end
                    return fact
                if "failed" in fact and key == "done":
                    raise AssertionError(f"it failed: {fact}")
            return None

        result = wait_until(found, _WAIT_S, what=f"{key!r}; log: {self.tail()}")
        assert result is not None
        return result

    def _facts(self) -> list[tuple[dict[str, Any], int]]:
        with self._log.open("rb") as file:
            file.seek(self._seen)
            data = file.read()
        facts, end = [], self._seen
        for line in data.splitlines(keepends=True):
            end += len(line)
            if line.startswith(b"{") and line.endswith(b"\n"):
                facts.append((json.loads(line), end))
        return facts

    def tail(self) -> str:
        """The end of what it printed."""
        return self._log.read_text(errors="replace")[-3000:] if self._log.exists() else ""

    def addresses(self) -> tuple[Path, str, int]:
        """Where the module answers."""
        path, host, port = self.ask("addresses", MODULE)
        return Path(path), host, int(port)

    def kill(self) -> None:
        """End the agent with SIGKILL, and nothing else."""
        assert self._child is not None
        self._child.kill()
        os.close(self._input)
        self._input = -1
        self._child = None

    def close(self) -> None:
        """End the agent, and every worker of it."""
        if self._child is not None:
            with suppress(OSError):
                self.say("close")
                os.close(self._input)
            with suppress(AssertionError):
                self._child.wait(_WAIT_S)
            self._child.stop()
            self._child = None
        for pid in self.waiting_workers():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def waiting_workers(self) -> list[int]:
        """Process ids of workers that an agent could adopt, by the names of their sockets."""
        if not self.orphans.is_dir():
            return []
        return sorted(int(path.name.split(".")[-2]) for path in self.orphans.glob("*.[0-9]*.sock"))


@contextmanager
def agent_process(folder: Path, limits: dict[str, int] | None = None) -> Iterator[AgentProcess]:
    """An agent that is ended with all of its workers."""
    agent = AgentProcess(folder, limits)
    try:
        yield agent
    finally:
        agent.close()


def has_ended(pid: int) -> bool:
    """Whether a process that is nobody's child any more has ended; whoever inherited it may reap it later."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
