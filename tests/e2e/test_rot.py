"""Disks that forget: what rots is found before it runs, told of, and fetched anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_contract.digest import Digest
from tests.e2e.device import Device
from tests.e2e.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.system]


def model_file(device: Device, manifest: Digest) -> Path:
    """The largest file of a slot."""
    files = (device.data / "slots").rglob(f"*{manifest.hex}*/files/**/*")
    return max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)


def rot(path: Path) -> None:
    """Turn one bit over, as a tired flash cell does."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    mode = path.stat().st_mode
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(data)
    path.chmod(mode)


def test_a_live_slot_that_rotted_while_the_device_was_off_never_runs_and_is_fetched_anew(stack: Stack) -> None:
    device, first = stack.live_device("driftwood-1", "driftwood")
    device.stop()
    damaged = model_file(device, first.manifest)
    before = Digest.of(damaged.read_bytes())
    rot(damaged)
    assert Digest.of(damaged.read_bytes()) != before
    device.start()
    device.wait(
        lambda: device.module().get("serving") and device.module().get("answering") == str(first.manifest),
        "the device to serve its bundle again",
    )
    assert Digest.of(model_file(device, first.manifest).read_bytes()) == before
    with device.asker() as asker:
        asker.wait_for(1)
    asker.require_flawless()


def test_a_fallback_answers_at_once_when_the_live_slot_rotted_and_the_newer_bundle_comes_back(stack: Stack) -> None:
    device, first = stack.live_device("flotsam-1", "flotsam")
    second = stack.ship("flotsam", 2, device.name)
    device.wait_confirmed(second.manifest)
    device.stop()
    rot(model_file(device, second.manifest))
    device.start()
    device.wait(lambda: device.module().get("serving"), "the device to serve")
    device.wait_confirmed(second.manifest)
    assert device.module()["fallback"] == str(first.manifest)
    with device.asker() as asker:
        asker.wait_for(2)
    asker.require_flawless()
