"""Slots: what is special to their being files."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.store import durable
from edge_agent.store.blobs import FileBlobStore
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


def test_whatever_lies_among_the_slots_is_collected(slots: FileSlotStore, blobs: FileBlobStore, tmp_path: Path) -> None:
    bundle = full_bundle(blobs)
    slots.stage(bundle.digest, bundle.manifest)
    (tmp_path / "slots" / f"{durable.TEMPORARY_PREFIX}file").write_bytes(b"killed here")
    (tmp_path / "slots" / f"{durable.TEMPORARY_PREFIX}folder" / "files").mkdir(parents=True)
    slots.collect(frozenset({bundle.digest}))
    assert [path.name for path in (tmp_path / "slots").iterdir()] == [bundle.digest.hex]


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
