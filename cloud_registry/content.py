"""Frees what deleted versions leave in the blob storage.

It runs after the deletion is durable, so a crash in between leaves blobs that nobody needs, never a version without its
blobs. What something else still uses stays: the storage refuses to free it.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Final

from cloud_registry.core.records import KnownDelta, Removed
from cloud_registry.ports import BlobStorage
from cloud_registry.stores import ModelStore
from edge_contract.deployment import bundle_repository
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.manifest import Manifest

_log: Final = logging.getLogger(__name__)
_EXPECTED: Final = frozenset({"artifact.not-found", "cloud.in-use"})


def free_content(models: ModelStore, blobs: BlobStorage, model: str, removed: Removed) -> None:
    """Free the files and bundles of deleted versions, as far as nothing else uses them. Failures are logged."""
    files = f"models/{model}"
    models.free_files(model, removed.files, lambda digest: _try(blobs.delete_blob, files, digest))
    repository = bundle_repository(model)
    layers: set[Digest] = set()
    for index in {bundle.index for bundle in removed.bundles}:
        _try(_delete_manifest(blobs), repository, index)
    for bundle in removed.bundles:
        try:
            layers |= {
                item.digest for item in Manifest.parse(blobs.get_manifest(repository, str(bundle.manifest)).data).blobs
            }
        except EdgeError as error:
            _log.warning("%s: the layers of %s stay: %s", repository, bundle.manifest, error)
        _try(_delete_manifest(blobs), repository, bundle.manifest)
    for digest in layers:
        _try(blobs.delete_blob, repository, digest)
    free_deltas(blobs, model, removed.deltas)


def free_deltas(blobs: BlobStorage, model: str, removed: Iterable[KnownDelta]) -> None:
    """Free the artifacts and blobs of deltas that the registry has forgotten. Failures are logged."""
    repository = bundle_repository(model)
    for known in removed:
        _try(_delete_manifest(blobs), repository, known.manifest)
        _try(blobs.delete_blob, repository, known.delta.digest)


def _delete_manifest(blobs: BlobStorage) -> Callable[[str, Digest], None]:
    return lambda repository, digest: blobs.delete_manifest(repository, str(digest))


def _try(delete: Callable[[str, Digest], None], repository: str, digest: Digest) -> None:
    try:
        delete(repository, digest)
    except EdgeError as error:
        if error.code not in _EXPECTED:
            _log.warning("%s: %s was not freed: %s", repository, digest, error)
