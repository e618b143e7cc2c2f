"""Blobs, slots, journal, lock and durable files: what is special to their being files."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import resource
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent.store import durable
from edge_agent.store.blobs import FileBlobStore
from edge_agent.store.journal import FileJournal
from edge_agent.store.lock import DataLock
from edge_agent.store.slots import FileSlotStore
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.manifest import (
    CODE_RAW,
    CODE_TAR,
    CONFIG_TYPE,
    FILEPATH,
    ROLE,
    WEIGHT_CONFIG_RAW,
    WEIGHT_RAW,
    Descriptor,
    Manifest,
    Role,
)
from edge_contract.runtime import RUNTIME_PATH, Member, Runtime
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


# --- slots
# --------------------------------------------------------------------------------------------------------------


class Bundle:
    """A bundle whose blobs are in the store."""

    def __init__(self, blobs: FileBlobStore, *extra: tuple[str, bytes, str, str]) -> None:
        self._blobs = blobs
        runtime = Runtime("digits", 3, (Member("digits", "onnx", "model.onnx"),)).to_bytes()
        layers = [
            self._layer(WEIGHT_CONFIG_RAW, runtime, Role.RUNTIME, RUNTIME_PATH),
            self._layer(WEIGHT_RAW, b"weights", Role.MODEL, "model.onnx"),
            *(self._layer(*item) for item in extra),
        ]
        self.manifest = Manifest(self._layer(CONFIG_TYPE, b"{}", Role.DOC, "config"), tuple(layers))
        self.digest = put(blobs, self.manifest.to_bytes())

    def _layer(self, media_type: str, data: bytes, role: str, path: str) -> Descriptor:
        return Descriptor(media_type, put(self._blobs, data), len(data), {ROLE: role, FILEPATH: path})


def archive(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def wheel(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in files.items():
            made.writestr(name, data)
    return target.getvalue()


@pytest.fixture
def slots(tmp_path: Path, blobs: FileBlobStore) -> FileSlotStore:
    return FileSlotStore(tmp_path, blobs)


def full_bundle(blobs: FileBlobStore) -> Bundle:
    return Bundle(
        blobs,
        (CODE_RAW, b"def run(): ...", Role.CODE, "score.py"),
        (CODE_TAR, archive({"util/a.py": b"a", "util/b.py": b"b"}), Role.CODE, "helpers"),
        (CODE_RAW, wheel({"dep/__init__.py": b"", "LICENSE": b"MIT"}), Role.WHEEL, "wheels/dep-1.whl"),
        (CODE_RAW, wheel({"two/__init__.py": b"2", "LICENSE": b"MIT"}), Role.WHEEL, "wheels/two-1.whl"),
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_slot_holds_the_bundle_unpacked(slots: FileSlotStore, blobs: FileBlobStore) -> None:
    bundle = full_bundle(blobs)
    folder = slots.stage(bundle.digest, bundle.manifest)
    found = contents(folder)
    assert found["files/model.onnx"] == b"weights"
    assert found["files/score.py"] == b"def run(): ..."
    assert found["files/helpers/util/a.py"] == b"a"
    assert found["site/dep/__init__.py"] == b""
    assert found["site/two/__init__.py"] == b"2"
    assert found["site/LICENSE"] == b"MIT"
    assert slots.describe(bundle.digest) == {"manifest": str(bundle.digest), "model": "digits", "version": 3}
    slots.check(bundle.digest, bundle.manifest)
    assert slots.complete() == [bundle.digest]


def test_model_files_cost_no_second_copy(slots: FileSlotStore, blobs: FileBlobStore) -> None:
    bundle = full_bundle(blobs)
    model = slots.stage(bundle.digest, bundle.manifest) / "files" / "model.onnx"
    assert model.samefile(blobs.path(Digest.of(b"weights")))
    assert stat.S_IMODE(model.stat().st_mode) == 0o444


def test_a_file_system_without_links_gets_copies(
    slots: FileSlotStore, blobs: FileBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    bundle = full_bundle(blobs)
    folder = slots.stage(bundle.digest, bundle.manifest)
    assert not (folder / "files" / "model.onnx").samefile(blobs.path(Digest.of(b"weights")))
    slots.check(bundle.digest, bundle.manifest)
    before = folder.stat().st_ino
    assert slots.stage(bundle.digest, bundle.manifest).stat().st_ino == before


def test_a_damaged_file_is_found_wherever_it_lies(slots: FileSlotStore, blobs: FileBlobStore) -> None:
    bundle = full_bundle(blobs)
    folder = slots.stage(bundle.digest, bundle.manifest)
    names = set(contents(folder)) - {"slot.json"}
    assert len(names) == 10
    for name in sorted(names):
        path = folder / name
        good = path.read_bytes()
        for bad in (good[:-1], good + b"?"):
            path.chmod(0o600)
            path.write_bytes(bad)
            if bad != good:
                with pytest.raises(EdgeError) as caught:
                    slots.check(bundle.digest, bundle.manifest)
                assert caught.value.code == "device.disk-corrupt"
        path.write_bytes(good)
    slots.check(bundle.digest, bundle.manifest)


def test_a_slot_that_links_to_a_damaged_blob_is_made_anew(slots: FileSlotStore, blobs: FileBlobStore) -> None:
    bundle = full_bundle(blobs)
    folder = slots.stage(bundle.digest, bundle.manifest)
    weights = Digest.of(b"weights")
    blobs.path(weights).chmod(0o600)
    blobs.path(weights).write_bytes(b"weighty")
    with pytest.raises(EdgeError):
        blobs.verify(weights, 7)
    put(blobs, b"weights")
    assert contents(folder)["files/model.onnx"] == b"weighty"
    slots.stage(bundle.digest, bundle.manifest)
    assert contents(folder)["files/model.onnx"] == b"weights"


def spoil(path: Path) -> None:
    """Change a byte in place: every hard link to the file sees it."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))


def test_a_slot_set_aside_takes_its_damaged_blobs_along(slots: FileSlotStore, blobs: FileBlobStore) -> None:
    bundle = full_bundle(blobs)
    model = slots.stage(bundle.digest, bundle.manifest) / "files" / "model.onnx"
    kept = blobs.path(Digest.of(b"def run(): ...")).stat().st_ino
    damaged = model.stat().st_ino
    spoil(model)
    with model.open("rb") as reading:  # as a worker does
        slots.set_aside(bundle.digest)
        assert not blobs.has(Digest.of(b"weights"))
        assert blobs.path(Digest.of(b"def run(): ...")).stat().st_ino == kept
        assert code_of(lambda: slots.stage(bundle.digest, bundle.manifest)) == "artifact.not-found"
        put(blobs, b"weights")
        slots.stage(bundle.digest, bundle.manifest)
        slots.verify(bundle.digest, lambda: False)
        assert model.stat().st_ino != damaged
        assert reading.read() == b"veights"


@pytest.mark.parametrize("name", ["files/helpers/util/a.py", "site/two/__init__.py", "slot.json"])
def test_damage_outside_the_blobs_is_healed_without_the_network(
    slots: FileSlotStore, blobs: FileBlobStore, name: str
) -> None:
    bundle = full_bundle(blobs)
    spoil(slots.stage(bundle.digest, bundle.manifest) / name)
    assert code_of(lambda: slots.verify(bundle.digest, lambda: False)) == "device.disk-corrupt"
    slots.set_aside(bundle.digest)
    slots.stage(bundle.digest, bundle.manifest)
    slots.verify(bundle.digest, lambda: False)


def test_a_slot_whose_manifest_is_lost_is_damaged(slots: FileSlotStore, blobs: FileBlobStore) -> None:
    bundle = full_bundle(blobs)
    model = slots.stage(bundle.digest, bundle.manifest) / "files" / "model.onnx"
    spoil(model)
    spoil(blobs.path(bundle.digest))
    assert code_of(lambda: slots.verify(bundle.digest, lambda: False)) == "device.disk-corrupt"
    slots.set_aside(bundle.digest)
    assert not blobs.has(bundle.digest)
    assert not blobs.has(Digest.of(b"weights"))
    assert blobs.has(bundle.manifest.config.digest)
    full_bundle(blobs)
    slots.stage(bundle.digest, bundle.manifest)
    blobs.path(bundle.digest).unlink()
    assert code_of(lambda: slots.verify(bundle.digest, lambda: False)) == "device.disk-corrupt"


def test_damage_shared_by_two_slots_is_found_in_both(slots: FileSlotStore, blobs: FileBlobStore) -> None:
    one, two = full_bundle(blobs), Bundle(blobs)
    for bundle in (one, two):
        slots.stage(bundle.digest, bundle.manifest)
    spoil(blobs.path(Digest.of(b"weights")))
    slots.set_aside(one.digest)
    put(blobs, b"weights")
    slots.stage(one.digest, one.manifest)
    slots.verify(one.digest, lambda: False)
    assert code_of(lambda: slots.verify(two.digest, lambda: False)) == "device.disk-corrupt"
    slots.set_aside(two.digest)
    slots.stage(two.digest, two.manifest)
    slots.verify(two.digest, lambda: False)


def test_what_does_not_belong_into_a_slot_is_found(slots: FileSlotStore, blobs: FileBlobStore) -> None:
    bundle = full_bundle(blobs)
    folder = slots.stage(bundle.digest, bundle.manifest)
    (folder / "site" / "sitecustomize.py").write_bytes(b"")
    assert code_of(lambda: slots.verify(bundle.digest, lambda: False)) == "device.disk-corrupt"


def test_what_a_slot_needs_is_known_before_its_blobs_are_here(slots: FileSlotStore, blobs: FileBlobStore) -> None:
    bundle = full_bundle(blobs)
    exact = slots.bytes_needed(bundle.manifest)
    blobs.collect(frozenset())
    assert slots.bytes_needed(bundle.manifest) > 0
    full_bundle(blobs)
    folder = slots.stage(bundle.digest, bundle.manifest)
    alone = [path for path in folder.rglob("*") if path.is_dir() or path.stat().st_nlink == 1]
    assert sum(path.stat().st_blocks * 512 for path in alone) <= exact


def test_rot_in_an_archive_is_not_the_bundles_fault(slots: FileSlotStore, blobs: FileBlobStore) -> None:
    """A code that blames the bundle would keep it off this device for ever."""
    bundle = full_bundle(blobs)
    wheels = [layer for layer in bundle.manifest.layers if layer.role == Role.WHEEL]
    spoil(blobs.path(wheels[0].digest))
    assert slots.bytes_needed(bundle.manifest) > 0
    assert code_of(lambda: blobs.verify(wheels[0].digest, wheels[0].size)) == "device.disk-corrupt"


def test_copies_are_part_of_what_a_slot_needs(
    slots: FileSlotStore, blobs: FileBlobStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = full_bundle(blobs)
    linked = slots.bytes_needed(bundle.manifest)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    other = FileSlotStore(tmp_path, blobs)
    assert other.bytes_needed(bundle.manifest) - linked >= len(b"weights") + len(b"def run(): ...")
    assert list((tmp_path / "slots").iterdir()) == []


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        ([(CODE_TAR, archive({"../../escape": b"x"}), Role.CODE, "code")], "artifact.path-unsafe"),
        ([(CODE_TAR, b"rubbish", Role.CODE, "code")], "artifact.archive-invalid"),
        ([(CODE_TAR, archive({"a": b"1", "a/b": b"2"}), Role.CODE, "code")], "artifact.archive-invalid"),
        ([(CODE_TAR, archive({"a/b": b"1", "a": b"2"}), Role.CODE, "code")], "artifact.archive-invalid"),
        ([(CODE_RAW, b"rubbish", Role.WHEEL, "wheels/a.whl")], "artifact.archive-invalid"),
        ([(CODE_RAW, wheel({"/abs": b"x"}), Role.WHEEL, "wheels/a.whl")], "artifact.path-unsafe"),
        (
            [
                (CODE_RAW, wheel({"same.py": b"1"}), Role.WHEEL, "wheels/a.whl"),
                (CODE_RAW, wheel({"same.py": b"2"}), Role.WHEEL, "wheels/b.whl"),
            ],
            "artifact.archive-invalid",
        ),
    ],
)
def test_a_bundle_that_cannot_be_unpacked_safely_leaves_no_slot(
    slots: FileSlotStore, blobs: FileBlobStore, tmp_path: Path, extra: list[tuple[str, bytes, str, str]], code: str
) -> None:
    bundle = Bundle(blobs, *extra)
    with pytest.raises(EdgeError) as caught:
        slots.stage(bundle.digest, bundle.manifest)
    assert caught.value.code == code
    assert list((tmp_path / "slots").iterdir()) == []
    assert not (tmp_path.parent / "escape").exists()


def test_two_entries_of_one_name_in_a_tar_are_refused(slots: FileSlotStore, blobs: FileBlobStore) -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for data in (b"1", b"2"):
            info = tarfile.TarInfo("same")
            info.size = 1
            tar.addfile(info, io.BytesIO(data))
    bundle = Bundle(blobs, (CODE_TAR, target.getvalue(), Role.CODE, "code"))
    with pytest.raises(EdgeError) as caught:
        slots.stage(bundle.digest, bundle.manifest)
    assert caught.value.code == "artifact.archive-invalid"


def test_a_missing_blob_is_named(slots: FileSlotStore, blobs: FileBlobStore) -> None:
    bundle = full_bundle(blobs)
    blobs.path(Digest.of(b"weights")).unlink()
    with pytest.raises(EdgeError) as caught:
        slots.stage(bundle.digest, bundle.manifest)
    assert caught.value.code == "artifact.not-found"


def test_a_full_disk_leaves_no_half_slot(
    slots: FileSlotStore, blobs: FileBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = full_bundle(blobs)
    real = durable.write_all
    count = 0

    def full(descriptor: int, data: bytes | memoryview) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(28, "No space left on device")
        real(descriptor, data)

    monkeypatch.setattr(durable, "write_all", full)
    with pytest.raises(EdgeError) as caught:
        slots.stage(bundle.digest, bundle.manifest)
    assert caught.value.code == "device.disk-full"
    assert list((tmp_path / "slots").iterdir()) == []
    monkeypatch.undo()
    slots.stage(bundle.digest, bundle.manifest)


def test_a_power_cut_while_staging_leaves_nothing_that_counts(
    slots: FileSlotStore, blobs: FileBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = full_bundle(blobs)
    calls = 0
    for survivors in range(60):
        with monkeypatch.context() as patched:
            calls = 0
            for name in ("write_all", "sync_folder", "rename", "remove_tree"):
                patched.setattr(durable, name, _dying(getattr(durable, name), survivors, lambda: _count()))

            def _count() -> int:
                nonlocal calls
                calls += 1
                return calls

            try:
                slots.stage(bundle.digest, bundle.manifest)
            except KeyboardInterrupt:
                assert slots.complete() in ([], [bundle.digest])
                if slots.complete():
                    slots.check(bundle.digest, bundle.manifest)
            else:
                break
    else:
        pytest.fail("staging never came to its end")
    slots.check(bundle.digest, bundle.manifest)
    assert [path.name for path in (tmp_path / "slots").iterdir()] == [bundle.digest.hex]


def _dying(real: object, survivors: int, count: object) -> object:
    def call(*arguments: object) -> object:
        if count() > survivors:  # type: ignore[operator]
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[operator]

    return call


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
