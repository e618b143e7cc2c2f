"""OCI descriptors, image manifests and indexes as Lighterman bundles use them (OCI image-spec 1.1, CNCF ModelPack).

Bundles are read strictly: a field this version does not know refuses the manifest, because a signed document that two
readers understand differently is not one document.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from edge_contract.digest import Digest
from edge_contract.errors import ContractError
from edge_contract.jsonio import Fields, JsonObject, dump, parse_object
from edge_contract.limits import (
    ANNOTATION_BYTES_MAX,
    ANNOTATIONS_MAX,
    BLOB_BYTES_MAX,
    INDEX_MANIFESTS_MAX,
    MANIFEST_BYTES_MAX,
    MANIFEST_LAYERS_MAX,
)
from edge_contract.names import platform_name, relative_path
from edge_contract.runtime import RUNTIME_PATH

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
BUNDLE_ARTIFACT_TYPE: Final = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.cncf.model.config.v1+json"
WEIGHT_RAW: Final = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG_RAW: Final = "application/vnd.cncf.model.weight.config.v1.raw"
CODE_RAW: Final = "application/vnd.cncf.model.code.v1.raw"
CODE_TAR: Final = "application/vnd.cncf.model.code.v1.tar"
DATASET_RAW: Final = "application/vnd.cncf.model.dataset.v1.raw"
DOC_RAW: Final = "application/vnd.cncf.model.doc.v1.raw"
RAW_TYPES: Final = frozenset({WEIGHT_RAW, WEIGHT_CONFIG_RAW, CODE_RAW, DATASET_RAW, DOC_RAW})
TAR_TYPES: Final = frozenset(
    {CODE_TAR, "application/vnd.cncf.model.weight.v1.tar", "application/vnd.cncf.model.doc.v1.tar"}
)

FILEPATH: Final = "org.cncf.model.filepath"
TITLE: Final = "org.opencontainers.image.title"
VERSION: Final = "org.opencontainers.image.version"
REF_NAME: Final = "org.opencontainers.image.ref.name"
ROLE: Final = "io.lighterman.role"
MODEL: Final = "io.lighterman.model"
PLATFORM: Final = "io.lighterman.platform"  # on a manifest: two platforms with equal layers are two artifacts


class Role:
    """Values of the layer annotation `io.lighterman.role`."""

    MODEL: Final = "model"  # a file of the model
    RUNTIME: Final = "runtime"  # the runtime descriptor, exactly one
    GOLDEN: Final = "golden"  # golden vectors, at most one
    CODE: Final = "code"  # the entry script and what it imports
    WHEEL: Final = "wheel"  # a Python dependency
    DOC: Final = "doc"


ROLES: Final = frozenset({Role.MODEL, Role.RUNTIME, Role.GOLDEN, Role.CODE, Role.WHEEL, Role.DOC})


def _annotations(fields: Fields) -> dict[str, str]:
    return fields.mapping("annotations", ANNOTATIONS_MAX, ANNOTATION_BYTES_MAX)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Names a blob: (media type, digest, size), with annotations and, in an index, a platform.

    Attributes:
        media_type: IANA media type.
        digest: Digest of the blob.
        size: Length in bytes, `0..BLOB_BYTES_MAX`.
        annotations: OCI annotations.
        platform: `os/architecture[/variant]`, only in an index.
        artifact_type: Only in an index.
    """

    media_type: str
    digest: Digest
    size: int
    annotations: dict[str, str] = field(default_factory=dict)
    platform: str | None = None
    artifact_type: str | None = None

    @classmethod
    def from_json(cls, value: Any) -> "Descriptor":
        """Read a descriptor.

        Raises:
            ContractError: `artifact.manifest-invalid`, `artifact.digest-invalid` or `artifact.unknown-field`.
        """
        fields = Fields(value, "descriptor", "artifact.manifest-invalid")
        media_type = fields.text("mediaType", chars_max=255)
        digest = Digest(fields.text("digest", chars_max=256))
        size = fields.integer("size", high=BLOB_BYTES_MAX)
        annotations = _annotations(fields)
        platform = _platform_from_json(fields.take("platform"))
        artifact_type = fields.text("artifactType", "", chars_max=255) or None
        fields.close()
        return cls(media_type, digest, size, annotations, platform, artifact_type)

    def to_json(self) -> JsonObject:
        """The JSON form that `from_json` reads."""
        result: JsonObject = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.annotations:
            result["annotations"] = self.annotations
        if self.platform:
            os_name, architecture, *variant = self.platform.split("/")
            result["platform"] = {"os": os_name, "architecture": architecture}
            if variant:
                result["platform"]["variant"] = variant[0]
        if self.artifact_type:
            result["artifactType"] = self.artifact_type
        return result

    @property
    def role(self) -> str:
        """The value of the role annotation, empty when absent."""
        return self.annotations.get(ROLE, "")

    @property
    def path(self) -> str:
        """The checked path of the layer's file inside the bundle.

        Raises:
            ContractError: `artifact.path-unsafe`.
        """
        return relative_path(self.annotations.get(FILEPATH, ""))


def _platform_from_json(value: Any) -> str | None:
    if value is None:
        return None
    fields = Fields(value, "platform", "artifact.manifest-invalid")
    parts = [fields.text("os"), fields.text("architecture")]
    if variant := fields.text("variant", ""):
        parts.append(variant)
    fields.close()
    if parts == ["linux", "arm64", "v8"]:
        parts = parts[:2]
    return platform_name("/".join(parts))


@dataclass(frozen=True, slots=True)
class Manifest:
    """The document that lists the layers of a bundle for one platform.

    Attributes:
        config: Descriptor of the ModelPack configuration.
        layers: Layers in order, `1..MANIFEST_LAYERS_MAX`.
        annotations: OCI annotations.
        subject: What this manifest refers to, if anything.
    """

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] = field(default_factory=dict)
    subject: Descriptor | None = None

    @classmethod
    def parse(cls, data: bytes) -> "Manifest":
        """Read a bundle's manifest from bytes whose digest has been verified.

        Raises:
            ContractError: with an `artifact.` code.
        """
        fields = Fields(parse_object(data, "manifest", MANIFEST_BYTES_MAX), "manifest", "artifact.manifest-invalid")
        if fields.integer("schemaVersion") != 2 or fields.text("mediaType") != MANIFEST_TYPE:
            raise ContractError("artifact.manifest-invalid", "the document is not an OCI image manifest")
        if fields.text("artifactType") != BUNDLE_ARTIFACT_TYPE:
            raise ContractError("artifact.manifest-invalid", "the manifest is not one of a model bundle")
        config = Descriptor.from_json(fields.take("config"))
        layers = tuple(
            Descriptor.from_json(item) for item in fields.items("layers", MANIFEST_LAYERS_MAX, required=True)
        )
        subject_value = fields.take("subject")
        subject = None if subject_value is None else Descriptor.from_json(subject_value)
        annotations = _annotations(fields)
        fields.close()
        manifest = cls(config, layers, annotations, subject)
        manifest.check()
        return manifest

    def check(self) -> None:
        """Require what a device counts on: known roles and media types, safe and unique paths, one runtime descriptor.

        Raises:
            ContractError: `artifact.manifest-invalid`, `artifact.layer-unsupported` or `artifact.path-unsafe`.
        """
        if self.config.media_type != CONFIG_TYPE or not self.layers:
            raise ContractError("artifact.manifest-invalid", "a bundle has a ModelPack configuration and layers")
        paths: set[str] = set()
        for layer in self.layers:
            if layer.media_type not in RAW_TYPES | TAR_TYPES:
                raise ContractError("artifact.layer-unsupported", f"cannot unpack a layer of type {layer.media_type!r}")
            if layer.role not in ROLES:
                raise ContractError("artifact.manifest-invalid", f"layer {layer.digest} has the role {layer.role!r}")
            # Two files that differ in case alone would become one on some file systems.
            if layer.path.casefold() in paths:
                raise ContractError("artifact.manifest-invalid", f"two layers have the path {layer.path!r}")
            paths.add(layer.path.casefold())
        for path in paths:
            parts = path.split("/")
            if any("/".join(parts[:n]) in paths for n in range(1, len(parts))):
                raise ContractError("artifact.manifest-invalid", f"{path!r} lies below a path that is a file")
        runtime, golden = self.with_role(Role.RUNTIME), self.with_role(Role.GOLDEN)
        if len(runtime) != 1 or len(golden) > 1 or any(layer.media_type in TAR_TYPES for layer in (*runtime, *golden)):
            raise ContractError(
                "artifact.manifest-invalid", "a bundle has one runtime descriptor and at most one golden file"
            )
        # The agent finds it by its role and the worker by its path; both have to find the same.
        if runtime[0].path != RUNTIME_PATH:
            raise ContractError(
                "artifact.manifest-invalid", f"the runtime descriptor is at {RUNTIME_PATH}, not {runtime[0].path!r}"
            )
        sizes: dict[Digest, int] = {}
        for blob in (self.config, *self.layers):
            if sizes.setdefault(blob.digest, blob.size) != blob.size:
                raise ContractError("artifact.manifest-invalid", f"blob {blob.digest} is given two different sizes")

    def with_role(self, role: str) -> tuple[Descriptor, ...]:
        """The layers that have a role, in order."""
        return tuple(layer for layer in self.layers if layer.role == role)

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Configuration and layers, each digest once."""
        return tuple({item.digest: item for item in (self.config, *self.layers)}.values())

    def to_bytes(self) -> bytes:
        """The reproducible bytes of the manifest."""
        document: JsonObject = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": BUNDLE_ARTIFACT_TYPE,
            "config": self.config.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }
        if self.annotations:
            document["annotations"] = self.annotations
        if self.subject:
            document["subject"] = self.subject.to_json()
        return dump(document)


@dataclass(frozen=True, slots=True)
class Index:
    """One manifest for each platform of a model version.

    Attributes:
        manifests: Descriptors with a platform, one a platform, `1..INDEX_MANIFESTS_MAX`.
        annotations: OCI annotations; `io.lighterman.model` and the version are among them.
    """

    manifests: tuple[Descriptor, ...]
    annotations: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> "Index":
        """Read an index from bytes whose digest has been verified.

        Raises:
            ContractError: with an `artifact.` code.
        """
        fields = Fields(parse_object(data, "index", MANIFEST_BYTES_MAX), "index", "artifact.manifest-invalid")
        if fields.integer("schemaVersion") != 2 or fields.text("mediaType") != INDEX_TYPE:
            raise ContractError("artifact.manifest-invalid", "the document is not an OCI image index")
        fields.text("artifactType", "")
        items = fields.items("manifests", INDEX_MANIFESTS_MAX, required=True)
        manifests = tuple(Descriptor.from_json(item) for item in items)
        annotations = _annotations(fields)
        fields.close()
        platforms = [item.platform for item in manifests]
        is_plain = all(item.media_type == MANIFEST_TYPE for item in manifests)
        if not manifests or not is_plain or None in platforms or len(set(platforms)) != len(platforms):
            raise ContractError("artifact.manifest-invalid", "an index lists one manifest for each platform")
        return cls(manifests, annotations)

    def for_platform(self, platform: str) -> Descriptor:
        """The manifest's descriptor for a platform.

        Raises:
            ContractError: `artifact.platform-mismatch`.
        """
        for item in self.manifests:
            if item.platform == platform:
                return item
        known = ", ".join(sorted(str(item.platform) for item in self.manifests))
        raise ContractError("artifact.platform-mismatch", f"no manifest for {platform}; there are: {known}")

    def to_bytes(self) -> bytes:
        """The reproducible bytes of the index.

        Copying tools of the containers family write an index anew, with the keys they know in an order of their own;
        these are exactly the bytes that they write, so that a copied bundle keeps its digest.
        """
        document: JsonObject = {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [_index_entry(item) for item in self.manifests],
        }
        if self.annotations:
            document["annotations"] = dict(sorted(self.annotations.items()))
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


def _index_entry(item: Descriptor) -> JsonObject:
    entry: JsonObject = {"mediaType": item.media_type, "digest": str(item.digest), "size": item.size}
    if item.annotations:
        entry["annotations"] = dict(sorted(item.annotations.items()))
    os_name, architecture, *variant = (item.platform or "/").split("/")
    entry["platform"] = {"architecture": architecture, "os": os_name} | ({"variant": variant[0]} if variant else {})
    return entry


def plan_bytes(descriptors: Iterable[Descriptor]) -> int:
    """Bytes of all blobs, each digest once."""
    return sum({item.digest: item.size for item in descriptors}.values())
