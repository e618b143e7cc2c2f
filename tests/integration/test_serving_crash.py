"""A worker that crashes, hangs or is killed: idle clients notice nothing, requests under way fail at once by code."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge_agent.inference import InferenceClient
from edge_agent.serving import page
from edge_agent.serving.limits import ServingLimits
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.runtime import Member
from tests.integration.serving import CLIENTS, MODULE, PATIENT, Serving, X, _Kept, serving
from tests.support.net import wait_until
from tests.support.slots import adder_slot, write_slot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SCRIPT = Member("digits", "script", "score.py")
IMPATIENT = ServingLimits(load_ms=60_000, serve_ms=30_000, answer_ms=10_000, exit_ms=5_000, stuck_ms=6_000)
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}]})
# What holds the interpreter's lock: a regular expression that tries two to the power of forty ways.
SCRIPT_SOURCE = textwrap.dedent("""
    import os, re, threading, time
    def run(data):
        if data == "begin":
            open(os.environ["STARTED_OF_TEST"], "w").close()
            time.sleep(60)
        if data == "hang":
            open(os.environ["STARTED_OF_TEST"], "w").close()
            re.match(r"(a+)+$", "a" * 40 + "b")
        if data == "start":
            import subprocess
            return subprocess.Popen(["sleep", "300"]).pid
        return [data]
""").encode()


def _script(state: Serving) -> tuple[tuple[Digest, Path], Path]:
    """A slot, and the file that its script makes when it has begun something long."""
    started = state.slots / "started"
    config = {"STARTED_OF_TEST": str(started)}
    return write_slot(state.slots, [SCRIPT], {"score.py": SCRIPT_SOURCE}, config=config), started


def _until(predicate: Callable[[], bool]) -> None:
    wait_until(predicate, 60)


@dataclass
class Idle:
    """Connections of every kind that are kept alive and have been used once."""

    http: list[_Kept] = field(default_factory=list)
    frames: list[InferenceClient] = field(default_factory=list)

    def use(self) -> set[str]:
        """Ask once on each, and see that it is still the same connection; the bundles that answered."""
        answered = set()
        for connection in self.http:
            before = connection.sock
            connection.request("POST", "/v2/models/digits/infer", BODY)
            reply = connection.getresponse()
            content = reply.read()
            assert reply.status == 200, content
            assert connection.sock is before
            answered.add(str(reply.headers["Lighterman-Manifest"]))
        for client in self.frames:
            assert client._frames is not None
            before = client._frames._sock
            answered.add(str(client.infer("digits", [X]).manifest))
            assert before is None or client._frames._sock is before
        return answered


@contextlib.contextmanager
def idle(state: Serving, each: int = 4) -> Iterator[Idle]:
    """So many of each kind: HTTP on the unix socket, HTTP on TCP, frames."""
    unix_path, host, port = state.supervisor.addresses(MODULE)
    found = Idle()
    with contextlib.ExitStack() as stack:
        for _ in range(each):
            for address in (unix_path, (host, port)):
                connection = _Kept(address)
                connection.connect()
                stack.callback(connection.close)
                found.http.append(connection)
            found.frames.append(stack.enter_context(InferenceClient(unix_path)))
        yield found


@dataclass
class Asker:
    """Asks as fast as it can; after a request that failed it connects again. Never repeats a request.

    Attributes:
        answers: How many requests were answered.
        crashed: How many failed with the code of a crash.
        cut: How many ended without an answer.
        refused: How many connections were refused.
        odd: Anything else.
    """

    address: Path | tuple[str, int]
    is_stopped: threading.Event
    answers: int = 0
    crashed: int = 0
    cut: int = 0
    refused: int = 0
    odd: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Ask until stopped."""
        while not self.is_stopped.is_set():
            connection = _Kept(self.address)
            try:
                connection.connect()
            except OSError:
                self.refused += 1
                continue
            try:
                self._ask(connection)
            except (OSError, http.client.HTTPException):
                self.cut += 1
            finally:
                connection.close()

    def _ask(self, connection: _Kept) -> None:
        while not self.is_stopped.is_set():
            connection.request("POST", "/v2/models/digits/infer", BODY)
            reply = connection.getresponse()
            content = json.loads(reply.read())
            if reply.status == 200:
                self.answers += 1
                continue
            if reply.status == 503 and content["code"] == "model.worker-crashed" and reply.headers["Retry-After"]:
                self.crashed += 1
            else:
                self.odd.append(f"{reply.status} {content}")
            return


@contextlib.contextmanager
def asking(state: Serving) -> Iterator[list[Asker]]:
    """Clients of both sockets under full load."""
    unix_path, host, port = state.supervisor.addresses(MODULE)
    is_stopped = threading.Event()
    askers = [Asker(unix_path if number % 2 else (host, port), is_stopped) for number in range(CLIENTS)]
    threads = [threading.Thread(target=asker.run, daemon=True) for asker in askers]
    for thread in threads:
        thread.start()
    try:
        _until(lambda: all(asker.answers for asker in askers))
        yield askers
    finally:
        is_stopped.set()
        for thread in threads:
            thread.join(60)


def _all_go_on(askers: list[Asker]) -> None:
    before = [asker.answers for asker in askers]
    _until(lambda: all(asker.answers > old for asker, old in zip(askers, before, strict=True)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
def test_clients_outlive_a_worker_that_crashes_under_load(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path, IMPATIENT) as state:
        good = adder_slot(state.slots, 1.0)
        state.supervisor.ensure(MODULE, *good)
        with idle(state) as kept, asking(state) as askers:
            assert kept.use() == {str(good[0])}
            for crash in range(3):
                # By then the worker has noted that the idle ones are idle; they have their answers a moment earlier.
                _all_go_on(askers)
                pid = state.supervisor.worker_pid(MODULE)
                assert pid is not None
                os.kill(pid, number)
                assert state.exits.get(timeout=60) == (MODULE, good[0])
                state.supervisor.ensure(MODULE, *good)
                assert kept.use() == {str(good[0])}, f"after crash {crash}"
                _all_go_on(askers)
    assert sum(asker.refused for asker in askers) == 0
    assert [asker.odd for asker in askers if asker.odd] == []
    assert sum(asker.cut for asker in askers) <= 3, "a crash cuts the one client whose answer is on its way"
    assert state.exits.empty()


def test_requests_under_way_fail_at_once_with_a_code(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        slot, started = _script(state)
        state.supervisor.ensure(MODULE, *slot)
        unix_path, host, port = state.supervisor.addresses(MODULE)
        computing = [_begun(unix_path, "begin"), _begun((host, port), "begin")]
        half = _begun((host, port), "x", half=True)
        _until(started.exists)
        pid = state.supervisor.worker_pid(MODULE)
        assert pid is not None
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        for connection in (*computing, half):
            reply = http.client.HTTPResponse(connection, method="POST")
            reply.begin()
            document = json.loads(reply.read())
            assert reply.status == 503
            assert document["code"] == "model.worker-crashed"
            assert "SIGKILL" in document["error"]
            assert reply.headers["Retry-After"] == "1"
            assert connection.recv(1) == b"", "and that was the end of the connection"
            connection.close()
        assert time.monotonic() - killed < 5, "at once, not when the next worker is there"
        assert state.exits.get(timeout=60) == (MODULE, slot[0])


def _begun(address: Path | tuple[str, int], data: str, *, half: bool = False) -> socket.socket:
    """A connection on which a request has been sent, or a part of one."""
    if isinstance(address, Path):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(60)
        sock.connect(str(address))
    else:
        sock = socket.create_connection(address, timeout=60)
    body = json.dumps(data).encode()
    head = f"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    sock.sendall(head[: len(head) // 2] if half else head + body)
    return sock


def test_a_frame_under_way_fails_with_the_same_code(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        good = adder_slot(state.slots, 1.0)
        state.supervisor.ensure(MODULE, *good)
        unix_path, _host, _port = state.supervisor.addresses(MODULE)
        with InferenceClient(unix_path) as client:
            client.infer("digits", [X])
            assert client._frames is not None
            connection = client._frames._sock
            assert connection is not None
            pid = state.supervisor.worker_pid(MODULE)
            assert pid is not None
            # The first bytes of a frame, and no more of it: the worker has begun and waits.
            connection.sendall(bytes((0xF5, 0x4C)))
            keeping = state.supervisor._live[MODULE].guard.keeping
            _until(lambda: page.BUSY | page.FRAMES in page.read_states(keeping._page or -1))
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(EdgeError) as caught:
                client._frames._receive(connection, 1)
            assert caught.value.code == "model.worker-crashed"
        state.exits.get(timeout=60)


def test_a_model_that_holds_the_interpreter_is_ended_and_its_stacks_are_told(tmp_path: Path) -> None:
    with serving(tmp_path, IMPATIENT) as state:
        slot, started = _script(state)
        state.supervisor.ensure(MODULE, *slot)
        unix_path, host, port = state.supervisor.addresses(MODULE)
        idle_one = _begun((host, port), "x")
        first = http.client.HTTPResponse(idle_one, method="POST")
        first.begin()
        assert json.loads(first.read())["result"] == ["x"]
        hanging = _begun(unix_path, "hang")
        _until(started.exists)
        reply = http.client.HTTPResponse(hanging, method="POST")
        reply.begin()
        assert json.loads(reply.read())["code"] == "model.worker-crashed"
        hanging.close()
        assert state.exits.get(timeout=60) == (MODULE, slot[0])
        state.supervisor.ensure(MODULE, *slot)
        body = b'"again"'
        idle_one.sendall(b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\n" + body)
        again = http.client.HTTPResponse(idle_one, method="POST")
        again.begin()
        assert json.loads(again.read())["result"] == ["again"]
        idle_one.close()
        assert "score.py" in state.log(), "the log says where the model was"


def test_a_worker_that_only_waits_is_not_taken_for_stuck(tmp_path: Path) -> None:
    limits = ServingLimits(load_ms=60_000, serve_ms=30_000, stuck_ms=600)
    with serving(tmp_path, limits) as state:
        good = adder_slot(state.slots, 1.0)
        state.supervisor.ensure(MODULE, *good)
        pid = state.supervisor.worker_pid(MODULE)
        keeping = state.supervisor._live[MODULE].guard.keeping
        begun = keeping.beat()
        _until(lambda: keeping.beat() >= begun + 20)  # two seconds: more than three times as long
        assert state.supervisor.worker_pid(MODULE) == pid
        assert state.exits.empty()


def test_what_a_worker_has_started_ends_with_it(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        slot, _started = _script(state)
        state.supervisor.ensure(MODULE, *slot)
        with state.client() as client:
            left = int(client.infer_json("digits", "start").result)
        pid = state.supervisor.worker_pid(MODULE)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        state.exits.get(timeout=60)
        _until(lambda: not _runs(left))


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_closed_connections_are_let_go_of(tmp_path: Path) -> None:
    limits = ServingLimits(load_ms=60_000, serve_ms=30_000, stuck_ms=600)
    with serving(tmp_path, limits) as state:
        state.supervisor.ensure(MODULE, *adder_slot(state.slots, 1.0))
        keeping = state.supervisor._live[MODULE].guard.keeping
        with idle(state, 5) as kept:
            kept.use()
            _until(lambda: len(keeping) == 15)
        _until(lambda: len(keeping) == 0)


def test_a_client_sees_at_once_that_its_connection_was_closed(tmp_path: Path) -> None:
    with serving(tmp_path, PATIENT) as state:
        state.supervisor.ensure(MODULE, *adder_slot(state.slots, 1.0))
        unix_path, host, port = state.supervisor.addresses(MODULE)
        for address in (unix_path, (host, port)):
            connection = _Kept(address)
            connection.connect()
            connection.sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            received = b""
            while data := connection.sock.recv(4096):  # it ends, or this times out
                received += data
            assert received.startswith(b"HTTP/1.1 200 ")
            connection.close()


@pytest.mark.parametrize("victim", ["live", "candidate"])
def test_a_crash_in_the_middle_of_a_swap_costs_idle_clients_nothing(tmp_path: Path, victim: str) -> None:
    with serving(tmp_path, IMPATIENT) as state:
        bundles = [adder_slot(state.slots, float(version), version=version) for version in (1, 2)]
        state.supervisor.ensure(MODULE, *bundles[0])
        with idle(state) as kept, asking(state) as askers:
            for turn in range(4):
                kept.use()
                _all_go_on(askers)
                live, target = state.supervisor._live.get(MODULE), bundles[(turn + 1) % 2]
                state.supervisor.prove(MODULE, *target)
                candidate = state.supervisor._candidates[MODULE]
                worker = live if victim == "live" else candidate
                assert worker is not None
                # Somewhere between the begin of the swap and its end, each time elsewhere.
                killer = threading.Timer(turn * 0.004, worker.fail)
                killer.start()
                with contextlib.suppress(EdgeError):
                    state.supervisor.activate(MODULE, target[0])
                killer.join()
                assert worker.has_ended
                state.supervisor.ensure(MODULE, *target)
                assert kept.use() == {str(target[0])}
        assert sum(asker.refused for asker in askers) == 0
        assert [asker.odd for asker in askers if asker.odd] == []
