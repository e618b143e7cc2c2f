"""The documents that travel through Azure IoT Hub: what is good is read, whatever stands beside it."""

from __future__ import annotations

from typing import Any

import pytest

from edge_contract.errors import ContractError
from edge_contract.hub import HubAddress, HubDesired, HubSettings, join_report, report_parts
from edge_contract.limits import HUB_ACK_BOOTS_MAX, HUB_PART_CHARS
from edge_contract.telemetry import Ack

BOOT = "00" * 8


def test_desired_properties_carry_a_nudge_an_acknowledgement_and_settings() -> None:
    read = HubDesired.read(
        {"director_version": 17, "ack": {"upto": {BOOT: 5, "11" * 8: None}}, "settings": {"report_ms": 5_000}}
    )
    assert read == HubDesired(17, Ack({BOOT: 5}), HubSettings(report_ms=5_000))


def test_what_the_cloud_writes_is_what_a_device_reads() -> None:
    assert HubDesired.read(HubDesired.nudge_patch(9)["lighterman"]) == HubDesired(9)
    assert HubDesired.read(HubDesired.ack_patch({BOOT: 3})["lighterman"]) == HubDesired(ack=Ack({BOOT: 3}))


def test_acknowledgements_of_boots_long_ago_leave_the_twin() -> None:
    marks = {f"{number:016x}": number for number in range(1, HUB_ACK_BOOTS_MAX + 3)}
    upto = HubDesired.ack_patch(marks, ("ff" * 8,))["lighterman"]["ack"]["upto"]
    assert upto["ff" * 8] is None
    assert len([mark for mark in upto.values() if mark is not None]) == HUB_ACK_BOOTS_MAX


@pytest.mark.parametrize(
    "bad",
    [
        {"ack": {"upto": {BOOT: -1}}},
        {"ack": {"upto": [BOOT]}},
        {"ack": "5"},
        {"settings": {"report_ms": 1}},
        {"settings": {"poll_ms": True}},
        {"settings": {"log_level": "all"}},
        {"settings": {"allow_pickle": True}},
        {"settings": []},
    ],
)
def test_one_bad_part_spoils_no_other(bad: dict[str, Any]) -> None:
    read = HubDesired.read({"director_version": 4, **bad})
    assert read.director_version == 4
    assert read.problem
    assert (read.ack, read.settings) == (None, None)


@pytest.mark.parametrize("rubbish", [None, 3, "x", [], {"director_version": True}, {"director_version": -1}])
def test_rubbish_says_nothing(rubbish: object) -> None:
    read = HubDesired.read(rubbish)
    assert (read.director_version, read.ack, read.settings) == (None, None, None)


def test_a_signed_report_fits_into_a_twin_in_parts_or_not_at_all() -> None:
    envelope = bytes(range(256)) * 40
    parts = report_parts(envelope)
    assert parts is not None
    assert all(len(part) <= HUB_PART_CHARS for part in parts)
    assert join_report(parts) == envelope
    assert report_parts(bytes(30_000)) is None


@pytest.mark.parametrize("bad", [None, "text", [1], ["%%%"], ["A" * 400_000]])
def test_what_is_no_report_is_refused(bad: object) -> None:
    with pytest.raises(ContractError):
        join_report(bad)


def test_an_address_names_a_device_or_a_module() -> None:
    assert HubAddress.parse("edge-1") == HubAddress("edge-1")
    assert str(HubAddress.parse("edge-1/lighterman")) == "edge-1/lighterman"
    for bad in ("", "/", "edge-1/", "a/b/c", "a b"):
        with pytest.raises(ContractError):
            HubAddress.parse(bad)
