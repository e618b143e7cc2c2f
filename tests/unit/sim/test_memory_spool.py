"""Telemetry of a simulated device is numbered, batched, kept and let go as the wire asks for."""

from __future__ import annotations

from typing import Any

from device_sim.live.spool import MemorySpool
from edge_contract.limits import BATCH_BYTES_MAX, BATCH_SAMPLES_MAX
from edge_contract.telemetry import Ack, Batch

BOOT = "00000000000000aa"


def _record(text: str = "x", **changes: Any) -> dict[str, Any]:
    record = {
        "kind": "event",
        "module": "",
        "model": "",
        "version": 0,
        "manifest": None,
        "taken_ms": 5,
        "body": {"text": text},
    }
    return record | changes


def test_a_batch_is_repeated_until_it_is_acknowledged() -> None:
    spool = MemorySpool("dev-1", BOOT)
    spool.append([_record("a"), _record("b")])
    first = spool.next_batch()
    assert first is not None
    assert [sample.seq for sample in first.samples] == [1, 2]
    assert spool.next_batch() == first
    assert Batch.parse(first.to_bytes()) == first
    assert spool.acknowledge(Ack({BOOT: 1})) == 1
    second = spool.next_batch()
    assert second is not None
    assert [sample.seq for sample in second.samples] == [2]
    assert spool.acknowledge(Ack({BOOT: 2})) == 1
    assert spool.next_batch() is None
    assert spool.backlog() == (0, 0, 0)


def test_acknowledgements_of_other_boots_change_nothing() -> None:
    spool = MemorySpool("dev-1", BOOT)
    spool.append([_record()])
    assert spool.acknowledge(Ack({"00000000000000bb": 99})) == 0
    assert spool.backlog()[0] == 1


def test_batches_keep_to_the_limits_of_the_wire() -> None:
    spool = MemorySpool("dev-1", BOOT, bytes_max=8 * BATCH_BYTES_MAX)
    spool.append([_record("y" * 20_000) for _ in range(40)])
    batch = spool.next_batch()
    assert batch is not None
    assert 1 < len(batch.samples) < 40
    assert len(batch.to_bytes()) <= BATCH_BYTES_MAX
    many = MemorySpool("dev-1", BOOT)
    many.append([_record() for _ in range(BATCH_SAMPLES_MAX + 5)])
    batch = many.next_batch()
    assert batch is not None
    assert len(batch.to_bytes()) <= BATCH_BYTES_MAX
    assert len(batch.samples) <= BATCH_SAMPLES_MAX


def test_over_its_budget_it_drops_the_oldest_and_says_so() -> None:
    spool = MemorySpool("dev-1", BOOT, bytes_max=2_000)
    spool.append([_record("z" * 500) for _ in range(10)])
    records, waiting_bytes, dropped = spool.backlog()
    batch = spool.next_batch()
    assert batch is not None
    assert records + dropped == 10
    assert waiting_bytes <= 2_000
    assert batch.dropped == dropped > 0
    assert batch.samples[-1].seq == 10


def test_what_is_no_sample_is_dropped_and_counted() -> None:
    spool = MemorySpool("dev-1", BOOT)
    spool.append([_record(body="not an object"), _record()])
    assert spool.backlog()[0] == 1
    assert spool.backlog()[2] == 1
