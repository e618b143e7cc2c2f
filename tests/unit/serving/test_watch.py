"""When a worker counts as stuck, and when it beats."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from edge_agent.serving.keeping import Keeping
from edge_agent.serving.watch import LOOKS, Watch
from edge_agent.worker.beat import Beat
from edge_agent.worker.ledger import Ledger
from tests.support.net import wait_until


class Turning(Keeping):
    """Beats as told."""

    def __init__(self) -> None:
        super().__init__("line")
        self.beats = 0
        self.pruned = 0

    def beat(self) -> int:
        return self.beats

    def prune(self) -> None:
        self.pruned += 1


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [1000.0]
    monkeypatch.setattr("edge_agent.serving.watch.time.monotonic", lambda: clock[0])
    return clock


def test_a_worker_is_stuck_after_so_many_looks_without_a_turn(now: list[float]) -> None:
    keeping = Turning()
    watch = Watch(keeping, 3_000)
    assert watch.wait_s is None
    assert not watch.is_due()
    watch.begin()
    assert watch.wait_s == pytest.approx(1.0)
    assert not watch.is_due()
    for look in range(LOOKS):
        now[0] += 1.0
        assert watch.is_due()
        assert watch.look() is (look == LOOKS - 1)
    assert keeping.pruned == LOOKS


def test_one_turn_is_enough(now: list[float]) -> None:
    keeping = Turning()
    watch = Watch(keeping, 3_000)
    watch.begin()
    for _ in range(20):
        for _ in range(LOOKS - 1):
            now[0] += 1.0
            assert not watch.look()
        keeping.beats += 1
        now[0] += 1.0
        assert not watch.look()


def test_after_a_long_sleep_of_the_machine_one_look_decides_nothing(now: list[float]) -> None:
    watch = Watch(Turning(), 3_000)
    watch.begin()
    now[0] += 3_600.0
    assert watch.is_due()
    assert not watch.look()
    assert watch.wait_s == pytest.approx(1.0)


@dataclass
class Model:
    """What a worker knows of its threads."""

    is_busy: bool = False
    finished: int = 0


def test_beats_stop_when_a_busy_model_finishes_nothing_and_go_on_when_it_does() -> None:
    async def live() -> None:
        ledger, model = Ledger(), Model()
        beat = Beat(ledger, lambda: model.is_busy, lambda: model.finished, 50)
        beat.begin(5)
        await _until(lambda: ledger._beats >= 20)  # idle for longer than a busy model may be
        model.is_busy = True
        before = -1

        def stands() -> bool:
            nonlocal before
            stood, before = ledger._beats == before, ledger._beats
            return stood

        await _until(stands, 0.04)
        model.finished += 1
        await _until(lambda: ledger._beats > before)

    asyncio.run(live())


async def _until(predicate: object, poll_s: float = 0.005) -> None:
    assert callable(predicate)
    await asyncio.get_running_loop().run_in_executor(None, lambda: wait_until(predicate, 20, poll_s=poll_s))
