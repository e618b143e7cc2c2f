"""A large blob goes through the registry without ever lying in its memory."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from edge_contract.digest import Digest
from tests.support.net import wait_until
from tests.support.registry import RegistryProcess, registry_process

pytestmark = pytest.mark.slow

_BLOCK = os.urandom(1024 * 1024)
_BLOCKS = 300
_GROWTH_BYTES_MAX = 64 * 1024 * 1024


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistryProcess]:
    with registry_process(tmp_path / "registry") as running:
        yield running
    # Kept temporary folders of three runs would be gigabytes.
    shutil.rmtree(running.data)


def _blocks() -> Iterator[bytes]:
    for number in range(_BLOCKS):
        yield number.to_bytes(8, "big") + _BLOCK[8:]


class Gauge:
    """Watches the resident memory of a process until it is read."""

    def __init__(self, pid: int) -> None:
        self._statm = Path(f"/proc/{pid}/statm")
        self._first = self._now()
        self._peak = self._first
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _now(self) -> int:
        return int(self._statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self._peak = max(self._peak, self._now())

    def growth(self) -> int:
        """Bytes by which it grew at most."""
        self._over.set()
        self._thread.join(10)
        return max(self._peak, self._now()) - self._first


def _warm_up(link: httpx.Client) -> None:
    """Load whatever the first request loads, so that only the transfer is measured."""
    data = b"warm" * 500_000
    url = f"/v2/big/blobs/{Digest.of(data)}"
    link.post("/v2/big/blobs/uploads/", params={"digest": str(Digest.of(data))}, content=data)
    assert link.get(url).content == data


def test_three_hundred_megabytes_in_and_out_take_a_bounded_part_of_memory(registry: RegistryProcess) -> None:
    whole = hashlib.sha256()
    for block in _blocks():
        whole.update(block)
    digest = Digest.from_hex(whole.hexdigest())
    with registry.link() as link:
        _warm_up(link)
        gauge = Gauge(registry.pid)
        location = link.post("/v2/big/blobs/uploads/").headers["location"]
        assert link.patch(location, content=_blocks()).status_code == 202
        assert link.put(location, params={"digest": str(digest)}).status_code == 201
        pushed = gauge.growth()
        gauge = Gauge(registry.pid)
        seen = hashlib.sha256()
        with link.stream("GET", f"/v2/big/blobs/{digest}") as answer:
            for chunk in answer.iter_bytes(1024 * 1024):
                seen.update(chunk)
        pulled = gauge.growth()
    print(f"growth in MB: push {pushed / 2**20:.1f}, pull {pulled / 2**20:.1f}")  # noqa: T201 - shown with -s
    assert seen.hexdigest() == digest.hex
    assert pushed < _GROWTH_BYTES_MAX
    assert pulled < _GROWTH_BYTES_MAX


def test_a_reader_that_stands_still_holds_the_registry_up_and_fills_nothing(registry: RegistryProcess) -> None:
    whole = hashlib.sha256()
    for block in _blocks():
        whole.update(block)
    digest = Digest.from_hex(whole.hexdigest())
    with registry.link() as link:
        _warm_up(link)
        location = link.post("/v2/big/blobs/uploads/").headers["location"]
        link.patch(location, content=_blocks())
        assert link.put(location, params={"digest": str(digest)}).status_code == 201
        gauge = Gauge(registry.pid)
        files_before = len(os.listdir(f"/proc/{registry.pid}/fd"))
        with link.stream("GET", f"/v2/big/blobs/{digest}") as answer:
            chunks = answer.iter_bytes(65_536)
            next(chunks)
            # While this reader takes nothing, others are served.
            with registry.link() as other:
                for _ in range(20):
                    assert other.get("/v2/").status_code == 200
                part = other.get(f"/v2/big/blobs/{digest}", headers={"Range": "bytes=1000000-1999999"})
                assert len(part.content) == 1_000_000
            assert gauge.growth() < _GROWTH_BYTES_MAX
        # It went away in the middle: the registry lets go of the file.
        wait_until(
            lambda: len(os.listdir(f"/proc/{registry.pid}/fd")) <= files_before, 20, what="the file to be closed"
        )
