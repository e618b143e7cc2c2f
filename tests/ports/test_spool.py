"""`ports.Spool`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device_sim.live.spool import MemorySpool
from edge_agent.ports import Spool
from edge_agent.store.spool import SqliteSpool
from edge_contract.jsonio import JsonObject
from edge_contract.limits import BATCH_BYTES_MAX, BATCH_SAMPLES_MAX, KIB, SAMPLE_BYTES_MAX
from edge_contract.telemetry import Ack, Batch

BOOT = "00" * 8
BUDGET = 512 * KIB
IMPLEMENTATIONS: dict[str, Callable[[Path], Spool]] = {
    "sqlite": lambda folder: SqliteSpool(folder / "spool.db", "dev-1", BUDGET, BOOT),
    "memory": lambda _: MemorySpool("dev-1", BOOT, BUDGET),
}


@pytest.fixture(params=IMPLEMENTATIONS)
def spool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Spool]:
    made = IMPLEMENTATIONS[request.param](tmp_path)
    yield made
    if isinstance(made, SqliteSpool):
        made.close()


def record(value: object = 0, kind: str = "prediction") -> JsonObject:
    """What a worker hands over: a sample without its number."""
    return {
        "kind": kind,
        "module": "digits",
        "model": "digits",
        "version": 1,
        "manifest": "sha256:" + "ab" * 32,
        "taken_ms": 1_780_000_000_000,
        "body": {"inputs": {"x": [0.5, 1.0]}, "value": value},
    }


def values(batch: Batch | None) -> list[object]:
    assert batch is not None
    return [sample.body["value"] for sample in batch.samples]


def test_an_empty_spool_has_nothing_to_send(spool: Spool) -> None:
    assert spool.next_batch() is None
    assert spool.backlog() == (0, 0, 0)
    assert spool.acknowledge(Ack({BOOT: 5})) == 0


def test_records_come_back_numbered_from_one_in_order(spool: Spool) -> None:
    spool.append([record(n) for n in range(3)])
    spool.append([record(3)])
    batch = spool.next_batch()
    assert batch is not None
    assert (batch.device, batch.boot, batch.dropped) == ("dev-1", BOOT, 0)
    assert [sample.seq for sample in batch.samples] == [1, 2, 3, 4]
    assert values(batch) == [0, 1, 2, 3]
    assert batch.samples[0].body["inputs"] == {"x": [0.5, 1.0]}
    assert spool.backlog()[0] == 4


def test_a_batch_is_repeated_until_it_is_acknowledged(spool: Spool) -> None:
    spool.append([record(n) for n in range(3)])
    first = spool.next_batch()
    spool.append([record(3)])
    assert first is not None
    assert values(spool.next_batch())[:3] == values(first)
    assert spool.acknowledge(Ack({BOOT: first.last})) == 3
    assert values(spool.next_batch()) == [3]
    assert spool.acknowledge(Ack({BOOT: first.last})) == 0


def test_acknowledgements_are_cumulative_and_those_of_strangers_count_nothing(spool: Spool) -> None:
    spool.append([record(n) for n in range(10)])
    assert spool.acknowledge(Ack({"ff" * 8: 100})) == 0
    assert spool.acknowledge(Ack({BOOT: 0})) == 0
    assert spool.acknowledge(Ack({BOOT: 7})) == 7
    assert values(spool.next_batch()) == [7, 8, 9]
    assert spool.acknowledge(Ack({BOOT: 10**18})) == 3
    assert spool.backlog()[:2] == (0, 0)


def test_numbers_go_on_after_everything_was_acknowledged(spool: Spool) -> None:
    spool.append([record()])
    spool.acknowledge(Ack({BOOT: 1}))
    spool.append([record()])
    batch = spool.next_batch()
    assert batch is not None
    assert batch.last == 2


def test_a_batch_keeps_to_the_limits_of_the_wire(spool: Spool) -> None:
    spool.append([record("y" * 50_000) for _ in range(8)])
    batch = spool.next_batch()
    assert batch is not None
    assert 1 <= len(batch.samples) < 8
    assert len(batch.to_bytes()) <= BATCH_BYTES_MAX
    assert Batch.parse(batch.to_bytes()) == batch


def test_a_batch_never_holds_more_samples_than_are_allowed(spool: Spool) -> None:
    small: JsonObject = {"kind": "metric", "module": "", "manifest": None, "taken_ms": 0, "body": {}}
    spool.append([small] * (BATCH_SAMPLES_MAX + 5))
    batch = spool.next_batch()
    assert batch is not None
    assert len(batch.samples) <= BATCH_SAMPLES_MAX
    assert len(batch.to_bytes()) <= BATCH_BYTES_MAX


def test_over_the_budget_the_oldest_go_and_are_counted(spool: Spool) -> None:
    for n in range(100):
        spool.append([record(f"{n:03}" + "y" * 10_000)])
    records, waiting_bytes, dropped = spool.backlog()
    assert waiting_bytes <= BUDGET
    assert dropped > 0
    assert records + dropped == 100
    batch = spool.next_batch()
    assert batch is not None
    assert batch.dropped == dropped
    assert batch.samples[0].seq == dropped + 1


def test_what_is_no_sample_is_dropped_and_counted_and_spoils_nothing(spool: Spool) -> None:
    bad: list[JsonObject] = [
        {},
        record(kind="No Word"),
        record("z" * (SAMPLE_BYTES_MAX + 1)),
        {**record(), "body": "text"},
        {**record(), "manifest": "sha1:00"},
    ]
    spool.append([record("good"), *bad, record("better")])
    assert values(spool.next_batch()) == ["good", "better"]
    assert spool.backlog()[2] == len(bad)


def test_several_threads_may_append_and_acknowledge(spool: Spool) -> None:
    def work() -> None:
        for n in range(20):
            spool.append([record(n)])
            spool.next_batch()
            spool.acknowledge(Ack({BOOT: 1}))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    batch = spool.next_batch()
    assert batch is not None
    assert [sample.seq for sample in batch.samples] == list(range(2, 81))
