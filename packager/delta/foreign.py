"""Copies a version's deltas to any OCI registry, with the referrers tag where it lists no referrers itself."""

import tempfile
from pathlib import Path
from typing import Any

from cloud_registry.client import RegistryClient
from edge_contract.delta import DELTA_ARTIFACT_TYPE, DELTA_BLOB_TYPE, EMPTY, EMPTY_TYPE, read_delta_manifest
from edge_contract.deployment import bundle_repository
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject, dump, parse_object
from edge_contract.limits import MANIFEST_BYTES_MAX
from edge_contract.manifest import INDEX_TYPE, MANIFEST_TYPE
from packager.files import disk_errors
from packager.iotedge.image_base import Blob
from packager.iotedge.image_limits import DOCUMENT_BYTES_MAX
from packager.iotedge.image_remote import RegistryImage
from packager.progress import Reporter, upload_progress


def copy_deltas(
    client: RegistryClient, model: str, version: int, target: RegistryImage, reporter: Reporter
) -> JsonObject:
    """Copy every delta of a version, blob and artifact.

    What the other registry has is not read again. The artifact refers to the bundle's index by digest, and
    distribution-spec 1.1 lets it come before the index does. A registry that does not answer with `OCI-Subject` keeps
    no list of referrers: then the index under the tag `sha256-<hex>` is kept instead ("Referrers Tag Schema").

    Returns:
        `{deltas: [digest], bytes_sent, fallback_tag}`; the tag is empty where the registry lists referrers.

    Raises:
        EdgeError: `cloud.*`, `network.*`, `artifact.*`.
    """
    repository, sent, tag, copied = bundle_repository(model), 0, "", []
    with tempfile.TemporaryDirectory(prefix="lighterman-deltas-") as folder:
        for item in client.deltas(model, version):
            data = client.get_manifest(repository, str(item["manifest"]), MANIFEST_BYTES_MAX)
            delta, subject = read_delta_manifest(data)
            for blob in (
                Blob(EMPTY_TYPE, Digest.of(EMPTY), len(EMPTY)),
                Blob(DELTA_BLOB_TYPE, delta.digest, delta.bytes),
            ):
                if target.has(blob):
                    continue
                path = Path(folder) / blob.digest.hex
                if blob.digest == delta.digest:
                    with reporter.task(f"downloading {blob.digest}", blob.size) as advance:
                        client.download_blob(repository, blob.digest, blob.size, path, upload_progress(advance))
                else:
                    with disk_errors(path):
                        path.write_bytes(EMPTY)
                target.upload(blob, path)
                path.unlink()
                sent += blob.size
                reporter.say(f"sent {blob.digest}, {blob.size} bytes")
            if not target.put_manifest(str(Digest.of(data)), MANIFEST_TYPE, data):
                tag = f"sha256-{subject.hex}"
                _refer(target, tag, data)
            copied.append(str(delta.digest))
    return {"deltas": copied, "bytes_sent": sent, "fallback_tag": tag}


def _refer(target: RegistryImage, tag: str, manifest: bytes) -> None:
    """Add an artifact to the index under the referrers tag, unless it is there."""
    try:
        _, data = target.tagged(tag)
        index = parse_object(data, "the referrers index", DOCUMENT_BYTES_MAX)
    except EdgeError as error:
        if error.code != "artifact.not-found":
            raise
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}
    entry: dict[str, Any] = {
        "mediaType": MANIFEST_TYPE,
        "digest": str(Digest.of(manifest)),
        "size": len(manifest),
        "artifactType": DELTA_ARTIFACT_TYPE,
        "annotations": parse_object(manifest, "delta manifest", MANIFEST_BYTES_MAX)["annotations"],
    }
    listed = index.get("manifests")
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise EdgeError(
            "artifact.manifest-invalid",
            f"{target.name}: what the tag {tag} names is no index of referrers",
            "Delete that tag there, or push to another repository.",
        )
    if any(item.get("digest") == entry["digest"] for item in listed):
        return
    index["manifests"] = [*listed, entry]
    target.put_manifest(tag, INDEX_TYPE, dump(index))
