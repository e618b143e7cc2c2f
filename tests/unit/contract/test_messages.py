"""Assignments, reports, batches and acknowledgements: bounded, and readable across versions."""

import json
from typing import Any

import pytest

from edge_contract import topics
from edge_contract.deployment import Artifact, Assignment, Policy, director_custom, read_director_custom
from edge_contract.digest import Digest
from edge_contract.errors import ContractError
from edge_contract.limits import (
    DETAIL_CHARS_MAX,
    ENVELOPE_BYTES_MAX,
    MANIFEST_BYTES_MAX,
    MODULES_MAX,
    REPORT_BYTES_MAX,
)
from edge_contract.phases import Outcome, Phase
from edge_contract.signed import REPORT_TYPE, Envelope
from edge_contract.telemetry import Ack, Batch, Sample
from edge_contract.twin import Report, ReportedDeployment, ReportedError, ReportedModule

MANIFEST = Digest.of(b"manifest")
ARTIFACT = Artifact("digits", 1, "linux/amd64", 1, "bundles/digits")
ASSIGNMENT = Assignment("digits", "d1", MANIFEST, 100, ARTIFACT)


# -- assignments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"module": "../x"}, {"module": None}, {"deployment": 7}, {"deployment": "\ud800"}, {"deployment": "x" * 129},
        {"version": 0}, {"version": True}, {"platform": "linux/riscv"}, {"release_counter": -1},
        {"repository": "../../other?x="}, {"repository": "http://x/y"}, {"hardware_ids": "x"}, {"hardware_ids": [7]},
        {"policy": None}, {"policy": {"sampling_ppm": 1_000_001}}, {"policy": {"sampling_ppm": 0.5}},
        {"policy": {"probation_ms": -1}}, {"policy": {"probation_ms": "1"}}, {"policy": {"allow_release_rollback": 1}},
        {"policy": {"activation": "sideways"}}, {"policy": {"windows": 5}}, {"policy": {"windows": [{"days": [8]}]}},
        {"policy": {"windows": [{"start_minute": 1440, "length_minutes": 1}]}},
        {"policy": {"windows": [{"start_minute": 0, "length_minutes": 0}]}},
    ],
)  # fmt: skip
def test_an_assignment_that_is_not_right_is_invalid_metadata(change: dict[str, object]) -> None:
    custom = director_custom([ASSIGNMENT])
    (entry,) = custom["assignments"]
    newer = custom | {"of a newer director": 1, "assignments": [entry | {"also": 2}]}
    assert read_director_custom(newer, MANIFEST, 100) == (ASSIGNMENT,)
    bad = custom | change | {"assignments": [entry | change]}
    with pytest.raises(ContractError) as caught:
        read_director_custom(bad, MANIFEST, 100)
    assert caught.value.code == "trust.metadata-invalid"


@pytest.mark.parametrize("size", [0, -1, MANIFEST_BYTES_MAX + 1, 2**60])
def test_an_assignment_names_no_manifest_that_nobody_would_read(size: int) -> None:
    with pytest.raises(ContractError) as caught:
        read_director_custom(director_custom([ASSIGNMENT]), MANIFEST, size)
    assert caught.value.code == "trust.metadata-invalid"


@pytest.mark.parametrize("change", [{"model": "No"}, {"platform": "x"}, {"repository": "a b"}])
def test_an_artifact_that_is_not_right_is_invalid_metadata(change: dict[str, object]) -> None:
    with pytest.raises(ContractError) as caught:
        Artifact.from_json(ARTIFACT.to_json() | change)
    assert caught.value.code == "trust.metadata-invalid"


def test_a_policy_of_the_future_is_read_for_what_is_known_of_it() -> None:
    assert Policy.from_json({"update_window": "02:00", "probation_ms": 5}) == Policy(probation_ms=5)


# -- reports -------------------------------------------------------------------------------------------------------


def report(**changes: Any) -> dict[str, Any]:
    module = ReportedModule(Phase.IDLE, MANIFEST, deployment=ReportedDeployment("d1", MANIFEST, Outcome.CONFIRMED))
    full = Report("dev", "00" * 8, 1, 5, "linux/amd64", "1", modules={"digits": module})
    document: dict[str, Any] = json.loads(full.to_bytes())
    return document | changes


def parse(document: dict[str, Any]) -> Report:
    return Report.parse(json.dumps(document).encode())


def test_a_report_of_a_newer_device_is_read_for_what_is_known_of_it() -> None:
    document = report(battery_ratio=0.5)
    module = document["modules"]["digits"]
    module["phase"] = "defragmenting"
    module["temperature"] = 40
    module["deployment"]["outcome"] = "postponed"
    module["deployment"]["error"] = {"code": "device.too-hot", "detail": "90", "phase": "cooling", "attempt": 1}
    read = parse(document).modules["digits"]
    assert read.phase == "defragmenting"
    assert read.live == MANIFEST
    assert read.deployment is not None
    assert read.deployment.outcome is None  # nobody here can say that it ended, or how
    assert read.deployment.error is not None
    assert (read.deployment.error.phase, read.deployment.error.is_known) == ("cooling", False)
    assert read.to_json()["phase"] == "defragmenting"


def test_known_phases_are_read_as_phases() -> None:
    assert parse(report()).modules["digits"].phase is Phase.IDLE


@pytest.mark.parametrize(
    "change",
    [
        {"device": "a/b"}, {"number": -1}, {"number": 1.0}, {"sent_ms": None}, {"platform": "x"}, {"modules": None},
        {"modules": []}, {"modules": {"A": {}}}, {"modules": {"a": 7}}, {"modules": {"a": {"phase": "x" * 33}}},
        {"modules": {"a": {"phase": 7}}}, {"modules": {"a": {"phase": "idle", "live": 7}}},
        {"modules": {"a": {"phase": "idle", "live": []}}}, {"modules": {"a": {"phase": "idle", "deployment": 1}}},
        {"modules": {f"m{n}": {"phase": "idle"} for n in range(MODULES_MAX + 1)}}, {"error": "x"}, {"schema": "x"},
        {"bytes_fetched": True},
    ],
)  # fmt: skip
def test_a_report_that_is_none_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ContractError):
        parse(report(**change))


@pytest.mark.parametrize("character", ["x", '"', "é", "😀", "\x01"])
def test_the_largest_report_a_device_can_make_can_be_read(character: str) -> None:
    error = ReportedError("x" * 64, character * DETAIL_CHARS_MAX, Phase.ROLLING_BACK, 2**53 - 1)
    name = "m" * 62
    deployment = ReportedDeployment("d" * 128, MANIFEST, Outcome.ROLLBACK_FAILED, error)
    module = ReportedModule(
        Phase.ROLLING_BACK, MANIFEST, name, 2**53 - 1, MANIFEST, MANIFEST, False, deployment,
        MANIFEST, False, 2**53 - 1, deployment, error,
    )  # fmt: skip
    modules = {f"{name}{n:02}": module for n in range(MODULES_MAX)}
    largest = Report(
        "d" * 64, "00" * 8, 2**53 - 1, 2**53 - 1, "linux/arm/v7", "v" * 64, 2**53 - 1, modules, error, 2**53 - 1
    )
    assert len(largest.to_bytes()) <= REPORT_BYTES_MAX
    assert Report.parse(largest.to_bytes()) == largest
    envelope = Envelope(REPORT_TYPE, b"x" * REPORT_BYTES_MAX, "k" * 64, b"s" * 72)
    assert len(envelope.to_bytes()) <= ENVELOPE_BYTES_MAX


# -- telemetry -----------------------------------------------------------------------------------------------------


def sample(**changes: Any) -> dict[str, Any]:
    return Sample(1, "prediction", "digits", "digits", 1, MANIFEST, 5, {"inputs": {}}).to_json() | changes


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 0}, {"seq": True}, {"kind": "No Kind"}, {"kind": ""}, {"kind": 7}, {"module": "A"}, {"body": None},
        {"body": []}, {"body": {"x": "y" * 70_000}}, {"manifest": "x"}, {"manifest": 7}, {"taken_ms": -1},
        {"version": "1"}, {"model": "x" * 65},
    ],
)  # fmt: skip
def test_a_sample_that_is_none_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ContractError):
        Sample.from_json(sample(**change))


def test_a_kind_of_sample_that_is_not_known_here_does_not_hold_up_the_others() -> None:
    assert Sample.from_json(sample(kind="heartbeat")).kind == "heartbeat"


def nested(levels: int) -> dict[str, Any]:
    value: Any = 1
    for _ in range(levels - 1):
        value = [value]
    return {"x": value}


def test_every_sample_that_is_accepted_can_be_read_inside_a_batch() -> None:
    """A batch that the collector cannot read would be sent again for ever."""
    accepted = 0
    for levels in range(1, 40):
        try:
            found = Sample.from_json(sample(body=nested(levels)))
        except ContractError:
            continue
        accepted = levels
        assert Batch.parse(Batch("dev", "00" * 8, (found,)).to_bytes()).samples == (found,)
    assert accepted >= 18  # a tensor of the highest rank, below its name, below "inputs"


@pytest.mark.parametrize("numbers", [[], [1, 1], [2, 1]])
def test_samples_of_a_batch_rise(numbers: list[int]) -> None:
    samples = tuple(Sample.from_json(sample(seq=number)) for number in numbers)
    with pytest.raises(ContractError):
        Batch.parse(Batch("dev", "00" * 8, samples).to_bytes())


@pytest.mark.parametrize("upto", [None, [], {"a": "1"}, {"a": -1}, {"a": True}, {"a": 1.0}])
def test_an_acknowledgement_maps_boots_to_numbers(upto: object) -> None:
    with pytest.raises(ContractError):
        Ack.parse(json.dumps({"schema": "lighterman.ack/1", "upto": upto}).encode())


# -- topics --------------------------------------------------------------------------------------------------------


def test_the_device_is_read_back_from_every_topic() -> None:
    for topic in (topics.nudge, topics.ack, topics.report, topics.telemetry):
        assert topics.device_of(topic("Dev-1.a_b")) == "Dev-1.a_b"


@pytest.mark.parametrize(
    "topic", ["", "lighterman/1/dev", "lighterman/2/dev/ack", "lighterman/1/+/ack", "lighterman/1//ack", "a/b/c/d/e"]
)
def test_other_topics_name_no_device(topic: str) -> None:
    with pytest.raises(ContractError):
        topics.device_of(topic)
