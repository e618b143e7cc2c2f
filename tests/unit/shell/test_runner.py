"""The loop: commands in order, durable before they matter, telemetry until acknowledged, and a clean end."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest

from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.telemetry import Ack
from tests.support.net import wait_until
from tests.unit.shell.device import Device
from tests.unit.shell.fakes import PLATFORM


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device()
    device.thread.start()
    device.link.wait_for(lambda: device.link.reports)
    yield device
    device.end()
    assert device.supervisor.signs == ["ready", "stopping"]


def test_an_assignment_ends_as_what_answers(device: Device) -> None:
    assignment = device.cloud.publish(1)
    device.link.nudge(device.cloud.assign(assignment))
    device.link.wait_for(lambda: device.ended == ("confirmed", None))
    assert device.server.live["digits"] == assignment.manifest == device.module.live
    assert device.journal.record is not None
    assert device.journal.record["modules"]["digits"]["live"]["manifest"] == str(assignment.manifest)
    assert device.dispatcher.network_bytes == sum(len(data) for data in device.cloud.blobs.values())


def test_a_bad_model_is_refused_with_the_reason_and_the_old_one_stays(device: Device) -> None:
    good, bad = device.cloud.publish(1), device.cloud.publish(2)
    device.server.bad.add(bad.manifest)
    device.link.nudge(device.cloud.assign(good))
    device.link.wait_for(lambda: device.ended == ("confirmed", None))
    device.link.nudge(device.cloud.assign(bad))
    device.link.wait_for(lambda: device.ended == ("refused", "model.golden-mismatch"))
    assert device.server.live["digits"] == good.manifest


@pytest.mark.parametrize(
    ("platform", "says", "code"),
    [("linux/arm64", None, "artifact.platform-mismatch"), (PLATFORM, 9, "artifact.runtime-invalid")],
)
def test_a_bundle_that_is_not_what_this_device_needs_is_refused(
    device: Device, platform: str, says: int | None, code: str
) -> None:
    device.link.nudge(device.cloud.assign(device.cloud.publish(1, platform, says)))
    device.link.wait_for(lambda: device.ended == ("refused", code))
    assert not device.server.live


def test_a_manifest_that_breaks_the_contract_is_refused(device: Device) -> None:
    bad = b'{"schemaVersion": 2, "schemaVersion": 2}'
    device.cloud.blobs[Digest.of(bad)] = bad
    assignment = replace(device.cloud.publish(1), manifest=Digest.of(bad), manifest_bytes=len(bad))
    device.link.nudge(device.cloud.assign(assignment))
    device.link.wait_for(lambda: device.ended == ("refused", "artifact.duplicate-key"))


def test_nothing_starts_before_the_record_is_durable_and_everything_goes_on_when_the_disk_recovers(
    device: Device,
) -> None:
    device.journal.error = EdgeError("device.disk-full", "no space left")
    device.deploy(1)
    device.link.wait_for(lambda: (error := device.link.reports[-1].error) and error.code == "device.disk-full")
    assert not device.store.present
    device.journal.error = None
    device.link.wait_for(lambda: device.ended == ("confirmed", None))
    assert device.link.reports[-1].error is None


def test_what_the_network_cuts_is_reported_and_tried_again(device: Device) -> None:
    device.store.fail = EdgeError("network.cut", "the connection ended")
    device.deploy(1)
    device.link.wait_for(lambda: (item := device.module.deployment) and item.error and item.error.code == "network.cut")
    device.store.fail = None
    device.link.wait_for(lambda: device.ended == ("confirmed", None))


def test_samples_are_sent_and_forgotten_only_when_the_collector_says_so(device: Device) -> None:
    sample = {"kind": "prediction", "model": "digits", "version": 1, "manifest": None, "taken_ms": 5, "body": {"x": 1}}
    for _ in range(3):
        device.runner.sample_taken("digits", sample)
    device.link.wait_for(lambda: device.link.batches and len(device.link.batches[-1].samples) == 3)
    assert device.runner.call(device.spool.backlog, 10)[0] == 3
    device.link.ack(Ack({"00" * 8: 3}))
    assert device.runner.call(device.spool.backlog, 10)[0] == 0


def test_a_spool_whose_disk_is_full_ends_neither_the_agent_nor_a_record(device: Device) -> None:
    sample = {"kind": "prediction", "model": "digits", "version": 1, "manifest": None, "taken_ms": 5, "body": {"x": 1}}
    device.runner.sample_taken("digits", sample)
    device.link.wait_for(lambda: len(device.link.batches) == 1)
    device.spool.error = EdgeError("device.disk-full", "no space left")
    device.link.ack(Ack({"00" * 8: 1}))
    device.link.online(True)  # asks for the batch again
    assert device.runner.call(lambda: "alive", 10) == "alive"
    assert device.spool.waiting
    device.spool.error = None
    device.link.online(True)
    device.link.wait_for(lambda: len(device.link.batches) == 2)
    device.link.ack(Ack({"00" * 8: 1}))
    assert device.runner.call(device.spool.backlog, 10)[0] == 0


def _runs(device: Device, version: int) -> bool:
    return device.module.version == version and device.ended[0] == "confirmed"


def test_garbage_is_collected_after_a_confirmation_and_keeps_what_is_needed(device: Device) -> None:
    for version in (1, 2, 3):
        device.deploy(version)
        device.link.wait_for(partial(_runs, device, version))
    live, fallback = device.module.live, device.module.fallback
    # A lane of its own collects, after the confirmation was reported.
    wait_until(lambda: device.store.collected[-1:] and device.store.collected[-1] >= {live, fallback}, 20)
    assert device.slots.staged == {live, fallback}


def test_a_bug_in_a_lane_ends_the_process_instead_of_hiding() -> None:
    device = Device()

    def broken(wall_ms: int) -> None:
        raise ZeroDivisionError

    device.dispatcher._out.verifier.refresh = broken  # type: ignore[method-assign,assignment]
    device.thread.start()
    device.thread.join(20)
    assert isinstance(device.raised, ZeroDivisionError)


def test_after_a_restart_the_record_decides_what_serves() -> None:
    first = Device()
    first.thread.start()
    first.confirm(1)
    first.end()
    second = Device(first)
    second.thread.start()
    second.link.wait_for(lambda: second.link.reports and second.module.serving)
    second.end()
    assert second.link.reports[0].modules["digits"].live == first.module.live
