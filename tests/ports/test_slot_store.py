"""`ports.SlotStore`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from edge_agent import ports
from edge_agent.store.blobs import FileBlobStore
from edge_agent.store.slots import FileSlotStore
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.manifest import Manifest
from tests.unit.shell.fakes import Cloud, FakeSlots


class Bench(Protocol):
    """A slot store, and the way to have a bundle's blobs present."""

    @property
    def slots(self) -> ports.SlotStore:
        """The store."""
        ...

    def bundle(self, version: int) -> tuple[Digest, Manifest]:
        """Make a bundle whose blobs are all present; those that are there already stay as they are."""
        ...

    def damage(self, digest: Digest) -> None:
        """Spoil the model's file of a staged bundle, as a bad sector would."""
        ...


class FileBench:
    def __init__(self, folder: Path) -> None:
        self.cloud = Cloud()
        self.blobs = FileBlobStore(folder, reserve_bytes=0)
        self.slots = FileSlotStore(folder, self.blobs)

    def bundle(self, version: int) -> tuple[Digest, Manifest]:
        assignment = self.cloud.publish(version)
        for digest, data in self.cloud.blobs.items():
            self.blobs.put(digest, data)
        return assignment.manifest, Manifest.parse(self.cloud.blobs[assignment.manifest])

    def damage(self, digest: Digest) -> None:
        model = self.slots.path(digest) / "files" / "model.onnx"
        model.chmod(0o600)
        with model.open("r+b") as file:
            file.write(b"?")
        model.chmod(0o444)


class FakeBench:
    def __init__(self, _: Path) -> None:
        self.cloud = Cloud()
        self.slots = FakeSlots()

    def bundle(self, version: int) -> tuple[Digest, Manifest]:
        assignment = self.cloud.publish(version)
        return assignment.manifest, Manifest.parse(self.cloud.blobs[assignment.manifest])

    def damage(self, digest: Digest) -> None:
        self.slots.damaged.add(digest)


IMPLEMENTATIONS: dict[str, Callable[[Path], Bench]] = {"file": FileBench, "fake": FakeBench}


@pytest.fixture(params=IMPLEMENTATIONS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    return IMPLEMENTATIONS[request.param](tmp_path)


def test_a_slot_has_a_place_once_it_is_staged(bench: Bench) -> None:
    digest, manifest = bench.bundle(1)
    with pytest.raises(EdgeError) as caught:
        bench.slots.path(digest)
    assert caught.value.code == "artifact.not-found"
    place = bench.slots.stage(digest, manifest)
    assert place == bench.slots.path(digest)
    assert place.name == digest.hex


def test_staging_again_changes_nothing(bench: Bench) -> None:
    digest, manifest = bench.bundle(1)
    assert bench.slots.stage(digest, manifest) == bench.slots.stage(digest, manifest)


def test_collect_keeps_what_it_is_told(bench: Bench) -> None:
    kept, gone = bench.bundle(1), bench.bundle(2)
    for digest, manifest in (kept, gone):
        bench.slots.stage(digest, manifest)
    bench.slots.collect(frozenset({kept[0], Digest.of(b"never here")}))
    assert bench.slots.path(kept[0]).name == kept[0].hex
    with pytest.raises(EdgeError):
        bench.slots.path(gone[0])


def go_on() -> bool:
    return False


def test_a_slot_as_it_was_staged_is_found_well(bench: Bench) -> None:
    digest, manifest = bench.bundle(1)
    bench.slots.stage(digest, manifest)
    bench.slots.verify(digest, go_on)


def test_there_is_nothing_to_verify_without_a_slot(bench: Bench) -> None:
    digest, _ = bench.bundle(1)
    with pytest.raises(EdgeError) as caught:
        bench.slots.verify(digest, go_on)
    assert caught.value.code == "artifact.not-found"


def test_verifying_ends_when_nobody_wants_it_any_more(bench: Bench) -> None:
    digest, manifest = bench.bundle(1)
    bench.slots.stage(digest, manifest)
    with pytest.raises(EdgeError) as caught:
        bench.slots.verify(digest, lambda: True)
    assert caught.value.code == "network.cut"


def test_damage_is_found_and_healed_by_staging_what_was_set_aside(bench: Bench) -> None:
    digest, manifest = bench.bundle(1)
    bench.slots.stage(digest, manifest)
    bench.damage(digest)
    with pytest.raises(EdgeError) as caught:
        bench.slots.verify(digest, go_on)
    assert caught.value.code == "device.disk-corrupt"
    bench.slots.set_aside(digest)
    with pytest.raises(EdgeError) as caught:
        bench.slots.path(digest)
    assert caught.value.code == "artifact.not-found"
    bench.bundle(1)
    bench.slots.stage(digest, manifest)
    bench.slots.verify(digest, go_on)


def test_setting_aside_what_is_not_there_does_nothing(bench: Bench) -> None:
    digest, manifest = bench.bundle(1)
    other, _ = bench.bundle(2)
    bench.slots.stage(digest, manifest)
    bench.slots.set_aside(other)
    bench.slots.verify(digest, go_on)


def test_a_complete_slot_needs_no_more_space(bench: Bench) -> None:
    digest, manifest = bench.bundle(1)
    assert bench.slots.bytes_needed(manifest) > 0
    bench.slots.stage(digest, manifest)
    assert bench.slots.bytes_needed(manifest) == 0
    bench.slots.set_aside(digest)
    assert bench.slots.bytes_needed(manifest) > 0
