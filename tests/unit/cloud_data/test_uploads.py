"""Uploads: offsets, digests, restarts, bounds."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud_registry.adapters import uploads as uploads_module
from cloud_registry.adapters.blobs_fs import FileBlobStorage
from cloud_registry.limits import UPLOAD_IDLE_MS_MAX, UPLOADS_MAX
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from tests.unit.cloud_data.support import SetClock


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def storage(tmp_path: Path, clock: SetClock) -> Iterator[FileBlobStorage]:
    opened = FileBlobStorage(tmp_path / "oci", clock)
    yield opened
    opened.close()


def code_of(call: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(EdgeError) as caught:
        call(*args)
    return caught.value.code


def test_chunks_add_up(storage: FileBlobStorage) -> None:
    upload = storage.begin_upload("a")
    assert storage.upload_offset("a", upload) == 0
    assert storage.append(upload, 0, [b"abc", b"de"]) == 5
    assert storage.append(upload, 5, []) == 5
    assert storage.append(upload, 5, [b"f"]) == 6
    assert storage.finish_upload(upload, Digest.of(b"abcdef")) == 6
    assert b"".join(storage.open(Digest.of(b"abcdef"))) == b"abcdef"
    assert code_of(storage.upload_offset, "a", upload) == "cloud.not-found"


def test_a_chunk_at_another_offset_is_refused_and_changes_nothing(storage: FileBlobStorage) -> None:
    upload = storage.begin_upload("a")
    storage.append(upload, 0, [b"abc"])
    for offset in (0, 2, 4):
        assert code_of(storage.append, upload, offset, [b"x"]) == "cloud.upload-invalid"
    assert storage.upload_offset("a", upload) == 3
    assert storage.finish_upload(upload, Digest.of(b"abc")) == 3


def test_a_wrong_digest_ends_the_upload_and_makes_no_blob(storage: FileBlobStorage, tmp_path: Path) -> None:
    upload = storage.begin_upload("a")
    storage.append(upload, 0, [b"abc"])
    assert code_of(storage.finish_upload, upload, Digest.of(b"abd")) == "artifact.digest-mismatch"
    assert code_of(storage.upload_offset, "a", upload) == "cloud.not-found"
    assert storage.exists(Digest.of(b"abc")) is None
    assert list((tmp_path / "oci.uploads").iterdir()) == []


def test_an_upload_belongs_to_its_repository(storage: FileBlobStorage) -> None:
    upload = storage.begin_upload("a")
    assert code_of(storage.upload_offset, "b", upload) == "cloud.not-found"


@pytest.mark.parametrize("wrong", ["", "x", "../../etc/passwd", "0" * 32, "A" * 32, "0" * 33])
def test_an_identifier_of_no_upload_is_unknown(storage: FileBlobStorage, wrong: str) -> None:
    assert code_of(storage.upload_offset, "a", wrong) == "cloud.not-found"
    assert code_of(storage.append, wrong, 0, [b"x"]) == "cloud.not-found"
    assert code_of(storage.finish_upload, wrong, Digest.of(b"x")) == "cloud.not-found"
    assert code_of(storage.checkpoint, wrong) == "cloud.not-found"
    storage.abort(wrong)


def test_an_aborted_upload_leaves_nothing(storage: FileBlobStorage, tmp_path: Path) -> None:
    upload = storage.begin_upload("a")
    storage.append(upload, 0, [b"abc"])
    storage.abort(upload)
    storage.abort(upload)
    assert code_of(storage.append, upload, 3, [b"x"]) == "cloud.not-found"
    assert list((tmp_path / "oci.uploads").iterdir()) == []


def test_an_upload_goes_on_after_a_restart_from_what_was_durable(tmp_path: Path, clock: SetClock) -> None:
    first = FileBlobStorage(tmp_path / "oci", clock)
    upload = first.begin_upload("a")
    first.append(upload, 0, [b"durable"])
    assert first.checkpoint(upload) == 7
    first.append(upload, 7, [b"lost"])
    # The power fails: the catalogue knows 7 bytes, the file may hold anything behind them.
    first.close()
    with (tmp_path / "oci.uploads" / upload).open("r+b") as file:
        file.seek(7)
        file.write(b"\0\0\0\0\0\0\0\0")
    second = FileBlobStorage(tmp_path / "oci", clock)
    try:
        assert second.upload_offset("a", upload) == 7
        assert second.append(upload, 7, [b" again"]) == 13
        assert second.finish_upload(upload, Digest.of(b"durable again")) == 13
    finally:
        second.close()


def test_an_upload_whose_file_is_gone_is_unknown(tmp_path: Path, clock: SetClock) -> None:
    first = FileBlobStorage(tmp_path / "oci", clock)
    upload = first.begin_upload("a")
    first.close()
    (tmp_path / "oci.uploads" / upload).unlink()
    second = FileBlobStorage(tmp_path / "oci", clock)
    try:
        assert code_of(second.upload_offset, "a", upload) == "cloud.not-found"
    finally:
        second.close()


def test_long_uploads_are_made_durable_on_the_way(
    storage: FileBlobStorage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: SetClock
) -> None:
    monkeypatch.setattr(uploads_module, "UPLOAD_CHECKPOINT_BYTES", 1_000)
    upload = storage.begin_upload("a")
    storage.append(upload, 0, [b"x" * 600])
    storage.append(upload, 600, [b"x" * 600])
    storage.append(upload, 1_200, [b"x" * 600])
    other = FileBlobStorage(tmp_path / "oci", clock)
    try:
        assert other.upload_offset("a", upload) == 1_200
    finally:
        other.close()


def test_a_full_disk_keeps_what_was_whole(storage: FileBlobStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = storage.begin_upload("a")
    storage.append(upload, 0, [b"abc"])
    real = os.write
    answers = iter([2, errno.ENOSPC])

    def write(descriptor: int, data: Any) -> int:
        answer = next(answers)
        if answer == errno.ENOSPC:
            raise OSError(errno.ENOSPC, "full")
        return real(descriptor, bytes(data)[:answer])

    monkeypatch.setattr(os, "write", write)
    assert code_of(storage.append, upload, 3, [b"defgh"]) == "device.disk-full"
    monkeypatch.undo()
    assert storage.upload_offset("a", upload) == 3
    storage.append(upload, 3, [b"def"])
    assert storage.finish_upload(upload, Digest.of(b"abcdef")) == 6


def test_a_blob_has_a_bounded_size(storage: FileBlobStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads_module, "BLOB_BYTES_MAX", 10)
    upload = storage.begin_upload("a")
    assert storage.append(upload, 0, [b"x" * 10]) == 10
    assert code_of(storage.append, upload, 10, [b"y"]) == "cloud.too-large"
    assert storage.upload_offset("a", upload) == 10


def test_two_writers_of_one_upload_cannot_mix(storage: FileBlobStorage) -> None:
    """Of two connections that go on from the same offset one is refused, so bytes never interleave."""
    upload = storage.begin_upload("a")
    barrier = threading.Barrier(2)
    results: list[str] = []

    def write(letter: bytes) -> None:
        barrier.wait(10)
        try:
            storage.append(upload, 0, [letter * 100_000] * 3)
            results.append(letter.decode())
        except EdgeError as error:
            results.append(error.code)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    winners = [item for item in results if len(item) == 1]
    assert len(winners) == 1
    assert "cloud.upload-invalid" in results
    assert storage.finish_upload(upload, Digest.of(winners[0].encode() * 300_000)) == 300_000


def test_uploads_that_stand_still_are_forgotten(storage: FileBlobStorage, clock: SetClock) -> None:
    forgotten = storage.begin_upload("a")
    storage.append(forgotten, 0, [b"abc"])
    clock.now_ms += UPLOAD_IDLE_MS_MAX // 2
    moving = storage.begin_upload("a")
    clock.now_ms += UPLOAD_IDLE_MS_MAX // 2 + 1
    storage.append(moving, 0, [b"abc"])
    storage.checkpoint(moving)
    storage.begin_upload("a")
    assert code_of(storage.upload_offset, "a", forgotten) == "cloud.not-found"
    assert storage.upload_offset("a", moving) == 3


def test_only_so_many_uploads_are_open_at_once(
    storage: FileBlobStorage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert UPLOADS_MAX > 100
    monkeypatch.setattr(uploads_module, "UPLOADS_MAX", 3)
    for _ in range(3):
        storage.begin_upload("a")
    assert code_of(storage.begin_upload, "a") == "device.busy"
    assert len(list((tmp_path / "oci.uploads").iterdir())) == 3
