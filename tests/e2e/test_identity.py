"""A device's identity while it works: renewed by itself and by hand, and nothing stops."""

from __future__ import annotations

import time

import pytest

from edge_agent.identity import load_identity
from tests.e2e.device import Device
from tests.e2e.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.system]

DAYS_MS = 24 * 3600 * 1000


def reported_number(stack: Stack, device: Device) -> tuple[str, int]:
    """Which report of the device the registry took last."""
    with stack.client() as client:
        report = client.device(device.name)["report"]
    return str(report["boot"]), int(report["number"])


def require_goes_on(stack: Stack, device: Device, version: int) -> None:
    """Reports of the new key are taken, and the next version is installed with its tokens."""
    before = reported_number(stack, device)
    device.wait(lambda: reported_number(stack, device) > before, "a report that the registry takes")
    shipment = stack.ship(device.model, version, device.name)
    device.wait_confirmed(shipment.manifest)
    stack.wait_standing(shipment, device.name, "confirmed")


def test_a_certificate_is_renewed_in_time_though_the_clock_is_wrong_and_metadata_expired(stack: Stack) -> None:
    device, _ = stack.live_device("mast-1", "mast1", is_clocked=True)
    first = load_identity(device.data)
    # Two thirds of ninety days are over, by a clock that is far ahead: metadata looks expired to it.
    device.set_clock(wall_ms=int(time.time() * 1000) + 70 * DAYS_MS)
    device.wait(lambda: load_identity(device.data).key.keyid != first.key.keyid, "the certificate to be renewed")
    device.set_clock()
    require_goes_on(stack, device, 2)
    assert device.errors() == set()


def test_a_certificate_is_renewed_by_hand_while_clients_ask(stack: Stack) -> None:
    device, _ = stack.live_device("mast-2", "mast2")
    first = load_identity(device.data)
    with device.asker() as asker:
        done = stack.run("edge-agent", "renew", "--data", str(device.data), "--json")
        assert done.exit_code == 0, done.stdout
        assert done.document["keyid"] == load_identity(device.data).key.keyid != first.key.keyid
        require_goes_on(stack, device, 2)
        asker.wait_for(2)
    asker.require_flawless()


def test_a_revoked_device_goes_on_serving_and_is_told_why_nothing_is_new(stack: Stack) -> None:
    device, first = stack.live_device("mast-3", "mast3")
    with stack.client() as client:
        client.revoke_device(device.name)
    with device.asker() as asker:
        device.wait_error("cloud.device-revoked")
        asker.go_on()
    asker.require_flawless()
    assert device.module()["live"] == str(first.manifest)
    device.stop()
    stack.enrol(device, "", "--force")
    device.start()
    require_goes_on(stack, device, 2)


def test_a_device_with_an_ed25519_key_works_like_any_other(stack: Stack) -> None:
    device = Device(stack.folder / "mast-4", "mast-4", "mast4")
    stack.enrol(device, "", "--key-type", "ed25519")
    shipment = stack.ship("mast4", 1, device.name)
    device.start()
    device.wait_confirmed(shipment.manifest)
    stack.wait_standing(shipment, device.name, "confirmed")


def test_updates_that_are_held_wait_until_they_are_resumed(stack: Stack) -> None:
    device, first = stack.live_device("mast-5", "mast5")
    run_dir = str(device.config.parent / "run")
    assert stack.run("edge-agent", "hold", "--run-dir", run_dir).exit_code == 0
    second = stack.ship("mast5", 2, device.name)
    device.wait_error("device.held")
    assert device.module()["live"] == str(first.manifest)
    assert "updates are held" in stack.run("edge-agent", "status", "--run-dir", run_dir).stdout
    assert stack.run("edge-agent", "resume", "--run-dir", run_dir).exit_code == 0
    device.wait_confirmed(second.manifest)
