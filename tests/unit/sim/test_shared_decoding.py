"""A fleet decodes each delta once; every device still compares what it got with the digest it wants."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from device_sim.live import decoding
from device_sim.live.decoding import SharedDecoding
from edge_agent.delta.maker import FileDeltaMaker
from edge_agent.delta.process import ChildDecoding, OnCheckpoint, Work
from edge_agent.store.blobs import FileBlobStore
from edge_contract.delta import Delta
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from tests.support.fakedecoder import COMMAND, fake_delta

BASE, NEW = b"base" * 100, bytes(range(250)) * 12


def never() -> bool:
    return False


class Counting(ChildDecoding):
    """Counts."""

    def __init__(self) -> None:
        super().__init__(COMMAND)
        self.count = 0

    def __call__(self, work: Work, on_checkpoint: OnCheckpoint, is_cancelled: Callable[[], bool]) -> None:
        """Count and decode."""
        self.count += 1
        super().__call__(work, on_checkpoint, is_cancelled)


def device(folder: Path, data: bytes) -> FileBlobStore:
    """A device's disk with base and delta."""
    store = FileBlobStore(folder, reserve_bytes=0)
    for content in (BASE, data):
        store.put(Digest.of(content), content)
    return store


def make_on_many(folder: Path, shared: SharedDecoding, delta: Delta, data: bytes, count: int) -> list[str]:
    """Have devices make it at the same time; how it ended on each."""

    def one(number: int) -> str:
        store = device(folder / f"device-{number}", data)
        try:
            FileDeltaMaker(store, shared).make(delta, never)
        except EdgeError as error:
            return error.code
        store.verify(delta.new, len(NEW))
        return "made"

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_many_devices_decode_once(tmp_path: Path) -> None:
    counting = Counting()
    shared = SharedDecoding(tmp_path / "shared", counting)
    assert make_on_many(tmp_path, shared, *fake_delta(BASE, NEW), 6) == ["made"] * 6
    assert (counting.count, shared.decoded) == (1, 1)
    shared.close()
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize(
    ("how", "code"), [("invalid", "artifact.delta-invalid"), ("wrong", "artifact.digest-mismatch")]
)
def test_a_bad_delta_is_bad_for_everybody_and_decoded_once(tmp_path: Path, how: str, code: str) -> None:
    counting = Counting()
    shared = SharedDecoding(tmp_path / "shared", counting)
    assert make_on_many(tmp_path, shared, *fake_delta(BASE, NEW, 1_000, how), 4) == [code] * 4
    assert counting.count == 1


def test_who_waits_for_another_device_can_be_cancelled(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(work: Work, on_checkpoint: OnCheckpoint, is_cancelled: Callable[[], bool]) -> None:
        begun.set()
        assert go_on.wait(20)
        ChildDecoding(COMMAND)(work, on_checkpoint, is_cancelled)

    shared = SharedDecoding(tmp_path / "shared", slow)
    delta, data = fake_delta(BASE, NEW)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(FileDeltaMaker(device(tmp_path / "one", data), shared).make, delta, never)
        assert begun.wait(20)
        with pytest.raises(EdgeError) as caught:
            FileDeltaMaker(device(tmp_path / "two", data), shared).make(delta, begun.is_set)
        assert caught.value.code == "network.cut"
        go_on.set()
        first.result(20)


def test_only_so_many_outputs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "KEPT_MAX", 2)
    shared = SharedDecoding(tmp_path / "shared", ChildDecoding(COMMAND))
    for number in range(4):
        delta, data = fake_delta(BASE, NEW + bytes([number]))
        FileDeltaMaker(device(tmp_path / "one", data), shared).make(delta, never)
    assert len(list((tmp_path / "shared").iterdir())) == 2
