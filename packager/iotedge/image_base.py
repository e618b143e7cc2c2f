"""Images to build upon: what an OCI layout or a registry holds for each platform, every byte checked by its digest.

Read by OCI image-spec 1.1, and in Docker's older forms of the same documents, since many bases are published in those.
What this writes is in OCI's form alone; the bytes of layers stay as they are.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_contract.digest import Digest
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import JsonObject, parse_object
from edge_contract.limits import INDEX_MANIFESTS_MAX
from edge_contract.manifest import INDEX_TYPE, MANIFEST_TYPE, REF_NAME
from edge_contract.names import platform_name
from edge_contract.stream import verified, verify_bytes
from packager.files import chunks_of, disk_errors
from packager.iotedge.image_limits import BASE_LAYER_BYTES_MAX, DOCUMENT_BYTES_MAX, LAYERS_MAX
from packager.layout import INDEX_FILE, LAYOUT_FILE

TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
"""What a tag may be (distribution-spec 1.1)."""

CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
TAR_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"
GZIP_TYPE: Final = f"{TAR_TYPE}+gzip"
DOCKER_INDEX_TYPE: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST_TYPE: Final = "application/vnd.docker.distribution.manifest.v2+json"
INDEX_TYPES: Final = frozenset({INDEX_TYPE, DOCKER_INDEX_TYPE})
MANIFEST_TYPES: Final = frozenset({MANIFEST_TYPE, DOCKER_MANIFEST_TYPE})
_CONFIG_TYPES: Final = frozenset({CONFIG_TYPE, "application/vnd.docker.container.image.v1+json"})
_LAYER_TYPES: Final = {
    TAR_TYPE: TAR_TYPE,
    GZIP_TYPE: GZIP_TYPE,
    f"{TAR_TYPE}+zstd": f"{TAR_TYPE}+zstd",
    "application/vnd.docker.image.rootfs.diff.tar": TAR_TYPE,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": GZIP_TYPE,
}
_HINT: Final = "Name an image for Linux as --base: an OCI layout's folder, or host/name:tag in a registry."


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob of an image.

    Attributes:
        media_type: In OCI's words.
        digest: Of its bytes.
        size: In bytes.
    """

    media_type: str
    digest: Digest
    size: int

    def to_json(self) -> JsonObject:
        """Its descriptor."""
        return {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}


@dataclass(frozen=True, slots=True)
class BaseImage:
    """One platform of a base.

    Attributes:
        platform: `os/architecture[/variant]`, in our words.
        digest: Of the manifest.
        config: The image's configuration.
        layers: From the lowest.
    """

    platform: str
    digest: Digest
    config: JsonObject
    layers: tuple[Blob, ...]

    @property
    def settings(self) -> JsonObject:
        """What a container of it runs with: the configuration's `config`."""
        found = self.config.get("config")
        return found if isinstance(found, dict) else {}

    @property
    def labels(self) -> JsonObject:
        """Its labels."""
        found = self.settings.get("Labels")
        return found if isinstance(found, dict) else {}

    @property
    def environment(self) -> dict[str, str]:
        """Its environment, in the order it has there."""
        found = self.settings.get("Env")
        items = [str(item) for item in found] if isinstance(found, list) else []
        return {name: value for name, _, value in (item.partition("=") for item in items)}


class ImageSource(ABC):
    """Where an image lies. Used by one thread.

    Attributes:
        name: What it is called in messages.
    """

    name: str

    @abstractmethod
    def first(self) -> tuple[str, bytes]:
        """Media type and bytes of the document that the name leads to.

        Raises:
            EdgeError: `artifact.*`, `config.*`, `network.*`, `cloud.*`.
        """

    @abstractmethod
    def document(self, digest: Digest, size: int, media_type: str) -> bytes:
        """A verified small document.

        Raises:
            EdgeError: `artifact.*`, `network.*`, `cloud.*`.
        """

    @abstractmethod
    def chunks(self, blob: Blob) -> Iterator[bytes]:
        """The bytes of a layer, verified: the last `next` raises when the whole was not genuine.

        Raises:
            EdgeError: `artifact.*`, `network.*`, `cloud.*`.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of connections."""


class LayoutSource(ImageSource):
    """Implements `ImageSource` with an OCI layout in a folder."""

    def __init__(self, folder: Path, tag: str = "") -> None:
        """Name a layout.

        Args:
            folder: The folder with `oci-layout`.
            tag: Which image; may be empty when there is one.
        """
        self.name = f"{folder}:{tag}" if tag else str(folder)
        self._folder = folder
        self._tag = tag

    def first(self) -> tuple[str, bytes]:
        """See `ImageSource.first`."""
        with disk_errors(self._folder), (self._folder / INDEX_FILE).open("rb") as file:
            data = file.read(DOCUMENT_BYTES_MAX + 1)
        listed = _parse(data, f"{self.name}/{INDEX_FILE}").get("manifests")
        items = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
        found = [item for item in items if not self._tag or _notes(item).get(REF_NAME) == self._tag]
        if len(found) != 1:
            what = f"{len(found)} images with the tag {self._tag!r}" if self._tag else f"{len(found)} images"
            raise EdgeError("config.invalid", f"{self._folder} holds {what}, one is needed", "Give --base FOLDER:TAG.")
        digest, size = _named(found[0], self.name)
        media_type = str(found[0].get("mediaType"))
        return media_type, self.document(digest, size, media_type)

    def document(self, digest: Digest, size: int, media_type: str) -> bytes:
        """See `ImageSource.document`."""
        del media_type
        if not 0 <= size <= DOCUMENT_BYTES_MAX:
            raise EdgeError("artifact.document-too-large", f"{self.name}: {digest} has {size} bytes")
        path = self._path(digest)
        with disk_errors(path), path.open("rb") as file:
            return verify_bytes(file.read(size + 1), digest, size)

    def chunks(self, blob: Blob) -> Iterator[bytes]:
        """See `ImageSource.chunks`."""
        path = self._path(blob.digest)
        if not path.is_file():
            raise EdgeError("artifact.not-found", f"{self.name} lacks the layer {blob.digest}", _HINT)
        return verified(chunks_of(path), blob.digest, blob.size)

    def close(self) -> None:
        """See `ImageSource.close`; there are none."""

    def _path(self, digest: Digest) -> Path:
        return self._folder / "blobs" / "sha256" / digest.hex


def find_layout(text: str) -> LayoutSource | None:
    """The layout that a `--base` names, `FOLDER` or `FOLDER:TAG`; none when there is no such folder."""
    if (Path(text) / LAYOUT_FILE).is_file():
        return LayoutSource(Path(text))
    folder, _, tag = text.rpartition(":")
    return LayoutSource(Path(folder), tag) if folder and (Path(folder) / LAYOUT_FILE).is_file() else None


def read_base(source: ImageSource) -> dict[str, BaseImage]:
    """The images for Linux of a source, by platform; what is for a platform that no bundle can have is left out.

    Raises:
        EdgeError: `artifact.manifest-invalid` for documents that are not those of an image, or of none for Linux; as
            the source's methods.
    """
    media_type, data = source.first()
    # Older builders leave the type out of the document, and registries know it from the header alone.
    document = _parse(data, source.name)
    media_type = str(document.get("mediaType") or media_type)
    images: dict[str, BaseImage] = {}
    if media_type in INDEX_TYPES:
        for item in _objects(document, "manifests", INDEX_MANIFESTS_MAX, source.name):
            platform = _platform(item.get("platform"))
            if item.get("mediaType") not in MANIFEST_TYPES or platform is None or platform in images:
                continue
            digest, size = _named(item, source.name)
            manifest = source.document(digest, size, str(item["mediaType"]))
            images[platform] = _image(source, digest, _parse(manifest, source.name), platform)
    elif media_type in MANIFEST_TYPES:
        image = _image(source, Digest.of(data), document, None)
        images[image.platform] = image
    else:
        raise _invalid(source.name, f"a document of type {media_type!r} is not an image")
    if not images:
        raise _invalid(source.name, "it holds no image for Linux on a known architecture")
    return images


def _image(source: ImageSource, digest: Digest, manifest: JsonObject, platform: str | None) -> BaseImage:
    name = f"{source.name}@{digest}"
    described = manifest.get("config")
    if not isinstance(described, dict) or described.get("mediaType") not in _CONFIG_TYPES:
        raise _invalid(name, "its configuration is not one of a container image")
    config = _parse(source.document(*_named(described, name), str(described["mediaType"])), name)
    found = _platform(config)
    if found is None or platform not in (None, found):
        raise _invalid(name, f"it says that it is for {found or 'an unknown platform'}, its index for {platform}")
    layers = []
    for item in _objects(manifest, "layers", LAYERS_MAX, name):
        kind = _LAYER_TYPES.get(str(item.get("mediaType")))
        if kind is None:
            raise _invalid(name, f"it has a layer of type {item.get('mediaType')!r}")
        blob = Blob(kind, *_named(item, name))
        if blob.size > BASE_LAYER_BYTES_MAX:
            raise EdgeError("artifact.document-too-large", f"{name}: the layer {blob.digest} has {blob.size} bytes")
        layers.append(blob)
    rootfs = config.get("rootfs")
    diffs = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diffs, list) or len(diffs) != len(layers):
        raise _invalid(name, "its configuration does not list the contents of its layers")
    return BaseImage(found, digest, config, tuple(layers))


def _platform(value: Any) -> str | None:
    """A platform in our words, or none where it is not one of ours."""
    if not isinstance(value, dict):
        return None
    parts = [str(value.get(key) or "") for key in ("os", "architecture", "variant")]
    if parts[:2] == ["linux", "arm"] and not parts[2]:
        parts[2] = "v7"
    if parts[:2] != ["linux", "arm"]:
        parts[2] = ""  # arm64/v8 is arm64, and amd64/v2 and above are a subset that nobody builds bundles for
    try:
        return platform_name("/".join(part for part in parts if part))
    except ContractError:
        return None


def _parse(data: bytes, name: str) -> JsonObject:
    return parse_object(data, name, DOCUMENT_BYTES_MAX)


def _notes(item: JsonObject) -> JsonObject:
    found = item.get("annotations")
    return found if isinstance(found, dict) else {}


def _named(item: JsonObject, name: str) -> tuple[Digest, int]:
    size = item.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise _invalid(name, f"{item.get('digest')} has no size")
    return Digest(str(item.get("digest"))), size


def _objects(document: JsonObject, key: str, count_max: int, name: str) -> list[JsonObject]:
    items = document.get(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise _invalid(name, f"it has no list of {key}")
    if len(items) > count_max:
        raise _invalid(name, f"it lists {len(items)} {key}, at most {count_max} are allowed")
    return items


def _invalid(name: str, why: str) -> EdgeError:
    return EdgeError("artifact.manifest-invalid", f"{name}: {why}", _HINT)
