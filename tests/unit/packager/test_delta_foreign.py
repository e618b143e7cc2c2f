"""Deltas in other registries: those that list referrers, those that do not, and tags that hold something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from cloud_registry.client import RegistryClient
from edge_contract.delta import DELTA_ARTIFACT_TYPE, EMPTY, Delta, delta_manifest
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.manifest import INDEX_TYPE, Descriptor
from packager.delta.foreign import copy_deltas
from packager.iotedge.image_base import Blob
from packager.iotedge.image_remote import RegistryImage
from packager.progress import QuietReporter

SUBJECT = Descriptor(INDEX_TYPE, Digest.of(b"index"), 5)
TAG = f"sha256-{SUBJECT.digest.hex}"


class Home:
    """The registry that has the deltas."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = {Digest.of(content): content for content in contents}
        self.manifests = []
        for digest, content in self.contents.items():
            delta = Delta(Digest.of(b"old" + content), 900, Digest.of(b"new"), 900, digest, len(content), 1)
            self.manifests.append(delta_manifest(delta, SUBJECT))
        self.read: list[Digest] = []

    def deltas(self, model: str, version: int) -> list[dict[str, Any]]:
        del model, version
        return [{"manifest": str(Digest.of(data))} for data in self.manifests]

    def get_manifest(self, repository: str, reference: str, bytes_max: int) -> bytes:
        del repository, bytes_max
        return next(data for data in self.manifests if str(Digest.of(data)) == reference)

    def download_blob(self, repository: str, digest: Digest, size: int, target: Path, progress: Any = None) -> None:
        del repository, progress
        self.read.append(digest)
        assert len(self.contents[digest]) == size
        target.write_bytes(self.contents[digest])


class Elsewhere:
    """Another registry."""

    name = "elsewhere/mirror"

    def __init__(self, lists_referrers: bool) -> None:
        self.lists_referrers = lists_referrers
        self.blobs: dict[Digest, bytes] = {}
        self.manifests: dict[str, bytes] = {}

    def has(self, blob: Blob) -> bool:
        return blob.digest in self.blobs

    def upload(self, blob: Blob, path: Path) -> bool:
        self.blobs[blob.digest] = path.read_bytes()
        assert (Digest.of(self.blobs[blob.digest]), len(self.blobs[blob.digest])) == (blob.digest, blob.size)
        return True

    def put_manifest(self, target: str, media_type: str, data: bytes) -> bool:
        del media_type
        self.manifests[target] = data
        return self.lists_referrers

    def tagged(self, tag: str) -> tuple[str, bytes]:
        if tag not in self.manifests:
            raise EdgeError("artifact.not-found", f"{tag} is not there")
        return INDEX_TYPE, self.manifests[tag]


def copy(home: Home, target: Elsewhere) -> dict[str, Any]:
    return copy_deltas(cast(RegistryClient, home), "m", 2, cast(RegistryImage, target), QuietReporter())


def test_a_registry_that_lists_referrers_gets_artifacts_and_no_tag() -> None:
    home, target = Home(b"one", b"other"), Elsewhere(lists_referrers=True)
    result = copy(home, target)
    assert result == {"deltas": [str(digest) for digest in home.contents], "bytes_sent": 10, "fallback_tag": ""}
    assert target.blobs == {Digest.of(EMPTY): EMPTY} | home.contents
    assert target.manifests == {str(Digest.of(data)): data for data in home.manifests}


def test_a_registry_that_does_not_gets_one_index_of_all_of_them() -> None:
    home, target = Home(b"one", b"other"), Elsewhere(lists_referrers=False)
    assert copy(home, target)["fallback_tag"] == TAG
    index = json.loads(target.manifests[TAG])
    assert (index["schemaVersion"], index["mediaType"]) == (2, INDEX_TYPE)
    assert [item["digest"] for item in index["manifests"]] == [str(Digest.of(data)) for data in home.manifests]
    for item, data in zip(index["manifests"], home.manifests, strict=True):
        assert (item["artifactType"], item["size"]) == (DELTA_ARTIFACT_TYPE, len(data))
        assert item["annotations"] == json.loads(data)["annotations"]


def test_what_others_put_under_the_tag_stays_there() -> None:
    home, target = Home(b"one"), Elsewhere(lists_referrers=False)
    signature = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": f"sha256:{'5' * 64}", "size": 9}
    target.manifests[TAG] = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [signature]}).encode()
    copy(home, target)
    listed = json.loads(target.manifests[TAG])["manifests"]
    assert listed[0] == signature
    assert listed[1]["digest"] == str(Digest.of(home.manifests[0]))


def test_copying_again_reads_and_sends_nothing() -> None:
    home, target = Home(b"one", b"other"), Elsewhere(lists_referrers=False)
    copy(home, target)
    before = dict(target.manifests)
    home.read.clear()
    assert copy(home, target)["bytes_sent"] == 0
    assert home.read == []
    assert target.manifests == before


@pytest.mark.parametrize("content", [b'{"manifests": 5}', b'{"manifests": ["text"]}', b'{"layers": []}'])
def test_a_tag_that_names_no_index_is_left_alone_and_told(content: bytes) -> None:
    target = Elsewhere(lists_referrers=False)
    target.manifests[TAG] = content
    with pytest.raises(EdgeError) as caught:
        copy(Home(b"one"), target)
    assert caught.value.code == "artifact.manifest-invalid"
    assert TAG in caught.value.detail
    assert target.manifests[TAG] == content
