"""Content beside the agent is a source of bytes: what it has is taken once verified, the rest comes as ever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge_agent.preload import PreloadedFetcher
from edge_agent.store.blobs import FileBlobStore
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.manifest import WEIGHT_RAW, Descriptor

DATA = bytes(range(251)) * 4000
BLOB = Descriptor(WEIGHT_RAW, Digest.of(DATA), len(DATA))


@dataclass
class Remote:
    """The registry: it has the blob and counts who asks."""

    store: FileBlobStore
    asked: list[Digest] = field(default_factory=list)

    def fetch(self, repository: str, blob: Descriptor, is_cancelled: Callable[[], bool]) -> int:
        self.asked.append(blob.digest)
        self.store.put(blob.digest, DATA)
        return len(DATA)

    def is_near(self, blob: Descriptor) -> bool:
        return blob.digest in self.asked


@dataclass
class Bench:
    store: FileBlobStore
    remote: Remote
    fetcher: PreloadedFetcher
    file: Path

    def fetch(self, is_cancelled: Callable[[], bool] = lambda: False) -> int:
        return self.fetcher.fetch("bundles/digits", BLOB, is_cancelled)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    store = FileBlobStore(tmp_path / "data", reserve_bytes=0)
    remote = Remote(store)
    blobs = tmp_path / "preload" / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    return Bench(store, remote, PreloadedFetcher(tmp_path / "preload", store, remote), blobs / BLOB.digest.hex)


def test_what_is_there_is_taken_without_the_network(bench: Bench) -> None:
    bench.file.write_bytes(DATA)
    assert bench.fetch() == 0
    assert bench.store.read(BLOB.digest, len(DATA)) == DATA
    assert not bench.remote.asked


def test_what_is_there_is_near_whatever_is_in_it(bench: Bench) -> None:
    """Nothing that comes over the network can be cheaper, a delta neither."""
    assert not bench.fetcher.is_near(BLOB)
    bench.file.write_bytes(DATA[:-1])
    assert not bench.fetcher.is_near(BLOB)
    bench.file.write_bytes(b"x" * len(DATA))
    assert bench.fetcher.is_near(BLOB)


def test_a_blob_that_is_stored_is_not_copied_again(bench: Bench) -> None:
    bench.store.put(BLOB.digest, DATA)
    bench.file.write_bytes(b"x" * len(DATA))
    assert bench.fetch() == 0
    assert bench.store.read(BLOB.digest, len(DATA)) == DATA


@pytest.mark.parametrize(
    "there", [b"x" * len(DATA), DATA[:-1], DATA + b"x", None], ids=["other", "cut", "long", "none"]
)
def test_what_is_wrong_there_is_fetched(bench: Bench, there: bytes | None) -> None:
    if there is not None:
        bench.file.write_bytes(there)
    assert bench.fetch() == len(DATA)
    assert bench.remote.asked == [BLOB.digest]
    assert bench.store.read(BLOB.digest, len(DATA)) == DATA


def test_a_link_or_a_folder_is_not_followed(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(DATA)
    bench.file.symlink_to(tmp_path / "elsewhere")
    assert bench.fetch() == len(DATA)


def test_a_copy_goes_on_where_a_download_was_cut(bench: Bench) -> None:
    bench.file.write_bytes(DATA)
    with bench.store.resume(BLOB.digest, BLOB.size) as partial:
        partial.write(DATA[:1000])
    assert bench.fetch() == 0
    assert bench.store.read(BLOB.digest, len(DATA)) == DATA


def test_a_cancelled_copy_says_so(bench: Bench) -> None:
    bench.file.write_bytes(DATA)
    with pytest.raises(EdgeError, match="cancelled") as caught:
        bench.fetch(lambda: True)
    assert caught.value.code == "network.cut"
    assert not bench.store.has(BLOB.digest)
    assert not bench.remote.asked


def test_what_came_over_the_network_is_not_lost_to_a_damaged_file(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that file is near no more: a delta may be chosen, the rest is fetched."""
    bench.file.write_bytes(b"x" * len(DATA))
    with bench.store.resume(BLOB.digest, BLOB.size) as partial:
        partial.write(DATA[:1000])

    def refuse(*_: object) -> int:
        raise EdgeError("network.cut", "the line broke off")

    monkeypatch.setattr(bench.remote, "fetch", refuse)
    with pytest.raises(EdgeError, match="broke off"):
        bench.fetch()
    assert bench.store.partial_bytes(BLOB.digest) == 1000
    assert not bench.fetcher.is_near(BLOB)


def test_bytes_that_rotted_since_they_came_are_copied_anew(bench: Bench) -> None:
    bench.file.write_bytes(DATA)
    with bench.store.resume(BLOB.digest, BLOB.size) as partial:
        partial.write(b"y" * 1000)
    assert bench.fetch() == 0
    assert bench.store.read(BLOB.digest, len(DATA)) == DATA
    assert not bench.remote.asked
