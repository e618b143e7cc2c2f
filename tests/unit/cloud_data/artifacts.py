"""Small artifacts to push."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cloud_registry.ports import BlobStorage
from edge_contract.digest import Digest
from edge_contract.manifest import BUNDLE_ARTIFACT_TYPE, CONFIG_TYPE, FILEPATH, MANIFEST_TYPE, TITLE, WEIGHT_RAW


@dataclass(frozen=True)
class Artifact:
    """A pushed manifest."""

    media_type: str
    data: bytes
    digest: Digest


def modelpack_config(layer: Digest) -> bytes:
    """A minimal ModelPack configuration."""
    return json.dumps(
        {
            "descriptor": {"name": "digits", "version": "1"},
            "config": {"format": "onnx"},
            "modelfs": {"type": "layers", "diffIds": [str(layer)]},
        }
    ).encode()


def modelpack_manifest(config: bytes, layer: bytes, subject: Artifact | None = None, **annotations: str) -> bytes:
    """A manifest with one weight file."""
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": BUNDLE_ARTIFACT_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": str(Digest.of(config)), "size": len(config)},
        "layers": [
            {
                "mediaType": WEIGHT_RAW,
                "digest": str(Digest.of(layer)),
                "size": len(layer),
                "annotations": {FILEPATH: "model.onnx", TITLE: "model.onnx"},
            }
        ],
    }
    if subject is not None:
        document["subject"] = {
            "mediaType": subject.media_type,
            "digest": str(subject.digest),
            "size": len(subject.data),
        }
    if annotations:
        document["annotations"] = annotations
    return json.dumps(document).encode()


def push_blob(storage: BlobStorage, repository: str, data: bytes) -> Digest:
    """Upload a blob in one piece."""
    digest = Digest.of(data)
    upload = storage.begin_upload(repository)
    storage.append(upload, 0, [data])
    storage.finish_upload(upload, digest)
    return digest


def push_artifact(
    storage: BlobStorage,
    repository: str,
    tag: str | None,
    layer: bytes,
    subject: Artifact | None = None,
    **annotations: str,
) -> Artifact:
    """Upload configuration, layer and manifest."""
    config = modelpack_config(Digest.of(layer))
    push_blob(storage, repository, config)
    push_blob(storage, repository, layer)
    data = modelpack_manifest(config, layer, subject, **annotations)
    digest = storage.put_manifest(repository, tag or str(Digest.of(data)), MANIFEST_TYPE, data)
    return Artifact(MANIFEST_TYPE, data, digest)
