"""The layout on disk against the image specification's own schemas."""

from __future__ import annotations

import json
from pathlib import Path

from cloud_registry.adapters.blobs_fs import FileBlobStorage
from edge_contract.digest import Digest
from edge_contract.manifest import INDEX_TYPE
from tests.support.oci_schemas import oci_validator
from tests.unit.cloud_data.artifacts import Artifact, push_artifact, push_blob
from tests.unit.cloud_data.support import SetClock


def test_the_schemas_refuse_what_is_wrong() -> None:
    good = {"schemaVersion": 2, "manifests": []}
    judge = oci_validator("image-index-schema.json")
    assert judge.is_valid(good)
    assert not judge.is_valid(good | {"schemaVersion": 3})
    assert not judge.is_valid(good | {"manifests": [{"mediaType": "a/b", "size": 1, "digest": "sha256:x y"}]})


def test_layout_index_and_manifests_follow_the_specification(tmp_path: Path) -> None:
    layout = tmp_path / "oci"
    storage = FileBlobStorage(layout, SetClock())
    try:
        oci_validator("image-layout-schema.json").validate(json.loads((layout / "oci-layout").read_text()))
        judge = oci_validator("image-index-schema.json")
        judge.validate(json.loads((layout / "index.json").read_text()))
        pushed = push_artifact(storage, "bundles/digits", "1", b"weights")
        push_artifact(storage, "bundles/digits", None, b"other weights", subject=pushed)
        index = {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [
                {
                    "mediaType": pushed.media_type,
                    "digest": str(pushed.digest),
                    "size": len(pushed.data),
                    "platform": {"os": "linux", "architecture": "amd64"},
                }
            ],
        }
        storage.put_manifest("bundles/digits", "all", INDEX_TYPE, json.dumps(index).encode())
        document = json.loads((layout / "index.json").read_text())
        judge.validate(document)
        assert len(document["manifests"]) == 3
        for entry in document["manifests"]:
            data = (layout / "blobs" / "sha256" / entry["digest"][7:]).read_bytes()
            assert Digest.of(data) == Digest(entry["digest"])
            kind = "index" if entry["mediaType"] == INDEX_TYPE else "manifest"
            oci_validator(f"image-{kind}-schema.json").validate(json.loads(data))
    finally:
        storage.close()


def test_artifact_makes_what_it_says(tmp_path: Path) -> None:
    storage = FileBlobStorage(tmp_path / "oci", SetClock())
    try:
        digest = push_blob(storage, "a", b"x")
        assert storage.in_repository("a", digest) == 1
        assert isinstance(push_artifact(storage, "a", "t", b"y"), Artifact)
    finally:
        storage.close()
