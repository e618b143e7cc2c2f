"""The blob storage on a local disk: content, membership, tags, referrers, deletion, and what a power cut leaves."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud_registry.adapters.blobs_fs import FileBlobStorage
from cloud_registry.adapters.oci_layout import ref_name
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.manifest import BUNDLE_ARTIFACT_TYPE, INDEX_TYPE, MANIFEST_TYPE, REF_NAME
from tests.unit.cloud_data.artifacts import (
    modelpack_config,
    modelpack_manifest,
    push_artifact,
    push_blob,
)
from tests.unit.cloud_data.support import SetClock


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[FileBlobStorage]:
    opened = FileBlobStorage(tmp_path / "oci", SetClock())
    yield opened
    opened.close()


def code_of(call: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(EdgeError) as caught:
        call(*args)
    return caught.value.code


def index_of(folder: Path) -> dict[str, Any]:
    document = json.loads((folder / "index.json").read_bytes())
    assert isinstance(document, dict)
    return document


def names_of(folder: Path) -> set[str | None]:
    return {item.get("annotations", {}).get(REF_NAME) for item in index_of(folder)["manifests"]}


def test_a_blob_comes_back_whole_and_in_ranges(storage: FileBlobStorage) -> None:
    data = os.urandom(700_000)
    digest = push_blob(storage, "a", data)
    assert storage.exists(digest) == len(data)
    assert b"".join(storage.open(digest)) == data
    assert b"".join(storage.open(digest, 10)) == data[10:]
    assert b"".join(storage.open(digest, 10, 300_000)) == data[10:300_010]
    assert b"".join(storage.open(digest, len(data))) == b""
    assert max(len(chunk) for chunk in storage.open(digest)) <= 256 * 1024


def test_an_empty_blob_is_a_blob(storage: FileBlobStorage) -> None:
    digest = push_blob(storage, "a", b"")
    assert storage.exists(digest) == 0
    assert b"".join(storage.open(digest)) == b""


def test_a_blob_that_is_not_there_is_refused_at_once(storage: FileBlobStorage) -> None:
    assert code_of(storage.open, Digest.of(b"nothing")) == "artifact.not-found"


def test_closing_a_reader_frees_its_file(storage: FileBlobStorage) -> None:
    digest = push_blob(storage, "a", b"x" * 600_000)
    before = len(os.listdir("/proc/self/fd"))
    readers = [storage.open(digest) for _ in range(5)]
    next(readers[0])
    assert len(os.listdir("/proc/self/fd")) == before + 5
    for reader in readers:
        reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_blob_of_one_repository_is_not_in_another_until_it_is_linked(storage: FileBlobStorage) -> None:
    digest = push_blob(storage, "a", b"mine")
    assert storage.in_repository("a", digest) == 4
    assert storage.in_repository("b", digest) is None
    storage.link_blob("b", digest)
    storage.link_blob("b", digest)
    assert storage.in_repository("b", digest) == 4
    assert code_of(storage.link_blob, "b", Digest.of(b"nothing")) == "artifact.not-found"


def test_a_file_goes_with_its_last_repository(storage: FileBlobStorage, tmp_path: Path) -> None:
    digest = push_blob(storage, "a", b"shared")
    storage.link_blob("b", digest)
    path = tmp_path / "oci" / "blobs" / "sha256" / digest.hex
    storage.delete_blob("a", digest)
    assert storage.in_repository("a", digest) is None
    assert path.is_file()
    storage.delete_blob("b", digest)
    assert not path.exists()
    assert storage.exists(digest) is None
    assert code_of(storage.delete_blob, "b", digest) == "artifact.not-found"


def test_what_a_manifest_lists_cannot_be_deleted_before_it(storage: FileBlobStorage) -> None:
    pushed = push_artifact(storage, "a", "t", b"weights")
    layer = Digest.of(b"weights")
    assert code_of(storage.delete_blob, "a", layer) == "cloud.in-use"
    storage.delete_manifest("a", str(pushed.digest))
    storage.delete_blob("a", layer)
    assert storage.exists(layer) is None


def test_a_manifest_is_kept_byte_by_byte_under_tag_and_digest(storage: FileBlobStorage) -> None:
    pushed = push_artifact(storage, "a", "t", b"weights")
    for reference in ("t", str(pushed.digest)):
        stored = storage.get_manifest("a", reference)
        assert (stored.media_type, stored.data, stored.digest) == (MANIFEST_TYPE, pushed.data, pushed.digest)
    assert code_of(storage.get_manifest, "b", str(pushed.digest)) == "artifact.not-found"
    assert code_of(storage.get_manifest, "a", "other") == "artifact.not-found"


def test_a_manifest_needs_its_blobs_in_the_same_repository_with_the_same_size(storage: FileBlobStorage) -> None:
    config = modelpack_config(Digest.of(b"layer"))
    data = modelpack_manifest(config, b"layer")
    push_blob(storage, "other", config)
    push_blob(storage, "other", b"layer")
    assert code_of(storage.put_manifest, "a", "t", MANIFEST_TYPE, data) == "artifact.not-found"
    push_blob(storage, "a", config)
    push_blob(storage, "a", b"layer")
    wrong = data.replace(b'"size": 5', b'"size": 6')
    assert wrong != data
    assert code_of(storage.put_manifest, "a", "t", MANIFEST_TYPE, wrong) == "artifact.size-mismatch"
    assert code_of(storage.put_manifest, "a", str(Digest.of(b"x")), MANIFEST_TYPE, data) == "artifact.digest-mismatch"
    assert storage.put_manifest("a", "t", MANIFEST_TYPE, data) == Digest.of(data)


def test_an_index_needs_its_manifests(storage: FileBlobStorage) -> None:
    missing = {"mediaType": MANIFEST_TYPE, "digest": str(Digest.of(b"nothing")), "size": 3}
    data = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [missing]}).encode()
    assert code_of(storage.put_manifest, "a", "t", INDEX_TYPE, data) == "artifact.not-found"


def test_a_manifest_has_a_bounded_size(storage: FileBlobStorage) -> None:
    assert code_of(storage.put_manifest, "a", "t", MANIFEST_TYPE, b" " * (4 * 1024 * 1024 + 1)) == "cloud.too-large"


def test_a_tag_moves_and_the_former_manifest_stays(storage: FileBlobStorage) -> None:
    first = push_artifact(storage, "a", "t", b"one")
    second = push_artifact(storage, "a", "t", b"two")
    assert storage.get_manifest("a", "t").digest == second.digest
    assert storage.get_manifest("a", str(first.digest)).data == first.data


def test_tags_come_in_the_order_of_their_bytes_a_page_at_a_time(storage: FileBlobStorage) -> None:
    for tag in ("b", "B", "a", "_", "10", "9"):
        push_artifact(storage, "a", tag, b"same")
    assert list(storage.tags("a")) == ["10", "9", "B", "_", "a", "b"]
    assert list(storage.tags("a", count=2)) == ["10", "9"]
    assert list(storage.tags("a", last="B", count=2)) == ["_", "a"]
    assert list(storage.tags("a", last="zzz")) == []
    assert list(storage.tags("a", count=0)) == []
    assert code_of(storage.tags, "unknown") == "artifact.not-found"


def test_deleting_a_tag_keeps_the_manifest_and_deleting_the_manifest_takes_all_tags(storage: FileBlobStorage) -> None:
    pushed = push_artifact(storage, "a", "one", b"weights")
    push_artifact(storage, "a", "two", b"weights")
    storage.delete_manifest("a", "one")
    assert list(storage.tags("a")) == ["two"]
    storage.delete_manifest("a", str(pushed.digest))
    assert code_of(storage.get_manifest, "a", "two") == "artifact.not-found"
    assert list(storage.tags("a")) == []
    assert storage.exists(pushed.digest) is None
    assert code_of(storage.delete_manifest, "a", "two") == "artifact.not-found"
    assert code_of(storage.delete_manifest, "a", str(pushed.digest)) == "artifact.not-found"


def test_referrers_are_found_by_subject_and_type_even_before_the_subject_came(storage: FileBlobStorage) -> None:
    data = modelpack_manifest(modelpack_config(Digest.of(b"base")), b"base")
    subject = push_artifact(storage, "elsewhere", "t", b"base")
    assert subject.data == data
    first = push_artifact(storage, "a", None, b"signature", subject, purpose="signature")
    assert [item.digest for item in storage.referrers("a", subject.digest)] == [first.digest]
    assert storage.referrers("a", subject.digest)[0].artifact_type == BUNDLE_ARTIFACT_TYPE
    assert storage.referrers("a", subject.digest)[0].annotations == {"purpose": "signature"}
    assert storage.referrers("elsewhere", subject.digest) == []
    assert storage.referrers("a", subject.digest, "application/other") == []
    second = push_artifact(storage, "a", None, b"another", subject)
    ordered = sorted([first.digest, second.digest])
    assert [item.digest for item in storage.referrers("a", subject.digest)] == ordered
    assert [item.digest for item in storage.referrers("a", subject.digest, last=ordered[0])] == ordered[1:]
    storage.delete_manifest("a", str(first.digest))
    assert [item.digest for item in storage.referrers("a", subject.digest)] == [second.digest]


def test_a_page_of_referrers_is_bounded_by_its_bytes(storage: FileBlobStorage) -> None:
    subject = push_artifact(storage, "a", "t", b"base")
    for number in range(4):
        push_artifact(storage, "a", None, f"big {number}".encode(), subject, note="x" * 1_000_000)
    assert len(storage.referrers("a", subject.digest)) == 2


def test_the_index_names_every_tag_and_lists_what_nothing_else_lists(storage: FileBlobStorage, tmp_path: Path) -> None:
    folder = tmp_path / "oci"
    assert index_of(folder)["manifests"] == []
    pushed = push_artifact(storage, "bundles/digits", None, b"weights")
    assert names_of(folder) == {None}
    entry = {"mediaType": MANIFEST_TYPE, "digest": str(pushed.digest), "size": len(pushed.data)}
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]}).encode()
    digest = storage.put_manifest("bundles/digits", "3", INDEX_TYPE, index)
    # The index lists the manifest now, so the layout's own index need not.
    assert names_of(folder) == {"bundles/digits:3"}
    assert code_of(storage.delete_manifest, "bundles/digits", str(pushed.digest)) == "cloud.in-use"
    push_artifact(storage, "bundles/digits", "v1_", b"weights")
    assert names_of(folder) == {"bundles/digits:3", None}
    storage.delete_manifest("bundles/digits", "v1_")
    storage.delete_manifest("bundles/digits", str(digest))
    assert [item["digest"] for item in index_of(folder)["manifests"]] == [str(pushed.digest)]


def test_a_name_in_the_index_follows_the_grammar_of_the_specification() -> None:
    assert ref_name("bundles/digits", "3") == "bundles/digits:3"
    assert ref_name("a__b", "1") is None
    assert ref_name("a", "v1_") is None
    assert ref_name("a--b", "1.0") == "a--b:1.0"


def test_a_layout_holds_nothing_but_a_layout(storage: FileBlobStorage, tmp_path: Path) -> None:
    push_artifact(storage, "a", "t", b"weights")
    upload = storage.begin_upload("a")
    storage.append(upload, 0, [b"half"])
    folder = tmp_path / "oci"
    assert sorted(item.name for item in folder.iterdir()) == ["blobs", "index.json", "oci-layout"]
    names = [item.name for item in (folder / "blobs" / "sha256").iterdir()]
    assert len(names) == 3
    for name in names:
        path = folder / "blobs" / "sha256" / name
        assert Digest.of(path.read_bytes()).hex == name
        assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_everything_is_there_after_opening_again(tmp_path: Path) -> None:
    first = FileBlobStorage(tmp_path / "oci", SetClock())
    pushed = push_artifact(first, "a", "t", b"weights")
    first.close()
    (tmp_path / "oci" / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    second = FileBlobStorage(tmp_path / "oci", SetClock())
    try:
        assert second.get_manifest("a", "t").digest == pushed.digest
        # What a power cut kept out of the index is in it again.
        assert names_of(tmp_path / "oci") == {"a:t"}
    finally:
        second.close()


def test_many_pushes_at_once_leave_a_whole_index(storage: FileBlobStorage, tmp_path: Path) -> None:
    failures: list[Exception] = []

    def push(number: int) -> None:
        try:
            for turn in range(5):
                push_artifact(storage, f"models{number}", f"{turn}", f"{number} {turn}".encode())
        except (EdgeError, OSError) as error:
            failures.append(error)

    threads = [threading.Thread(target=push, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert names_of(tmp_path / "oci") == {f"models{n}:{turn}" for n in range(4) for turn in range(5)}


def test_bytes_that_rotted_are_never_given_out_as_a_manifest(storage: FileBlobStorage, tmp_path: Path) -> None:
    pushed = push_artifact(storage, "a", "t", b"weights")
    path = tmp_path / "oci" / "blobs" / "sha256" / pushed.digest.hex
    path.chmod(0o644)
    path.write_bytes(pushed.data.replace(b"onnx", b"ONNX"))
    assert code_of(storage.get_manifest, "a", "t") == "device.disk-corrupt"
    storage.put_manifest("a", "t", MANIFEST_TYPE, pushed.data)
    assert storage.get_manifest("a", "t").data == pushed.data


def test_a_blob_file_that_lost_its_end_breaks_off(storage: FileBlobStorage, tmp_path: Path) -> None:
    digest = push_blob(storage, "a", b"0123456789")
    path = tmp_path / "oci" / "blobs" / "sha256" / digest.hex
    path.chmod(0o644)
    path.write_bytes(b"01234")
    with pytest.raises(EdgeError) as caught:
        list(storage.open(digest, 0, 10))
    assert caught.value.code == "device.disk-corrupt"


class PowerCutError(BaseException):
    """The machine stops here."""


class Fuse:
    """Lets so many changes of the disk pass, then cuts the power: nothing after it happens any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, passes: int) -> None:
        self.left = passes
        self.is_blown = False
        for name in ("replace", "fsync", "chmod", "link"):
            monkeypatch.setattr(os, name, self._guard(getattr(os, name)))
        monkeypatch.setattr(Path, "unlink", self._guard(Path.unlink))

    def _guard(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self.left <= 0:
                self.is_blown = True
                raise PowerCutError
            self.left -= 1
            return call(*args, **kwargs)

        return guarded


def test_whenever_the_power_fails_the_layout_is_valid_and_what_was_acknowledged_is_there(tmp_path: Path) -> None:
    """Cut the power at the first, second, third … change of the disk during a push, a move of a tag and a deletion."""
    cuts = 0
    done: list[str] = []
    for passes in range(200):
        data = tmp_path / str(passes)
        storage = FileBlobStorage(data / "oci", SetClock())
        kept = push_artifact(storage, "a", "kept", b"kept")
        done = []
        with pytest.MonkeyPatch.context() as monkeypatch:
            fuse = Fuse(monkeypatch, passes)
            try:
                push_artifact(storage, "a", "new", b"new")
                done.append("new")
                storage.delete_manifest("a", "new")
                done.append("untagged")
            except PowerCutError:
                cuts += 1
        storage.close()
        folder = data / "oci"
        _require_valid_layout(folder)
        again = FileBlobStorage(folder, SetClock())
        try:
            _require_valid_layout(folder)
            assert again.get_manifest("a", "kept").data == kept.data
            tags = list(again.tags("a"))
            if done == ["new"]:
                assert again.exists(Digest.of(b"new")) == 3
            if "untagged" in done:
                assert tags == ["kept"]
            # And the push can simply be done again.
            push_artifact(again, "a", "new", b"new")
            assert names_of(folder) >= {"a:kept", "a:new"}
        finally:
            again.close()
        shutil.rmtree(data)
        if not fuse.is_blown:
            break
    assert cuts > 20
    assert done == ["new", "untagged"]


def _require_valid_layout(folder: Path) -> None:
    assert json.loads((folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    for item in index_of(folder)["manifests"]:
        digest = Digest(item["digest"])
        assert Digest.of((folder / "blobs" / "sha256" / digest.hex).read_bytes()) == digest


def test_files_without_a_row_go_after_a_day_on_the_first_upload(tmp_path: Path) -> None:
    clock = SetClock()
    first = FileBlobStorage(tmp_path / "oci", clock)
    kept = push_blob(first, "a", b"kept")
    first.close()
    blobs = tmp_path / "oci" / "blobs" / "sha256"
    old, young = Digest.of(b"old"), Digest.of(b"young")
    for digest, age_s in ((old, 2 * 24 * 3600), (young, 60), (kept, 10 * 24 * 3600)):
        path = blobs / digest.hex
        if digest != kept:
            path.write_bytes(b"x")
        os.utime(path, times=(clock.now_ms / 1000 - age_s,) * 2)
    again = FileBlobStorage(tmp_path / "oci", clock)
    try:
        again.begin_upload("a")
        assert sorted(item.name for item in blobs.iterdir()) == sorted([young.hex, kept.hex])
    finally:
        again.close()
