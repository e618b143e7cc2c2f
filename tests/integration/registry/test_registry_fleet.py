"""What the collector counts on: watermarks and catalogue move together, and two collectors never store twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import select

from cloud_registry.adapters.sql.database import Database
from cloud_registry.adapters.sql.devices import SqlDevices
from cloud_registry.adapters.sql.enrolments import SqlEnrolments
from cloud_registry.adapters.sql.fleet import SqlFleet
from cloud_registry.adapters.sql.tables import devices as device_table
from cloud_registry.ports import LakeFile, ReportMessage, Watermark
from edge_contract.errors import EdgeError
from edge_contract.signed import Envelope
from edge_contract.twin import Report
from tests.integration.registry.running import SetClock, error_of
from tests.support.devicekey import TestKey

BOOT = "00000000000000b1"


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


def test_telemetry_of_a_revoked_device_is_not_taken(fleet: SqlFleet, database: Database) -> None:
    SqlEnrolments(database, SetClock()).revoke("cam-1", "test")
    assert (fleet.watermark("cam-1", "b1"), fleet.watermark("cam-2", "b1")) == (None, 0)


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


def message(device: str, number: int, boot: str = BOOT, key: TestKey | None = None) -> ReportMessage:
    report = Report(device, boot, number, 77, "linux/arm64", "1.0", 3, bytes_fetched=12)
    return ReportMessage((key or TestKey.of(device)).envelope(report).to_bytes(), 99)


def taken(fleet: SqlFleet, *messages: ReportMessage, device: str = "cam-1") -> list[str]:
    """What became of messages: applied, passed over for a newer one, or a code."""
    found = fleet.take_reports(device, messages)
    return [item.code or ("applied" if item.is_applied else "passed over") for item in found]


def test_reports_are_given_as_rows_of_a_table(fleet: SqlFleet) -> None:
    sent = message("cam-2", 4)
    assert taken(fleet, sent, device="cam-2") == ["applied"]
    (row,) = list(fleet.report_rows())
    assert row["body"] == Envelope.parse(sent.content).payload.decode()
    del row["body"]
    assert row == {
        "device": "cam-2",
        "boot": BOOT,
        "number": 4,
        "sent_ms": 77,
        "platform": "linux/arm64",
        "agent_version": "1.0",
        "director_version": 3,
        "bytes_fetched": 12,
        "bytes_saved": 0,
        "received_ms": 99,
    }


def test_a_report_of_a_stranger_is_refused(fleet: SqlFleet) -> None:
    assert taken(fleet, message("cam-9", 1), device="cam-9") == ["cloud.not-found"]


def test_of_reports_that_come_together_the_newest_is_applied(fleet: SqlFleet) -> None:
    later = "00000000000000c0"
    assert taken(fleet, message("cam-1", 1), message("cam-1", 7), message("cam-1", 1, later)) == [
        "passed over",
        "passed over",
        "applied",
    ]
    (row,) = fleet.report_rows()
    assert (row["boot"], row["number"]) == (later, 1)


def test_what_was_taken_once_is_never_taken_again(fleet: SqlFleet) -> None:
    earlier = "00000000000000a0"
    old = [message("cam-1", number) for number in (1, 2, 3)]
    assert taken(fleet, *old) == ["passed over", "passed over", "applied"]
    assert taken(fleet, *old) == ["trust.report-replayed"] * 3
    assert taken(fleet, message("cam-1", 99, earlier)) == ["trust.report-replayed"]
    assert taken(fleet, message("cam-1", 4), message("cam-1", 4)) == ["applied", "trust.report-replayed"]


def test_a_copy_of_what_was_taken_is_not_remembered_against_its_device(fleet: SqlFleet, database: Database) -> None:
    def refusals() -> int:
        query = select(device_table.c.refusals).where(device_table.c.name == "cam-1")
        return int(database.read(lambda connection: connection.execute(query).scalar_one()))

    sent = message("cam-1", 1)
    assert taken(fleet, sent) == ["applied"]
    assert taken(fleet, replace(sent, is_copy=True)) == ["trust.report-replayed"]
    assert refusals() == 0
    assert taken(fleet, ReportMessage(b"forged", 99, is_copy=True)) == ["trust.report-unsigned"]
    assert taken(fleet, sent) == ["trust.report-replayed"]
    assert refusals() == 2


def test_a_report_is_believed_for_its_signature_alone(fleet: SqlFleet, database: Database) -> None:
    genuine = Envelope.parse(message("cam-1", 1).content)
    forged = [
        message("cam-1", 1, key=TestKey.make()).content,
        message("cam-1", 1, key=TestKey.of("cam-2")).content,
        genuine.payload,
        b"",
        replace(genuine, signature=b"").to_bytes(),
        replace(genuine, signature=genuine.signature[:-1] + b"x").to_bytes(),
        replace(genuine, payload=genuine.payload.replace(b'"number":1', b'"number":2')).to_bytes(),
        replace(genuine, payload_type="application/json").to_bytes(),
        replace(TestKey.make().envelope(genuine.payload), keyid=genuine.keyid).to_bytes(),
    ]
    for content in forged:
        assert taken(fleet, ReportMessage(content, 5)) == ["trust.report-unsigned"], content
    assert list(fleet.report_rows()) == []
    refusal = SqlDevices(database, SetClock()).get("cam-1").refusal
    assert refusal is not None
    assert (refusal.code, refusal.received_ms, refusal.count) == ("trust.report-unsigned", 5, len(forged))
    assert taken(fleet, ReportMessage(genuine.to_bytes(), 6)) == ["applied"]


def test_signed_nonsense_is_refused_too(fleet: SqlFleet) -> None:
    key = TestKey.of("cam-1")
    good = Report("cam-1", BOOT, 1, 0, "linux/arm64", "1.0").to_bytes()
    for payload in (
        b"{}",
        good.replace(b'"1.0"', b'"1\\u0000"'),
        good.replace(BOOT.encode(), b"latest"),
        Report("cam-2", BOOT, 1, 0, "linux/arm64", "1.0").to_bytes(),
    ):
        (code,) = taken(fleet, ReportMessage(key.envelope(payload).to_bytes(), 5))
        assert code.startswith("artifact."), payload


def test_both_keys_of_a_renewal_may_sign_and_an_enrolment_starts_the_count_anew(
    fleet: SqlFleet, database: Database
) -> None:
    devices, enrolments = SqlDevices(database, SetClock()), SqlEnrolments(database, SetClock())
    new = TestKey.make()
    enrolments.renew("cam-1", new.public, 2**50)
    assert taken(fleet, message("cam-1", 1), message("cam-1", 2, key=new)) == ["passed over", "applied"]
    assert taken(fleet, message("cam-1", 3)) == ["applied"]
    enrolments.promote("cam-1", new.public.keyid)
    assert taken(fleet, message("cam-1", 4)) == ["trust.report-unsigned"]
    token = devices.create_enrolment("cam-1", {}, 60, "test").token
    fresh = TestKey.make("ed25519")
    enrolments.redeem(token, fresh.public, "linux/arm64", "", 2**50)
    assert taken(fleet, message("cam-1", 9, key=new)) == ["trust.report-unsigned"]
    assert taken(fleet, message("cam-1", 1, "0000000000000001", fresh)) == ["applied"]
    enrolments.revoke("cam-1", "test")
    assert taken(fleet, message("cam-1", 2, "0000000000000001", fresh)) == ["cloud.device-revoked"]


def test_telemetry_of_an_old_boot_does_not_make_its_reports_old_or_new(fleet: SqlFleet) -> None:
    later = "00000000000000c0"
    fleet.commit_batch([Watermark("cam-1", later, 0, 5)], file("a"))
    assert taken(fleet, message("cam-1", 1)) == ["applied"]
    assert taken(fleet, message("cam-1", 1, later)) == ["applied"]
    assert fleet.watermark("cam-1", later) == 5
