"""Workers outlive their agent, whatever ends it, and the next one adopts them; clients notice nothing."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_agent.inference import InferenceClient
from edge_contract.digest import Digest
from edge_contract.runtime import Member
from tests.integration.adopting import MODULE, AgentProcess, agent_process, has_ended
from tests.integration.serving import CLIENTS, Hammer, X, _Kept, hammer
from tests.support.net import wait_until
from tests.support.slots import adder_slot, write_slot

KILLS = 5
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SLOW = b"""
import os, time
def run(data):
    if data == "wait":
        open(os.environ["STARTED_OF_TEST"], "w").close()
        deadline = time.monotonic() + 60
        while os.path.exists(os.environ["HOLD_OF_TEST"]) and time.monotonic() < deadline:
            time.sleep(0.005)
    if data == "print":
        for _ in range(40):
            print("x" * 65535)
    return "old"
"""


@contextmanager
def hammered(agent: AgentProcess) -> Iterator[list[Hammer]]:
    """Clients that ask without end over kept connections; none of them may have met an error at the end."""
    path, host, port = agent.addresses()
    hammers, threads, is_stopped = hammer(path, host, port)
    try:
        answered_more(hammers)
        yield hammers
        answered_more(hammers)
    finally:
        is_stopped.set()
        for thread in threads:
            thread.join(60)
    assert [one.error for one in hammers] == [""] * CLIENTS


def answered_more(hammers: list[Hammer], more: int = 20) -> None:
    """Wait until each has some more answers."""
    counts = [one.count for one in hammers]
    wait_until(
        lambda: all(one.error or one.count >= count + more for one, count in zip(hammers, counts, strict=True)),
        60,
        what="every client to get more answers",
    )


def manifests(hammers: list[Hammer]) -> list[list[str]]:
    """Which bundles answered each client, in order."""
    return [[manifest for manifest, _value in one.answers] for one in hammers]


def test_an_agent_is_killed_again_and_again_and_no_client_notices(tmp_path: Path) -> None:
    bundle = adder_slot(tmp_path / "slots", 1.0)
    with agent_process(tmp_path) as agent:
        agent.start()
        golden = agent.ask("ensure", MODULE, *bundle)
        worker = agent.ask("worker_pid", MODULE)
        with hammered(agent) as hammers:
            for _ in range(KILLS):
                agent.kill()
                answered_more(hammers)
                assert agent.start() == [worker]
                assert agent.ask("ensure", MODULE, *bundle) == golden, "it is known to be proved"
                assert agent.ask("worker_pid", MODULE) == worker, "nothing was started"
                answered_more(hammers)
        is_alive, requests = agent.ask("health", MODULE)
        assert is_alive
        assert requests >= sum(one.count for one in hammers), "it has counted all the time"
        assert agent.ask("attest", MODULE) == str(bundle[0])
        assert agent.ask("memory_bytes", MODULE) > 1_000_000


def test_an_agent_starts_anew_in_its_process_and_no_client_notices(tmp_path: Path) -> None:
    old, new = adder_slot(tmp_path / "slots", 1.0), adder_slot(tmp_path / "slots", 2.0, version=2)
    with agent_process(tmp_path) as agent:
        agent.start()
        agent.ask("ensure", MODULE, *old)
        worker, pid = agent.ask("worker_pid", MODULE), agent.pid
        with hammered(agent) as hammers:
            for _ in range(2):
                agent.say("reload")
                assert agent.wait_ready() == [worker]
                answered_more(hammers)
            # And an adopted worker is swapped like any other.
            assert agent.ask("ensure", MODULE, *new)
        assert manifests(hammers) == [[str(old[0]), str(new[0])]] * CLIENTS
        assert agent.pid == pid
        assert has_ended(worker)
        assert not Path(f"/proc/{worker}").exists(), "it was reaped, although nobody in this program had started it"


def test_what_an_adopted_worker_does_is_seen_like_that_of_any_other(tmp_path: Path) -> None:
    bundle = adder_slot(tmp_path / "slots", 1.0, sampling_ratio=1.0)
    with agent_process(tmp_path) as agent:
        agent.start()
        agent.ask("ensure", MODULE, *bundle)
        path = agent.addresses()[0]
        agent.kill()
        with InferenceClient(path) as client:
            client.infer("digits", [X], request_id="alone")
            agent.start()
            # What was taken while there was no agent has waited for this one.
            wait_until(lambda: '"sample": "alone"' in agent.tail(), 30, what="the sample that waited")
            client.infer("digits", [X], request_id="adopted")
            wait_until(lambda: '"sample": "adopted"' in agent.tail(), 30, what="the sample")
            agent.ask("ensure", MODULE, *bundle)
            worker = agent.ask("worker_pid", MODULE)
            os.kill(worker, signal.SIGKILL)
            assert agent.wait_said("ended")["ended"] == str(bundle[0])
            assert agent.ask("worker_pid", MODULE) is None
            agent.ask("ensure", MODULE, *bundle)
        with InferenceClient(path) as client:
            assert client.infer("digits", [X]).manifest == bundle[0]
        assert agent.waiting_workers() == [agent.ask("worker_pid", MODULE)], "the dead one's socket was cleared away"


def test_a_worker_that_dies_while_there_is_no_agent_is_replaced(tmp_path: Path) -> None:
    bundle = adder_slot(tmp_path / "slots", 1.0)
    with agent_process(tmp_path) as agent:
        agent.start()
        agent.ask("ensure", MODULE, *bundle)
        worker, path = agent.ask("worker_pid", MODULE), agent.addresses()[0]
        agent.kill()
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: has_ended(worker), 30, what="the worker to end")
        assert agent.start() == []
        agent.ask("ensure", MODULE, *bundle)
        assert agent.ask("worker_pid", MODULE) not in (None, worker)
        assert agent.addresses()[0] == path
        with InferenceClient(path) as client:
            assert client.infer("digits", [X]).manifest == bundle[0]


def who(connection: _Kept) -> str:
    """Which bundle answers on a kept connection."""
    connection.request("GET", "/v2/health/live")
    reply = connection.getresponse()
    reply.read()
    return reply.headers["Lighterman-Manifest"]


@pytest.mark.parametrize("wanted", ["old", "new", "another"])
def test_an_agent_that_ends_in_the_middle_of_a_swap_leaves_two_and_the_next_one_settles_on_one(
    tmp_path: Path, wanted: str
) -> None:
    hold, started = tmp_path / "hold", tmp_path / "started"
    hold.touch()
    config = {"HOLD_OF_TEST": str(hold), "STARTED_OF_TEST": str(started)}
    member = Member("digits", "script", "score.py")
    slots = tmp_path / "slots"
    bundles = {"old": write_slot(slots, [member], {"score.py": SLOW}, config=config)}
    for number, name in enumerate(("new", "another"), start=2):
        code = f"def run(data): return {name!r}\n".encode()
        bundles[name] = write_slot(slots, [member], {"score.py": code}, version=number)
    results: list[object] = []

    def ask(path: Path) -> None:
        with InferenceClient(path) as client:
            results.append(client.infer_json("digits", "wait").result)

    with agent_process(tmp_path) as agent:
        agent.start()
        agent.ask("ensure", MODULE, *bundles["old"])
        path = agent.addresses()[0]
        thread = threading.Thread(target=ask, args=(path,), daemon=True)
        idle = _Kept(path)
        idle.connect()
        assert who(idle) == str(bundles["old"][0])
        thread.start()
        wait_until(started.exists, 30, what="the request to be computed")
        agent.ask("prove", MODULE, *bundles["new"])
        agent.say("activate", MODULE, bundles["new"][0])
        # The old worker waits for the one request that is held; the idle client goes over at once.
        wait_until(lambda: who(idle) == str(bundles["new"][0]), 30, what="the swap to be under way")
        agent.kill()
        assert who(idle) == str(bundles["new"][0])
        assert len(agent.start()) == 2
        agent.say("ensure", MODULE, *bundles[wanted])
        if wanted == "old":
            wait_until(lambda: who(idle) == str(bundles["old"][0]), 30, what="the old one to be back")
        hold.unlink()
        agent.wait_said("done")
        assert who(idle) == str(bundles[wanted][0])
        idle.close()
        thread.join(30)
        assert results == ["old"], "what was being computed was answered"
        wait_until(lambda: len(agent.waiting_workers()) == 1, 30, what="the other workers to end")


def test_an_agent_is_killed_at_any_moment_of_a_swap_and_no_client_notices(tmp_path: Path) -> None:
    bundles = [adder_slot(tmp_path / "slots", float(number), version=number + 1) for number in range(2)]
    with agent_process(tmp_path) as agent:
        agent.start()
        agent.ask("ensure", MODULE, *bundles[0])
        with hammered(agent) as hammers:
            for attempt in range(8):
                wanted = bundles[(attempt + 1) % 2]
                agent.ask("prove", MODULE, *wanted)
                agent.say("activate", MODULE, wanted[0])
                time.sleep(attempt * 0.003)  # which moment that is does not matter: any may come
                agent.kill()
                agent.start()
                agent.ask("ensure", MODULE, *wanted)
                answered_more(hammers, 5)
                assert len(agent.waiting_workers()) == 1
                assert {order[-1] for order in manifests(hammers)} == {str(wanted[0])}


def test_in_a_gap_new_clients_wait_for_a_fresh_agent_and_connected_ones_for_one_that_starts_anew(
    tmp_path: Path,
) -> None:
    bundle = adder_slot(tmp_path / "slots", 1.0)
    answers: list[Digest] = []
    with agent_process(tmp_path) as agent:
        agent.start()
        agent.ask("ensure", MODULE, *bundle)
        path, host, port = agent.addresses()
        with InferenceClient(path) as connected:
            connected.infer("digits", [X])
            agent.ask("pause", MODULE)
            threads = [
                threading.Thread(target=lambda: answers.append(connected.infer("digits", [X]).manifest), daemon=True),
                threading.Thread(target=_ask_anew, args=((host, port), answers), daemon=True),
            ]
            for thread in threads:
                thread.start()
            agent.say("reload")
            assert agent.wait_ready() == []
            agent.ask("ensure", MODULE, *bundle)
            for thread in threads:
                thread.join(30)
            assert answers == [bundle[0]] * 2
            # A crash in the gap is the one thing that clients notice: nobody holds their connections then.
            agent.ask("pause", MODULE)
            agent.kill()
        assert agent.start() == []
        agent.ask("ensure", MODULE, *bundle)
        _ask_anew(agent.addresses()[0], answers)
        assert answers == [bundle[0]] * 3


def _ask_anew(address: Path | tuple[str, int], answers: list[Digest]) -> None:
    with InferenceClient(address) as client:
        answers.append(client.infer("digits", [X]).manifest)


def test_a_worker_that_nobody_comes_for_finishes_and_ends(tmp_path: Path) -> None:
    hold, started = tmp_path / "hold", tmp_path / "started"
    hold.touch()
    config = {"HOLD_OF_TEST": str(hold), "STARTED_OF_TEST": str(started)}
    bundle = write_slot(tmp_path / "slots", [Member("digits", "script", "score.py")], {"score.py": SLOW}, config=config)
    results: list[object] = []
    with agent_process(tmp_path, {"orphan_ms": 500}) as agent:
        agent.start()
        agent.ask("ensure", MODULE, *bundle)
        worker, path = agent.ask("worker_pid", MODULE), agent.addresses()[0]

        def ask() -> None:
            with InferenceClient(path) as client:
                results.append(client.infer_json("digits", "wait").result)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        wait_until(started.exists, 30, what="the request to be computed")
        agent.kill()
        wait_until(lambda: agent.waiting_workers() == [], 30, what="the worker to wait no longer")
        assert not has_ended(worker), "it finishes what it has begun"
        hold.unlink()
        wait_until(lambda: has_ended(worker), 30, what="the worker to end")
        thread.join(30)
        assert results == ["old"]


def test_a_worker_that_no_agent_can_find_any_more_ends(tmp_path: Path) -> None:
    bundle = adder_slot(tmp_path / "slots", 1.0)
    with agent_process(tmp_path) as agent:
        agent.start()
        agent.ask("ensure", MODULE, *bundle)
        worker = agent.ask("worker_pid", MODULE)
        agent.kill()
        (waiting,) = agent.orphans.iterdir()
        waiting.unlink()
        wait_until(lambda: has_ended(worker), 30, what="the worker to end")


def test_what_a_worker_prints_without_an_agent_neither_blocks_it_nor_gets_lost(tmp_path: Path) -> None:
    config = {"HOLD_OF_TEST": str(tmp_path / "none"), "STARTED_OF_TEST": str(tmp_path / "started")}
    bundle = write_slot(tmp_path / "slots", [Member("digits", "script", "score.py")], {"score.py": SLOW}, config=config)
    with agent_process(tmp_path) as agent:
        agent.start()
        agent.ask("ensure", MODULE, *bundle)
        path = agent.addresses()[0]
        agent.kill()
        with InferenceClient(path) as client:
            # Many times what a pipe holds.
            assert client.infer_json("digits", "print").result == "old"
        logs = [agent.run_dir / f"{MODULE}.log", agent.run_dir / f"{MODULE}.log.1"]
        wait_until(lambda: all(log.exists() for log in logs), 30, what="the output to be in the log")
        assert sum(log.stat().st_size for log in logs) <= 2 * 256 * 1024
        agent.start()
        with InferenceClient(path) as client:
            assert client.infer_json("digits", "print").result == "old"


def test_a_worker_that_is_stuck_when_the_agent_comes_back_is_replaced(tmp_path: Path) -> None:
    bundle = adder_slot(tmp_path / "slots", 1.0)
    with agent_process(tmp_path, {"hello_ms": 1_000}) as agent:
        agent.start()
        agent.ask("ensure", MODULE, *bundle)
        worker = agent.ask("worker_pid", MODULE)
        agent.kill()
        os.kill(worker, signal.SIGSTOP)
        assert agent.start() == []
        assert has_ended(worker)
        agent.ask("ensure", MODULE, *bundle)
        with InferenceClient(agent.addresses()[0]) as client:
            assert client.infer("digits", [X]).manifest == bundle[0]


def test_ending_an_agent_properly_ends_adopted_workers_too(tmp_path: Path) -> None:
    bundle = adder_slot(tmp_path / "slots", 1.0)
    with agent_process(tmp_path) as agent:
        agent.start()
        agent.ask("ensure", MODULE, *bundle)
        worker, (path, host, port) = agent.ask("worker_pid", MODULE), agent.addresses()
        agent.kill()
        assert agent.start() == [worker]
        agent.ask("close")
        assert has_ended(worker)
        assert not path.exists()
        with pytest.raises(ConnectionRefusedError), socket.create_connection((host, port), timeout=5):
            pass
