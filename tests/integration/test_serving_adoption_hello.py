"""Who is adopted and who is not, and what becomes of connections that were on their way when an agent ended."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.serving.channel import MessageReader, close_fds, encode_message, receive, send_message
from edge_agent.serving.limits import HELLO_PROTOCOL, ORPHAN_FOLDER
from edge_agent.serving.orphans import find_orphans, waiting_name
from edge_agent.serving.sockets import Listeners
from edge_agent.serving.starting import Outliving, Running, start_worker
from edge_agent.serving.supervisor import WorkerSupervisor
from edge_contract.digest import Digest
from tests.integration.adopting import MODULE, agent_process, has_ended
from tests.integration.serving import PATIENT, _Kept
from tests.support.net import wait_until
from tests.support.processes import child_process
from tests.support.slots import adder_slot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
MANIFEST = str(Digest.of(b"some bundle"))
HELLO = {
    "event": "hello",
    "protocol": HELLO_PROTOCOL,
    "module": MODULE,
    "manifest": MANIFEST,
    "golden": None,
    "terms": "",
    "serving_ms": 1,
    "limbo": [],
    "adopted": [],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where workers wait."""
    place = tmp_path / ORPHAN_FOLDER
    place.mkdir(mode=0o700)
    return place


@contextlib.contextmanager
def waiting(path: Path, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Somebody who listens at a path and answers one caller."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(30)
        is_over = threading.Event()

        def serve() -> None:
            with contextlib.suppress(OSError):
                sock, _address = listener.accept()
                with sock:
                    answer(sock)
                    is_over.wait(30)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(30)


@contextlib.contextmanager
def belongings(folder: Path) -> Iterator[list[int]]:
    """What a worker passes: two listening sockets and a pipe."""
    listeners = Listeners.open(MODULE, folder.parent, "127.0.0.1", 0)
    reading, writing = os.pipe()
    try:
        yield [listeners.unix.fileno(), listeners.tcp.fileno(), reading]
    finally:
        listeners.close()
        os.close(reading)
        os.close(writing)


def test_somebody_who_says_hello_rightly_is_heard(folder: Path) -> None:
    # What follows is refused for what it says, and not because nobody could ever be heard this way.
    with belongings(folder) as fds:
        line = encode_message(HELLO, 3)
        with waiting(folder / waiting_name(MODULE, os.getpid()), lambda sock: _send(sock, line, fds)):
            (orphan,) = find_orphans(folder, 30_000)
            assert (orphan.module, str(orphan.manifest), orphan.process.pid) == (MODULE, MANIFEST, os.getpid())
            assert orphan.speaks_ours
            orphan.close()
            orphan.unix.close()
            orphan.tcp.close()


def _send(sock: socket.socket, line: bytes, fds: list[int]) -> None:
    send_message(sock, line, fds)


@pytest.mark.parametrize(
    ("changes", "order"),
    [
        ({"event": "drained"}, (0, 1, 2)),
        ({"module": "../../etc"}, (0, 1, 2)),
        ({"manifest": "sha256:no"}, (0, 1, 2)),
        ({"golden": 7}, (0, 1, 2)),
        ({"limbo": "all"}, (0, 1, 2)),
        ({"adopted": [1, "2"]}, (0, 1, 2)),
        ({"limbo": list(range(5_000))}, (0, 1, 2)),
        ({"serving_ms": "long"}, (0, 1, 2)),
        ({"protocol": None}, (0, 1, 2)),
        ({}, (1, 0, 2)),
        ({}, (2, 2, 2)),
        ({}, (0, 1, 1)),
        ({}, (0, 1)),
        ({}, ()),
    ],
)
def test_who_says_hello_wrongly_is_not_adopted_and_left_alone(
    folder: Path, changes: dict[str, Any], order: tuple[int, ...]
) -> None:
    before = _descriptors()
    with belongings(folder) as fds:
        line, given = encode_message({**HELLO, **changes}, len(order)), [fds[index] for index in order]
        with waiting(folder / waiting_name(MODULE, os.getpid()), lambda sock: _send(sock, line, given)):
            assert find_orphans(folder, 30_000) == []
    assert _descriptors() == before, "what it passed was closed"


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n\n", b"[1]\n", b"\xff\n", b"x" * (1 << 20), b""])
def test_who_talks_nonsense_or_says_nothing_is_not_adopted_and_left_alone(folder: Path, data: bytes) -> None:
    with waiting(folder / waiting_name(MODULE, os.getpid()), lambda sock: _say_for_a_while(sock, data)):
        assert find_orphans(folder, 300) == []


def _say_for_a_while(sock: socket.socket, data: bytes) -> None:
    sock.settimeout(1)
    sock.sendall(data)


def test_a_strangers_socket_is_not_adopted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with belongings(folder) as fds:
        line = encode_message(HELLO, 3)
        # The name says another process than the one that listens.
        with waiting(folder / waiting_name(MODULE, 1), lambda sock: _send(sock, line, fds)):
            assert find_orphans(folder, 1_000) == []
        with waiting(folder / waiting_name(MODULE, os.getpid()), lambda sock: _send(sock, line, fds)):
            mine = os.geteuid()
            monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
            assert find_orphans(folder, 1_000) == []
            assert (folder / waiting_name(MODULE, os.getpid())).exists(), "it is somebody else's"
    (folder / "notes.sock").write_text("not a socket", encoding="ascii")
    assert find_orphans(folder, 1_000) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_process_is_not_adopted_even_by_root(folder: Path) -> None:
    folder.chmod(0o777)
    for parent in folder.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            with contextlib.suppress(OSError):
                parent.chmod(parent.stat().st_mode | 0o011)
    program = (
        "import os, socket, sys, time\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "s.bind(os.path.join(sys.argv[1], f'line.{os.getpid()}.sock'))\n"
        "s.listen(1)\n"
        "c = s.accept()[0]\n"
        "c.sendall(sys.argv[2].encode())\n"
        "time.sleep(60)\n"
    )
    line = encode_message(HELLO).decode()
    python = shutil.which("python3", path="/usr/bin")  # one that every user may run
    if python is None:
        pytest.skip("there is no /usr/bin/python3")
    command = [python, "-c", program, str(folder), line]
    with child_process(command, log_path=folder.parent / "stranger.log", user="nobody", group="nogroup") as stranger:
        path = folder / waiting_name(MODULE, stranger.pid)
        wait_until(lambda: path.exists() or not stranger.is_running, 30, what="the stranger to listen")
        if not stranger.is_running:
            pytest.skip(f"another user cannot work here: {stranger.tail()[-200:]}")
        assert find_orphans(folder, 1_000) == []
        assert stranger.is_running
        assert path.exists()


def test_a_socket_that_was_left_behind_is_cleared_away(folder: Path) -> None:
    path = folder / waiting_name(MODULE, os.getpid())
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert find_orphans(folder, 1_000) == []
    assert not path.exists()


def test_a_worker_with_an_agent_is_not_taken_from_it(tmp_path: Path) -> None:
    bundle = adder_slot(tmp_path / "slots", 1.0)
    with agent_process(tmp_path) as agent:
        agent.start()
        agent.ask("ensure", MODULE, *bundle)
        worker = agent.ask("worker_pid", MODULE)
        assert find_orphans(agent.orphans, 10_000) == []
        assert agent.ask("health", MODULE)[0]
        assert agent.waiting_workers() == [worker]


def test_a_worker_of_another_version_finishes_and_leaves_its_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = adder_slot(tmp_path / "slots", 1.0)
    with agent_process(tmp_path) as agent:
        agent.start()
        agent.ask("ensure", MODULE, *bundle)
        worker, (path, host, port) = agent.ask("worker_pid", MODULE), agent.addresses()
        agent.kill()
        monkeypatch.setattr("edge_agent.serving.orphans.HELLO_PROTOCOL", HELLO_PROTOCOL + 1)
        with _supervisor(agent.run_dir) as server:
            assert server.worker_pid(MODULE) is None
            wait_until(lambda: has_ended(worker), 30, what="the old worker to end")
            server.ensure(MODULE, *bundle)
            assert server.addresses(MODULE) == (path, host, port)


@contextlib.contextmanager
def _supervisor(run_dir: Path) -> Iterator[WorkerSupervisor]:
    server = WorkerSupervisor(run_dir, lambda *_: None, lambda *_: None, limits=PATIENT, is_outlived=True)
    try:
        server.adopt()
        yield server
    finally:
        server.close()


class _Agent:
    """Plays an agent's end of the control channel, word by word."""

    def __init__(self, run_dir: Path, listeners: Listeners, slot: Path) -> None:
        outliving = Outliving(run_dir / ORPHAN_FOLDER, run_dir / "line.log", 60_000)
        self.running: Running = start_worker(MODULE, slot, listeners, outliving)
        self._reader = MessageReader()
        self._heard: list[tuple[dict[str, Any], list[int]]] = []
        self.running.control.settimeout(60)

    def say(self, op: str, fds: tuple[int, ...] = (), **fields: Any) -> None:
        send_message(self.running.control, encode_message({"op": op, **fields}, len(fds)), fds)

    def hear(self, event: str) -> tuple[dict[str, Any], list[int]]:
        while True:
            for index, (message, fds) in enumerate(self._heard):
                if message["event"] == event:
                    del self._heard[index]
                    return message, fds
                assert message["event"] != "refused", message
            self._heard += self._reader.feed(*receive(self.running.control))

    def serve(self) -> None:
        self.say("prove")
        self.hear("proved")
        self.say("serve")
        self.hear("serving")

    def end(self) -> None:
        """End without a word, with whatever was on its way."""
        for _message, fds in self._heard:
            close_fds(fds)
        self.running.control.close()
        os.close(self.running.output)

    def close(self) -> None:
        self.running.process.kill()
        self.running.process.wait(30)
        self.running.process.close()


def _value(client: _Kept) -> float:
    document = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}]}
    client.request("POST", "/v2/models/digits/infer", json.dumps(document))
    value: float = json.loads(client.getresponse().read())["outputs"][0]["data"][0]
    return value


@pytest.mark.parametrize("has_arrived", [False, True])
def test_a_connection_that_was_on_its_way_ends_up_with_exactly_one_worker(tmp_path: Path, has_arrived: bool) -> None:
    old, new = adder_slot(tmp_path / "slots", 10.0), adder_slot(tmp_path / "slots", 20.0, version=2)
    run_dir = tmp_path / "run"
    (run_dir / ORPHAN_FOLDER).mkdir(parents=True)
    listeners = Listeners.open(MODULE, run_dir, "127.0.0.1", 0)
    agents = [_Agent(run_dir, listeners, slot) for _manifest, slot in (old, new)]
    clients = [_Kept(listeners.unix_path), _Kept(("127.0.0.1", listeners.port))]
    try:
        agents[0].serve()
        for client in clients:
            client.connect()
            assert _value(client) == 10.0
        agents[1].serve()
        agents[0].say("drain", deadline_ms=20_000, hand_over=True)
        for _ in clients:
            message, fds = agents[0].hear("connection")
            if has_arrived:
                agents[1].say("adopt", tuple(fds), transport=message["transport"])
            close_fds(fds)
        agents[0].hear("drained")
        if has_arrived:
            assert [_value(client) for client in clients] == [20.0, 20.0]
        for agent in agents:
            agent.end()
        for sock in (listeners.unix, listeners.tcp):
            sock.close()
        with _supervisor(run_dir) as server:
            asked = [20.0, 20.0] if has_arrived else [10.0, 10.0]
            assert [_value(client) for client in clients] == asked
            server.ensure(MODULE, *new)
            assert [_value(client) for client in clients] == [20.0, 20.0]
            for client in clients:
                client.close()
    finally:
        for agent in agents:
            agent.close()


def test_a_new_agent_with_other_terms_replaces_the_worker_without_a_loss(tmp_path: Path) -> None:
    bundle = adder_slot(tmp_path / "slots", 1.0)
    with agent_process(tmp_path) as agent:
        agent.start()
        agent.ask("ensure", MODULE, *bundle)
        worker, client = agent.ask("worker_pid", MODULE), _Kept(agent.addresses()[0])
        client.connect()
        assert _value(client) == 1.0
        agent.kill()
        server = WorkerSupervisor(
            agent.run_dir, lambda *_: None, lambda *_: None, limits=PATIENT, is_outlived=True,
            compiled_dir=tmp_path / "compiled",
        )  # fmt: skip
        try:
            server.adopt()
            assert server.worker_pid(MODULE) == worker
            server.ensure(MODULE, *bundle)
            assert server.worker_pid(MODULE) != worker
            assert _value(client) == 1.0
        finally:
            client.close()
            server.close()


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
