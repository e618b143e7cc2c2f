"""A finished image on its way to a registry: everything that its index names first, the tag last."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_contract.digest import Digest
from edge_contract.jsonio import JsonObject, parse_object
from edge_contract.manifest import INDEX_TYPE, MANIFEST_TYPE
from edge_contract.stream import verify_bytes
from packager.files import disk_errors
from packager.iotedge.image_base import Blob
from packager.iotedge.image_limits import DOCUMENT_BYTES_MAX
from packager.iotedge.image_remote import RegistryImage
from packager.progress import Reporter


def push_image(image: RegistryImage, folder: Path, index: Digest, tag: str, reporter: Reporter) -> int:
    """Send an image.

    Args:
        image: Where it goes.
        folder: The layout that holds it.
        index: Digest of its index.
        tag: Tag of the index in the registry.
        reporter: Told of each blob that is sent.

    Returns:
        Bytes of blobs that the registry did not have.

    Raises:
        EdgeError: `cloud.*`, `network.*`, `artifact.*`.
    """
    data = _document(folder, index)
    sent = 0
    for item in parse_object(data, "index", DOCUMENT_BYTES_MAX)["manifests"]:
        digest = Digest(item["digest"])
        manifest = _document(folder, digest)
        for blob in _blobs(parse_object(manifest, "manifest", DOCUMENT_BYTES_MAX)):
            if image.upload(blob, _path(folder, blob.digest)):
                sent += blob.size
                reporter.say(f"sent {blob.digest}, {blob.size} bytes")
        image.put_manifest(str(digest), MANIFEST_TYPE, manifest)
    image.put_manifest(tag, INDEX_TYPE, data)
    return sent


def _blobs(manifest: JsonObject) -> Iterator[Blob]:
    found: list[Any] = [manifest["config"], *manifest["layers"]]
    for item in found:
        yield Blob(str(item["mediaType"]), Digest(item["digest"]), int(item["size"]))


def _document(folder: Path, digest: Digest) -> bytes:
    path = _path(folder, digest)
    with disk_errors(path), path.open("rb") as file:
        data = file.read(DOCUMENT_BYTES_MAX + 1)
    return verify_bytes(data, digest, len(data))


def _path(folder: Path, digest: Digest) -> Path:
    return folder / "blobs" / "sha256" / digest.hex
