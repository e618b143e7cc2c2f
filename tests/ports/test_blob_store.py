"""`ports.BlobStore`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from edge_agent import ports
from edge_agent.store.blobs import FileBlobStore
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from tests.unit.shell.fakes import Cloud, FakeStore


class Bench(Protocol):
    """A store, and the ways into it that are not part of the port."""

    @property
    def store(self) -> ports.BlobStore:
        """The store."""
        ...

    def put(self, data: bytes) -> Digest:
        """Make a blob present."""
        ...

    def damage(self, digest: Digest) -> None:
        """Change a byte of a present blob behind the store's back."""
        ...

    def begin(self, data: bytes, count: int) -> Digest:
        """Let the first bytes of a blob have come."""
        ...


class FileBench:
    def __init__(self, folder: Path) -> None:
        self.files = self.store = FileBlobStore(folder, reserve_bytes=0)

    def put(self, data: bytes) -> Digest:
        self.files.put(Digest.of(data), data)
        return Digest.of(data)

    def damage(self, digest: Digest) -> None:
        path = self.files.path(digest)
        data = bytearray(path.read_bytes())
        data[0] ^= 1
        path.chmod(0o600)
        path.write_bytes(data)

    def begin(self, data: bytes, count: int) -> Digest:
        with self.files.resume(Digest.of(data), len(data)) as partial:
            partial.write(data[:count])
        return Digest.of(data)


class FakeBench:
    def __init__(self, _: Path) -> None:
        self.fake = self.store = FakeStore(Cloud())

    def put(self, data: bytes) -> Digest:
        self.fake.present[Digest.of(data)] = data
        return Digest.of(data)

    def damage(self, digest: Digest) -> None:
        self.fake.present[digest] = b"?" + self.fake.present[digest][1:]

    def begin(self, data: bytes, count: int) -> Digest:
        self.fake.partial[Digest.of(data)] = count
        return Digest.of(data)


IMPLEMENTATIONS: dict[str, Callable[[Path], Bench]] = {"file": FileBench, "fake": FakeBench}


@pytest.fixture(params=IMPLEMENTATIONS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    return IMPLEMENTATIONS[request.param](tmp_path)


def test_a_blob_is_there_or_not(bench: Bench) -> None:
    digest = bench.put(b"weights")
    assert bench.store.has(digest)
    assert bench.store.read(digest, 100) == b"weights"
    bench.store.verify(digest, 7)
    absent = Digest.of(b"other")
    assert not bench.store.has(absent)
    with pytest.raises(EdgeError) as caught:
        bench.store.read(absent, 100)
    assert caught.value.code == "artifact.not-found"
    with pytest.raises(EdgeError) as caught:
        bench.store.verify(absent, 5)
    assert caught.value.code == "artifact.not-found"


@pytest.mark.parametrize("is_damaged", [True, False])
def test_verify_notices_a_damaged_blob_and_a_wrong_size(bench: Bench, is_damaged: bool) -> None:
    digest = bench.put(b"weights")
    if is_damaged:
        bench.damage(digest)
    with pytest.raises(EdgeError) as caught:
        bench.store.verify(digest, 7 if is_damaged else 6)
    assert caught.value.code == "device.disk-corrupt"


def test_collect_keeps_what_it_is_told_and_says_what_it_freed(bench: Bench) -> None:
    kept, gone = bench.put(b"keep me"), bench.put(b"throw me away")
    assert bench.store.collect(frozenset({kept, Digest.of(b"never here")})) == len(b"throw me away")
    assert bench.store.has(kept)
    assert not bench.store.has(gone)
    assert bench.store.collect(frozenset({kept})) == 0


def test_there_is_room_for_nothing_more(bench: Bench) -> None:
    bench.store.require_space(0)


def test_what_has_come_of_a_blob_is_counted_until_it_is_whole(bench: Bench) -> None:
    digest = bench.begin(b"weights", 3)
    assert bench.store.partial_bytes(digest) == 3
    assert not bench.store.has(digest)
    assert bench.store.partial_bytes(Digest.of(b"other")) == 0
    bench.store.remove(digest)
    assert bench.store.partial_bytes(digest) == 0
    assert bench.store.partial_bytes(bench.put(b"whole")) == 0


def test_a_blob_that_nobody_needs_is_removed_and_that_again_is_no_error(bench: Bench) -> None:
    kept, gone = bench.put(b"keep me"), bench.put(b"throw me away")
    for _ in range(2):
        bench.store.remove(gone)
        assert not bench.store.has(gone)
    assert bench.store.has(kept)
