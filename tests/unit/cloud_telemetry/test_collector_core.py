"""The collector's core: each record once, acknowledged after it is durable, nothing in the way of anybody else."""

from __future__ import annotations

import pytest

from cloud_registry.collect.core import CollectorCore, FlushRules, backoff_ms
from cloud_registry.collect.inputs import CommitFile, LinkLost, ReadWatermarks, SendAck, StoreFailed, WriteFile
from cloud_registry.limits import STORE_RETRY_MS, STORE_RETRY_MS_MAX, WATERMARKS_KEPT_MAX
from edge_contract import topics
from edge_contract.limits import BATCH_BYTES_MAX
from tests.unit.cloud_telemetry.making import batch
from tests.unit.cloud_telemetry.storing import Bench, MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(enrolled={"d1", "d2", "d3"})


@pytest.fixture
def bench(store: MemoryStore) -> Bench:
    return Bench(store)


def numbers(store: MemoryStore, device: str = "d1") -> list[int]:
    return sorted(seq for name, _, seq in store.records() if name == device)


def test_batches_that_come_together_share_one_file_and_are_acknowledged_after_it(
    bench: Bench, store: MemoryStore
) -> None:
    first, second = bench.receive("d1", 1, 3), bench.receive("d2", 1, 2)
    bench.settle()
    assert (bench.acks, bench.released, store.catalogue) == ([], [], [])
    bench.flush()
    assert len(store.catalogue) == 1
    assert (numbers(store), numbers(store, "d2")) == ([1, 2, 3], [1, 2])
    assert bench.acks == [SendAck("d1", "aa", 3), SendAck("d2", "aa", 2)]
    assert bench.released == [first, second]


def test_nothing_is_acknowledged_before_the_transaction(bench: Bench, store: MemoryStore) -> None:
    bench.receive("d1", 1, 3)
    bench.pass_time(100)
    for kind in (ReadWatermarks, WriteFile, CommitFile):
        assert isinstance(bench.waiting[0], kind)
        assert not bench.acks
        assert not bench.released
        bench.step()
    bench.settle()
    assert bench.acks == [SendAck("d1", "aa", 3)]


def test_a_repeated_batch_is_acknowledged_again_and_not_stored_again(bench: Bench, store: MemoryStore) -> None:
    bench.receive("d1", 1, 3)
    bench.flush()
    again = bench.receive("d1", 1, 3)
    bench.settle()
    assert bench.acks == [SendAck("d1", "aa", 3)] * 2
    assert bench.released[-1] == again
    assert numbers(store) == [1, 2, 3]
    assert bench.core.totals.duplicates == 3


def test_a_batch_repeated_before_it_is_durable_waits_for_the_same_file(bench: Bench, store: MemoryStore) -> None:
    tokens = [bench.receive("d1", 1, 3), bench.receive("d1", 1, 3), bench.receive("d1", 2, 5)]
    bench.settle()
    assert not bench.acks
    bench.flush()
    assert numbers(store) == [1, 2, 3, 4, 5]
    assert bench.acks == [SendAck("d1", "aa", 5)]
    assert bench.released == tokens


def test_an_old_batch_that_comes_late_changes_nothing(bench: Bench, store: MemoryStore) -> None:
    for first, last in ((1, 3), (4, 6)):
        bench.receive("d1", first, last)
        bench.flush()
    bench.receive("d1", 1, 3)
    bench.flush()
    assert numbers(store) == [1, 2, 3, 4, 5, 6]
    assert bench.acks[-1] == SendAck("d1", "aa", 6)


def test_numbers_may_be_missing(bench: Bench, store: MemoryStore) -> None:
    bench.receive("d1", 1, 3)
    bench.flush()
    bench.receive("d1", 10, 12)
    bench.flush()
    assert numbers(store) == [1, 2, 3, 10, 11, 12]
    assert bench.acks[-1] == SendAck("d1", "aa", 12)


def test_each_boot_has_numbers_of_its_own(bench: Bench, store: MemoryStore) -> None:
    bench.receive("d1", 1, 2, boot="aa")
    bench.receive("d1", 1, 3, boot="bb")
    bench.flush()
    assert len(store.records()) == 5
    assert bench.acks == [SendAck("d1", "aa", 2), SendAck("d1", "bb", 3)]


def test_a_collector_that_starts_again_asks_the_database_what_it_has(store: MemoryStore) -> None:
    before = Bench(store)
    before.receive("d1", 1, 3)
    before.flush()
    after = Bench(store)
    after.receive("d1", 1, 5)
    after.flush()
    assert numbers(store) == [1, 2, 3, 4, 5]
    assert after.acks == [SendAck("d1", "aa", 5)]


@pytest.mark.parametrize("steps", range(6))
def test_a_crash_after_any_step_loses_and_repeats_nothing(store: MemoryStore, steps: int) -> None:
    crashed = Bench(store)
    crashed.receive("d1", 1, 3)
    crashed.pass_time(100)
    for _ in range(steps):
        if crashed.waiting:
            crashed.step()
    assert all(ack.upto in numbers(store) for ack in crashed.acks)
    after = Bench(store)
    after.receive("d1", 1, 3)
    after.flush()
    assert numbers(store) == [1, 2, 3]
    assert after.acks[-1] == SendAck("d1", "aa", 3)


@pytest.mark.parametrize("command", [ReadWatermarks, WriteFile, CommitFile])
@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_failure_of_the_store_is_tried_again_until_it_works(
    bench: Bench, store: MemoryStore, command: type, fault: str
) -> None:
    bench.receive("d1", 1, 3)
    bench.pass_time(100)
    failures = 0
    while bench.core.deadline is not None or bench.waiting:
        if not bench.waiting:
            assert not bench.acks
            assert not bench.core.is_accepting
            bench.pass_time(bench.core.deadline - bench.now if bench.core.deadline is not None else 0)
        elif isinstance(bench.waiting[0], command) and failures < 3:
            failures += 1
            bench.step(fault)
        else:
            bench.step()
        if command is CommitFile and fault == "after" and failures == 1 and not bench.waiting:
            assert numbers(store) == [1, 2, 3]
    assert numbers(store) == [1, 2, 3]
    assert bench.acks == [SendAck("d1", "aa", 3)]
    assert [trouble.attempts for trouble in bench.troubles] == list(range(1, failures + 1))
    assert bench.core.is_accepting
    assert bench.core.failures == 0


def test_a_commit_that_is_tried_again_uses_the_same_file(bench: Bench, store: MemoryStore) -> None:
    bench.receive("d1", 1, 3)
    bench.pass_time(100)
    bench.step()
    bench.step()
    bench.step("before")
    bench.flush()
    assert bench.writes == 1
    assert [file.path for file in store.catalogue] == ["file-0"]


def test_another_collector_that_was_faster_leaves_only_the_rest(store: MemoryStore) -> None:
    slow, fast = Bench(store), Bench(store)
    slow.receive("d1", 1, 5)
    slow.receive("d2", 1, 2)
    slow.pass_time(100)
    slow.step()
    slow.step()
    fast.receive("d1", 1, 3)
    fast.flush()
    slow.flush()
    assert numbers(store) == [1, 2, 3, 4, 5]
    assert numbers(store, "d2") == [1, 2]
    assert slow.core.totals.conflicts == 1
    assert slow.acks == [SendAck("d1", "aa", 5), SendAck("d2", "aa", 2)]


def test_endless_conflicts_back_off(bench: Bench, store: MemoryStore) -> None:
    bench.receive("d1", 1, 3)
    bench.pass_time(100)
    for moved in range(1, 5):
        while not isinstance(bench.waiting[0], CommitFile):
            bench.step()
        store.marks["d1", "aa"] = -moved  # somebody always moves it first
        bench.step()
    bench.settle()
    assert bench.core.deadline == bench.now + STORE_RETRY_MS
    bench.flush()
    assert numbers(store) == [1, 2, 3]


# --- Messages that cannot be taken ---


@pytest.mark.parametrize(
    ("topic", "content"),
    [
        (topics.telemetry("d1"), b""),
        (topics.telemetry("d1"), b"not json"),
        (topics.telemetry("d1"), b"\xff\xfe"),
        (topics.telemetry("d1"), b"[" * 100_000),
        (topics.telemetry("d1"), b'{"schema":"lighterman.batch/2"}'),
        (topics.telemetry("d1"), b"x" * (BATCH_BYTES_MAX + 1)),
        (topics.telemetry("d1"), batch("d2", 1, 1).to_bytes()),
        (topics.telemetry("d1"), batch("d1", 1, 1).to_bytes().replace(b'"seq":1', b'"seq":-1')),
        (topics.telemetry("d1"), batch("d1", 1, 1).to_bytes().replace(b'"latency_us":121', b'"latency_us":1e999')),
        (topics.telemetry("d1"), batch("d1", 1, 1).to_bytes().replace(b'"seq":1', b'"seq":' + b"1" * 5_000)),
        ("lighterman/1/../telemetry", batch("d1", 1, 1).to_bytes()),
        ("something/else", batch("d1", 1, 1).to_bytes()),
        ("", b""),
    ],
)
def test_a_poisoned_message_is_dropped_and_holds_nobody_up(
    bench: Bench, store: MemoryStore, topic: str, content: bytes
) -> None:
    before = bench.receive("d2", 1, 1)
    poisoned = bench.receive_bytes(topic, content)
    after = bench.receive("d3", 1, 1)
    bench.flush()
    assert len(bench.drops) == bench.core.totals.dropped_messages == 1
    assert bench.released == [before, poisoned, after]
    assert sorted(store.records()) == [("d2", "aa", 1), ("d3", "aa", 1)]


def test_a_device_that_is_not_enrolled_is_not_stored(bench: Bench, store: MemoryStore) -> None:
    tokens = [bench.receive("stranger", 1, 3), bench.receive("d1", 1, 1)]
    bench.flush()
    assert [drop.code for drop in bench.drops] == ["cloud.not-found"]
    assert store.records() == [("d1", "aa", 1)]
    assert bench.acks == [SendAck("d1", "aa", 1)]
    assert bench.released == tokens


def test_a_device_deleted_between_reading_and_commit_takes_nobody_with_it(bench: Bench, store: MemoryStore) -> None:
    bench.receive("d1", 1, 3)
    bench.receive("d2", 1, 1)
    bench.pass_time(100)
    bench.step()
    store.enrolled.remove("d1")
    bench.flush()
    assert store.records() == [("d2", "aa", 1)]
    assert bench.acks == [SendAck("d2", "aa", 1)]


def test_rows_that_no_file_can_hold_are_given_up_alone(bench: Bench, store: MemoryStore) -> None:
    bench.bad_seq = 7
    tokens = [bench.receive("d1", 1, 3), bench.receive("d2", 6, 8), bench.receive("d3", 1, 1)]
    bench.flush()
    assert (numbers(store), numbers(store, "d2"), numbers(store, "d3")) == ([1, 2, 3], [], [1])
    assert {ack.device for ack in bench.acks} == {"d1", "d3"}
    assert [drop.topic for drop in bench.drops] == [topics.telemetry("d2")]
    assert bench.released == tokens
    assert bench.core.is_accepting


# --- When it writes ---


def test_a_group_is_written_when_its_time_is_up(bench: Bench) -> None:
    bench.receive("d1", 1, 1)
    assert bench.core.deadline == 100
    bench.pass_time(99)
    assert not bench.waiting
    bench.pass_time(1)
    assert bench.waiting


@pytest.mark.parametrize(
    "rules", [FlushRules(rows_max=4), FlushRules(bytes_max=1_000), FlushRules(messages_max=2)], ids=repr
)
def test_a_group_is_written_when_it_is_large(store: MemoryStore, rules: FlushRules) -> None:
    bench = Bench(store, rules)
    bench.receive("d1", 1, 2)
    assert not bench.waiting
    bench.receive("d2", 1, 4)
    assert bench.waiting


def test_a_group_does_not_wait_for_a_broker_whose_window_is_full(store: MemoryStore) -> None:
    bench = Bench(store, FlushRules(age_ms=10_000, quiet_ms=20, quiet_messages=3))
    bench.receive("d1", 1, 1)
    bench.receive("d2", 1, 1)
    assert bench.core.deadline == 10_000
    bench.now = 5
    bench.receive("d3", 1, 1)
    assert bench.core.deadline == 25


def test_an_idle_collector_waits_for_nothing(bench: Bench) -> None:
    assert bench.core.deadline is None
    assert bench.core.is_accepting


# --- The connection ---


def test_releases_come_in_the_order_of_receipt(bench: Bench) -> None:
    bench.receive("d1", 1, 3)
    bench.flush()
    held = bench.receive("d2", 1, 1)
    repeated = bench.receive("d1", 1, 3)
    bench.settle()
    assert bench.acks[-1] == SendAck("d1", "aa", 3)
    assert bench.released == [1]
    bench.flush()
    assert bench.released == [1, held, repeated]


def test_deliveries_of_a_lost_connection_are_stored_and_not_released(bench: Bench, store: MemoryStore) -> None:
    bench.receive("d1", 1, 3)
    bench.feed(LinkLost())
    later = bench.receive("d2", 1, 1)
    bench.flush()
    assert numbers(store) == [1, 2, 3]
    assert bench.released == [later]
    assert bench.core.held == 0


def test_a_late_answer_to_a_former_operation_is_ignored(bench: Bench, store: MemoryStore) -> None:
    bench.receive("d1", 1, 3)
    bench.pass_time(100)
    bench.feed(StoreFailed(99, "device.disk-error", "from another time"))
    assert not bench.troubles
    bench.flush()
    assert numbers(store) == [1, 2, 3]


def test_waits_double_and_are_bounded() -> None:
    waits = [backoff_ms(failures) for failures in range(1, 100)]
    assert waits[:3] == [STORE_RETRY_MS, 2 * STORE_RETRY_MS, 4 * STORE_RETRY_MS]
    assert waits[-1] == STORE_RETRY_MS_MAX


def test_remembered_watermarks_are_bounded(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert FlushRules().messages_max < WATERMARKS_KEPT_MAX
    monkeypatch.setattr("cloud_registry.limits.WATERMARKS_KEPT_MAX", 4)
    bench = Bench(store)
    for boot in range(20):
        bench.receive("d1", 1, 1, boot=f"{boot:x}")
        bench.flush()
        bench.receive("d1", 1, 2, boot="0")
        bench.flush()
    assert len(store.records()) == 21
    core: CollectorCore = bench.core
    assert len(core._durable) == 4
