"""A bundle as the registry holds it."""

from cloud_registry.client import RegistryClient
from edge_contract.deployment import bundle_repository
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import MANIFEST_BYTES_MAX
from edge_contract.stream import verify_bytes
from packager.bundle import BundleSet


class RemoteBundles(BundleSet):
    """The bundle of one model version in a registry; content is read by digest and verified."""

    def __init__(self, client: RegistryClient, model: str, version: int | str) -> None:
        """Read a bundle.

        Args:
            client: With a viewer's token at least.
            model: Name of the model.
            version: Number or alias.

        Raises:
            EdgeError: `cloud.not-found`, `artifact.*`, `network.*`.
        """
        self._client = client
        self._repository = bundle_repository(model)
        number = int(client.get_version(model, version)["version"])
        try:
            data = client.get_manifest(self._repository, str(number), MANIFEST_BYTES_MAX)
        except EdgeError as error:
            if error.code != "artifact.not-found":
                raise
            hint = "Build and push one: `packager build`, `packager push`."
            raise EdgeError("artifact.not-found", f"no bundle of {model}:{number} was pushed", hint) from None
        super().__init__(data)

    def read(self, digest: Digest, size: int, bytes_max: int) -> bytes:
        """See `BundleSet.read`; manifests and blobs lie under different routes."""
        if size > bytes_max:
            why = f"{digest} has {size} bytes, at most {bytes_max} are allowed"
            raise EdgeError("artifact.document-too-large", why)
        if any(item.digest == digest for item in self.index.manifests):
            data = self._client.get_manifest(self._repository, str(digest), bytes_max)
        else:
            data = self._client.read_blob(self._repository, digest, bytes_max)
        return verify_bytes(data, digest, size)

    def has(self, digest: Digest) -> bool:
        """Whether the registry holds a blob of the bundle."""
        return self._client.has_blob(self._repository, digest)
