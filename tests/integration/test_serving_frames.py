"""Frames with real processes: swaps and pauses that no client notices, a crash that it does."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from edge_agent.inference import InferenceClient
from edge_contract.runtime import Member
from edge_contract.tensors import TensorSpec
from tests.integration.adopting import agent_process
from tests.integration.serving import MODULE, X, serving
from tests.support.net import wait_until
from tests.support.slots import adder_slot, write_slot

SWAPS = 12
KILLS = 3
CLIENTS = 8
ANSWERS_BETWEEN = 50

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ZEROS = np.zeros((1, 4), dtype=np.float32)


@dataclass
class Asker:
    """A client that asks as fast as it can over one connection.

    Attributes:
        answers: (manifest, first element) in order, only where one differs from the one before.
        count: All answers.
        error: What went wrong, if anything.
    """

    path: Path
    is_stopped: threading.Event
    answers: list[tuple[str, float]] = field(default_factory=list)
    count: int = 0
    error: str = ""

    def run(self) -> None:
        """Ask until stopped."""
        try:
            with InferenceClient(self.path) as client:
                outputs = client.infer_arrays({"x": ZEROS}, "digits")
                frames = client._frames
                assert frames is not None
                first = frames._sock
                while not self.is_stopped.is_set():
                    answer = (str(outputs.manifest), float(outputs["y"][0, 0]))
                    if not self.answers or answer != self.answers[-1]:
                        self.answers.append(answer)
                    self.count += 1
                    outputs = client.infer_arrays({"x": ZEROS}, "digits")
                    assert frames._sock is first, "it had to connect again"
        except Exception as error:  # noqa: BLE001 - told below
            self.error = f"{type(error).__name__}: {error}"


def _start(path: Path) -> tuple[list[Asker], list[threading.Thread], threading.Event]:
    is_stopped = threading.Event()
    askers = [Asker(path, is_stopped) for _ in range(CLIENTS)]
    threads = [threading.Thread(target=asker.run, daemon=True) for asker in askers]
    for thread in threads:
        thread.start()
    return askers, threads, is_stopped


def _wait_for_answers(askers: list[Asker]) -> None:
    counts = [asker.count for asker in askers]
    wait_until(
        lambda: all(a.error or a.count >= count + ANSWERS_BETWEEN for a, count in zip(askers, counts, strict=True)),
        60,
        what="every client to get answers",
    )


@pytest.mark.parametrize("how", ["swap", "pause"])
def test_no_frame_is_lost_and_no_connection_either(tmp_path: Path, how: str) -> None:
    with serving(tmp_path) as state:
        bundles = [adder_slot(state.slots, 10.0 * number, version=number + 1) for number in range(SWAPS + 1)]
        number_of = {str(manifest): number for number, (manifest, _slot) in enumerate(bundles)}
        state.supervisor.ensure(MODULE, *bundles[0])
        askers, threads, is_stopped = _start(state.supervisor.addresses(MODULE)[0])
        try:
            for bundle in bundles[1:]:
                _wait_for_answers(askers)
                if how == "pause":
                    state.supervisor.pause(MODULE)
                state.supervisor.ensure(MODULE, *bundle)
            _wait_for_answers(askers)
        finally:
            is_stopped.set()
            for thread in threads:
                thread.join(60)
        assert [asker.error for asker in askers] == [""] * CLIENTS
        for asker in askers:
            order = [number_of[manifest] for manifest, _value in asker.answers]
            assert order == list(range(SWAPS + 1)), "each model in its turn, and none of them again"
            assert all(value == 10.0 * number for number, (_, value) in zip(order, asker.answers, strict=True))
        assert state.exits.empty()
        health = state.supervisor.health(MODULE)
        assert health.failures == 0
        assert health.requests >= CLIENTS * ANSWERS_BETWEEN


def test_a_swap_to_another_signature_is_learned_on_the_way(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        state.supervisor.ensure(MODULE, *adder_slot(state.slots, 10.0))
        script = write_slot(
            state.slots,
            [Member("digits", "script", "score.py", inputs=(TensorSpec("text", "BYTES", (-1,)),))],
            {"score.py": b"def run(data): return {'n': [len(item) for item in data['text'].tolist()]}\n"},
            version=2,
        )
        with state.client() as client:
            assert client.infer_arrays({"x": ZEROS}, "digits")["y"].tolist() == [[10.0] * 4]
            frames = client._frames
            assert frames is not None
            first = frames._sock
            state.supervisor.ensure(MODULE, *script)
            outputs = client.infer_arrays({"text": ["ab", "c"]}, MODULE)
            assert (outputs["n"].tolist(), outputs.version, outputs.manifest) == ([2, 1], 2, script[0])
            assert frames._sock is first


def test_agents_are_killed_and_models_swapped_by_the_next_and_no_frame_is_lost(tmp_path: Path) -> None:
    bundles = [adder_slot(tmp_path / "slots", 10.0 * number, version=number + 1) for number in range(KILLS + 1)]
    with agent_process(tmp_path) as agent:
        agent.start()
        agent.ask("ensure", MODULE, *bundles[0])
        askers, threads, is_stopped = _start(agent.addresses()[0])
        try:
            for bundle in bundles[1:]:
                _wait_for_answers(askers)
                agent.kill()
                _wait_for_answers(askers)
                agent.start()
                agent.ask("ensure", MODULE, *bundle)
            _wait_for_answers(askers)
        finally:
            is_stopped.set()
            for thread in threads:
                thread.join(60)
        assert [asker.error for asker in askers] == [""] * CLIENTS
        for asker in askers:
            assert [manifest for manifest, _value in asker.answers] == [str(manifest) for manifest, _slot in bundles]


def test_a_killed_worker_costs_one_repetition(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        bundle = adder_slot(state.slots, 10.0)
        state.supervisor.ensure(MODULE, *bundle)
        with state.client() as client:
            assert client.infer("digits", [X]).manifest == bundle[0]
            pid = state.supervisor.worker_pid(MODULE)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            assert state.exits.get(timeout=10)[1] == bundle[0]
            state.supervisor.ensure(MODULE, *bundle)
            assert client.infer("digits", [X]).manifest == bundle[0]


def test_a_worker_that_nobody_asks_uses_no_processor(tmp_path: Path) -> None:
    """At most 0.1 % of a core, with connections of both kinds open."""
    with serving(tmp_path) as state:
        state.supervisor.ensure(MODULE, *adder_slot(state.slots, 10.0))
        with state.client() as frames, state.client(tcp=True) as http:
            for client in (frames, http):
                client.infer("digits", [X])
            pid = state.supervisor.worker_pid(MODULE)
            time.sleep(1.0)  # telemetry's flush is over by then
            begun_ns, begun = _cpu_ns(pid), time.monotonic()
            time.sleep(4.0)  # that nothing happens is what is measured
            share = (_cpu_ns(pid) - begun_ns) / 1e9 / (time.monotonic() - begun)
            assert share <= 0.001


def _cpu_ns(pid: int | None) -> int:
    """CPU time of a process and its threads, exact: ticks of a hundredth of a second would hide it."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
