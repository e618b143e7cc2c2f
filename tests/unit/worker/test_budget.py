"""Memory of large requests: bounded, used again, and never while somebody looks at it."""

from __future__ import annotations

import numpy as np
import pytest

from edge_agent.worker.budget import Budget
from edge_agent.worker.limits import BUFFER_KEPT_BYTES_MAX, BUFFERS_KEPT


def test_room_is_bounded_and_given_back() -> None:
    budget = Budget(100)
    assert budget.take(60)
    assert not budget.take(41)
    assert budget.take(40)
    budget.take(-100)
    assert budget.used == 0


def test_a_place_is_used_again() -> None:
    budget = Budget(0)
    first = budget.lend(600_000)
    first[:] = b"1" * 600_000
    buffer = first.obj
    budget.keep(first)
    del first
    assert budget.lend(600_100).obj is buffer, "of about the same size"
    assert budget.lend(600_100).obj is not buffer, "and once at a time"


def test_a_place_that_an_array_looks_at_is_not_lent() -> None:
    budget = Budget(0)
    place = budget.lend(100_000)
    place[:] = bytes(100_000)
    array = np.frombuffer(place[8:], dtype=np.float32)
    budget.keep(place)
    del place
    other = budget.lend(100_000)
    other[:] = b"\xff" * 100_000
    assert not array.any()
    del array
    again = budget.lend(100_000)
    assert again.obj is not other.obj
    budget.keep(other)
    assert budget.lend(100_000).obj is not other.obj, "the one who left it still has it"


@pytest.mark.parametrize("offset", range(10))
def test_tensors_lie_as_they_have_to(offset: int) -> None:
    place = Budget(0).lend(1_000, offset)
    assert len(place) == 1_000
    assert np.frombuffer(place[offset:], dtype=np.uint8).ctypes.data % 8 == 0


def test_few_are_kept_and_no_large_one() -> None:
    budget = Budget(0)
    places = [budget.lend(100_000 * (number + 1)) for number in range(BUFFERS_KEPT + 1)]
    for place in places:
        budget.keep(place)
    budget.keep(budget.lend(BUFFER_KEPT_BYTES_MAX + 1))
    assert len(budget._kept) == BUFFERS_KEPT
    assert sum(map(len, budget._kept)) <= BUFFERS_KEPT * BUFFER_KEPT_BYTES_MAX
