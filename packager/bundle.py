"""A bundle that was read, wherever it lies: its index, and for each platform manifest and runtime descriptor."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import MANIFEST_BYTES_MAX, RUNTIME_BYTES_MAX
from edge_contract.manifest import MODEL, PLATFORM, VERSION, Descriptor, Index, Manifest, Role
from edge_contract.names import model_name
from edge_contract.runtime import Runtime

HARDWARE_IDS: Final = "io.lighterman.hardware-ids"
RELEASE_COUNTER: Final = "io.lighterman.release-counter"
"""Annotations of an index that tell `push` what to sign beside the digest."""

_DIGITS_MAX: Final = 15


@dataclass(frozen=True, slots=True)
class Bundle:
    """One platform of a bundle.

    Attributes:
        descriptor: Names the manifest; has the platform.
        data: Exact bytes of the manifest.
        manifest: The manifest.
        runtime: Its runtime descriptor.
    """

    descriptor: Descriptor
    data: bytes
    manifest: Manifest
    runtime: Runtime

    @property
    def platform(self) -> str:
        """`os/architecture[/variant]`."""
        return self.descriptor.platform or ""


class BundleSet(ABC):
    """All platforms of one model version; verified and parsed when constructed.

    Attributes:
        index_data: Exact bytes of the index.
        index_digest: Their digest.
        index: The index.
        model: Name of the model.
        version: Its version.
        bundles: One for each platform.
        hardware_ids: Hardware the bundle is for; empty means any.
        release_counter: Never falls on a device.
    """

    def __init__(self, index_data: bytes) -> None:
        """Read everything that the index names.

        Raises:
            EdgeError: `artifact.*` for content that is not a Lighterman bundle.
        """
        self.index_data = index_data
        self.index_digest = Digest.of(index_data)
        self.index = Index.parse(index_data)
        notes = self.index.annotations
        self.model = model_name(notes.get(MODEL, ""))
        self.version = _number(notes.get(VERSION, ""), "version")
        self.hardware_ids = tuple(item for item in notes.get(HARDWARE_IDS, "").split(",") if item)
        self.release_counter = _number(notes.get(RELEASE_COUNTER, str(self.version)), "release counter")
        self.bundles = tuple(self._bundle(item) for item in self.index.manifests)

    @abstractmethod
    def read(self, digest: Digest, size: int, bytes_max: int) -> bytes:
        """The verified bytes of a small blob or manifest.

        Raises:
            EdgeError: `artifact.not-found`, `artifact.document-too-large`, `artifact.digest-mismatch`,
                `artifact.size-mismatch`.
        """

    def _bundle(self, descriptor: Descriptor) -> Bundle:
        data = self.read(descriptor.digest, descriptor.size, MANIFEST_BYTES_MAX)
        manifest = Manifest.parse(data)
        for key, wanted in ((MODEL, self.model), (VERSION, str(self.version)), (PLATFORM, descriptor.platform)):
            if manifest.annotations.get(key) != wanted:
                raise EdgeError(
                    "artifact.manifest-invalid",
                    f"the manifest for {descriptor.platform} has {key} = {manifest.annotations.get(key)!r}, "
                    f"its index says {wanted!r}",
                )
        layer = manifest.with_role(Role.RUNTIME)[0]
        runtime = Runtime.parse(self.read(layer.digest, layer.size, RUNTIME_BYTES_MAX))
        if (runtime.model, runtime.version) != (self.model, self.version):
            raise EdgeError(
                "artifact.runtime-invalid",
                f"the runtime descriptor is of {runtime.model}:{runtime.version}, "
                f"the index of {self.model}:{self.version}",
            )
        return Bundle(descriptor, data, manifest, runtime)

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Every configuration and layer, each digest once, in the order of the manifests."""
        return tuple({blob.digest: blob for item in self.bundles for blob in item.manifest.blobs}.values())


def _number(text: str, what: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > _DIGITS_MAX or int(text) < 1:
        raise EdgeError("artifact.manifest-invalid", f"the index has the {what} {text!r}, not a number from 1")
    return int(text)
