"""A device that has a bundle's content beside its agent, as in a module's image: signed metadata decide, as ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_contract.digest import Digest
from tests.e2e.device import Device
from tests.e2e.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.system]

_PADDING_BYTES = 300_000


def preloaded_device(stack: Stack, name: str, model: str) -> tuple[Device, Path]:
    """An enrolled device, and where the blobs of its image are."""
    device = stack.device(name, model)
    blobs = stack.folder / f"{name}-image" / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    device.config.write_text(f'preload = "{blobs.parents[1]}"\n{device.config.read_text()}')
    return device, blobs


def stored(stack: Stack, blob: Digest) -> Path:
    """The registry's file of a blob."""
    (path,) = [path for path in stack.data.rglob(f"*{blob.hex}*") if path.is_file()]
    return path


def test_the_model_comes_from_the_image_when_the_registry_has_lost_it(stack: Stack) -> None:
    device, blobs = preloaded_device(stack, "stowed-1", "stowed")
    first = stack.ship("stowed", 1, device.name, padding_bytes=_PADDING_BYTES)
    stored(stack, first.blob).rename(blobs / first.blob.hex)
    device.start()
    device.wait_confirmed(first.manifest)
    with device.asker() as asker:
        asker.wait_for(1)
        # What the image does not have comes over the network, and swaps in as everywhere.
        second = stack.ship("stowed", 2, device.name)
        device.wait_confirmed(second.manifest)
        asker.wait_for(2)
    asker.require_flawless()


def test_an_image_decides_nothing(stack: Stack) -> None:
    """Content that nobody signed is never looked at, and content that is not what its name says is fetched instead."""
    device, blobs = preloaded_device(stack, "stowed-2", "stowed-too")
    nobodys = b"a model that nobody signed" * 1000
    (blobs / Digest.of(nobodys).hex).write_bytes(nobodys)
    first = stack.ship("stowed-too", 1, device.name, padding_bytes=_PADDING_BYTES)
    (blobs / first.blob.hex).write_bytes(b"x" * first.size)
    device.start()
    device.wait_confirmed(first.manifest)
    with device.asker() as asker:
        asker.wait_for(1)
    asker.require_flawless()
    kept = {path.name for path in (device.data / "blobs" / "sha256").iterdir()}
    assert first.blob.hex in kept
    assert Digest.of(nobodys).hex not in kept
