"""Reports: the newest of each device, released when it is durable, bad ones in nobody's way."""

from __future__ import annotations

import pytest

from cloud_registry.collect.inputs import (
    ApplyReport,
    LinkLost,
    MessageReceived,
    RecordDrop,
    RecordTrouble,
    ReleaseMessage,
    ReportApplied,
    ReportCommand,
    ReportRefused,
    StoreFailed,
    TimePassed,
)
from cloud_registry.collect.reports import ReportCore
from cloud_registry.limits import REPORTS_AT_ONCE_MAX, STORE_RETRY_MS
from edge_contract import topics
from tests.unit.cloud_telemetry.making import T0_MS, report


class Desk:
    """The core with its time."""

    def __init__(self) -> None:
        self.core = ReportCore()
        self.now = 0
        self.tokens = 0

    def receive(self, device: str, number: int, boot: str = "aa") -> list[ReportCommand]:
        return self.receive_bytes(topics.report(device), report(device, number, boot).to_bytes())

    def receive_bytes(self, topic: str, content: bytes) -> list[ReportCommand]:
        self.tokens += 1
        return self.core.handle(MessageReceived(self.tokens, topic, content, T0_MS), self.now)

    def applied(self, command: ReportCommand, is_news: bool = True) -> list[ReportCommand]:
        assert isinstance(command, ApplyReport)
        return self.core.handle(ReportApplied(command.operation, is_news), self.now)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_report_is_applied_and_then_released(desk: Desk) -> None:
    (command,) = desk.receive("d1", 1)
    assert isinstance(command, ApplyReport)
    assert (command.report.device, command.report.number, command.received_ms) == ("d1", 1, T0_MS)
    assert desk.applied(command) == [ReleaseMessage(1)]
    assert desk.core.held == 0


def test_of_several_waiting_reports_of_a_device_only_the_newest_is_applied(desk: Desk) -> None:
    (first,) = desk.receive("d1", 1)
    assert [desk.receive("d1", number) for number in (2, 4, 3)] == [[], [], []]
    release, second = desk.applied(first)[::-1]
    assert release == ReleaseMessage(1)
    assert isinstance(second, ApplyReport)
    assert second.report.number == 4
    assert desk.applied(second) == [ReleaseMessage(2), ReleaseMessage(3), ReleaseMessage(4)]
    assert desk.core.totals.superseded == 2


def test_a_report_of_another_boot_replaces_the_waiting_one_by_arrival(desk: Desk) -> None:
    (first,) = desk.receive("d1", 9, boot="aa")
    desk.receive("d1", 10, boot="aa")
    desk.receive("d1", 1, boot="bb")
    second = desk.applied(first)[0]
    assert isinstance(second, ApplyReport)
    assert (second.report.boot, second.report.number) == ("bb", 1)


def test_a_database_that_is_down_delays_and_loses_nothing(desk: Desk) -> None:
    (first,) = desk.receive("d1", 1)
    assert isinstance(first, ApplyReport)
    (trouble,) = desk.core.handle(StoreFailed(first.operation, "cloud.unavailable", "down"), desk.now)
    assert trouble == RecordTrouble("cloud.unavailable", "down", 1, STORE_RETRY_MS)
    assert not desk.core.is_accepting
    assert desk.core.deadline == STORE_RETRY_MS
    assert desk.core.handle(TimePassed(), STORE_RETRY_MS - 1) == []
    desk.now = STORE_RETRY_MS
    (again,) = desk.core.handle(TimePassed(), desk.now)
    assert desk.applied(again) == [ReleaseMessage(1)]
    assert desk.core.is_accepting


def test_one_report_that_keeps_failing_lets_others_pass(desk: Desk) -> None:
    (bad,) = desk.receive("d1", 1)
    desk.receive("d2", 1)
    assert isinstance(bad, ApplyReport)
    desk.core.handle(StoreFailed(bad.operation, "cloud.unavailable", "odd"), desk.now)
    desk.now = STORE_RETRY_MS
    (other,) = desk.core.handle(TimePassed(), desk.now)
    assert isinstance(other, ApplyReport)
    assert other.report.device == "d2"


def test_a_newer_report_that_came_during_a_failure_is_the_one_that_is_tried_again(desk: Desk) -> None:
    (first,) = desk.receive("d1", 1)
    desk.receive("d1", 2)
    assert isinstance(first, ApplyReport)
    desk.core.handle(StoreFailed(first.operation, "cloud.unavailable", "down"), desk.now)
    (again,) = desk.core.handle(TimePassed(), STORE_RETRY_MS)
    assert isinstance(again, ApplyReport)
    assert again.report.number == 2
    assert desk.applied(again) == [ReleaseMessage(1), ReleaseMessage(2)]


def test_a_refused_report_is_dropped_with_the_reason_and_released(desk: Desk) -> None:
    (command,) = desk.receive("stranger", 1)
    assert isinstance(command, ApplyReport)
    drop, release = desk.core.handle(ReportRefused(command.operation, "cloud.not-found", "who?"), desk.now)
    assert drop == RecordDrop(topics.report("stranger"), "cloud.not-found", "who?")
    assert release == ReleaseMessage(1)


@pytest.mark.parametrize(
    ("topic", "content"),
    [
        (topics.report("d1"), b""),
        (topics.report("d1"), b"{"),
        (topics.report("d1"), b"\x00" * 100),
        (topics.report("d1"), report("d2", 1).to_bytes()),
        (topics.report("d1"), report("d1", 1).to_bytes().replace(b"0.1.0", b"0.1\\u0000")),
        (topics.report("d1"), report("d1", 1, boot="not a boot").to_bytes()),
        (topics.report("d1"), report("d1", 1).to_bytes().replace(b'"serving":true', b'"serving":7')),
        ("else/where", report("d1", 1).to_bytes()),
    ],
)
def test_a_poisoned_report_is_dropped_and_holds_nobody_up(desk: Desk, topic: str, content: bytes) -> None:
    drop, release = desk.receive_bytes(topic, content)
    assert isinstance(drop, RecordDrop)
    assert release == ReleaseMessage(1)
    (command,) = desk.receive("d1", 1)
    assert isinstance(command, ApplyReport)


def test_a_lost_connection_forgets_deliveries_and_keeps_reports(desk: Desk) -> None:
    (command,) = desk.receive("d1", 1)
    desk.core.handle(LinkLost(), desk.now)
    assert desk.applied(command) == []
    assert desk.core.totals.applied == 1


def test_what_waits_is_bounded(desk: Desk) -> None:
    desk.receive("d0", 1)
    for number in range(REPORTS_AT_ONCE_MAX):
        assert desk.core.is_accepting
        desk.receive(f"device-{number}", 1)
    assert not desk.core.is_accepting
