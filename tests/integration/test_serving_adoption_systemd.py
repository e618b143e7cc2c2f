"""Sockets come from systemd (socket activation) and are left with it (descriptor store), as its own tool sees it."""

from __future__ import annotations

import array
import os
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest

from edge_agent.inference import InferenceClient
from edge_contract.digest import Digest
from tests.integration.adopting import MODULE, agent_process
from tests.integration.serving import X
from tests.support.net import free_low_port, wait_until
from tests.support.require import require_program
from tests.support.slots import adder_slot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def _ask(address: Path | tuple[str, int], answers: list[Digest]) -> None:
    with InferenceClient(address) as client:
        answers.append(client.infer("digits", [X]).manifest)


@pytest.mark.system
def test_sockets_from_systemd_are_served_and_left_in_place(tmp_path: Path) -> None:
    program = require_program("systemd-socket-activate")
    bundle = adder_slot(tmp_path / "slots", 1.0)
    path, port = tmp_path / "asked.sock", free_low_port()
    names = f"--fdname={MODULE}.unix:{MODULE}.tcp:something-else"
    listen = ["-l", str(path), "-l", f"127.0.0.1:{port}", "-l", str(tmp_path / "other.sock")]
    answers: list[Digest] = []
    with agent_process(tmp_path) as agent:
        agent.begin([program, names, *listen])
        wait_until(path.exists, 30, what="systemd's tool to listen")
        # The first client is why the agent is started at all, and waits for it.
        first = threading.Thread(target=_ask, args=(path, answers), daemon=True)
        first.start()
        agent.wait_ready()
        agent.ask("ensure", MODULE, *bundle)
        first.join(30)
        assert agent.addresses() == (path, "127.0.0.1", port)
        _ask(("127.0.0.1", port), answers)
        assert answers == [bundle[0]] * 2
        assert agent.ask("attest", MODULE) == str(bundle[0]), "who listens is this agent, although systemd made it"
        assert "something-else" in agent.tail()
        # The same sockets again in the program that this process becomes, and still systemd's.
        agent.say("reload")
        agent.wait_ready()
        agent.ask("ensure", MODULE, *bundle)
        assert agent.addresses() == (path, "127.0.0.1", port)
        _ask(path, answers)
        agent.ask("stop", MODULE)
        assert path.exists(), "the file of a socket that systemd made is systemd's to remove"


def test_sockets_are_left_with_systemd_and_come_back_from_it(tmp_path: Path) -> None:
    bundle = adder_slot(tmp_path / "slots", 1.0)
    answers: list[Digest] = []
    with agent_process(tmp_path) as agent, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        agent.start(variables={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        agent.ask("ensure", MODULE, *bundle)
        path, host, port = agent.addresses()
        worker = agent.ask("worker_pid", MODULE)
        kept = _kept(manager)
        assert set(kept) == {f"kept/{MODULE}/unix", f"kept/{MODULE}/tcp"}
        # Both end at once: what alone remains is what systemd holds.
        agent.kill()
        os.kill(worker, signal.SIGKILL)
        threads = [threading.Thread(target=_ask, args=(at, answers), daemon=True) for at in (path, (host, port))]
        for thread in threads:
            thread.start()
        names, fds = ":".join(kept), list(kept.values())
        agent.start(_like_systemd(fds), fds, {"LISTEN_FDNAMES": names, "LISTEN_FDS": str(len(fds))})
        for fd in fds:
            os.close(fd)
        agent.ask("ensure", MODULE, *bundle)
        for thread in threads:
            thread.join(30)
        assert answers == [bundle[0]] * 2, "nobody was refused"
        assert agent.addresses() == (path, host, port)
        assert agent.ask("attest", MODULE) == str(bundle[0])


def test_what_is_kept_is_let_go_of_with_the_module(tmp_path: Path) -> None:
    bundle = adder_slot(tmp_path / "slots", 1.0)
    with agent_process(tmp_path) as agent, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        agent.start(variables={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        agent.ask("ensure", MODULE, *bundle)
        for fd in _kept(manager).values():
            os.close(fd)
        agent.ask("stop", MODULE)
        assert _kept(manager) == {}
        assert _kept.forgotten[-2:] == [f"kept/{MODULE}/unix", f"kept/{MODULE}/tcp"]


class _Kept:
    """Plays the part of systemd's descriptor store with what has been said so far."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []

    def __call__(self, manager: socket.socket) -> dict[str, int]:
        """Descriptors by name, of the messages that have come."""
        found: dict[str, int] = {}
        while True:
            try:
                data, ancillary, _flags, _from = manager.recvmsg(4096, 256)
            except BlockingIOError:
                return found
            values = dict(line.split("=", 1) for line in data.decode().splitlines())
            if "FDSTOREREMOVE" in values:
                self.forgotten.append(values["FDNAME"])
                if values["FDNAME"] in found:
                    os.close(found.pop(values["FDNAME"]))
            for _level, _kind, content in ancillary:
                found[values["FDNAME"]] = array.array("i", content)[0]


_kept = _Kept()


def _like_systemd(fds: list[int]) -> list[str]:
    """A program that puts descriptors where systemd puts them, says for whom they are, and becomes another one."""
    start = 3
    program = (
        "import fcntl, os, sys\n"
        f"high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in {fds!r}]\n"
        f"[os.dup2(fd, {start} + index) for index, fd in enumerate(high)]\n"
        "[os.close(fd) for fd in high]\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    return [sys.executable, "-c", program]
