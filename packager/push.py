"""Publishes a built bundle: blobs, manifests, index, then the signed entry without which nobody takes it."""

from cloud_registry.client import RegistryClient
from edge_contract.deployment import bundle_repository
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.manifest import FILEPATH, INDEX_TYPE, MANIFEST_TYPE, Descriptor, Role
from packager.keystore import KeyRing
from packager.layout import Layout
from packager.progress import Reporter, upload_progress
from packager.sign import require_signer, sign_targets, targets_of


def push(client: RegistryClient, layout: Layout, ring: KeyRing, expires_days: int, reporter: Reporter) -> JsonObject:
    """Publish a bundle; safe to repeat after any interruption.

    What the registry has is not sent again, and a cut upload goes on where it stopped.

    Args:
        client: With a publisher's token.
        layout: The bundle.
        ring: Keys that sign the image repository's targets.
        expires_days: Life of the bins that get signed.
        reporter: Shows progress.

    Returns:
        What `--json` prints: model, version, index, manifests, bytes sent, bins signed.

    Raises:
        EdgeError: `cloud.*`, `network.*`, `trust.*`, `artifact.*`, `config.key-invalid`.
    """
    repository, tag = bundle_repository(layout.model), str(layout.version)
    require_signer(client, ring, layout.model)
    _refuse_other_bundle(client, repository, tag, layout)
    sent = 0
    for blob in layout.blobs:
        name = blob.annotations.get(FILEPATH, "configuration")
        path = layout.blob_path(blob.digest)
        if path.is_file() and path.stat().st_size != blob.size:
            raise EdgeError(
                "artifact.size-mismatch", f"{path} has not the {blob.size} bytes of {name}", "Build it again."
            )
        if blob.role in (Role.MODEL, Role.CODE) and _is_mounted(client, repository, layout.model, blob):
            continue
        with reporter.task(f"pushing {name}", blob.size) as advance:
            sent += client.upload_blob(repository, path, blob.digest, upload_progress(advance))
    for item in layout.bundles:
        client.put_manifest(repository, str(item.descriptor.digest), MANIFEST_TYPE, item.data)
    client.put_manifest(repository, tag, INDEX_TYPE, layout.index_data)
    bins = sign_targets(client, ring, targets_of(layout), expires_days, reporter)
    client.register_bundle(layout.model, layout.version, layout.index_digest)
    return {
        "model": layout.model,
        "version": layout.version,
        "repository": repository,
        "index": str(layout.index_digest),
        "manifests": {item.platform: str(item.descriptor.digest) for item in layout.bundles},
        "bytes_sent": sent,
        "bins_signed": bins,
    }


def _is_mounted(client: RegistryClient, repository: str, model: str, blob: Descriptor) -> bool:
    """Model files were uploaded when the version was registered, so they need not travel again."""
    is_there = client.has_blob(repository, blob.digest)
    return is_there or client.mount_blob(repository, blob.digest, f"models/{model}")


def _refuse_other_bundle(client: RegistryClient, repository: str, tag: str, layout: Layout) -> None:
    """A version whose bundle was published keeps it; before anything is sent."""
    client.get_version(layout.model, layout.version)
    if not client.has_manifest(repository, tag):
        return
    there = Digest.of(client.get_manifest(repository, tag))
    if there != layout.index_digest:
        raise EdgeError(
            "cloud.conflict",
            f"version {layout.version} of {layout.model} has another bundle already, {there}",
            "Register a new version for new content.",
        )
