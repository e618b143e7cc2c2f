"""Those who sign: the packager refuses to take into its hands what devices would refuse, and writes what they read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_contract.deployment import Artifact
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import dump
from edge_contract.manifest import INDEX_TYPE, MANIFEST_TYPE
from packager.golden import from_safetensors, load_tensors
from packager.layout import Layout, LayoutWriter
from packager.spec import Flags
from packager.specload import load_spec
from packager.tufmake import NewTarget
from tests.contract.reading import Vector, read
from tests.contract.test_verifier import name_of
from tests.unit.packager.support import write_model

NOTES = {"io.lighterman.model": "digits", "org.opencontainers.image.version": "1"}
PLATFORM = {"architecture": "amd64", "os": "linux"}


def base_of(kind: str) -> Any:
    return next(vector.value for vector in read(kind) if vector.is_valid)


class Hand:
    """Writes a layout with one document of the test's choice in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer = LayoutWriter(folder)

    def blob(self, data: bytes) -> dict[str, Any]:
        digest, size = self.writer.add_bytes(data)
        return {"digest": str(digest), "size": size}

    def index_of(self, manifest: bytes) -> bytes:
        entry = {"mediaType": MANIFEST_TYPE, "platform": PLATFORM} | self.blob(manifest)
        return dump({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry], "annotations": NOTES})

    def verdict(self, index: bytes) -> str:
        """Code with which the packager refuses the layout, or `valid`."""
        self.writer.finish(index, "1", "digits")
        try:
            Layout(self.folder)
        except EdgeError as error:
            return error.code
        return "valid"


@pytest.mark.parametrize("vector", [*read("index"), *read("json")], ids=name_of)
def test_an_index_is_read_before_anything_is_signed(tmp_path: Path, vector: Vector) -> None:
    # A good index gets as far as its manifests, which these vectors do not bring along.
    expected = "artifact.not-found" if vector.is_valid else vector.expect
    assert Hand(tmp_path).verdict(vector.data) == expected


@pytest.mark.parametrize("vector", [*read("manifest"), *read("json")], ids=name_of)
def test_a_manifest_is_read_before_anything_is_signed(tmp_path: Path, vector: Vector) -> None:
    hand = Hand(tmp_path)
    expected = vector.expect
    if vector.is_valid:
        # Good ones get as far as their runtime descriptor, or are not those of this index.
        expected = "artifact.not-found" if vector.value.get("annotations") else "artifact.manifest-invalid"
    assert hand.verdict(hand.index_of(vector.data)) == expected


@pytest.mark.parametrize("vector", [*read("runtime"), *read("json")], ids=name_of)
def test_a_runtime_descriptor_is_read_before_anything_is_signed(tmp_path: Path, vector: Vector) -> None:
    hand = Hand(tmp_path)
    manifest = base_of("manifest")
    manifest["layers"][1] |= hand.blob(vector.data)
    assert hand.verdict(hand.index_of(dump(manifest))) == vector.expect


@pytest.mark.parametrize("vector", read("path"), ids=name_of)
def test_paths_of_a_description(tmp_path: Path, vector: Vector) -> None:
    write_model(tmp_path)
    file = tmp_path / "lighterman.toml"
    written = json.dumps(vector.value) if isinstance(vector.value, str | int) else '""'
    file.write_text(f'[model]\nname = "m"\n[members.m]\nfile = "model.onnx"\npath = {written}\n', encoding="utf-8")
    if vector.is_valid:
        assert load_spec(file, Flags()).members[0].entry.path == vector.value
        return
    with pytest.raises(EdgeError) as caught:
        load_spec(file, Flags())
    # TOML itself has no null and no numbers for texts.
    assert caught.value.code == (vector.expect if isinstance(vector.value, str | None) else "config.invalid")


@pytest.mark.parametrize("vector", [item for item in read("model-name") if isinstance(item.value, str)], ids=name_of)
def test_names_of_a_description(tmp_path: Path, vector: Vector) -> None:
    write_model(tmp_path)
    file = tmp_path / "lighterman.toml"
    name = json.dumps(vector.value)
    file.write_text(f'[model]\nname = {name}\n[members.m]\nfile = "model.onnx"\n', encoding="utf-8")
    if vector.is_valid:
        assert load_spec(file, Flags()).name == vector.value
        return
    with pytest.raises(EdgeError) as caught:
        load_spec(file, Flags())
    assert caught.value.code == vector.expect


@pytest.mark.parametrize("vector", [item for item in read("platform-name") if item.value], ids=name_of)
def test_platforms_of_flags(tmp_path: Path, vector: Vector) -> None:
    flags = Flags(name="m", members=(("m", write_model(tmp_path)),), platforms=(vector.value,))
    if vector.is_valid:
        assert load_spec(None, flags).platforms == (vector.value,)
        return
    with pytest.raises(EdgeError) as caught:
        load_spec(None, flags)
    assert caught.value.code == vector.expect


@pytest.mark.parametrize("vector", read("safetensors"), ids=name_of)
def test_golden_files(tmp_path: Path, vector: Vector) -> None:
    path = tmp_path / "golden.safetensors"
    path.write_bytes(vector.data)
    if vector.is_valid:
        assert load_tensors(path).keys() == from_safetensors(vector.data).keys()
        return
    with pytest.raises(EdgeError) as caught:
        load_tensors(path)
    assert caught.value.code == "artifact.golden-invalid"


@pytest.mark.parametrize("vector", [item for item in read("artifact") if item.is_valid], ids=name_of)
def test_what_is_signed_of_a_bundle_is_what_devices_read(vector: Vector) -> None:
    target = NewTarget(Digest.from_hex("a" * 64), 700, Artifact.from_json(vector.value))
    assert target.path == f"digits/2/{'a' * 64}.json"
    written = target.to_file().to_dict()
    assert written["length"] == 700
    assert written["hashes"] == {"sha256": "a" * 64}
    assert Artifact.from_json(written["custom"]) == target.artifact
