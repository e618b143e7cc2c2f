"""Bundles as OCI layouts with tiny models inside, written piece by piece, so that a test can spoil any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.platforms import detect_platform
from edge_contract.digest import Digest
from edge_contract.manifest import (
    BUNDLE_ARTIFACT_TYPE,
    CODE_RAW,
    CONFIG_TYPE,
    DATASET_RAW,
    FILEPATH,
    MANIFEST_TYPE,
    MODEL,
    PLATFORM,
    ROLE,
    VERSION,
    WEIGHT_CONFIG_RAW,
    WEIGHT_RAW,
    Descriptor,
    Index,
    Manifest,
    Role,
)
from edge_contract.runtime import GOLDEN_PATH, RUNTIME_PATH, Golden, Member, Runtime
from packager.layout import LayoutWriter
from tests.support.slots import Array, adder, adder_golden, safetensors

HERE = detect_platform()
ELSEWHERE = "linux/arm/v6" if HERE != "linux/arm/v6" else "linux/amd64"


@dataclass(frozen=True)
class Written:
    """A layout on disk.

    Attributes:
        folder: Where it is.
        index: Digest of the bundle's index.
        manifests: (digest, length) of each platform's manifest.
    """

    folder: Path
    index: Digest
    manifests: dict[str, tuple[Digest, int]]

    def blob(self, digest: Digest) -> Path:
        """The file of a blob."""
        return self.folder / "blobs" / "sha256" / digest.hex

    def manifest(self, platform: str = HERE) -> Manifest:
        """One platform's manifest."""
        return Manifest.parse(self.blob(self.manifests[platform][0]).read_bytes())


def write_bundle(
    folder: Path,
    members: Sequence[Member],
    files: Mapping[str, bytes],
    *,
    golden: Mapping[str, Array] | None = None,
    version: int = 1,
    platforms: Sequence[str] = (HERE,),
    layers: Sequence[tuple[str, str, str, bytes]] = (),
    notes: Mapping[str, str] | None = None,
    **runtime: Any,
) -> Written:
    """Write a bundle of the model `digits`.

    Args:
        folder: Where the layout goes; made here.
        members: Models of the bundle.
        files: Contents by path in the bundle.
        golden: Golden vectors, if any.
        version: Model version.
        platforms: One manifest each, all with the same layers.
        layers: More layers: media type, role, path, bytes.
        notes: Annotations of the manifests in place of those they should have.
        **runtime: Further fields of the runtime descriptor.
    """
    folder.mkdir(parents=True)
    writer = LayoutWriter(folder)
    descriptor = Runtime(
        "digits", version, tuple(members), golden=None if golden is None else Golden(), **runtime
    ).to_bytes()
    contents = [(WEIGHT_CONFIG_RAW, Role.RUNTIME, RUNTIME_PATH, descriptor)]
    for path, data in files.items():
        is_code = path.endswith(".py")
        contents.append((CODE_RAW if is_code else WEIGHT_RAW, Role.CODE if is_code else Role.MODEL, path, data))
    if golden is not None:
        contents.append((DATASET_RAW, Role.GOLDEN, GOLDEN_PATH, safetensors(golden)))
    listed = tuple(
        Descriptor(kind, *writer.add_bytes(data), {FILEPATH: path, ROLE: role})
        for kind, role, path, data in (*contents, *layers)
    )
    config = Descriptor(CONFIG_TYPE, *writer.add_bytes(b"{}"))
    manifests = {}
    for platform in platforms:
        about = {MODEL: "digits", VERSION: str(version), PLATFORM: platform} | dict(notes or {})
        manifests[platform] = writer.add_bytes(Manifest(config, listed, about).to_bytes())
    entries = tuple(
        Descriptor(MANIFEST_TYPE, *found, platform=platform, artifact_type=BUNDLE_ARTIFACT_TYPE)
        for platform, found in manifests.items()
    )
    index = Index(entries, {MODEL: "digits", VERSION: str(version)}).to_bytes()
    return Written(folder, writer.finish(index, str(version), "digits"), manifests)


def adder_bundle(folder: Path, constant: float = 10.0, *, golden: bool = True, **options: Any) -> Written:
    """A bundle of one model `digits` that adds a constant to FP32 [batch, 4]."""
    vectors = adder_golden(constant) if golden else None
    member = Member("digits", "onnx", "model.onnx")
    return write_bundle(folder, [member], {"model.onnx": adder(constant)}, golden=vectors, **options)
