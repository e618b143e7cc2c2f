"""`ports.BundleFetcher`: what the shell counts on. Hostile servers are in tests/unit/agent/test_fetch.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_agent import ports
from edge_agent.fetch import HttpBundleFetcher
from edge_agent.store.blobs import FileBlobStore
from edge_agent.tokens import FixedToken
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.manifest import MANIFEST_TYPE, WEIGHT_RAW, Descriptor
from tests.support.rawhttp import blobs, raw_server
from tests.unit.shell.fakes import Cloud, FakeStore

WEIGHTS = bytes(range(256)) * 4096
MANIFEST = b'{"schemaVersion":2}'


@dataclass
class Bench:
    """A fetcher from a registry that has `WEIGHTS` and `MANIFEST`, and the store it fills."""

    fetcher: ports.BundleFetcher
    store: ports.BlobStore


@contextmanager
def over_http(folder: Path) -> Iterator[Bench]:
    store = FileBlobStore(folder, reserve_bytes=0)
    with raw_server(blobs(WEIGHTS, MANIFEST), keep_alive=True) as server:
        fetcher = HttpBundleFetcher(server.url, FixedToken("token"), store)
        yield Bench(fetcher, store)
        fetcher.close()


@contextmanager
def faked(_: Path) -> Iterator[Bench]:
    cloud = Cloud()
    cloud.blobs = {Digest.of(data): data for data in (WEIGHTS, MANIFEST)}
    store = FakeStore(cloud)
    yield Bench(store, store)


IMPLEMENTATIONS: dict[str, Callable[[Path], AbstractContextManager[Bench]]] = {"http": over_http, "fake": faked}


@pytest.fixture(params=IMPLEMENTATIONS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with IMPLEMENTATIONS[request.param](tmp_path) as made:
        yield made


def descriptor(data: bytes, media_type: str = WEIGHT_RAW) -> Descriptor:
    return Descriptor(media_type, Digest.of(data), len(data))


@pytest.mark.parametrize(("data", "media_type"), [(WEIGHTS, WEIGHT_RAW), (MANIFEST, MANIFEST_TYPE)])
def test_a_fetched_blob_is_present_and_whole(bench: Bench, data: bytes, media_type: str) -> None:
    blob = descriptor(data, media_type)
    assert bench.fetcher.fetch("bundles/digits", blob, lambda: False) == len(data)
    bench.store.verify(blob.digest, blob.size)
    assert bench.store.read(blob.digest, len(data)) == data


def test_what_is_here_costs_nothing(bench: Bench) -> None:
    blob = descriptor(WEIGHTS)
    bench.fetcher.fetch("bundles/digits", blob, lambda: False)
    assert bench.fetcher.fetch("bundles/digits", blob, lambda: False) == 0


def test_nothing_is_present_after_a_failure(tmp_path: Path) -> None:
    with over_http(tmp_path) as bench:
        blob = descriptor(b"the registry does not have this")
        with pytest.raises(EdgeError) as caught:
            bench.fetcher.fetch("bundles/digits", blob, lambda: False)
        assert caught.value.code == "artifact.not-found"
        assert not bench.store.has(blob.digest)
