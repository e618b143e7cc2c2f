"""What the collector counts on: watermarks and catalogue move together, and two collectors never store twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from cloud_registry.adapters.sql.database import Database
from cloud_registry.adapters.sql.devices import SqlDevices
from cloud_registry.adapters.sql.enrolments import SqlEnrolments
from cloud_registry.adapters.sql.fleet import SqlFleet
from cloud_registry.ports import LakeFile, Watermark
from edge_contract.errors import EdgeError
from edge_contract.twin import Report
from tests.integration.registry.running import SetClock, error_of
from tests.support.devicekey import TestKey


@pytest.fixture
def fleet(database: Database) -> SqlFleet:
    devices, enrolments = SqlDevices(database, SetClock()), SqlEnrolments(database, SetClock())
    for name in ("cam-1", "cam-2"):
        token = devices.create_enrolment(name, {}, 60, "test").token
        enrolments.redeem(token, TestKey.of(name).public, "linux/arm64", "", 2**50)
    return SqlFleet(database)


def file(name: str) -> LakeFile:
    return LakeFile(name, 3, 100, 5, 9)


def test_a_watermark_starts_at_zero_for_an_enrolled_device_alone(fleet: SqlFleet) -> None:
    assert fleet.watermark("cam-1", "b1") == 0
    assert fleet.watermark("cam-9", "b1") is None


def test_watermarks_and_the_file_are_entered_together(fleet: SqlFleet) -> None:
    fleet.commit_batch([Watermark("cam-1", "b1", 0, 7), Watermark("cam-2", "b1", 0, 3)], file("a"))
    assert (fleet.watermark("cam-1", "b1"), fleet.watermark("cam-2", "b1")) == (7, 3)
    assert fleet.lake_files() == [file("a")]


def test_a_stale_watermark_changes_nothing(fleet: SqlFleet) -> None:
    fleet.commit_batch([Watermark("cam-1", "b1", 0, 7)], file("a"))
    marks = [Watermark("cam-2", "b1", 0, 3), Watermark("cam-1", "b1", 5, 9)]
    assert error_of(fleet.commit_batch, marks, file("b")).code == "cloud.conflict"
    assert fleet.watermark("cam-2", "b1") == 0
    assert fleet.lake_files() == [file("a")]


def test_a_device_that_is_gone_and_a_file_that_is_there_are_conflicts(fleet: SqlFleet) -> None:
    assert error_of(fleet.commit_batch, [Watermark("cam-9", "b1", 0, 1)], file("a")).code == "cloud.conflict"
    fleet.commit_batch([Watermark("cam-1", "b1", 0, 1)], file("a"))
    assert error_of(fleet.commit_batch, [Watermark("cam-1", "b1", 1, 2)], file("a")).code == "cloud.conflict"
    assert fleet.watermark("cam-1", "b1") == 1


def test_of_collectors_that_race_with_the_same_records_one_wins(fleet: SqlFleet) -> None:
    def commit(number: int) -> str:
        marks = [Watermark("cam-1", "b1", 0, 10), Watermark("cam-2", "b2", 0, 10)]
        try:
            fleet.commit_batch(marks if number % 2 else marks[::-1], file(f"f{number}"))
        except EdgeError as error:
            return error.code
        return "stored"

    with ThreadPoolExecutor(8) as racers:
        results = list(racers.map(commit, range(8)))
    assert sorted(results) == ["cloud.conflict"] * 7 + ["stored"]
    assert len(fleet.lake_files()) == 1


def test_files_are_exchanged_together(fleet: SqlFleet) -> None:
    fleet.commit_batch([Watermark("cam-1", "b1", 0, 1)], file("a"))
    fleet.commit_batch([Watermark("cam-1", "b1", 1, 2)], file("b"))
    fleet.replace_files(["a", "b"], [file("c")])
    assert fleet.lake_files() == [file("c")]
    assert error_of(fleet.replace_files, ["c", "gone"], [file("d")]).code == "cloud.conflict"
    assert fleet.lake_files() == [file("c")]


def test_reports_are_given_as_rows_of_a_table(fleet: SqlFleet) -> None:
    report = Report("cam-2", "b1", 4, 77, "linux/arm64", "1.0", 3, bytes_fetched=12)
    assert fleet.apply_report(report, 99)
    (row,) = list(fleet.report_rows())
    assert row["body"] == report.to_bytes().decode()
    del row["body"]
    assert row == {
        "device": "cam-2",
        "boot": "b1",
        "number": 4,
        "sent_ms": 77,
        "platform": "linux/arm64",
        "agent_version": "1.0",
        "director_version": 3,
        "bytes_fetched": 12,
        "received_ms": 99,
    }


def test_a_report_of_a_stranger_is_refused(fleet: SqlFleet) -> None:
    report = Report("cam-9", "b1", 1, 0, "linux/arm64", "1.0")
    assert error_of(fleet.apply_report, report, 1).code == "cloud.not-found"


def test_telemetry_of_an_old_boot_does_not_make_its_reports_old_or_new(fleet: SqlFleet) -> None:
    def report(boot: str, number: int) -> Report:
        return Report("cam-1", boot, number, 0, "linux/arm64", "1.0")

    fleet.commit_batch([Watermark("cam-1", "b2", 0, 5)], file("a"))
    assert fleet.apply_report(report("b1", 1), 1)
    assert fleet.apply_report(report("b2", 1), 2)
    assert not fleet.apply_report(report("b1", 2), 3)
    assert fleet.watermark("cam-1", "b2") == 5
