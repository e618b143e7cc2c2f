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
        """Make a bundle whose blobs are all present."""
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


class FakeBench:
    def __init__(self, _: Path) -> None:
        self.cloud = Cloud()
        self.slots = FakeSlots()

    def bundle(self, version: int) -> tuple[Digest, Manifest]:
        assignment = self.cloud.publish(version)
        return assignment.manifest, Manifest.parse(self.cloud.blobs[assignment.manifest])


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
