"""Bases of images: what is read of a layout, in which forms, and which Python is in there."""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from edge_contract.errors import EdgeError
from packager.iotedge.image_base import BaseImage, LayoutSource, find_layout, read_base
from packager.iotedge.image_python import find_interpreter, parse_interpreter
from packager.iotedge.image_remote import Reference
from tests.support.images import DOCKER_INDEX, PYTHON_ROOT, Layout, base_layout, blob_path, tar_of


def only(source: LayoutSource) -> BaseImage:
    (image,) = read_base(source).values()
    return image


def test_an_image_and_an_index_of_images_are_read(tmp_path: Path) -> None:
    plain = Layout(tmp_path / "plain")
    plain.name(plain.image())
    assert set(read_base(LayoutSource(plain.folder))) == {"linux/amd64"}
    folder = base_layout(tmp_path / "index", "linux/amd64", "linux/arm64/v8", "linux/arm/v7")
    assert set(read_base(LayoutSource(folder))) == {"linux/amd64", "linux/arm64", "linux/arm/v7"}


def test_dockers_forms_are_read_and_come_out_in_ocis(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "base")
    layout.name(layout.index([layout.image(is_docker=True)], DOCKER_INDEX))
    image = only(LayoutSource(layout.folder))
    assert [layer.media_type for layer in image.layers] == ["application/vnd.oci.image.layer.v1.tar+gzip"]
    assert find_interpreter(LayoutSource(layout.folder), image).path == "/usr/bin/python3.11"


def test_what_no_bundle_is_for_is_left_out(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "base")
    odd = [layout.image("windows/amd64"), layout.image("linux/s390x")]
    attestation = {**layout.image("linux/amd64"), "platform": {"os": "unknown", "architecture": "unknown"}}
    layout.name(layout.index([*odd, attestation, layout.image("linux/arm64")]))
    assert set(read_base(LayoutSource(layout.folder))) == {"linux/arm64"}


def test_a_tag_chooses_among_images(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "base")
    layout.name(layout.image("linux/amd64"), "one")
    layout.name(layout.image("linux/arm64"), "two")
    found = find_layout(f"{layout.folder}:two")
    assert found is not None
    assert set(read_base(found)) == {"linux/arm64"}
    with pytest.raises(EdgeError, match="2 images"):
        read_base(LayoutSource(layout.folder))
    with pytest.raises(EdgeError, match="0 images with the tag 'three'"):
        read_base(LayoutSource(layout.folder, "three"))
    assert find_layout(f"{tmp_path}/nothing:1") is None


@pytest.mark.parametrize("what", ["manifest", "config", "layer"])
def test_bytes_that_are_not_what_names_them_are_refused(tmp_path: Path, what: str) -> None:
    layout = Layout(tmp_path / "base")
    entry = layout.image()
    layout.name(entry)
    manifest = json.loads(blob_path(layout.folder, entry["digest"]).read_bytes())
    name = {"manifest": entry, "config": manifest["config"], "layer": manifest["layers"][0]}[what]
    path = blob_path(layout.folder, name["digest"])
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    source = LayoutSource(layout.folder)
    with pytest.raises(EdgeError) as caught:
        find_interpreter(source, only(source))
    assert caught.value.code == "artifact.digest-mismatch"


def test_a_platform_that_an_index_claims_is_the_images_own(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "base")
    liar = {**layout.image("linux/arm64"), "platform": {"os": "linux", "architecture": "amd64"}}
    layout.name(layout.index([liar]))
    with pytest.raises(EdgeError, match="linux/arm64"):
        read_base(LayoutSource(layout.folder))


def interpreter(folder: Path, *layers: dict[str, Any], path: str = "/usr/local/bin:/usr/bin:/bin") -> str:
    layout = Layout(folder)
    settings = {"Env": [f"PATH={path}"]}
    layout.name(layout.image(layers=[tar_of(layer) for layer in layers], settings=settings))
    source = LayoutSource(folder)
    return find_interpreter(source, only(source)).path


def test_the_first_python_on_the_path_counts(tmp_path: Path) -> None:
    local = {"usr/local/bin/python3.12": b"x", "usr/local/bin/python3": "python3.12"}
    assert interpreter(tmp_path / "one", dict(PYTHON_ROOT), local) == "/usr/local/bin/python3.12"
    assert interpreter(tmp_path / "two", dict(PYTHON_ROOT), local, path="/usr/bin") == "/usr/bin/python3.11"
    # A folder that is a link, as /bin is on systems of today.
    assert interpreter(tmp_path / "three", dict(PYTHON_ROOT), path="/bin") == "/usr/bin/python3.11"


def test_a_python_that_a_layer_takes_away_is_gone(tmp_path: Path) -> None:
    gone = {"usr/bin/.wh.python3.11": b""}
    with pytest.raises(EdgeError, match="no python3 on its PATH"):
        interpreter(tmp_path / "base", dict(PYTHON_ROOT), gone)


@pytest.mark.parametrize("path", ["/usr/bin/python3", "python3.11", "/usr/../python3.11", "/usr/bin/python3.10", "/x"])
def test_a_path_that_is_no_python_of_ours_is_refused(path: str) -> None:
    with pytest.raises(EdgeError, match=r"config\.invalid"):
        parse_interpreter(path)


def test_a_layer_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "base")
    layout.name(layout.image(layers=[b"not an archive" * 100]))
    source = LayoutSource(layout.folder)
    with pytest.raises(EdgeError, match=r"artifact\.archive-invalid"):
        find_interpreter(source, only(source))


def test_gzip_in_several_members_is_one_archive(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "base")
    plain = tar_of(PYTHON_ROOT)
    entry = layout.image(layers=[plain], is_docker=True)
    manifest = json.loads(blob_path(layout.folder, entry["digest"]).read_bytes())
    packed = gzip.compress(plain[:700], mtime=0) + gzip.compress(plain[700:], mtime=0)
    manifest["layers"] = [layout.blob(packed, manifest["layers"][0]["mediaType"])]
    layout.name(layout.document(manifest, manifest["mediaType"]))
    source = LayoutSource(layout.folder)
    assert find_interpreter(source, only(source)).minor == 11


@pytest.mark.parametrize(
    ("text", "host", "repository", "target", "is_here"),
    [
        ("registry.example/edge/base:1", "registry.example", "edge/base", "1", False),
        ("docker://registry.example:5000/base", "registry.example:5000", "base", "latest", False),
        ("127.0.0.1:5000/a/b:c", "127.0.0.1:5000", "a/b", "c", True),
        ("localhost/b:c", "localhost", "b", "c", True),
        ("[::1]:5000/b:c", "[::1]:5000", "b", "c", True),
        (f"r.example/b:tag@sha256:{'0' * 64}", "r.example", "b", f"sha256:{'0' * 64}", False),
        ("docker.io/python:3.12-slim", "docker.io", "python", "3.12-slim", False),
    ],
)
def test_references_are_read(text: str, host: str, repository: str, target: str, is_here: bool) -> None:
    found = Reference.parse(text)
    assert (found.host, found.repository, found.target, found.is_here) == (host, repository, target, is_here)


@pytest.mark.parametrize(
    "text", ["python:3.12", "base", "r.example/UPPER:1", "r.example/b:?", "r.example/b@sha256:0", "/b"]
)
def test_what_names_no_registry_is_refused(text: str) -> None:
    with pytest.raises(EdgeError, match=r"config\.invalid"):
        Reference.parse(text)


def test_a_header_that_is_longer_than_any_name_is_refused_before_it_is_read(tmp_path: Path) -> None:
    head = tarfile.TarInfo("././@LongLink")
    head.type, head.size = tarfile.GNUTYPE_LONGNAME, 64 * 1024 * 1024
    bomb = head.tobuf(tarfile.GNU_FORMAT) + bytes(head.size) + bytes(1_024)
    layout = Layout(tmp_path / "base")
    layout.name(layout.image("linux/amd64", [bomb]))
    source = LayoutSource(layout.folder)
    with pytest.raises(EdgeError) as refused:
        find_interpreter(source, only(source))
    assert refused.value.code == "artifact.archive-bomb"
