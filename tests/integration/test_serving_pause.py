"""Stop first, then start: clients of a model that ends before the next one loads wait, and none is refused or reset."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge_agent.inference import InferenceClient
from edge_agent.serving.limits import ServingLimits
from edge_agent.serving.parking import Adopter, Parking
from edge_agent.serving.supervisor import WorkerSupervisor
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.runtime import Member
from tests.integration.serving import CLIENTS, MODULE, PATIENT, Serving, X, serving, start_hammers
from tests.support.net import wait_until
from tests.support.slots import adder_slot, write_slot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ROUNDS = 4
SCRIPT = Member("digits", "script", "score.py")


def _dying(state: Serving) -> tuple[Digest, Path]:
    source = b"import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\ndef run(data): pass\n"
    return write_slot(state.slots, [SCRIPT], {"score.py": source}, version=9)


def test_clients_that_ask_all_the_time_see_a_gap_and_nothing_else(tmp_path: Path) -> None:
    """No reset, no 503, no garbage, on the very connections they opened before the first pause."""
    with serving(tmp_path) as state:
        bundles = [adder_slot(state.slots, 10.0 * number, version=number + 1) for number in range(ROUNDS + 1)]
        number_of = {str(manifest): number for number, (manifest, _slot) in enumerate(bundles)}
        state.supervisor.ensure(MODULE, *bundles[0])
        hammers, threads, is_stopped = start_hammers(state)
        gaps_ms = []
        try:
            for manifest, slot in bundles[1:]:
                counts = [hammer.count for hammer in hammers]
                wait_until(
                    lambda counts=counts: all(  # type: ignore[misc]
                        h.error or h.count > count + 10 for h, count in zip(hammers, counts, strict=True)
                    ),
                    60,
                    what="every client to get answers between two pauses",
                )
                pid = state.supervisor.worker_pid(MODULE)
                state.supervisor.pause(MODULE)
                assert not Path(f"/proc/{pid}").exists(), "the memory is free before the next one loads"
                paused = [hammer.count for hammer in hammers]
                state.supervisor.prove(MODULE, manifest, slot)
                # One answer each may have been on its way when the worker ended.
                assert all(h.count <= count + 1 for h, count in zip(hammers, paused, strict=True))
                gaps_ms.append(state.supervisor.activate(MODULE, manifest))
            last = [hammer.count for hammer in hammers]
            wait_until(
                lambda: all(h.error or h.count > count for h, count in zip(hammers, last, strict=True)),
                60,
                what="every client to get an answer of the last model",
            )
        finally:
            is_stopped.set()
            for thread in threads:
                thread.join(60)
        assert [hammer.error for hammer in hammers] == [""] * CLIENTS
        for hammer in hammers:
            order = [number_of[manifest] for manifest, _value in hammer.answers]
            assert order == list(range(ROUNDS + 1))
            assert all(value == 10.0 * number for number, (_, value) in zip(order, hammer.answers, strict=True))
        assert all(gap_ms > 0 for gap_ms in gaps_ms)
        # Every client asked in every gap, and waited for about as long as the agent says.
        assert min(hammer.longest_s for hammer in hammers) * 1000 > 0.5 * max(gaps_ms)
        assert state.exits.empty()


def test_who_connects_in_the_gap_waits_and_is_answered(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        one, two = adder_slot(state.slots, 10.0), adder_slot(state.slots, 20.0, version=2)
        state.supervisor.ensure(MODULE, *one)
        state.supervisor.pause(MODULE)
        answers: list[Digest] = []

        def ask(is_tcp: bool) -> None:
            with state.client(tcp=is_tcp) as client:
                answers.append(client.infer("digits", [X]).manifest)

        threads = [threading.Thread(target=ask, args=(number % 2 == 0,), daemon=True) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        state.supervisor.prove(MODULE, *two)
        assert answers == []
        state.supervisor.activate(MODULE, two[0])
        for thread in threads:
            thread.join(60)
        assert answers == [two[0]] * CLIENTS


def test_a_half_sent_request_survives_the_gap(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        one, two = adder_slot(state.slots, 10.0), adder_slot(state.slots, 20.0, version=2)
        state.supervisor.ensure(MODULE, *one)
        rows = 20_000
        values = ",".join(["1"] * (4 * rows))
        body = f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[{rows},4],"data":[{values}]}}]}}'.encode()
        head = f"POST /v2/models/digits/infer HTTP/1.1\r\nHost: d\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(str(state.supervisor.addresses(MODULE)[0]))
            sock.sendall(head + body[: len(body) // 2])
            state.supervisor.pause(MODULE)
            state.supervisor.ensure(MODULE, *two)
            sock.sendall(body[len(body) // 2 :])
            reply = http.client.HTTPResponse(sock)
            reply.begin()
            assert reply.status == 200
            assert reply.headers["Lighterman-Manifest"] == str(two[0])
            assert json.loads(reply.read())["outputs"][0]["data"] == [21.0] * (4 * rows)


HOLDING = b"""
import os, time
def run(data):
    if data == "hold":
        open(os.environ["STARTED_OF_TEST"], "w").close()
        deadline = time.monotonic() + 60
        while os.path.exists(os.environ["HOLD_OF_TEST"]) and time.monotonic() < deadline:
            time.sleep(0.005)
    return "old"
"""


@pytest.mark.parametrize("is_in_time", [True, False], ids=["within the drain", "beyond it"])
def test_what_was_being_computed_is_answered(tmp_path: Path, is_in_time: bool) -> None:
    hold, started = tmp_path / "hold", tmp_path / "started"
    hold.touch()
    limits = PATIENT if is_in_time else ServingLimits(load_ms=60_000, drain_ms=200, exit_ms=10_000)
    with serving(tmp_path, limits) as state:
        config = {"HOLD_OF_TEST": str(hold), "STARTED_OF_TEST": str(started)}
        old = write_slot(state.slots, [SCRIPT], {"score.py": HOLDING}, config=config)
        new = write_slot(state.slots, [SCRIPT], {"score.py": b"def run(data): return 'new'\n"}, version=2)
        state.supervisor.ensure(MODULE, *old)
        results: list[object] = []

        def ask() -> None:
            with state.client() as client:
                results.extend(client.infer_json("digits", what).result for what in ("hold", "again"))

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        wait_until(started.exists, 30, what="the request to be computed")
        if is_in_time:
            ending = threading.Timer(0.1, hold.unlink)
            ending.start()
        state.supervisor.pause(MODULE)
        state.supervisor.ensure(MODULE, *new)
        asking.join(30)
        assert results == (["old", "new"] if is_in_time else ["new", "new"])


@pytest.mark.parametrize("death", ["while it loads", "after it was proved"])
def test_a_candidate_that_dies_in_the_gap_gives_way_to_the_old_model(tmp_path: Path, death: str) -> None:
    with serving(tmp_path) as state:
        old, new = adder_slot(state.slots, 10.0), adder_slot(state.slots, 20.0, version=2)
        golden = state.supervisor.ensure(MODULE, *old)
        clients = [state.client(tcp=number % 2 == 0) for number in range(CLIENTS)]
        try:
            first = [_socket_after_asking(client, old[0]) for client in clients]
            state.supervisor.pause(MODULE)
            if death == "while it loads":
                with pytest.raises(EdgeError) as caught:
                    state.supervisor.prove(MODULE, *_dying(state))
            else:
                state.supervisor.prove(MODULE, *new)
                os.kill(_candidate_pid(state.supervisor), signal.SIGKILL)
                with pytest.raises(EdgeError) as caught:
                    state.supervisor.activate(MODULE, new[0])
            assert caught.value.code == "model.worker-crashed"
            assert not state.supervisor.health(MODULE).is_alive
            state.supervisor.prove(MODULE, *old)
            assert state.supervisor.activate(MODULE, old[0]) > 0
            assert [_socket_after_asking(client, old[0]) for client in clients] == first
            assert state.supervisor.attest(MODULE).golden == golden
        finally:
            for client in clients:
                client.close()
        assert state.exits.empty()


def _socket_after_asking(client: InferenceClient, manifest: Digest) -> Any:
    """The connection on which this bundle has just answered."""
    assert client.infer("digits", [X]).manifest == manifest
    return _socket(client)


def _socket(client: InferenceClient) -> Any:
    frames = client._frames
    return client._connection.sock if frames is None else frames._sock


def _candidate_pid(supervisor: WorkerSupervisor) -> int:
    return supervisor._candidates[MODULE].pid


def test_a_stuck_worker_does_not_hold_up_a_pause(tmp_path: Path) -> None:
    limits = ServingLimits(load_ms=60_000, serve_ms=30_000, drain_ms=300, exit_ms=500, answer_ms=500)
    with serving(tmp_path, limits) as state:
        one, two = adder_slot(state.slots, 10.0), adder_slot(state.slots, 20.0, version=2)
        state.supervisor.ensure(MODULE, *one)
        pid = state.supervisor.worker_pid(MODULE)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        begun = time.monotonic()
        state.supervisor.pause(MODULE)
        assert time.monotonic() - begun < 30
        assert not Path(f"/proc/{pid}").exists()
        state.supervisor.ensure(MODULE, *two)
        with state.client() as client:
            assert client.infer("digits", [X]).manifest == two[0]


def test_a_crash_leaves_a_gap_that_is_told_of(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        one, two = adder_slot(state.slots, 10.0), adder_slot(state.slots, 20.0, version=2)
        state.supervisor.ensure(MODULE, *one)
        pid = state.supervisor.worker_pid(MODULE)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert state.exits.get(timeout=30) == (MODULE, one[0])
        state.supervisor.prove(MODULE, *two)
        assert state.supervisor.activate(MODULE, two[0]) > 0


def test_stopping_in_the_gap_lets_waiting_clients_go(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        one = adder_slot(state.slots, 10.0)
        before = len(os.listdir("/proc/self/fd"))
        state.supervisor.ensure(MODULE, *one)
        clients = [state.client(tcp=number % 2 == 0) for number in range(CLIENTS)]
        for client in clients:
            client.infer("digits", [X])
        state.supervisor.pause(MODULE)
        state.supervisor.stop(MODULE)
        for client in clients:
            with pytest.raises(EdgeError) as caught:
                client.infer("digits", [X])
            assert caught.value.code in ("network.unreachable", "network.cut")
            client.close()
        assert len(os.listdir("/proc/self/fd")) <= before, "no connection is left behind"


def test_a_candidate_that_fails_while_it_takes_over_loses_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path) as state:
        one, two = adder_slot(state.slots, 10.0), adder_slot(state.slots, 20.0, version=2)
        state.supervisor.ensure(MODULE, *one)
        with state.client() as client:
            client.infer("digits", [X])
            assert client._frames is not None
            before = client._frames._sock
            state.supervisor.pause(MODULE)
            state.supervisor.prove(MODULE, *two)
            leave_to = Parking.leave_to

            def leave_and_fail(parking: Parking, adopter: Adopter) -> None:
                leave_to(parking, adopter)
                raise EdgeError("model.worker-crashed", "it does not read its commands")

            with monkeypatch.context() as patch:
                patch.setattr(Parking, "leave_to", leave_and_fail)
                with pytest.raises(EdgeError, match="does not read"):
                    state.supervisor.activate(MODULE, two[0])
            state.supervisor.ensure(MODULE, *one)
            assert client.infer("digits", [X]).manifest == one[0]
            assert client._frames._sock is before


def test_a_full_house_waits_through_the_gap(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        one, two = adder_slot(state.slots, 10.0), adder_slot(state.slots, 20.0, version=2)
        state.supervisor.ensure(MODULE, *one)
        clients = [state.client(tcp=number % 2 == 0) for number in range(200)]
        try:
            assert {client.infer("digits", [X]).manifest for client in clients} == {one[0]}
            before = len(os.listdir("/proc/self/fd"))
            state.supervisor.pause(MODULE)
            state.supervisor.ensure(MODULE, *two)
            assert {client.infer("digits", [X]).manifest for client in clients} == {two[0]}
            assert len(os.listdir("/proc/self/fd")) <= before
        finally:
            for client in clients:
                client.close()


def test_connections_of_all_modules_share_one_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent keeps descriptors for its own work, however many clients wait."""
    monkeypatch.setattr("edge_agent.serving.parking.CONNECTIONS_PARKED_MAX", 3)
    with serving(tmp_path) as state:
        one = adder_slot(state.slots, 10.0)
        clients = []
        for module in ("left", "right"):
            state.supervisor.ensure(module, *one)
            for _ in range(2):
                clients.append(state.client(module=module))
                clients[-1].infer("digits", [X])
        before = [_socket(client) for client in clients]
        for module in ("left", "right"):
            state.supervisor.pause(module)
        for module in ("left", "right"):
            state.supervisor.ensure(module, *one)
        after = [_socket_after_asking(client, one[0]) for client in clients]  # one of them connects again
        assert sum(old is new for old, new in zip(before, after, strict=True)) == 3
        for client in clients:
            client.close()


# --- memory


@dataclass
class _Gauge:
    """A device with so much memory left."""

    free_bytes: int | None

    def available_bytes(self) -> int | None:
        """What the test says."""
        return self.free_bytes


def test_memory_guards_what_would_run_beside_the_live_model_and_nothing_else(tmp_path: Path) -> None:
    run_dir, slots = tmp_path / "run", tmp_path / "slots"
    run_dir.mkdir()
    gauge = _Gauge(None)
    supervisor = WorkerSupervisor(run_dir, lambda *_: None, lambda *_: None, limits=PATIENT, memory=gauge)
    try:
        one = adder_slot(slots, 10.0, load_peak_bytes=1_000_000)
        two = adder_slot(slots, 20.0, version=2, load_peak_bytes=1_000_000)
        gauge.free_bytes = 1_000_000
        with pytest.raises(EdgeError) as caught:
            supervisor.ensure(MODULE, *one)
        assert caught.value.code == "device.memory-short"
        gauge.free_bytes = 2_000_000
        supervisor.ensure(MODULE, *one)
        gauge.free_bytes = 100
        with pytest.raises(EdgeError) as caught:
            supervisor.prove(MODULE, *two)
        assert caught.value.code == "device.memory-short"
        assert supervisor.attest(MODULE).manifest == one[0]
        supervisor.pause(MODULE)
        supervisor.prove(MODULE, *two)
        supervisor.discard(MODULE)
        supervisor.ensure(MODULE, *one)
        assert supervisor.attest(MODULE).manifest == one[0]
        # Nor is a model kept away whose worker crashed: trying is better than serving nobody.
        pid = supervisor.worker_pid(MODULE)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: supervisor.worker_pid(MODULE) is None, 30, what="the worker to be gone")
        supervisor.ensure(MODULE, *one)
        assert supervisor.attest(MODULE).manifest == one[0]
    finally:
        supervisor.close()
