"""A real device updates by deltas that a real registry lists: bytes saved, bad ones replaced, a kill survived."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_contract.delta import EMPTY, Delta, delta_manifest
from edge_contract.deployment import bundle_repository
from edge_contract.digest import Digest
from edge_contract.manifest import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from packager.delta.encode import encode
from tests.e2e.device import Device
from tests.e2e.stack import Shipment, Stack, condition
from tests.support.net import wait_until
from tests.support.processes import start_process

pytestmark = [pytest.mark.e2e, pytest.mark.system]

WIDTH = 1024
ROWS = 2560  # ten megabytes: two checkpoints within it
FLEET = 4
KIB = 1024


@dataclass
class Line:
    """A device on which version 1 of a model lives, and version 2, published, not deployed, a fine-tune of it."""

    stack: Stack
    device: Device
    first: Shipment
    second: Shipment

    def file(self, shipment: Shipment) -> Path:
        """The model's file as it was published."""
        files = (self.stack.folder / "models").glob("*/model.onnx")
        return next(path for path in files if Digest.of(path.read_bytes()) == shipment.blob)

    def offer_delta(self, how: str = "") -> Delta:
        """Make and register the delta from the first to the second; spoiled in a way when one is named."""
        out = self.stack.folder / f"{self.device.name}.lmd"
        made = encode(self.file(self.first), self.file(self.second), out)
        data = out.read_bytes()
        if how == "flipped":
            place = 2 * len(data) // 3  # within the numbers, behind the first checkpoint
            data = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
        elif how == "garbage":
            data = b"this is no delta at all" * 100
        delta = Delta(
            self.first.blob, self.first.size, self.second.blob, self.second.size, Digest.of(data), len(data),
            made.peak_bytes,
        )  # fmt: skip
        repository = bundle_repository(self.device.model)
        with self.stack.client() as client:
            (bundle,) = client.bundles(self.device.model, self.second.version)
            index = client.get_manifest(repository, str(self.second.version))
            assert str(Digest.of(index)) == bundle["index"]
            for content in (EMPTY, data):
                client.upload_bytes(repository, content)
            manifest = delta_manifest(delta, Descriptor(INDEX_TYPE, Digest.of(index), len(index)))
            name = client.put_manifest(repository, str(Digest.of(manifest)), MANIFEST_TYPE, manifest)
            client.register_delta(self.device.model, self.second.version, name)
        return delta

    def deploy(self) -> Shipment:
        """Have the device run the second."""
        with self.stack.client() as client:
            record = client.create_deployment(self.device.model, self.second.version, condition(self.device.name))
        return replace(self.second, deployment=str(record["id"]))

    def fetched(self) -> int:
        """Bytes that came to the device since it started."""
        return int(self.device.status()["bytes_fetched"])

    def require_tidy(self) -> None:
        """Nothing of a delta or of a download is left on the device."""
        self.device.wait(lambda: not list((self.device.data / "partial").iterdir()), "the garbage to be collected")
        blobs = {path.name for path in (self.device.data / "blobs" / "sha256").iterdir()}
        assert {self.first.blob.hex, self.second.blob.hex} <= blobs
        found = self.stack.run("edge-agent", "verify", "--all", "--config", str(self.device.config), "--json")
        assert (found.exit_code, found.document["damaged"]) == (0, 0)


def weights(seed: int) -> NDArray[np.float32]:
    """Of version 1."""
    return np.random.default_rng(seed).normal(0, 0.05, (ROWS, WIDTH)).astype(np.float32)


def tuned(base: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """A little further, as training leaves them: bytes all over, of small distance."""
    step = np.random.default_rng(seed).normal(0, 2e-4, base.shape)
    return (base + step).astype(np.float32)


def line(stack: Stack, name: str, more_config: str = "", **more: Any) -> Line:
    """See `Line`."""
    device = stack.device(f"{name}-1", name, **more)
    with device.config.open("a", encoding="utf-8") as file:
        file.write(more_config)
    base = weights(len(name))
    first = stack.ship(name, 1, device.name, weights=base)
    device.start()
    device.wait_confirmed(first.manifest)
    return Line(stack, device, first, stack.ship(name, 2, weights=tuned(base, 7)))


def test_an_update_by_a_delta_saves_bytes_and_says_so(stack: Stack) -> None:
    found = line(stack, "tugboat")
    delta = found.offer_delta()
    before = found.fetched()
    with found.device.asker() as asker:
        asker.wait_for(1)
        second = found.deploy()
        found.device.wait_confirmed(second.manifest)
        asker.wait_for(2)
    asker.require_flawless()
    came = found.fetched() - before
    assert delta.bytes <= came < delta.bytes + 64 * KIB
    assert came < 0.8 * second.size
    assert found.device.status()["bytes_saved"] == second.size - delta.bytes
    found.require_tidy()
    stack.wait_standing(second, found.device.name, "confirmed")

    def cloud_knows() -> bool:
        with stack.client() as client:
            report = client.device(found.device.name)["report"]
        return bool(report["bytes_saved"] == second.size - delta.bytes)

    wait_until(cloud_knows, 30, what="the registry to hear what was saved")


@pytest.mark.parametrize("how", ["flipped", "garbage"])
def test_a_delta_that_is_damaged_is_replaced_by_the_whole_file(stack: Stack, how: str) -> None:
    found = line(stack, f"scow-{how}")
    delta = found.offer_delta(how)
    before = found.fetched()
    with found.device.asker() as asker:
        asker.wait_for(1)
        second = found.deploy()
        found.device.wait_confirmed(second.manifest)
        asker.wait_for(2)
    asker.require_flawless()
    assert found.device.status()["bytes_saved"] == 0
    assert found.device.errors() == set()
    came = found.fetched() - before
    kept = 4 * KIB * KIB if how == "flipped" else 0  # what was made before the damage
    assert came <= delta.bytes + second.size - kept + 64 * KIB
    found.require_tidy()


def test_a_device_whose_owner_wants_no_deltas_fetches_whole_files(stack: Stack) -> None:
    found = line(stack, "hoy", "[update]\ndeltas = false\n")
    found.offer_delta()
    before = found.fetched()
    second = found.deploy()
    found.device.wait_confirmed(second.manifest)
    assert found.fetched() - before >= second.size
    assert found.device.status()["bytes_saved"] == 0


def test_an_agent_that_is_killed_while_it_decodes_goes_on_from_there(stack: Stack) -> None:
    found = line(stack, "praam")
    delta = found.offer_delta()
    made = found.device.data / "partial" / f"{found.second.blob.hex}.made"
    found.deploy()
    wait_until(made.exists, 60, what="the decoding to begin", poll_s=0.001)
    found.device.kill_agent()
    assert made.exists(), "the decoding was over too soon to be interrupted"
    found.device.start()
    found.device.wait_confirmed(found.second.manifest)
    # The delta had come whole: only its making was left, and the rest of the bundle.
    assert found.fetched() < 64 * KIB < delta.bytes
    found.require_tidy()


def test_a_simulated_fleet_updates_by_a_delta_and_adds_up_what_it_saved(stack: Stack, tmp_path: Path) -> None:
    names = [f"lugger-{number:04}" for number in range(1, FLEET + 1)]
    argv = [str(Path(sys.executable).with_name("device-sim")), "run", "--devices", str(FLEET), "--prefix", "lugger"]
    argv += ["--rate", "0", "--poll-ms", "1000", "--data", str(tmp_path / "fleet"), "--json"]
    fleet = start_process(argv, log_path=tmp_path / "log", env={**os.environ, **stack.variables}, cwd=tmp_path)
    try:
        base = weights(3)
        first = stack.ship("lugger", 1, *names, weights=base)
        for name in names:
            stack.wait_standing(first, name, "confirmed")
        found = Line(
            stack, Device(tmp_path / "one", "lugger", "lugger"), first, stack.ship("lugger", 2, weights=tuned(base, 9))
        )
        delta = found.offer_delta()
        with stack.client() as client:
            record = client.create_deployment("lugger", 2, condition(*names))
        for name in names:
            stack.wait_standing(replace(found.second, deployment=str(record["id"])), name, "confirmed")
        fleet.popen.send_signal(signal.SIGINT)
        assert fleet.wait(60) == 0, fleet.tail()
    finally:
        fleet.stop()
    final = json.loads(fleet.output().splitlines()[-1])
    assert final["bytes_saved"] == FLEET * (found.second.size - delta.bytes)
    assert final["bytes_fetched"] < FLEET * (first.size + delta.bytes + 64 * KIB)
