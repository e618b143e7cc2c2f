"""Blobs, journal, lock and durable files: what is special to their being files."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent.store import durable
from edge_agent.store.blobs import FileBlobStore
from edge_agent.store.journal import FileJournal
from edge_agent.store.lock import DataLock
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.stream import VerifyingStream

# --- durable
# ------------------------------------------------------------------------------------------------------------


def test_a_small_file_is_replaced_as_a_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for data in (b"one", b"two"):
        durable.write_file(path, data)
        assert durable.read_file(path, 10) == data
    assert [item.name for item in tmp_path.iterdir()] == ["a"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_writing_syncs_the_bytes_before_the_name_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_sync(descriptor)

    def replace(source: Path, target: Path) -> Path:
        steps.append("name")
        return real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    durable.write_file(tmp_path / "a", b"x")
    assert steps == ["file", "name", "folder"]


def test_a_link_is_never_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic"):
        durable.read_file(tmp_path / "link", 100)
    durable.write_file(tmp_path / "link", b"new")
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_reading_is_bounded(tmp_path: Path) -> None:
    durable.write_file(tmp_path / "a", b"x" * 11)
    with pytest.raises(OSError, match="longer than 10"):
        durable.read_file(tmp_path / "a", 10)
    assert durable.read_file(tmp_path / "absent", 10) is None


def test_leftovers_of_interrupted_writes_are_removed(tmp_path: Path) -> None:
    (tmp_path / f"{durable.TEMPORARY_PREFIX}1").write_bytes(b"x")
    (tmp_path / f"{durable.TEMPORARY_PREFIX}2").mkdir()
    (tmp_path / "kept").write_bytes(b"x")
    durable.remove_leftovers(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("number", "code"), [(28, "device.disk-full"), (27, "device.disk-full"), (5, "device.disk-error")]
)
def test_what_the_disk_refuses_has_a_code(number: int, code: str) -> None:
    with pytest.raises(EdgeError) as caught, durable.disk_errors("writing x"):
        raise OSError(number, os.strerror(number))
    assert caught.value.code == code


# --- blobs
# --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def blobs(tmp_path: Path) -> FileBlobStore:
    return FileBlobStore(tmp_path, reserve_bytes=0)


def put(blobs: FileBlobStore, data: bytes) -> Digest:
    digest = Digest.of(data)
    blobs.put(digest, data)
    return digest


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(EdgeError) as caught:
        call()
    return caught.value.code


def test_a_blob_cannot_be_written_by_accident(blobs: FileBlobStore) -> None:
    path = blobs.path(put(blobs, b"data"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_a_blob_under_the_wrong_name_is_refused(blobs: FileBlobStore) -> None:
    with pytest.raises(EdgeError) as caught:
        blobs.put(Digest.of(b"other"), b"data")
    assert caught.value.code == "artifact.digest-mismatch"


def test_a_damaged_blob_is_removed_by_verify_and_left_by_check(blobs: FileBlobStore) -> None:
    digest = put(blobs, b"data")
    blobs.path(digest).chmod(0o600)
    blobs.path(digest).write_bytes(b"date")
    for ask in (lambda: blobs.check(digest, 4), lambda: blobs.read(digest, 10)):
        with pytest.raises(EdgeError) as caught:
            ask()
        assert caught.value.code == "device.disk-corrupt"
    assert blobs.has(digest)
    with pytest.raises(EdgeError):
        blobs.verify(digest, 4)
    assert not blobs.has(digest)


def test_bytes_that_were_let_in_wrongly_are_found_by_the_second_reader(
    blobs: FileBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the verification of what streams in broken, the one before activation would still see it."""
    monkeypatch.setattr(VerifyingStream, "finish", lambda _: None)
    genuine = Digest.of(b"genuine")
    with blobs.resume(genuine, 7) as partial:
        partial.write(b"forgery")
        partial.commit()
    assert blobs.has(genuine)
    assert code_of(lambda: blobs.verify(genuine, 7)) == "device.disk-corrupt"
    assert not blobs.has(genuine)


def test_a_blob_on_a_lost_sector_is_damaged_and_makes_room_for_a_fresh_one(
    blobs: FileBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    digest = put(blobs, b"data")
    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "file_digest", lost)
        assert code_of(lambda: blobs.check(digest)) == "device.disk-corrupt"
        assert blobs.has(digest)
        assert code_of(lambda: blobs.verify(digest, 4)) == "device.disk-corrupt"
    assert not blobs.has(digest)


def test_reading_a_blob_is_bounded(blobs: FileBlobStore) -> None:
    digest = put(blobs, b"x" * 100)
    with pytest.raises(EdgeError) as caught:
        blobs.read(digest, 99)
    assert caught.value.code == "artifact.document-too-large"


def test_the_reserve_is_not_given_away(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    free = disk.f_bavail * disk.f_frsize
    FileBlobStore(tmp_path, 0).require_space(free // 2)
    with pytest.raises(EdgeError) as caught:
        FileBlobStore(tmp_path, free // 2).require_space(free)
    assert caught.value.code == "device.disk-full"


def test_what_nobody_needs_goes_before_space_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = tmp_path / "compiled"
    (compiled / "entry").mkdir(parents=True)
    free = [1_000, 5_000]  # before and after
    monkeypatch.setattr(FileBlobStore, "_free", lambda store: free[0 if compiled.exists() else 1])
    store = FileBlobStore(tmp_path, 0, droppable=[compiled])
    store.require_space(900)
    assert compiled.exists()
    store.require_space(4_000)
    assert not compiled.exists()
    with pytest.raises(EdgeError) as caught:
        store.require_space(6_000)
    assert caught.value.code == "device.disk-full"


def test_a_disk_that_fills_up_during_a_download_keeps_what_came(tmp_path: Path) -> None:
    """In a process of its own, whose files may not grow beyond a limit."""
    program = f"""
import resource, sys
from edge_agent.store.blobs import FileBlobStore
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from pathlib import Path
data = b"x" * 1_000_000
blobs = FileBlobStore(Path({str(tmp_path)!r}), 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
try:
    with blobs.resume(Digest.of(data), len(data)) as partial:
        for start in range(0, len(data), 100_000):
            partial.write(data[start : start + 100_000])
        partial.commit()
except EdgeError as error:
    print(error.code)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
with blobs.resume(Digest.of(data), len(data)) as partial:
    print(partial.count)
    partial.write(data[partial.count:])
    partial.commit()
blobs.verify(Digest.of(data), len(data))
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    code, count = done.stdout.split()
    assert code == "device.disk-full"
    assert 300_000 <= int(count) <= 400_000


def test_an_impossible_size_is_refused(blobs: FileBlobStore) -> None:
    for size in (-1, 2**60):
        with pytest.raises(EdgeError) as caught:
            blobs.resume(Digest.of(b""), size)
        assert caught.value.code == "artifact.size-mismatch"


def test_partial_downloads_are_collected_too(blobs: FileBlobStore) -> None:
    wanted, unwanted = Digest.of(b"a" * 10), Digest.of(b"b" * 10)
    for digest in (wanted, unwanted):
        with blobs.resume(digest, 10) as partial:
            partial.write(b"a" * 5)
    assert blobs.collect(frozenset({wanted})) == 5
    with blobs.resume(wanted, 10) as partial:
        assert partial.count == 5
    with blobs.resume(unwanted, 10) as partial:
        assert partial.count == 0


def test_only_whole_blobs_are_listed(blobs: FileBlobStore, tmp_path: Path) -> None:
    digest = put(blobs, b"data")
    (tmp_path / "blobs" / "sha256" / "README").write_bytes(b"x")
    assert list(blobs.digests()) == [digest]


# --- journal
# ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    journal = FileJournal(tmp_path / "journal.json")
    journal.save({"n": 1})
    journal.save({"n": 2})
    return tmp_path / "journal.json"  # type: ignore[return-value]


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\x00" * 100, b'{"record":{"n":7},"schema":"lighterman.journal/1","sha256":"0"}']
)
def test_the_previous_copy_serves_when_the_newest_is_damaged(path: Path, damage: bytes) -> None:
    path.write_bytes(damage)
    journal = FileJournal(path)
    assert journal.load() == {"n": 1}
    journal.save({"n": 3})
    assert journal.load() == {"n": 3}
    assert FileJournal(path.with_name("journal.json.prev")).load() == {"n": 1}


def test_every_changed_byte_of_a_journal_is_noticed(path: Path) -> None:
    genuine = path.read_bytes()
    for place in range(len(genuine)):
        spoiled = bytearray(genuine)
        spoiled[place] ^= 0x01
        path.write_bytes(spoiled)
        assert FileJournal(path).load() in ({"n": 1}, {"n": 2})


def test_two_damaged_copies_are_an_error_and_not_a_new_device(path: Path) -> None:
    for copy in (path, path.with_name("journal.json.prev")):
        copy.write_bytes(b"?")
    with pytest.raises(EdgeError) as caught:
        FileJournal(path).load()
    assert caught.value.code == "internal.record-invalid"


def test_a_lost_newest_copy_falls_back(path: Path) -> None:
    path.unlink()
    assert FileJournal(path).load() == {"n": 1}


def test_a_record_that_is_too_large_is_a_bug(path: Path) -> None:
    with pytest.raises(EdgeError) as caught:
        FileJournal(path).save({"x": "y" * 2_000_000})
    assert caught.value.code == "internal.bug"
    assert FileJournal(path).load() == {"n": 2}


def test_a_power_cut_at_any_step_leaves_the_old_record_or_the_new(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3, 20):
        with monkeypatch.context() as patched:
            calls = 0

            def count() -> int:
                nonlocal calls
                calls += 1
                return calls

            for owner, name in ((os, "fsync"), (os, "write"), (os, "link"), (Path, "replace"), (Path, "unlink")):
                patched.setattr(owner, name, _dying(getattr(owner, name), number - 3, count))
            try:
                FileJournal(path).save({"n": number})
            except KeyboardInterrupt:
                pass
            else:
                assert FileJournal(path).load() == {"n": number}
                return
        before = FileJournal(path).load()
        assert before in ({"n": 2}, {"n": number})
        FileJournal(path).save({"n": 2})
    pytest.fail("saving never came to its end")


def _dying(real: object, survivors: int, count: object) -> object:
    def call(*arguments: object) -> object:
        if count() > survivors:  # type: ignore[operator]
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[operator]

    return call


# --- lock
# ---------------------------------------------------------------------------------------------------------------


def test_a_data_directory_has_one_owner(tmp_path: Path) -> None:
    with DataLock(tmp_path / "lock"):
        with pytest.raises(EdgeError) as caught:
            DataLock(tmp_path / "lock").acquire()
        assert caught.value.code == "device.busy"
    with DataLock(tmp_path / "lock"):
        pass


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from edge_agent.store.lock import DataLock; "
        f"DataLock(Path({str(tmp_path / 'lock')!r})).acquire(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == -9
    with DataLock(tmp_path / "lock"):
        pass


def test_the_next_owner_settles_what_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else names that nobody synced would be relied on and lost with the next power cut."""
    synced: list[str] = []
    real = durable.sync_folder

    def sync(folder: Path) -> None:
        synced.append(str(folder.relative_to(tmp_path)))
        real(folder)

    (tmp_path / "blobs" / "sha256").mkdir(parents=True)
    (tmp_path / f"{durable.TEMPORARY_PREFIX}journal").write_bytes(b"half")
    (tmp_path / "blobs" / "sha256" / f"{durable.TEMPORARY_PREFIX}1").write_bytes(b"half")
    monkeypatch.setattr(durable, "sync_folder", sync)
    with DataLock(tmp_path / "lock"):
        assert {".", "blobs", "blobs/sha256"} <= set(synced)
        assert [path.name for path in durable.walk(tmp_path)] == ["blobs", "sha256", "lock"]


def test_a_disk_that_cannot_be_settled_is_no_reason_not_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(durable, "sync_folder", refuse)
    with DataLock(tmp_path / "lock"):
        assert "device.disk-error" in caplog.text


def test_who_owns_a_part_of_a_directory_settles_nothing(tmp_path: Path) -> None:
    half = tmp_path / f"{durable.TEMPORARY_PREFIX}1"
    half.write_bytes(b"somebody writes here")
    with DataLock(tmp_path / "identity.lock"):
        assert half.exists()
