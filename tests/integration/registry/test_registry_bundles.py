"""From pushed and signed bundles to what the director tells a device."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from edge_contract.deployment import Artifact, bundle_repository
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.manifest import (
    BUNDLE_ARTIFACT_TYPE,
    CONFIG_TYPE,
    FILEPATH,
    INDEX_TYPE,
    MANIFEST_TYPE,
    MODEL,
    ROLE,
    VERSION,
    WEIGHT_CONFIG_RAW,
    WEIGHT_RAW,
    Descriptor,
    Index,
    Manifest,
    Role,
)
from tests.integration.registry.running import Registry, error_of
from tests.support.author import Author
from tests.unit.cloud.making import tiny_onnx

PLATFORMS = ("linux/amd64", "linux/arm64")
REPOSITORY = bundle_repository("digits")


class Publisher:
    """Pushes and signs bundles as the packager does."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.client = registry.client()
        self.author = Author(self.client.trust()["online_keys"])
        self.client.submit_roots(
            self.author.signed_root("image").decode(), self.author.signed_root("director").decode()
        )
        self.submit(self.author.first_publish())

    def submit(self, files: dict[str, bytes]) -> None:
        self.client.submit_metadata({name: data.decode() for name, data in files.items()})

    def push(self, version: int, platforms: tuple[str, ...] = PLATFORMS, name: str = "digits") -> Index:
        """Push a manifest for each platform and their index, unsigned."""
        names = {MODEL: name, VERSION: str(version)}
        descriptors = []
        for platform in platforms:
            data = Manifest(
                self.layer(b"{}", CONFIG_TYPE),
                (
                    self.layer(f"{platform} {version}".encode(), WEIGHT_RAW, "model.onnx", Role.MODEL),
                    self.layer(b'{"schema": "x"}', WEIGHT_CONFIG_RAW, "lighterman/runtime.json", Role.RUNTIME),
                ),
                names,
            ).to_bytes()
            digest = self.client.put_manifest(REPOSITORY, str(Digest.of(data)), MANIFEST_TYPE, data)
            descriptors.append(Descriptor(MANIFEST_TYPE, digest, len(data), {}, platform, BUNDLE_ARTIFACT_TYPE))
        index = Index(tuple(descriptors), names)
        self.client.put_manifest(REPOSITORY, str(version), INDEX_TYPE, index.to_bytes())
        return index

    def layer(self, data: bytes, media_type: str, path: str = "", role: str = "") -> Descriptor:
        annotations = {FILEPATH: path, ROLE: role} if path else {}
        return Descriptor(media_type, self.client.upload_bytes(REPOSITORY, data), len(data), annotations)

    def sign(self, version: int, index: Index, **changes: Any) -> None:
        """Sign every manifest of an index, saying the truth unless changed."""
        rows = []
        for item in index.manifests:
            said: dict[str, Any] = {
                "model": "digits",
                "version": version,
                "platform": str(item.platform),
                "release_counter": version,
            }
            artifact = Artifact(**(said | {"repository": REPOSITORY} | changes))
            rows.append((item.digest, item.size, artifact))
        self.submit(self.author.publish(rows))


@pytest.fixture
def publisher(local_registry: Registry) -> Publisher:
    local_registry.clock.now_ms = int(datetime.now(UTC).timestamp() * 1000)
    local_registry.register("digits")
    return Publisher(local_registry)


def digest_of(index: Index) -> Digest:
    return Digest.of(index.to_bytes())


def test_a_signed_bundle_is_entered(publisher: Publisher) -> None:
    index = publisher.push(1)
    publisher.sign(1, index, hardware_ids=("board-7",))
    entered = publisher.client.register_bundle("digits", 1, digest_of(index))
    assert entered["index"] == str(digest_of(index))
    assert [(item["platform"], item["digest"], item["size"]) for item in entered["manifests"]] == [
        (item.platform, str(item.digest), item.size) for item in index.manifests
    ]
    assert publisher.client.register_bundle("digits", 1, digest_of(index)) == entered
    assert publisher.client.bundles("digits", 1) == entered["manifests"]
    assert entered["manifests"][0]["hardware_ids"] == ["board-7"]


def test_an_unsigned_bundle_is_refused(publisher: Publisher) -> None:
    index = publisher.push(1)
    error = error_of(publisher.client.register_bundle, "digits", 1, digest_of(index))
    assert error.code == "trust.target-unknown"
    publisher.sign(1, Index(index.manifests[:1], index.annotations))
    error = error_of(publisher.client.register_bundle, "digits", 1, digest_of(index))
    assert error.code == "trust.target-unknown"
    assert publisher.client.bundles("digits", 1) == []


@pytest.mark.parametrize("change", [{"platform": "linux/arm/v7"}, {"repository": "bundles/other"}])
def test_a_bundle_of_which_something_else_was_signed_is_refused(publisher: Publisher, change: dict[str, str]) -> None:
    index = publisher.push(1)
    publisher.sign(1, index, **change)
    error = error_of(publisher.client.register_bundle, "digits", 1, digest_of(index))
    assert error.code == "trust.metadata-mismatch"


def test_a_bundle_of_another_version_or_model_is_refused(publisher: Publisher) -> None:
    publisher.registry.register("digits")
    first = publisher.push(1)
    publisher.sign(1, first)
    error = error_of(publisher.client.register_bundle, "digits", 2, digest_of(first))
    assert error.code == "artifact.manifest-invalid"
    other = publisher.push(1, name="faces")
    error = error_of(publisher.client.register_bundle, "digits", 1, digest_of(other))
    assert error.code == "artifact.manifest-invalid"


def test_an_index_that_was_not_pushed_is_not_found(publisher: Publisher) -> None:
    error = error_of(publisher.client.register_bundle, "digits", 1, Digest.of(b"nothing"))
    assert error.code == "artifact.not-found"
    answer = publisher.registry.request("POST", "/api/v1/models/digits/versions/1/bundles", json={"index": "latest"})
    assert answer.json()["code"] == "artifact.digest-invalid"


def test_the_director_tells_a_device_what_was_deployed_and_follows_changes(publisher: Publisher) -> None:
    registry, client = publisher.registry, publisher.client
    registry.register("digits")
    for version in (1, 2):
        index = publisher.push(version)
        publisher.sign(version, index)
        client.register_bundle("digits", version, digest_of(index))
    device_token = registry.enrol("cam-1", site="north")
    registry.enrol("cam-2")
    device = registry.client(device_token)

    def told() -> tuple[int, dict[str, Any]]:
        timestamp = json.loads(device.tuf_file("director/cam-1/timestamp.json"))["signed"]
        number = timestamp["meta"]["snapshot.json"]["version"]
        snapshot = json.loads(device.tuf_file(f"director/cam-1/{number}.snapshot.json"))["signed"]
        number = snapshot["meta"]["targets.json"]["version"]
        targets = json.loads(device.tuf_file(f"director/cam-1/{number}.targets.json"))["signed"]
        assert targets["lighterman"] == {"device": "cam-1"}
        return number, targets["targets"]

    first_version, nothing = told()
    assert nothing == {}
    deployment = client.create_deployment("digits", 1, "tags.site = 'north'", policy={"sampling_ratio": 0.5})["id"]
    second_version, one = told()
    assert second_version == first_version + 1
    ((path, target),) = one.items()
    manifest = client.device("cam-1")["desired"]["digits"]["manifest"]
    assert path == f"digits/1/{Digest(manifest).hex}.json"
    assert target["hashes"] == {"sha256": Digest(manifest).hex}
    (entry,) = target["custom"]["assignments"]
    assert (entry["deployment"], entry["module"]) == (deployment, "digits")
    assert entry["policy"] == {"allow_release_rollback": False, "sampling_ppm": 500_000}
    assert told()[0] == second_version, "nothing changed, so nothing is signed anew"
    client.update_deployment(deployment, {"version": 2})
    third_version, two = told()
    assert third_version == second_version + 1
    assert [name.split("/")[1] for name in two] == ["2"]
    client.set_tags("cam-1", {})
    assert told() == (third_version + 1, {})
    assert error_of(device.tuf_file, "director/cam-2/timestamp.json").code == "cloud.forbidden"


def test_a_deleted_version_frees_what_nothing_else_uses(publisher: Publisher) -> None:
    client, blobs = publisher.client, publisher.registry.services.blobs
    publisher.registry.register("digits")
    model_file = Digest(client.get_version("digits", 1)["files"][0]["digest"])
    indexes = {}
    for version in (1, 2):
        indexes[version] = publisher.push(version)
        publisher.sign(version, indexes[version])
        client.register_bundle("digits", version, digest_of(indexes[version]))
    weights = {version: Digest.of(f"linux/arm64 {version}".encode()) for version in (1, 2)}
    client.delete_version("digits", 1)
    assert blobs.in_repository(REPOSITORY, weights[1]) is None
    assert not client.has_manifest(REPOSITORY, "1")
    assert not client.has_manifest(REPOSITORY, str(indexes[1].manifests[0].digest))
    # The second version has the same model file and the same configuration.
    assert blobs.in_repository("models/digits", model_file)
    assert client.get_manifest(REPOSITORY, "2") == indexes[2].to_bytes()
    for item in indexes[2].manifests:
        for layer in Manifest.parse(client.get_manifest(REPOSITORY, str(item.digest))).blobs:
            assert blobs.in_repository(REPOSITORY, layer.digest) == layer.size
    client.delete_model("digits")
    assert blobs.exists(model_file) is None
    assert blobs.exists(weights[2]) is None


def test_a_version_is_never_without_its_blobs_however_deletion_and_registration_race(
    publisher: Publisher,
) -> None:
    client, registry = publisher.client, publisher.registry
    data = tiny_onnx()
    file = {"path": "model.onnx", "digest": str(Digest.of(data)), "size": len(data)}

    def register(_: int) -> str:
        client.upload_bytes("models/digits", data)
        try:
            return str(client.register_version("digits", {"format": "onnx", "files": [file]})["version"])
        except EdgeError as error:
            return error.code

    def delete(number: int) -> str:
        try:
            client.delete_version("digits", number)
        except EdgeError as error:
            return error.code
        return "deleted"

    with ThreadPoolExecutor(8) as racers:
        deleting = [racers.submit(delete, number) for number in range(1, 21)]
        registering = [racers.submit(register, number) for number in range(20)]
        results = [item.result() for item in (*deleting, *registering)]
    assert {text for text in results if not text.isdecimal()} <= {"deleted", "cloud.not-found", "artifact.not-found"}
    left = client.versions("digits", limit=100)["items"]
    assert (registry.services.blobs.exists(Digest.of(data)) is not None) or not left
