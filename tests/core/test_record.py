"""The record survives a round trip, and a record that cannot be right is refused."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.agent import Agent
from edge_agent.core.backoff import wait_ms
from edge_agent.core.batching import LINGER_MS, RESEND_MS, Delivery
from edge_agent.core.record import ModuleRecord, Record
from edge_agent.limits import JOURNAL_BYTES_MAX
from edge_contract.delta import Delta
from edge_contract.deployment import Assignment
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import dump
from edge_contract.limits import DELTAS_MAX, MODULES_MAX
from edge_contract.phases import Phase
from tests.core.bench import Bench, assignment


def test_snapshot_and_restore_are_inverse() -> None:
    bench = Bench()
    bench.assign(assignment(1))
    bench.settle()
    record = bench.core.snapshot()
    assert Agent.restore(copy.deepcopy(record), "dev").snapshot() == record


def deltas_of(record: Any) -> dict[str, int]:
    """How many deltas each part of a module's record remembers."""
    parts = record["modules"]["digits"]
    return {name: len((parts[name] or {}).get("deltas", ())) for name in ("desired", "live", "fallback", "deployment")}


def with_deltas(version: int, count: int) -> Assignment:
    """An assignment with so many ways to make its one blob."""
    new = Digest.of(b"new %d" % version)
    bases = [Digest.of(b"base %d" % number) for number in range(count)]
    deltas = tuple(Delta(base, 2**35, new, 2**35, Digest.of(base.value.encode()), 2**34, 2**24) for base in bases)
    return replace(assignment(version), deltas=deltas)


def test_deltas_are_remembered_while_a_download_may_use_them() -> None:
    bench = Bench()
    bench.assign(with_deltas(1, 2))
    seen = {}
    while bench.waiting:
        command = bench.waiting[0]
        if isinstance(command, do.BundleCommand):
            seen[type(command)] = deltas_of(bench.disk)
            assert len(command.assignment.deltas) == 2
        bench.step()
    for kind in (do.ResolveBundle, do.FetchBlobs):
        assert seen[kind] == {"desired": 0, "live": 0, "fallback": 0, "deployment": 2}
    for later in (do.VerifyBlobs, do.StageSlot, do.ActivateSlot):
        assert set(seen[later].values()) == {0}


def test_a_download_that_a_power_cut_ended_knows_its_deltas_at_once() -> None:
    bench = Bench()
    bench.assign(with_deltas(1, 2))
    bench.until(do.FetchBlobs)
    bench.boot()
    command = bench.until(do.ResolveBundle)
    assert isinstance(command, do.ResolveBundle)
    assert command.assignment.deltas == with_deltas(1, 2).deltas


def test_deltas_that_are_made_meanwhile_interrupt_nothing_and_are_used_from_then_on() -> None:
    bench = Bench()
    bench.assign(assignment(1))
    bench.until(do.FetchBlobs)
    bench.hangs[do.FetchBlobs] = 1
    bench.step()
    (hung,) = bench.hung
    assert isinstance(hung, do.FetchBlobs)
    bench.trace.clear()
    bench.assign(with_deltas(1, 3))
    while bench.step():
        pass
    assert "CancelOperation" not in bench.trace
    assert "ResolveBundle" not in bench.trace
    bench.tell(inputs.CommandFailed(hung.op, "network.cut", "the connection ended"))
    bench.settle()
    fetched = [item.assignment for item in bench.sent if isinstance(item, do.FetchBlobs)]
    assert [len(item.deltas) for item in fetched] == [0, 3]


def test_garbage_collection_spares_deltas_of_a_download_and_of_nothing_else() -> None:
    bench = Bench()
    wanted = with_deltas(1, 2)
    bench.assign(wanted)
    bench.until(do.FetchBlobs)
    bench.failures[do.FetchBlobs] = [("device.disk-full", "no room")]
    bench.step()
    spared = [item.deltas for item in bench.sent if isinstance(item, do.CollectGarbage)][-1]
    assert spared == {delta.digest for delta in wanted.deltas}
    bench.settle(120_000)
    last = [item for item in bench.sent if isinstance(item, do.CollectGarbage)][-1]
    assert last.keep == {wanted.manifest}
    assert not last.deltas


def test_the_fullest_record_is_within_the_bound_of_the_journal() -> None:
    module = ModuleRecord(
        Phase.FETCHING, with_deltas(1, DELTAS_MAX), with_deltas(1, DELTAS_MAX), deployment=with_deltas(2, DELTAS_MAX)
    )
    record = Record(modules={f"module-{number}": module for number in range(MODULES_MAX)})
    data = dump(record.to_json())
    assert len(data) < JOURNAL_BYTES_MAX
    assert Record.from_json(json.loads(data)).to_json() == record.to_json()


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
