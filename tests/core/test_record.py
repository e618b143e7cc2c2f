"""The record survives a round trip, and a record that cannot be right is refused."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.agent import Agent
from edge_agent.core.backoff import wait_ms
from edge_agent.core.batching import LINGER_MS, RESEND_MS, Delivery
from edge_contract.errors import EdgeError
from tests.core.bench import Bench, assignment


def test_snapshot_and_restore_are_inverse() -> None:
    bench = Bench()
    bench.assign(assignment(1))
    bench.settle()
    record = bench.core.snapshot()
    assert Agent.restore(copy.deepcopy(record), "dev").snapshot() == record


@pytest.mark.parametrize(
    "change", [{"phase": "flying"}, {"quarantined": ["sha256:xyz"]}, {"attempt": -1}, {"golden": 7}, {"live": []}]
)
def test_a_record_that_cannot_be_right_is_refused(change: dict[str, object]) -> None:
    bench = Bench()
    bench.assign(assignment(1))
    bench.settle()
    record = bench.core.snapshot()
    record["modules"]["digits"].update(change)
    with pytest.raises(EdgeError):
        Agent.restore(record, "dev")


@given(st.integers(1, 1000), st.text(max_size=8))
def test_waits_grow_within_their_bounds_and_differ_between_devices(attempt: int, device: str) -> None:
    wait = wait_ms(1_000, 300_000, attempt, device)
    assert min(500 * 2 ** min(attempt - 1, 30), 150_000) <= wait <= 300_000
    assert wait == wait_ms(1_000, 300_000, attempt, device)


def test_telemetry_goes_one_batch_at_a_time_and_is_repeated_until_acknowledged() -> None:
    delivery = Delivery()
    assert delivery.deadline(is_online=True) is None
    delivery.record_waits(1000)
    assert delivery.deadline(is_online=False) is None
    assert delivery.deadline(is_online=True) == 1000 + LINGER_MS
    delivery.batch_sent(1200)
    assert delivery.deadline(is_online=True) == 1200 + RESEND_MS
    delivery.batch_sent(7000)
    assert delivery.deadline(is_online=True) == 7000 + 2 * RESEND_MS
    delivery.link_changed()
    assert delivery.deadline(is_online=True) == 1000 + LINGER_MS
    delivery.batch_sent(8000)
    delivery.batch_acknowledged(8100, has_more=True)
    assert delivery.deadline(is_online=True) == 8100
    delivery.batch_acknowledged(8200, has_more=False)
    assert delivery.deadline(is_online=True) is None
