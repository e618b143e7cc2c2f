"""What a device may read over the distribution API: the bundles that are its own, and nothing else."""

import threading
from collections import OrderedDict

from cloud_registry.core.distribution import read_document
from cloud_registry.identities import ContentRights
from cloud_registry.limits import MANIFESTS_HELD_MAX
from cloud_registry.ports import BlobStorage
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError


class DeviceRights:
    """Decides over single requests. Any thread.

    Rights are looked up each time, because an assignment may end at any moment. What a manifest lists never changes, so
    that is kept in memory, for a bounded number of manifests.
    """

    def __init__(self, rights: ContentRights, blobs: BlobStorage) -> None:
        """Decide by these rights over this storage."""
        self._rights = rights
        self._blobs = blobs
        self._listed: OrderedDict[Digest, frozenset[Digest]] = OrderedDict()
        self._lock = threading.Lock()

    def require_manifest(self, device: str, repository: str, digest: Digest) -> None:
        """Let a device read the manifests of its bundles and the indexes that list them.

        Raises:
            EdgeError: `cloud.forbidden`.
        """
        for grant in self._rights.bundles_of(device):
            if grant.repository == repository and digest in (grant.manifest, grant.index):
                return
        raise _forbidden(device, repository, digest)

    def require_blob(self, device: str, repository: str, digest: Digest) -> None:
        """Let a device read the blobs that the manifests of its bundles list, and the deltas that make them.

        Raises:
            EdgeError: `cloud.forbidden`.
        """
        for grant in self._rights.bundles_of(device):
            if grant.repository != repository:
                continue
            if digest in grant.deltas or digest in self._blobs_of(repository, grant.manifest):
                return
        raise _forbidden(device, repository, digest)

    def refuse(self, device: str, repository: str) -> None:
        """Refuse what devices have no use for: the tags and referrers of a repository.

        Raises:
            EdgeError: `cloud.forbidden`, always.
        """
        raise EdgeError("cloud.forbidden", f"{device!r} may not look around in {repository}")

    def _blobs_of(self, repository: str, manifest: Digest) -> frozenset[Digest]:
        with self._lock:
            known = self._listed.get(manifest)
            if known is not None:
                self._listed.move_to_end(manifest)
                return known
        try:
            stored = self._blobs.get_manifest(repository, str(manifest))
            found = frozenset(child.digest for child in read_document(stored.media_type, stored.data).children)
        except EdgeError as error:
            if error.code != "artifact.not-found":
                raise
            return frozenset()  # it was deleted, or is not pushed yet
        with self._lock:
            self._listed[manifest] = found
            while len(self._listed) > MANIFESTS_HELD_MAX:
                self._listed.popitem(last=False)
        return found


def _forbidden(device: str, repository: str, digest: Digest) -> EdgeError:
    return EdgeError("cloud.forbidden", f"{device!r} has no bundle with {digest} of {repository}")
