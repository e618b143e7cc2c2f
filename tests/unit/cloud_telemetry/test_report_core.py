"""Reports: those of a device together and in order, released when it is durable, bad ones in nobody's way."""

from __future__ import annotations

import pytest

from cloud_registry.collect.inputs import (
    LinkLost,
    MessageReceived,
    RecordDrop,
    RecordTrouble,
    ReleaseMessage,
    ReportCommand,
    ReportsFailed,
    ReportsTaken,
    StoreFailed,
    TakeReports,
    TimePassed,
)
from cloud_registry.collect.reports import ReportCore
from cloud_registry.limits import REPORTS_A_DEVICE_MAX, REPORTS_AT_ONCE_MAX, STORE_RETRY_MS
from cloud_registry.ports import ReportMessage, ReportVerdict
from edge_contract import topics
from tests.unit.cloud_telemetry.making import T0_MS


class Desk:
    """The core with its time."""

    def __init__(self) -> None:
        self.core = ReportCore()
        self.now = 0
        self.tokens = 0

    def receive(self, device: str, content: bytes = b"x") -> list[ReportCommand]:
        return self.receive_on(topics.report(device), content)

    def receive_on(self, topic: str, content: bytes = b"x") -> list[ReportCommand]:
        self.tokens += 1
        return self.core.handle(MessageReceived(self.tokens, topic, content, T0_MS), self.now)

    def taken(self, command: ReportCommand, *verdicts: ReportVerdict) -> list[ReportCommand]:
        assert isinstance(command, TakeReports)
        given = verdicts or (ReportVerdict(is_applied=True),) * len(command.messages)
        return self.core.handle(ReportsTaken(command.operation, given), self.now)

    def failed(self, command: ReportCommand) -> list[ReportCommand]:
        assert isinstance(command, TakeReports)
        return self.core.handle(StoreFailed(command.operation, "cloud.unavailable", "down"), self.now)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def contents(command: ReportCommand) -> list[bytes]:
    assert isinstance(command, TakeReports)
    return [message.content for message in command.messages]


def test_a_report_is_handed_over_as_it_came_and_then_released(desk: Desk) -> None:
    (command,) = desk.receive("d1", b"\x00 anything")
    assert command == TakeReports(1, "d1", (ReportMessage(b"\x00 anything", T0_MS),))
    assert desk.taken(command) == [ReleaseMessage(1)]
    assert (desk.core.held, desk.core.totals.applied) == (0, 1)


def test_reports_of_a_device_that_wait_go_together_in_their_order(desk: Desk) -> None:
    (first,) = desk.receive("d1", b"1")
    assert [desk.receive("d1", content) for content in (b"2", b"3", b"4")] == [[], [], []]
    second, release = desk.taken(first)
    assert release == ReleaseMessage(1)
    assert contents(second) == [b"2", b"3", b"4"]
    passed_over = ReportVerdict()
    assert desk.taken(second, passed_over, passed_over, ReportVerdict(is_applied=True)) == [
        ReleaseMessage(2),
        ReleaseMessage(3),
        ReleaseMessage(4),
    ]
    assert (desk.core.totals.applied, desk.core.totals.superseded) == (2, 2)


def test_a_device_that_sends_without_end_lets_others_pass(desk: Desk) -> None:
    (first,) = desk.receive("d1")
    for _ in range(REPORTS_A_DEVICE_MAX + 3):
        desk.receive("d1")
    desk.receive("d2")
    second = desk.taken(first)[0]
    assert len(contents(second)) == REPORTS_A_DEVICE_MAX
    third = desk.taken(second)[0]
    assert isinstance(third, TakeReports)
    assert third.device == "d2"
    assert len(contents(desk.taken(third)[0])) == 3


def test_reports_that_are_not_believed_are_dropped_with_the_reason_and_released(desk: Desk) -> None:
    (first,) = desk.receive("d1")
    desk.receive("d1", b"forged")
    desk.receive("d1", b"good")
    second = desk.taken(first)[0]
    forged = ReportVerdict("trust.report-unsigned", "no signature")
    drop, *releases = desk.taken(second, forged, ReportVerdict(is_applied=True))
    assert drop == RecordDrop(topics.report("d1"), "trust.report-unsigned", "no signature")
    assert releases == [ReleaseMessage(2), ReleaseMessage(3)]
    assert (desk.core.totals.applied, desk.core.totals.dropped) == (2, 1)


def test_a_database_that_is_down_delays_and_loses_nothing(desk: Desk) -> None:
    (first,) = desk.receive("d1", b"1")
    (trouble,) = desk.failed(first)
    assert trouble == RecordTrouble("cloud.unavailable", "down", 1, STORE_RETRY_MS)
    assert not desk.core.is_accepting
    assert desk.core.deadline == STORE_RETRY_MS
    assert desk.core.handle(TimePassed(), STORE_RETRY_MS - 1) == []
    desk.now = STORE_RETRY_MS
    (again,) = desk.core.handle(TimePassed(), desk.now)
    assert contents(again) == [b"1"]
    assert desk.taken(again) == [ReleaseMessage(1)]
    assert desk.core.is_accepting


def test_one_device_whose_reports_keep_failing_lets_others_pass(desk: Desk) -> None:
    (bad,) = desk.receive("d1")
    desk.receive("d2")
    desk.failed(bad)
    desk.now = STORE_RETRY_MS
    (other,) = desk.core.handle(TimePassed(), desk.now)
    assert isinstance(other, TakeReports)
    assert other.device == "d2"


def test_what_came_during_a_failure_is_tried_behind_what_failed(desk: Desk) -> None:
    (first,) = desk.receive("d1", b"1")
    desk.receive("d1", b"2")
    desk.failed(first)
    (again,) = desk.core.handle(TimePassed(), STORE_RETRY_MS)
    assert contents(again) == [b"1", b"2"]
    assert desk.taken(again) == [ReleaseMessage(1), ReleaseMessage(2)]


def test_messages_that_can_never_be_stored_are_given_up(desk: Desk) -> None:
    (command,) = desk.receive("d1")
    assert isinstance(command, TakeReports)
    drop, release = desk.core.handle(ReportsFailed(command.operation, "internal.bug", "odd"), desk.now)
    assert drop == RecordDrop(topics.report("d1"), "internal.bug", "odd")
    assert release == ReleaseMessage(1)


def test_a_message_on_a_topic_of_nobody_is_dropped_and_holds_nobody_up(desk: Desk) -> None:
    drop, release = desk.receive_on("else/where")
    assert isinstance(drop, RecordDrop)
    assert release == ReleaseMessage(1)
    assert contents(desk.receive("d1")[0]) == [b"x"]


def test_a_lost_connection_forgets_deliveries_and_keeps_reports(desk: Desk) -> None:
    (command,) = desk.receive("d1")
    desk.core.handle(LinkLost(), desk.now)
    assert desk.taken(command) == []
    assert desk.core.totals.applied == 1


def test_what_waits_is_bounded(desk: Desk) -> None:
    desk.receive("d0")
    for number in range(REPORTS_AT_ONCE_MAX):
        assert desk.core.is_accepting
        desk.receive(f"device-{number % 7}")
    assert not desk.core.is_accepting
