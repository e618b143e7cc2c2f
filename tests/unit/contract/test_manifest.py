"""Manifests and indexes: what a device counts on is required, everything else is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from edge_contract.digest import Digest
from edge_contract.errors import ContractError
from edge_contract.manifest import (
    CODE_RAW,
    CODE_TAR,
    CONFIG_TYPE,
    DATASET_RAW,
    FILEPATH,
    INDEX_TYPE,
    MANIFEST_TYPE,
    ROLE,
    WEIGHT_CONFIG_RAW,
    WEIGHT_RAW,
    Descriptor,
    Index,
    Manifest,
    Role,
    plan_bytes,
)
from edge_contract.runtime import RUNTIME_PATH
from tests.unit.contract import strategies as some


def layer(name: str, path: str, role: str = Role.MODEL, media_type: str = WEIGHT_RAW, size: int = 3) -> Descriptor:
    return Descriptor(media_type, Digest.of(name.encode()), size, {ROLE: role, FILEPATH: path})


CONFIG = Descriptor(CONFIG_TYPE, Digest.of(b"config"), 2)
RUNTIME = layer("runtime", RUNTIME_PATH, Role.RUNTIME, WEIGHT_CONFIG_RAW)
GOLDEN = layer("golden", "lighterman/golden.safetensors", Role.GOLDEN, DATASET_RAW)
GOOD = Manifest(CONFIG, (RUNTIME, layer("weights", "model.onnx"), GOLDEN))


def refusal(manifest: Manifest) -> str:
    """Code that the written manifest is refused with."""
    with pytest.raises(ContractError) as caught:
        Manifest.parse(manifest.to_bytes())
    return caught.value.code


def test_a_good_one_passes() -> None:
    assert Manifest.parse(GOOD.to_bytes()) == GOOD


@pytest.mark.parametrize(
    ("layers", "code"),
    [
        ((), "artifact.manifest-invalid"),
        ((layer("weights", "model.onnx"),), "artifact.manifest-invalid"),
        ((RUNTIME, layer("other", "other.json", Role.RUNTIME)), "artifact.manifest-invalid"),
        ((RUNTIME, GOLDEN, layer("other", "g2", Role.GOLDEN, DATASET_RAW)), "artifact.manifest-invalid"),
        ((RUNTIME, layer("a", "x", "poem")), "artifact.manifest-invalid"),
        ((RUNTIME, layer("a", "x", media_type="application/zip")), "artifact.layer-unsupported"),
        ((RUNTIME, layer("a", "x"), layer("b", "x")), "artifact.manifest-invalid"),
        ((RUNTIME, layer("a", "x"), layer("b", "X")), "artifact.manifest-invalid"),
        ((RUNTIME, layer("a", "x"), layer("b", "x/y")), "artifact.manifest-invalid"),
        ((RUNTIME, layer("b", "X/y"), layer("a", "x")), "artifact.manifest-invalid"),
        ((RUNTIME, layer("a", "code", Role.CODE, CODE_TAR), layer("b", "code/score.py")), "artifact.manifest-invalid"),
        ((RUNTIME, layer("a", "lighterman", Role.CODE, CODE_TAR)), "artifact.manifest-invalid"),
        ((RUNTIME, layer("a", "../x")), "artifact.path-unsafe"),
        ((RUNTIME, layer("a", "")), "artifact.path-unsafe"),
    ],
)
def test_layers_that_no_device_could_unpack_are_refused(layers: tuple[Descriptor, ...], code: str) -> None:
    assert refusal(Manifest(CONFIG, layers)) == code


def test_the_runtime_descriptor_is_one_file_at_its_place() -> None:
    """The agent finds it by its role and the worker by its path: they must not find two different files."""
    for other in (
        layer("runtime", "elsewhere.json", Role.RUNTIME, WEIGHT_CONFIG_RAW),
        layer("runtime", RUNTIME_PATH, Role.RUNTIME, CODE_TAR),
    ):
        assert refusal(Manifest(CONFIG, (other,))) == "artifact.manifest-invalid"
    impostor = layer("impostor", RUNTIME_PATH, Role.DOC, WEIGHT_RAW)
    moved = layer("runtime", "elsewhere.json", Role.RUNTIME, WEIGHT_CONFIG_RAW)
    assert refusal(Manifest(CONFIG, (moved, impostor))) == "artifact.manifest-invalid"


def test_golden_vectors_are_one_file() -> None:
    golden = layer("golden", "golden", Role.GOLDEN, CODE_TAR)
    assert refusal(Manifest(CONFIG, (RUNTIME, golden))) == "artifact.manifest-invalid"


def test_one_digest_has_one_size() -> None:
    """Whoever looks at the other mention would expect another number of bytes for the same blob."""
    twice = (RUNTIME, layer("a", "x", size=3), layer("a", "y", media_type=CODE_RAW, role=Role.CODE, size=4))
    assert refusal(Manifest(CONFIG, twice)) == "artifact.manifest-invalid"
    config = replace(CONFIG, digest=RUNTIME.digest, size=RUNTIME.size + 1)
    assert refusal(Manifest(config, (RUNTIME,))) == "artifact.manifest-invalid"
    same = Manifest(CONFIG, (RUNTIME, layer("a", "x"), layer("a", "y")))
    assert len(Manifest.parse(same.to_bytes()).blobs) == 3


@given(some.manifests())
@settings(max_examples=30, deadline=None)
def test_the_plan_counts_each_blob_once(manifest: Manifest) -> None:
    assert plan_bytes(manifest.blobs) == sum(blob.size for blob in manifest.blobs)
    assert len({blob.digest for blob in manifest.blobs}) == len(manifest.blobs)


def _changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(GOOD.to_bytes())
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda d: d.update(schemaVersion=1), "artifact.manifest-invalid"),
        (lambda d: d.update(schemaVersion=True), "artifact.manifest-invalid"),
        (lambda d: d.update(mediaType="application/json"), "artifact.manifest-invalid"),
        (lambda d: d.update(artifactType="application/other"), "artifact.manifest-invalid"),
        (lambda d: d.pop("layers"), "artifact.manifest-invalid"),
        (lambda d: d.update(layers={}), "artifact.manifest-invalid"),
        (lambda d: d.update(layers=[7]), "artifact.manifest-invalid"),
        (lambda d: d.update(layers=d["layers"] * 200), "artifact.manifest-invalid"),
        (lambda d: d.update(extra=1), "artifact.unknown-field"),
        (lambda d: d["config"].update(urls=["http://x"]), "artifact.unknown-field"),
        (lambda d: d["config"].update(size=-1), "artifact.manifest-invalid"),
        (lambda d: d["config"].update(size=1.5), "artifact.manifest-invalid"),
        (lambda d: d["config"].update(size=2**40), "artifact.manifest-invalid"),
        (lambda d: d["config"].update(digest="sha256:x"), "artifact.digest-invalid"),
        (lambda d: d["config"].update(annotations={"a": 1}), "artifact.manifest-invalid"),
        (lambda d: d.update(annotations={str(n): "x" for n in range(65)}), "artifact.manifest-invalid"),
        (lambda d: d.update(annotations=None), "artifact.manifest-invalid"),
        (lambda d: d.update(config=None), "artifact.manifest-invalid"),
    ],
)
def test_documents_that_are_not_exactly_a_bundle_are_refused(
    change: Callable[[dict[str, Any]], object], code: str
) -> None:
    with pytest.raises(ContractError) as caught:
        Manifest.parse(_changed(change))
    assert caught.value.code == code


AMD = Descriptor(MANIFEST_TYPE, Digest.of(b"amd"), 5, {}, "linux/amd64")
ARM = Descriptor(MANIFEST_TYPE, Digest.of(b"arm"), 5, {}, "linux/arm/v7")


def test_an_index_gives_the_manifest_of_a_platform() -> None:
    index = Index.parse(Index((AMD, ARM)).to_bytes())
    assert index.for_platform("linux/arm/v7") == ARM
    with pytest.raises(ContractError) as caught:
        index.for_platform("linux/arm64")
    assert caught.value.code == "artifact.platform-mismatch"
    assert "linux/amd64" in caught.value.detail


@pytest.mark.parametrize(
    "items", [(), (AMD, replace(ARM, platform="linux/amd64")), (AMD, replace(ARM, media_type=INDEX_TYPE))]
)
def test_an_index_lists_one_manifest_for_each_platform(items: tuple[Descriptor, ...]) -> None:
    with pytest.raises(ContractError) as caught:
        Index.parse(Index(items).to_bytes())
    assert caught.value.code == "artifact.manifest-invalid"


def test_the_variant_that_every_64_bit_arm_has_is_left_out() -> None:
    document = json.loads(Index((AMD,)).to_bytes())
    document["manifests"][0]["platform"] = {"os": "linux", "architecture": "arm64", "variant": "v8"}
    assert Index.parse(json.dumps(document).encode()).manifests[0].platform == "linux/arm64"
