"""Blobs made by deltas on a real disk: verified at both ends, gone on with, never tried for ever, nothing lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.delta import maker as module
from edge_agent.delta.maker import FileDeltaMaker
from edge_agent.delta.process import ChildDecoding, OnCheckpoint, Work
from edge_agent.delta.record import load_record
from edge_agent.limits import DELTA_STUCK_MAX
from edge_agent.store import durable
from edge_agent.store.blobs import FileBlobStore
from edge_contract.delta import Delta
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.manifest import WEIGHT_RAW, Descriptor
from tests.support.fakedecoder import COMMAND, STEP, fake_delta

BASE = b"base" * 100
NEW = bytes(range(250)) * 40  # ten steps
BLOB = Descriptor(WEIGHT_RAW, Digest.of(NEW), len(NEW))


def never() -> bool:
    return False


class PowerCutError(BaseException):
    """The agent is gone in this instant."""


class Bench:
    """A store with a base and a delta."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = FileBlobStore(folder, reserve_bytes=0)
        self.maker = FileDeltaMaker(self.blobs, ChildDecoding(COMMAND))
        self.blobs.put(Digest.of(BASE), BASE)
        self.starts: list[bytes] = []

    def delta(self, stop: int = -1, how: str = "") -> Delta:
        """One, present in the store."""
        found, data = fake_delta(BASE, NEW, stop, how)
        self.blobs.put(found.digest, data)
        return found

    def code(self, delta: Delta, is_cancelled: Callable[[], bool] = never) -> str:
        """Make, and give the code of the error that it ends with."""
        with pytest.raises(EdgeError) as caught:
            self.maker.make(delta, is_cancelled)
        return caught.value.code

    def dying_after(self, points: int) -> FileDeltaMaker:
        """A maker whose agent dies behind so many checkpoints; its decoder went a little further."""

        def decode(work: Work, on_checkpoint: OnCheckpoint, is_cancelled: Callable[[], bool]) -> None:
            self.starts.append(work.state)
            with os.fdopen(os.dup(work.output_fd), "r+b") as output:
                place = int(work.state or b"0")
                output.seek(0)
                assert output.read() == NEW[:place]
                for _ in range(points):
                    output.write(NEW[place : place + STEP])
                    output.flush()
                    place += STEP
                    on_checkpoint(place, place - place % (2 * STEP), str(place).encode())
                output.write(b"something that no checkpoint covers")
            raise PowerCutError

        return FileDeltaMaker(self.blobs, decode)

    def cut_power(self, delta: Delta, points: int) -> None:
        """Begin, and die."""
        with pytest.raises(PowerCutError):
            self.dying_after(points).make(delta, never)

    @property
    def partial(self) -> dict[str, int]:
        """What lies beside whole blobs, by the end of its name."""
        return {
            path.name.removeprefix(BLOB.digest.hex): path.stat().st_size
            for path in durable.list_folder(self.folder / "partial")
        }

    def fetch_some(self, count: int) -> None:
        """Let the beginning of an ordinary download be there."""
        with self.blobs.resume(BLOB.digest, BLOB.size) as partial:
            partial.write(NEW[:count])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_what_is_made_is_a_blob_like_any_other_and_nothing_lies_beside_it(bench: Bench) -> None:
    bench.fetch_some(500)
    bench.maker.make(bench.delta(), never)
    bench.blobs.verify(BLOB.digest, BLOB.size)
    assert bench.blobs.path(BLOB.digest).stat().st_mode & 0o777 == 0o444
    assert bench.partial == {}


def test_what_is_there_is_not_made_again(bench: Bench) -> None:
    bench.blobs.put(BLOB.digest, NEW)
    bench.maker.make(fake_delta(BASE, NEW)[0], never)  # the delta is not even here


def test_after_a_power_cut_it_goes_on_from_the_last_checkpoint(bench: Bench) -> None:
    delta = bench.delta()
    bench.cut_power(delta, 3)
    assert bench.maker.made_bytes(delta) == 3 * STEP
    bench.cut_power(delta, 4)
    assert bench.starts == [b"", b"3000"]
    assert bench.maker.made_bytes(delta) == 7 * STEP
    bench.maker.make(delta, never)
    bench.blobs.verify(BLOB.digest, BLOB.size)


def test_bytes_that_the_disk_lost_are_made_again(bench: Bench) -> None:
    delta = bench.delta()
    bench.cut_power(delta, 3)
    os.truncate(bench.blobs.made_path(BLOB.digest), 2 * STEP)
    assert bench.maker.made_bytes(delta) == 0
    bench.maker.make(delta, never)
    bench.blobs.verify(BLOB.digest, BLOB.size)


def test_a_delta_that_kills_the_device_is_not_tried_for_ever(bench: Bench) -> None:
    delta = bench.delta()
    for _ in range(DELTA_STUCK_MAX):
        assert bench.maker.can_make(delta)
        bench.cut_power(delta, 0)
    assert not bench.maker.can_make(delta)
    assert bench.code(delta) == "artifact.delta-invalid"


def test_a_delta_that_is_wrong_is_not_tried_again(bench: Bench) -> None:
    delta = bench.delta(2 * STEP, "invalid")
    assert bench.maker.can_make(delta)
    assert bench.code(delta) == "artifact.delta-invalid"
    assert not FileDeltaMaker(bench.blobs).can_make(delta)
    assert bench.maker.can_make(bench.delta())


def test_a_delta_that_makes_something_else_makes_no_blob(bench: Bench) -> None:
    bench.fetch_some(700)
    delta = bench.delta(4 * STEP, "wrong")
    assert bench.code(delta) == "artifact.digest-mismatch"
    assert not bench.blobs.has(BLOB.digest)
    assert not bench.maker.can_make(delta)
    assert bench.maker.hand_over(BLOB) == 700, "nothing of what it made is believed"
    assert {name: size for name, size in bench.partial.items() if name != ".delta"} == {"": 700}


@pytest.mark.parametrize(("fetched", "here"), [(0, 4_000), (3_999, 4_000), (4_000, 4_000), (6_000, 6_000)])
def test_what_a_failed_delta_made_counts_as_fetched_where_that_is_more(bench: Bench, fetched: int, here: int) -> None:
    if fetched:
        bench.fetch_some(fetched)
    assert bench.code(bench.delta(5 * STEP, "invalid")) == "artifact.delta-invalid"
    assert bench.maker.hand_over(BLOB) == here
    assert {name: size for name, size in bench.partial.items() if name != ".delta"} == {"": here}
    with bench.blobs.resume(BLOB.digest, BLOB.size) as partial:
        assert partial.count == here
        partial.write(NEW[here:])
        partial.commit()
    assert bench.maker.hand_over(BLOB) in (0, here)
    bench.blobs.collect(frozenset({BLOB.digest}))
    assert bench.partial == {}


def test_handing_over_what_nobody_made_changes_nothing(bench: Bench) -> None:
    assert bench.maker.hand_over(BLOB) == 0
    bench.fetch_some(300)
    assert bench.maker.hand_over(BLOB) == 300


def test_a_cancelled_decoding_counts_for_nothing_and_goes_on_later(bench: Bench) -> None:
    delta = bench.delta(3 * STEP, "hang")
    record = bench.blobs.record_path(BLOB.digest)

    def is_all_made() -> bool:
        point = load_record(record).point
        return point is not None and point.output_bytes == 3 * STEP

    for _ in range(DELTA_STUCK_MAX + 1):
        assert bench.code(delta, is_all_made) == "network.cut"
    assert bench.maker.can_make(delta)
    assert bench.maker.made_bytes(delta) == 3 * STEP


@pytest.mark.parametrize("which", ["base", "delta"])
def test_what_the_disk_spoiled_is_not_decoded_and_not_the_deltas_fault(bench: Bench, which: str) -> None:
    delta = bench.delta()
    path = bench.blobs.path(delta.base if which == "base" else delta.digest)
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    assert bench.code(delta) == "device.disk-corrupt"
    assert bench.maker.can_make(delta)
    assert bench.partial == {}


def test_a_base_that_is_not_here_is_no_base(bench: Bench) -> None:
    delta = bench.delta()
    bench.blobs.remove(delta.base)
    assert bench.code(delta) == "artifact.not-found"


def test_a_base_of_another_length_than_was_said_is_not_decoded(bench: Bench) -> None:
    assert bench.code(replace(bench.delta(), base_bytes=len(BASE) - 1)) == "device.disk-corrupt"


def test_nobody_writes_where_another_process_still_does(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that was killed leaves a decoder behind for a moment; its file must not become ours."""
    monkeypatch.setattr(module, "LOCK_MS_MAX", 300)
    delta = bench.delta()
    bench.cut_power(delta, 4)
    with bench.blobs.open_made(BLOB.digest) as other:
        assert module._lock(other, never)
        assert bench.code(delta) == "device.busy"
        assert bench.maker.hand_over(BLOB) == 0
        assert not bench.blobs.made_path(BLOB.digest).exists()
        bench.maker.make(delta, never)
    bench.blobs.verify(BLOB.digest, BLOB.size)


def test_a_device_without_the_libraries_makes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LIBRARIES", ("numpy", "no_such_library"))
    assert not module.can_decode()
    assert not bench.maker.can_make(bench.delta())


@pytest.mark.parametrize(("version", "can"), [("0.23.0", False), ("0.24.0", True), ("1.0", True), ("unknown", False)])
def test_a_device_with_an_old_zstandard_makes_nothing(
    monkeypatch: pytest.MonkeyPatch, version: str, *, can: bool
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: version)
    assert module.can_decode() is can


def test_garbage_collection_keeps_what_is_being_made_and_no_longer(bench: Bench) -> None:
    delta = bench.delta()
    bench.cut_power(delta, 2)
    bench.blobs.collect(frozenset({BLOB.digest, delta.base, delta.digest}))
    assert bench.maker.made_bytes(delta) == 2 * STEP
    bench.blobs.collect(frozenset({delta.base}))
    assert bench.partial == {}
    assert not bench.blobs.has(delta.digest)


def test_what_a_cut_left_behind_a_whole_blob_is_garbage(bench: Bench) -> None:
    delta = bench.delta()
    bench.cut_power(delta, 2)
    bench.blobs.put(BLOB.digest, NEW)
    bench.blobs.collect(frozenset({BLOB.digest, delta.base}))
    assert bench.partial == {}


def test_a_full_disk_says_nothing_about_the_delta(bench: Bench) -> None:
    delta = bench.delta()

    def decode(work: Work, on_checkpoint: OnCheckpoint, is_cancelled: Callable[[], bool]) -> None:
        raise EdgeError("device.disk-full", "no room")

    with pytest.raises(EdgeError) as caught:
        FileDeltaMaker(bench.blobs, decode).make(delta, never)
    assert caught.value.code == "device.disk-full"
    assert bench.maker.can_make(delta)
