"""Deltas between two blobs: what signed metadata say of one, and the OCI artifact that carries it (ADR 0037, ADR 0038).

A delta needs no trust of its own. What it makes is compared with the digest that the bundle's manifest gives, like a
full download; what metadata say of it only lets a device choose before it fetches a byte.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from edge_contract.digest import Digest
from edge_contract.errors import ContractError
from edge_contract.jsonio import Fields, JsonObject, dump, parse_object
from edge_contract.limits import BLOB_BYTES_MAX, DELTA_PEAK_BYTES_MAX, DELTAS_MAX, MANIFEST_BYTES_MAX
from edge_contract.manifest import MANIFEST_TYPE, Descriptor

DELTA_ARTIFACT_TYPE: Final = "application/vnd.lighterman.delta.v1"
"""`artifactType` of the OCI artifact that carries a delta."""

DELTA_BLOB_TYPE: Final = "application/vnd.lighterman.delta.v1.lmd1"
"""Media type of its only layer: a delta of format `lmd1`."""

FORMAT: Final = "lmd1"
"""The format of `edge_delta`; a device leaves deltas of formats that it does not know alone."""

EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
EMPTY: Final = b"{}"
"""The empty configuration of an artifact (image-spec 1.1, "Guidance for an Empty Descriptor")."""

BASE: Final = "io.lighterman.delta.base"
NEW: Final = "io.lighterman.delta.new"
BASE_BYTES: Final = "io.lighterman.delta.base-bytes"
NEW_BYTES: Final = "io.lighterman.delta.new-bytes"
PEAK_BYTES: Final = "io.lighterman.delta.peak-bytes"

_CODE: Final = "trust.metadata-invalid"
_FORMAT_CHARS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Delta:
    """One delta, named by what it starts from and what it makes.

    Attributes:
        base: Digest of the blob a device has to hold.
        base_bytes: Its length.
        new: Digest of the blob that the delta makes of it.
        new_bytes: Its length.
        digest: Digest of the delta itself, a blob in the bundle's repository.
        bytes: Its length; smaller than `new_bytes`.
        peak_bytes: Memory that decoding takes at most beside Python, numpy and zstandard.
        format: How it is written.
    """

    base: Digest
    base_bytes: int
    new: Digest
    new_bytes: int
    digest: Digest
    bytes: int
    peak_bytes: int
    format: str = FORMAT

    @property
    def descriptor(self) -> Descriptor:
        """The blob to fetch."""
        return Descriptor(DELTA_BLOB_TYPE, self.digest, self.bytes)

    def to_json(self) -> JsonObject:
        """The JSON form that `from_json` reads; integers and texts alone, as canonical JSON wants it."""
        return {
            "base": str(self.base),
            "base_bytes": self.base_bytes,
            "new": str(self.new),
            "new_bytes": self.new_bytes,
            "digest": str(self.digest),
            "bytes": self.bytes,
            "peak_bytes": self.peak_bytes,
            "format": self.format,
        }

    @classmethod
    def from_json(cls, value: Any) -> "Delta":
        """Read what `to_json` wrote.

        Raises:
            ContractError: `trust.metadata-invalid`.
        """
        fields = Fields(value, "delta", _CODE)
        try:
            found = cls(
                base=Digest(fields.text("base")),
                base_bytes=fields.integer("base_bytes", low=1, high=BLOB_BYTES_MAX),
                new=Digest(fields.text("new")),
                new_bytes=fields.integer("new_bytes", low=1, high=BLOB_BYTES_MAX),
                digest=Digest(fields.text("digest")),
                bytes=fields.integer("bytes", low=1, high=BLOB_BYTES_MAX),
                peak_bytes=fields.integer("peak_bytes", high=DELTA_PEAK_BYTES_MAX),
                format=fields.text("format", chars_max=_FORMAT_CHARS_MAX),
            )
        except ContractError as error:
            raise ContractError(_CODE, error.detail) from None
        if found.bytes >= found.new_bytes or found.base == found.new:
            raise ContractError(_CODE, f"the delta {found.digest} saves nothing")
        return found


def read_deltas(fields: Fields) -> tuple[Delta, ...]:
    """The list under `deltas`, `0..DELTAS_MAX` long; absent means none.

    What is written in a format of later may say other things, or keep other bounds: it is left out, and keeps nobody
    from the rest.

    Raises:
        ContractError: `trust.metadata-invalid`.
    """
    try:
        items = fields.items("deltas", DELTAS_MAX)
    except ContractError as error:
        raise ContractError(_CODE, error.detail) from None
    found = []
    for item in items:
        try:
            found.append(Delta.from_json(item))
        except ContractError:
            if not _is_of_later(item):
                raise
    return tuple(found)


def _is_of_later(item: Any) -> bool:
    name = item.get("format") if isinstance(item, dict) else None
    return isinstance(name, str) and name != FORMAT


def write_deltas(deltas: Sequence[Delta]) -> JsonObject:
    """What `read_deltas` reads: an object to be merged into another; empty for none."""
    return {"deltas": [delta.to_json() for delta in deltas]} if deltas else {}


def delta_manifest(delta: Delta, subject: Descriptor) -> bytes:
    """The OCI artifact of a delta: an image manifest with an empty configuration and one layer.

    Args:
        delta: What it carries.
        subject: The index of the new bundle, to which it refers (distribution-spec 1.1, "Listing Referrers").
    """
    return dump(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": DELTA_ARTIFACT_TYPE,
            "config": {"mediaType": EMPTY_TYPE, "digest": str(Digest.of(EMPTY)), "size": len(EMPTY)},
            "layers": [{"mediaType": DELTA_BLOB_TYPE, "digest": str(delta.digest), "size": delta.bytes}],
            "subject": {"mediaType": subject.media_type, "digest": str(subject.digest), "size": subject.size},
            "annotations": {
                BASE: str(delta.base),
                BASE_BYTES: str(delta.base_bytes),
                NEW: str(delta.new),
                NEW_BYTES: str(delta.new_bytes),
                PEAK_BYTES: str(delta.peak_bytes),
            },
        }
    )


def read_delta_manifest(data: bytes) -> tuple[Delta, Digest]:
    """Read what `delta_manifest` wrote.

    Returns:
        The delta, and the digest of the index it refers to.

    Raises:
        ContractError: `artifact.manifest-invalid`, or a code of `parse_object`.
    """
    code = "artifact.manifest-invalid"
    fields = Fields(parse_object(data, "delta manifest", MANIFEST_BYTES_MAX), "delta manifest", code)
    layers = fields.items("layers", 1, required=True)
    if fields.text("artifactType") != DELTA_ARTIFACT_TYPE or len(layers) != 1:
        raise ContractError(code, "the artifact is no delta")
    layer = Fields(layers[0], "layer", code)
    subject = Fields(fields.take("subject"), "subject", code)
    notes = fields.mapping("annotations", 64)
    if layer.text("mediaType") != DELTA_BLOB_TYPE:
        raise ContractError(code, f"a delta of another format: {layer.text('mediaType')[:80]!r}")
    try:
        delta = Delta.from_json(
            {
                "base": notes[BASE],
                "base_bytes": int(notes[BASE_BYTES]),
                "new": notes[NEW],
                "new_bytes": int(notes[NEW_BYTES]),
                "digest": layer.text("digest"),
                "bytes": layer.integer("size"),
                "peak_bytes": int(notes[PEAK_BYTES]),
                "format": FORMAT,
            }
        )
    except (KeyError, ValueError) as error:
        raise ContractError(code, f"the delta's annotations are incomplete: {error}") from None
    except ContractError as error:
        raise ContractError(code, error.detail) from None
    return delta, Digest(subject.text("digest"))
