"""A device reads the bundles that are its own, by digest, and nothing else of what the registry holds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from edge_contract.digest import Digest
from edge_contract.manifest import Index, Manifest
from edge_contract.phases import Outcome, Phase
from edge_contract.twin import Report, ReportedDeployment, ReportedModule
from tests.integration.registry.running import Registry
from tests.integration.registry.test_registry_bundles import REPOSITORY, Publisher, digest_of
from tests.support.devicekey import TestKey

ARM = "linux/arm64"


class Shelf:
    """Two versions of a model, each pushed for two platforms, and a device."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        publisher = Publisher(registry)
        self.client = publisher.client
        self.indexes: dict[int, Index] = {}
        registry.register("digits")
        for version in (1, 2):
            index = self.indexes[version] = publisher.push(version)
            publisher.sign(version, index)
            publisher.client.register_bundle("digits", version, digest_of(index))
        registry.enrol("cam-1", ARM)
        self.reports = 0

    def manifest(self, version: int, platform: str = ARM) -> Digest:
        """The manifest of a version for a platform."""
        return next(item.digest for item in self.indexes[version].manifests if item.platform == platform)

    def weights(self, version: int, platform: str = ARM) -> Digest:
        """The blob that only this bundle has."""
        data = self.client.get_manifest(REPOSITORY, str(self.manifest(version, platform)))
        return Manifest.parse(data).layers[0].digest

    def status(self, path: str, method: str = "GET", **headers: str) -> int:
        """What the device is answered."""
        token = TestKey.of("cam-1").token("cam-1", self.registry.clock.now_ms)
        return self.registry.request(method, f"/v2/{REPOSITORY}{path}", token, headers=headers).status_code

    def may_read(self, version: int, platform: str = ARM) -> tuple[int, int]:
        """The answers for manifest and weights of a bundle."""
        blob = self.status(f"/blobs/{self.weights(version, platform)}")
        return self.status(f"/manifests/{self.manifest(version, platform)}"), blob

    def report(self, live: Digest | None, **facts: Any) -> None:
        """Have the device report what it runs."""
        self.reports += 1
        module = ReportedModule(Phase.IDLE, live=live, answering=live, **facts)
        boot = "00000000000000aa"
        sent = Report("cam-1", boot, self.reports, 0, ARM, "1.0", modules={"digits": module})
        assert self.registry.report(sent).code is None


@pytest.fixture
def shelf(local_registry: Registry) -> Shelf:
    local_registry.clock.now_ms = int(datetime.now(UTC).timestamp() * 1000)
    local_registry.register("digits")
    return Shelf(local_registry)


def test_a_device_reads_what_is_assigned_to_it_and_nothing_else(shelf: Shelf) -> None:
    assert shelf.may_read(1) == (403, 403)
    shelf.client.create_deployment("digits", 1, "*")
    assert shelf.may_read(1) == (200, 200)
    assert shelf.status(f"/manifests/{digest_of(shelf.indexes[1])}") == 200
    assert shelf.may_read(2) == (403, 403)
    assert shelf.may_read(1, "linux/amd64") == (403, 403)
    assert shelf.status(f"/manifests/{digest_of(shelf.indexes[2])}") == 403
    assert shelf.status(f"/blobs/{Digest.of(b'nowhere')}") == 403


def test_a_blob_of_another_model_is_refused_by_any_path(shelf: Shelf) -> None:
    shelf.client.create_deployment("digits", 1, "*")
    secret = shelf.client.upload_bytes("models/faces", b"somebody's face")
    token = TestKey.of("cam-1").token("cam-1", shelf.registry.clock.now_ms)
    for repository in ("models/faces", REPOSITORY, "models/digits"):
        for method in ("GET", "HEAD"):
            answer = shelf.registry.request(method, f"/v2/{repository}/blobs/{secret}", token)
            assert answer.status_code == 403, repository
    # What is assigned is so in its own repository alone.
    answer = shelf.registry.request("GET", f"/v2/bundles/faces/manifests/{shelf.manifest(1)}", token)
    assert answer.status_code == 403
    assert answer.json()["errors"][0]["detail"] == {"code": "cloud.forbidden"}


def test_a_device_does_not_look_around(shelf: Shelf) -> None:
    shelf.client.create_deployment("digits", 1, "*")
    assert shelf.status("/tags/list") == 403
    assert shelf.status(f"/referrers/{shelf.manifest(1)}") == 403
    assert shelf.status("/manifests/1") == 400, "a tag may move; devices go by digest"
    assert shelf.status("/blobs/uploads/", "POST") == 403
    assert shelf.status(f"/manifests/{shelf.manifest(1)}", "DELETE") == 403


def test_after_it_was_unassigned_a_device_reads_what_it_still_runs(shelf: Shelf) -> None:
    first = shelf.client.create_deployment("digits", 1, "*")["id"]
    done = ReportedDeployment(first, shelf.manifest(1), Outcome.CONFIRMED)
    shelf.report(shelf.manifest(1), deployment=done)
    shelf.client.cancel_deployment(first)
    assert shelf.may_read(1) == (200, 200)
    second = shelf.client.create_deployment("digits", 2, "*")["id"]
    assert (shelf.may_read(1), shelf.may_read(2)) == ((200, 200), (200, 200))
    later = ReportedDeployment(second, shelf.manifest(2), Outcome.CONFIRMED)
    shelf.report(shelf.manifest(2), fallback=shelf.manifest(1), deployment=later)
    assert shelf.may_read(1) == (200, 200), "it may have to roll back"
    shelf.report(shelf.manifest(2), deployment=later)
    assert (shelf.may_read(1), shelf.may_read(2)) == ((403, 403), (200, 200))
    shelf.client.cancel_deployment(second)
    shelf.report(None)
    assert shelf.may_read(2) == (403, 403)


def test_reporting_a_bundle_opens_nothing_that_was_never_assigned(shelf: Shelf) -> None:
    shelf.client.create_deployment("digits", 1, "*")
    stolen = shelf.manifest(2)
    shelf.report(stolen, fallback=stolen, deployment=ReportedDeployment("d1", stolen, Outcome.CONFIRMED))
    assert shelf.may_read(2) == (403, 403)


def test_a_download_that_was_cut_goes_on(shelf: Shelf) -> None:
    shelf.client.create_deployment("digits", 1, "*")
    path = f"/blobs/{shelf.weights(1)}"
    assert shelf.status(path, Range="bytes=3-") == 206
    assert shelf.status(path, "HEAD") == 200
    assert shelf.status(f"/blobs/{shelf.weights(2)}", Range="bytes=3-") == 403


def test_operators_read_everything(shelf: Shelf) -> None:
    assert shelf.client.get_manifest(REPOSITORY, "2") == shelf.indexes[2].to_bytes()
    assert shelf.registry.request("GET", f"/v2/{REPOSITORY}/tags/list").status_code == 200
