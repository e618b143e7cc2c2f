"""Rules of the OCI distribution API that need no disk and no network: names, ranges, what a manifest refers to.

Sources: OCI distribution-spec 1.1, OCI image-spec 1.1, RFC 9110 section 14. The registry carries any OCI content, so
manifests are read tolerantly here; how strictly a bundle is read is `edge_contract.manifest`.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Final

from cloud_registry.limits import MANIFEST_REFERENCES_MAX, REFERENCE_TAGS_MAX
from edge_contract.digest import Digest
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import JsonObject, parse_object
from edge_contract.limits import BLOB_BYTES_MAX, MANIFEST_BYTES_MAX
from edge_contract.manifest import INDEX_TYPE, MANIFEST_TYPE

REPOSITORY_CHARS_MAX: Final = 255
MEDIA_TYPE_CHARS_MAX: Final = 255

_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_RANGE: Final = re.compile(r"bytes=[ \t]*([0-9]{0,19})-([0-9]{0,19})[ \t]*")
_CONTENT_RANGE: Final = re.compile(r"(?:bytes[= ])?([0-9]{1,19})-([0-9]{1,19})(?:/(?:[0-9]{1,19}|\*))?")
# RFC 6838 section 4.2: what a media type may be made of.
_MEDIA_TYPE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")

DOCKER_MANIFEST_TYPE: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST_TYPE: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES: Final = frozenset({MANIFEST_TYPE, DOCKER_MANIFEST_TYPE})
INDEX_TYPES: Final = frozenset({INDEX_TYPE, DOCKER_LIST_TYPE})

# Repositories whose content the registry's own records count on: `models/<name>` and `bundles/<name>`.
_MANAGED: Final = ("models/", "bundles/")


def repository_name(value: str) -> str:
    """Check the name of a repository; give it back.

    Raises:
        ContractError: `cloud.name-invalid`.
    """
    if len(value) > REPOSITORY_CHARS_MAX or not _REPOSITORY.fullmatch(value):
        raise ContractError(
            "cloud.name-invalid",
            f"{value[:80]!r} is not a repository name",
            "Use lower-case letters and digits, joined by '.', '_' or '-', in parts separated by '/'.",
        )
    return value


def tag_name(value: str) -> str:
    """Check a tag; give it back.

    Raises:
        ContractError: `cloud.name-invalid`.
    """
    if not _TAG.fullmatch(value):
        raise ContractError(
            "cloud.name-invalid",
            f"{value[:80]!r} is not a tag",
            "A tag has 1 to 128 letters, digits, '_', '.' and '-', and starts with none of the last two.",
        )
    return value


def is_managed(repository: str) -> bool:
    """Whether models and deployments may count on the content of this repository."""
    return repository.startswith(_MANAGED)


@dataclass(frozen=True, slots=True)
class Reference:
    """What a manifest is asked for by: a tag or a digest, the other one is none."""

    tag: str | None
    digest: Digest | None


def parse_reference(value: str) -> Reference:
    """Read the last part of a manifest's URL.

    Raises:
        ContractError: `cloud.name-invalid` or `artifact.digest-invalid`.
    """
    if ":" in value:
        return Reference(None, Digest(value))
    return Reference(tag_name(value), None)


def check_tags(values: list[str]) -> tuple[str, ...]:
    """Check the tags that come along with a manifest that is put by digest.

    Raises:
        ContractError: `cloud.name-invalid`.
    """
    if len(values) > REFERENCE_TAGS_MAX:
        raise ContractError("cloud.name-invalid", f"{len(values)} tags, at most {REFERENCE_TAGS_MAX} are allowed")
    return tuple(dict.fromkeys(tag_name(value) for value in values))


# --- Ranges ---


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Which bytes a `Range` header asks for.

    Args:
        header: Value of the header.
        size: Length of the whole in bytes.

    Returns:
        (first byte, number of bytes), or none when the whole is to be sent: another unit, or several ranges.

    Raises:
        EdgeError: `cloud.not-acceptable` if the range has no byte of the whole, or is reversed.
    """
    match = _RANGE.fullmatch(header)
    if match is None:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        start, end = max(0, size - int(last)), size - 1
    else:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
    if start > end or (first and last and int(last) < int(first)):
        raise EdgeError("cloud.not-acceptable", f"the range {header[:60]!r} has no byte of {size}")
    return start, end - start + 1


def parse_content_range(header: str) -> tuple[int, int]:
    """Which bytes of an upload a `Content-Range` header announces: (offset, number of bytes), at least one.

    Raises:
        EdgeError: `cloud.upload-invalid`.
    """
    match = _CONTENT_RANGE.fullmatch(header)
    if match is None or int(match[2]) < int(match[1]):
        raise EdgeError(
            "cloud.upload-invalid", f"{header[:60]!r} is not a range", "Send `Content-Range: FIRST-LAST`, both counted."
        )
    return int(match[1]), int(match[2]) - int(match[1]) + 1


# --- Manifests ---


@dataclass(frozen=True, slots=True)
class Child:
    """What a manifest or index lists.

    Attributes:
        digest: Digest of the content.
        size: Its declared length in bytes.
        is_manifest: Whether an index lists it (then it is a manifest itself).
        is_elsewhere: Whether it has download addresses of its own, so that the registry need not hold it.
    """

    digest: Digest
    size: int
    is_manifest: bool
    is_elsewhere: bool


@dataclass(frozen=True, slots=True)
class Document:
    """What the registry has to know of a manifest or index; everything else in it is the author's business.

    Attributes:
        media_type: Its content type.
        artifact_type: Its own, or its config's media type when it has none; may be empty.
        children: What it lists, each digest once.
        subject: The manifest it refers to, or none.
        annotations: Its annotations.
    """

    media_type: str
    artifact_type: str
    children: tuple[Child, ...]
    subject: Digest | None
    annotations: dict[str, str] = field(default_factory=dict)


def read_document(media_type: str, data: bytes) -> Document:
    """Read a manifest or index of any kind that OCI registries carry.

    Args:
        media_type: Content type it was put with; parameters are ignored.
        data: Its bytes.

    Raises:
        ContractError: `artifact.document-too-large`, `artifact.duplicate-key`, `artifact.document-invalid`,
            `artifact.digest-invalid` or `artifact.manifest-invalid`.
    """
    kind = media_type.split(";", 1)[0].strip()
    if kind not in MANIFEST_TYPES | INDEX_TYPES:
        raise _invalid(f"{kind[:80]!r} is not a type of manifest this registry knows")
    value = parse_object(data, "manifest", MANIFEST_BYTES_MAX)
    if value.get("schemaVersion") != 2:
        raise _invalid("schemaVersion has to be 2")
    if value.get("mediaType", kind) != kind:
        raise _invalid(f"it was put as {kind}, but calls itself {str(value['mediaType'])[:80]!r}")
    artifact_type = _media_type(value.get("artifactType", ""), "artifactType")
    if kind in INDEX_TYPES:
        listed = [_child(item, is_manifest=True) for item in _items(value, "manifests")]
    else:
        config = value.get("config")
        listed = [_child(config), *(_child(item) for item in _items(value, "layers"))]
        artifact_type = artifact_type or _media_type(_object(config)["mediaType"], "config.mediaType")
    subject = None if value.get("subject") is None else _child(value["subject"]).digest
    children = {child.digest: child for child in listed}
    if len(children) > MANIFEST_REFERENCES_MAX:
        raise _invalid(f"it lists {len(children)} digests, at most {MANIFEST_REFERENCES_MAX} are allowed")
    return Document(kind, artifact_type, tuple(children.values()), subject, _annotations(value.get("annotations")))


def _invalid(why: str) -> ContractError:
    return ContractError("artifact.manifest-invalid", f"the manifest cannot be used: {why}")


def _object(value: Any) -> JsonObject:
    if not isinstance(value, dict):
        raise _invalid("a descriptor has to be an object")
    return value


def _items(value: JsonObject, name: str) -> list[Any]:
    items = value.get(name)
    if not isinstance(items, list):
        raise _invalid(f"{name} has to be an array")
    return items


def _media_type(value: Any, name: str) -> str:
    if value == "":
        return ""
    if not isinstance(value, str) or len(value) > MEDIA_TYPE_CHARS_MAX or not _MEDIA_TYPE.fullmatch(value):
        raise _invalid(f"{name} is not a media type")
    return value


def _child(value: Any, *, is_manifest: bool = False) -> Child:
    item = _object(value)
    size = item.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= BLOB_BYTES_MAX:
        raise _invalid("a descriptor's size is not one")
    if not _media_type(item.get("mediaType", ""), "a descriptor's mediaType"):
        raise _invalid("a descriptor has no mediaType")
    digest = Digest(item["digest"] if isinstance(item.get("digest"), str) else "")
    return Child(digest, size, is_manifest, bool(item.get("urls")))


def _annotations(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _invalid("annotations have to be an object of strings")
    return dict(value)
