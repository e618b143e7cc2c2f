"""A delta goes from the packager to the metadata and the reach of devices that can use it, and away with versions."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from edge_contract.delta import EMPTY, Delta, delta_manifest
from edge_contract.deployment import read_director_custom
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import parse_object
from edge_contract.manifest import INDEX_TYPE, MANIFEST_TYPE, Descriptor, Index
from edge_contract.phases import Phase
from edge_contract.twin import Report, ReportedModule
from tests.integration.registry.running import Registry
from tests.integration.registry.test_registry_bundles import REPOSITORY, Publisher, digest_of
from tests.support.devicekey import TestKey
from tests.unit.cloud.making import tiny_onnx

ARM, X86 = "linux/arm64", "linux/amd64"


def _file(version: int) -> bytes:
    """The model file of a version: all are valid, none is like another."""
    return tiny_onnx() + bytes([0x12, 4]) + f"v{version:03}".encode()


class Line:
    """Three versions of a model, pushed, signed and registered; devices that run them."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        registry.clock.now_ms = int(datetime.now(UTC).timestamp() * 1000)
        publisher = Publisher(registry)
        self.client = publisher.client
        self.client.create_model("digits")
        self.indexes: dict[int, Index] = {}
        for version in (1, 2, 3):
            data = _file(version)
            digest = self.client.upload_bytes("models/digits", data)
            file = {"path": "model.onnx", "digest": str(digest), "size": len(data)}
            self.client.register_version("digits", {"format": "onnx", "files": [file]})
            index = self.indexes[version] = publisher.push(version)
            publisher.sign(version, index)
            self.client.register_bundle("digits", version, digest_of(index))
        self.numbers = 0

    def manifest(self, version: int, platform: str = ARM) -> Digest:
        return next(item.digest for item in self.indexes[version].manifests if item.platform == platform)

    def device(self, name: str, live: Digest | None, fallback: Digest | None = None, platform: str = ARM) -> None:
        """Enrol a device that reports what it runs."""
        self.registry.enrol(name, platform)
        self.numbers += 1
        module = ReportedModule(Phase.IDLE, live=live, answering=live, fallback=fallback)
        sent = Report(name, "00000000000000aa", self.numbers, 0, platform, "1.0", modules={"digits": module})
        assert self.registry.report(sent).code is None

    def delta(self, base: int, new: int, content: bytes = b"delta") -> Delta:
        """What a delta between two versions would be."""
        one, other = _file(base), _file(new)
        return Delta(
            Digest.of(one), len(one), Digest.of(other), len(other), Digest.of(content), len(content), 9_000_000
        )

    def push(self, delta: Delta, version: int, content: bytes = b"delta") -> Digest:
        """Push a delta's blob and artifact."""
        self.client.upload_bytes(REPOSITORY, content)
        self.client.upload_bytes(REPOSITORY, EMPTY)
        index = self.indexes[version].to_bytes()
        data = delta_manifest(delta, Descriptor(INDEX_TYPE, Digest.of(index), len(index)))
        return self.client.put_manifest(REPOSITORY, str(Digest.of(data)), MANIFEST_TYPE, data)

    def register(self, base: int, new: int, content: bytes = b"delta") -> Delta:
        """Push and register a delta."""
        delta = self.delta(base, new, content)
        self.client.register_delta("digits", new, self.push(delta, new, content))
        return delta

    def deltas_told(self, device: str) -> tuple[Delta, ...]:
        """What the director's metadata tell a device."""
        version = self.registry.services.director.version(device)
        data = self.registry.services.director.metadata(device, f"{version}.targets.json")
        targets = parse_object(data, "targets", 1_000_000)["signed"]["targets"]
        ((path, target),) = targets.items()
        manifest = Digest.from_hex(path.rpartition("/")[2].removesuffix(".json"))
        (assignment,) = read_director_custom(target["custom"], manifest, target["length"])
        return assignment.deltas

    def may_read(self, device: str, digest: Digest) -> int:
        token = TestKey.of(device).token(device, self.registry.clock.now_ms)
        return self.registry.request("GET", f"/v2/{REPOSITORY}/blobs/{digest}", token).status_code


@pytest.fixture
def line(registry: Registry) -> Line:
    return Line(registry)


@pytest.fixture
def local_line(local_registry: Registry) -> Line:
    return Line(local_registry)


def test_a_device_is_told_of_deltas_to_what_it_is_assigned_and_may_read_them(line: Line) -> None:
    line.device("cam-1", line.manifest(1))
    line.device("cam-2", line.manifest(1))
    line.client.create_deployment("digits", 2, "deviceId = 'cam-1'")
    before = line.registry.services.director.version("cam-1")
    assert line.deltas_told("cam-1") == ()
    delta = line.register(1, 2)
    assert line.deltas_told("cam-1") == (delta,)
    assert line.registry.services.director.version("cam-1") > before
    assert line.may_read("cam-1", delta.digest) == 200
    assert line.may_read("cam-2", delta.digest) == 403
    (listed,) = line.client.deltas("digits", 2)
    assert Delta.from_json({key: value for key, value in listed.items() if key != "manifest"}) == delta


def test_registering_a_delta_again_changes_nothing_and_a_better_one_takes_its_place(line: Line) -> None:
    first = line.register(1, 2)
    assert line.register(1, 2) == first
    better = line.register(1, 2, b"less")
    assert [item["digest"] for item in line.client.deltas("digits", 2)] == [str(better.digest)]
    assert line.client.has_blob(REPOSITORY, better.digest)
    assert not line.client.has_blob(REPOSITORY, first.digest)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"new": Digest.of(b"elsewhere")}, "artifact.manifest-invalid"),
        ({"new_bytes": 10_000}, "artifact.manifest-invalid"),
        ({"base": Digest.of(b"elsewhere")}, "cloud.not-found"),
        ({"base_bytes": 3}, "artifact.size-mismatch"),
    ],
)
def test_a_delta_that_says_something_else_than_the_registry_knows_is_refused(
    local_line: Line, change: dict[str, object], code: str
) -> None:
    delta = replace(local_line.delta(1, 2), **change)  # type: ignore[arg-type]
    content = _file(7)
    delta = replace(delta, digest=Digest.of(content[:20]), bytes=20)
    manifest = local_line.push(delta, 2, content[:20])
    with pytest.raises(EdgeError) as caught:
        local_line.client.register_delta("digits", 2, manifest)
    assert caught.value.code == code
    assert local_line.client.deltas("digits", 2) == []


def test_a_delta_of_another_version_or_no_delta_at_all_is_refused(local_line: Line) -> None:
    manifest = local_line.push(local_line.delta(1, 2), 2)
    with pytest.raises(EdgeError, match="no bundle of digits version 3"):
        local_line.client.register_delta("digits", 3, manifest)
    with pytest.raises(EdgeError, match="delta manifest"):
        local_line.client.register_delta("digits", 2, local_line.manifest(2))


def test_the_fleet_is_counted_by_what_each_device_could_start_from(line: Line) -> None:
    line.device("a-1", line.manifest(1))
    line.device("a-2", line.manifest(1))
    line.device("a-3", line.manifest(2))
    line.device("a-4", Digest.of(b"made elsewhere"), fallback=line.manifest(2))
    line.device("a-5", line.manifest(3))
    line.device("a-6", None)
    line.device("b-1", line.manifest(1, X86), platform=X86)
    line.registry.enrol("c-1", "linux/arm/v7")
    found = line.client.bases("digits", 3)
    # One has not reported the module; for the platform of another there is no bundle, so it gets nothing.
    assert (found["devices"], found["current"], found["without"], found["unserved"]) == (8, 1, 1, 1)
    told = [(item["version"], item["platform"], item["live"], item["fallback"]) for item in found["bases"]]
    assert told[0][2] + told[0][3] == 2
    assert sorted(told) == [(1, X86, 1, 0), (1, ARM, 2, 0), (2, ARM, 1, 1)]
    assert found["bases"][0]["new_manifest"] == str(line.manifest(3))
    some = line.client.bases("digits", 3, "deviceId = 'a-3'")
    assert [item["devices"] for item in some["bases"]] == [1]
    assert line.client.bases("digits", 3, module="other")["bases"] == []


def test_deltas_go_with_the_version_they_make_and_with_the_one_they_start_from(line: Line) -> None:
    to_two, to_three = line.register(1, 2, b"one"), line.register(2, 3, b"two")
    line.client.delete_version("digits", 2)
    assert line.client.deltas("digits", 3) == []
    for delta in (to_two, to_three):
        assert not line.client.has_blob(REPOSITORY, delta.digest)


def test_a_delta_can_be_forgotten(local_line: Line) -> None:
    delta = local_line.register(1, 2)
    local_line.client.delete_delta("digits", 2, delta.digest)
    assert local_line.client.deltas("digits", 2) == []
    assert not local_line.client.has_blob(REPOSITORY, delta.digest)
    with pytest.raises(EdgeError) as caught:
        local_line.client.delete_delta("digits", 2, delta.digest)
    assert caught.value.code == "cloud.not-found"
