"""Container images and wheels written piece by piece, without the code under test: a test can spoil any piece."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
TAR = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

PYTHON_ROOT: Mapping[str, bytes | str] = {
    "bin": "usr/bin",
    "usr/bin/python3.11": b"an interpreter",
    "usr/bin/python3": "python3.11",
    "etc/os-release": b"ID=test\n",
}
"""Files of a base, and links as texts; what looks for Python finds it."""


def tar_of(files: Mapping[str, bytes | str]) -> bytes:
    """An archive; a text is the target of a link."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return sink.getvalue()


@dataclass
class Layout:
    """An OCI layout that is being written."""

    folder: Path
    entries: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "blobs" / "sha256").mkdir(parents=True)
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes, kind: str, **more: Any) -> dict[str, Any]:
        """Write a blob, and give its descriptor."""
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs" / "sha256" / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data), **more}

    def document(self, value: Any, kind: str, **more: Any) -> dict[str, Any]:
        """Write a JSON document, and give its descriptor."""
        return self.blob(json.dumps(value).encode(), kind, **more)

    def image(
        self,
        platform: str = "linux/amd64",
        layers: Sequence[bytes] = (),
        settings: Mapping[str, Any] | None = None,
        is_docker: bool = False,
    ) -> dict[str, Any]:
        """Write an image, and give the descriptor of its manifest with its platform."""
        system, architecture, *variant = platform.split("/")
        place: dict[str, Any] = {"os": system, "architecture": architecture}
        place |= {"variant": variant[0]} if variant else {}
        contents = list(layers or [tar_of(PYTHON_ROOT)])
        config = {
            **place,
            "config": dict(settings or {"Env": ["PATH=/usr/bin:/bin"]}),
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(item).hexdigest()}" for item in contents],
            },
            "history": [{"created_by": "hand"}],
        }
        kinds = (DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER) if is_docker else (MANIFEST, CONFIG, TAR)
        stored = [self.blob(gzip.compress(item, mtime=0) if is_docker else item, kinds[2]) for item in contents]
        manifest = {
            "schemaVersion": 2,
            "mediaType": kinds[0],
            "config": self.document(config, kinds[1]),
            "layers": stored,
        }
        return self.document(manifest, kinds[0], platform=place)

    def index(self, entries: Iterable[dict[str, Any]], kind: str = INDEX) -> dict[str, Any]:
        """Write an index, and give its descriptor."""
        return self.document({"schemaVersion": 2, "mediaType": kind, "manifests": list(entries)}, kind)

    def name(self, entry: dict[str, Any], tag: str = "base") -> None:
        """Give an image or an index a tag."""
        self.entries.append({**entry, "annotations": {"org.opencontainers.image.ref.name": tag}})
        (self.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": self.entries}))


def base_layout(folder: Path, *platforms: str, **options: Any) -> Path:
    """A layout with one image for some platforms; gives its folder."""
    layout = Layout(folder)
    layout.name(layout.index([layout.image(platform, **options) for platform in platforms or ("linux/amd64",)]))
    return folder


def wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    tags: str = "py3-none-any",
    requires: Sequence[str] = (),
    extras: Sequence[str] = (),
    files: Mapping[str, bytes] | None = None,
    record: Mapping[str, str] | None = None,
    unlisted: Iterable[str] = (),
) -> Path:
    """Write a wheel; `record` replaces digests of its list, and what is `unlisted` is not in that."""
    info = f"{name}-{version}.dist-info"
    lines = [
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
        *(f"Requires-Dist: {item}" for item in requires),
    ]
    lines += [f"Provides-Extra: {item}" for item in extras]
    contents = dict(files if files is not None else {f"{name}/__init__.py": f"name = {name!r}\n".encode()})
    contents |= {
        f"{info}/METADATA": ("\n".join(lines) + "\n\n").encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tags}\n".encode(),
    }
    rows = [f"{info}/RECORD,,"]
    for member, data in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        if member not in unlisted:
            rows.append(f"{member},sha256={(record or {}).get(member, digest)},{len(data)}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tags}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in {**contents, f"{info}/RECORD": ("\n".join(rows) + "\n").encode()}.items():
            archive.writestr(member, data)
    return path


def read_layers(folder: Path, manifest: Mapping[str, Any]) -> list[dict[str, tarfile.TarInfo]]:
    """Entries by path of each layer of a manifest."""
    result = []
    for item in manifest["layers"]:
        with tarfile.open(blob_path(folder, item["digest"])) as archive:
            result.append({entry.name: entry for entry in archive})
    return result


def read_file(folder: Path, manifest: Mapping[str, Any], name: str) -> bytes:
    """A file of an image, from the highest layer that has it."""
    for item in reversed(manifest["layers"]):
        with tarfile.open(blob_path(folder, item["digest"])) as archive:
            if name in archive.getnames():
                found = archive.extractfile(name)
                assert found is not None
                return found.read()
    raise AssertionError(f"the image has no {name}")


def blob_path(folder: Path, digest: str) -> Path:
    """The file of a blob."""
    return folder / "blobs" / digest.replace(":", "/")


def read_json(folder: Path, descriptor: Mapping[str, Any]) -> Any:
    """A document of a layout."""
    return json.loads(blob_path(folder, descriptor["digest"]).read_bytes())
