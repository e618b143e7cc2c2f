"""Lanes: in order, one at a time, cancelled when told to, and nothing kept of what is over."""

import queue
import threading
from collections.abc import Callable, Iterator

import pytest

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.shell.lanes import Lanes
from edge_agent.shell.limits import LANE_COMMANDS_MAX

WAIT_S = 20


class Worker:
    """Carries commands out when the test lets it."""

    def __init__(self) -> None:
        self.begun: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.may_end = threading.Semaphore(0)
        self.was_cancelled: dict[int, bool] = {}

    def execute(self, command: do.Command, is_cancelled: Callable[[], bool]) -> inputs.Event | None:
        """One command."""
        assert isinstance(command, do.RefreshMetadata)
        self.begun.put(command.op)
        assert self.may_end.acquire(timeout=WAIT_S)
        self.was_cancelled[command.op] = is_cancelled()
        return inputs.CommandFailed(command.op, "network.cut", "over")


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def events() -> "queue.SimpleQueue[object]":
    return queue.SimpleQueue()


@pytest.fixture
def lanes(worker: Worker, events: "queue.SimpleQueue[object]") -> Iterator[Lanes]:
    lanes = Lanes(worker, events.put, events.put)  # type: ignore[arg-type]
    lanes.start()
    yield lanes
    for _ in range(5):
        worker.may_end.release()
    lanes.stop()


def test_an_operation_that_is_cancelled_while_it_waits_is_never_begun(
    lanes: Lanes, worker: Worker, events: "queue.SimpleQueue[object]"
) -> None:
    for op in (1, 2, 3):
        lanes.submit(do.RefreshMetadata(op))
    assert worker.begun.get(timeout=WAIT_S) == 1
    lanes.cancel(2)
    worker.may_end.release()
    assert worker.begun.get(timeout=WAIT_S) == 3
    worker.may_end.release()
    assert [getattr(events.get(timeout=WAIT_S), "op", None) for _ in range(2)] == [1, 3]


def test_an_operation_that_is_cancelled_under_way_sees_it(
    lanes: Lanes, worker: Worker, events: "queue.SimpleQueue[object]"
) -> None:
    lanes.submit(do.RefreshMetadata(1))
    worker.begun.get(timeout=WAIT_S)
    lanes.cancel(1)
    worker.may_end.release()
    events.get(timeout=WAIT_S)
    assert worker.was_cancelled == {1: True}


def test_cancelling_what_is_over_leaves_nothing_behind(
    lanes: Lanes, worker: Worker, events: "queue.SimpleQueue[object]"
) -> None:
    for op in range(1, 4):
        worker.may_end.release()
        lanes.submit(do.RefreshMetadata(op))
        events.get(timeout=WAIT_S)
        lanes.cancel(op)
    lanes.cancel(99)
    assert lanes.unfinished == 0
    assert not lanes._cancelled


def test_a_lane_that_is_hopelessly_behind_is_a_bug(lanes: Lanes, worker: Worker) -> None:
    lanes.submit(do.RefreshMetadata(0))
    worker.begun.get(timeout=WAIT_S)
    for op in range(LANE_COMMANDS_MAX):
        lanes.submit(do.RefreshMetadata(op + 1))
    with pytest.raises(AssertionError):
        lanes.submit(do.RefreshMetadata(LANE_COMMANDS_MAX + 1))
