"""What a search asks for, and cursors for going on behind the last item of a page (keyset paging)."""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cloud_registry.core import instants
from cloud_registry.limits import (
    CURSOR_CHARS_MAX,
    PAGE_ITEMS_DEFAULT,
    PAGE_ITEMS_MAX,
    PROPERTIES_MAX,
    PROPERTY_CHARS_MAX,
)
from edge_contract.errors import EdgeError

FORMATS: Final = ("onnx", "tflite", "script")
_FILTERS_MAX: Final = 16
_TEXT_CHARS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of an ordered list is asked for.

    Attributes:
        limit: Items, `1..PAGE_ITEMS_MAX`.
        after: Key of the last item of the page before; none for the first page.
    """

    limit: int = PAGE_ITEMS_DEFAULT
    after: str | None = None


@dataclass(frozen=True, slots=True)
class ModelSearch:
    """Conditions a model has to meet; empty ones are met by every model.

    A tag, property or format is met when the model has it, or one of its versions.

    Attributes:
        name: Name; `*` stands for any characters.
        query: Text in the name or a description, in any case.
        format: One of `FORMATS`.
        tags: Exact values by key.
        properties: Exact values by key.
        created_after_ms: Created at or after this instant.
        created_before_ms: Created before this instant.
    """

    name: str = ""
    query: str = ""
    format: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    created_after_ms: int | None = None
    created_before_ms: int | None = None


def read_search(
    name: str,
    query: str,
    format: str,
    tags: Sequence[str],
    properties: Sequence[str],
    created_after: str,
    created_before: str,
) -> ModelSearch:
    """Read the parameters of a search.

    Args:
        name: See `ModelSearch`.
        query: See `ModelSearch`.
        format: See `ModelSearch`.
        tags: Texts `key=value`.
        properties: Texts `key=value`.
        created_after: RFC 3339, or empty.
        created_before: RFC 3339, or empty.

    Raises:
        EdgeError: `cloud.bad-request`.
    """
    if format and format not in FORMATS:
        raise EdgeError("cloud.bad-request", f"{format!r} is not a format", f"Formats: {', '.join(FORMATS)}.")
    for text in (name, query):
        if len(text) > _TEXT_CHARS_MAX or "\0" in text:
            raise EdgeError("cloud.bad-request", f"a search text is printable, of at most {_TEXT_CHARS_MAX} characters")
    return ModelSearch(
        name=name,
        query=query,
        format=format,
        tags=_pairs(tags, "tag"),
        properties=_pairs(properties, "property"),
        created_after_ms=instants.from_text(created_after) if created_after else None,
        created_before_ms=instants.from_text(created_before) if created_before else None,
    )


def read_page(limit: int | None, cursor: str, kind: str) -> Page:
    """Read `limit` and `cursor` of a request for a list of some kind.

    Raises:
        EdgeError: `cloud.bad-request`.
    """
    limit = PAGE_ITEMS_DEFAULT if limit is None else limit
    if not 1 <= limit <= PAGE_ITEMS_MAX:
        raise EdgeError("cloud.bad-request", f"limit is {limit}", f"Ask for 1 to {PAGE_ITEMS_MAX} items.")
    return Page(limit, _read_cursor(cursor, kind) if cursor else None)


def write_cursor(kind: str, key: str) -> str:
    """The cursor that goes on behind an item; opaque to callers."""
    return base64.urlsafe_b64encode(json.dumps([kind, key]).encode()).decode("ascii").rstrip("=")


def like_pattern(text: str, is_wild: bool) -> str:
    r"""A pattern for SQL LIKE with the escape `\`: the text itself, with `*` for any characters if `is_wild`."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%") if is_wild else escaped


def check_properties(properties: Mapping[str, str], what: str = "properties") -> dict[str, str]:
    """Check properties: any printable keys, string values; give them back.

    Raises:
        EdgeError: `cloud.bad-request`.
    """
    if len(properties) > PROPERTIES_MAX:
        raise EdgeError("cloud.bad-request", f"{len(properties)} {what}, at most {PROPERTIES_MAX} are allowed")
    for key, value in properties.items():
        if not key.isprintable() or not 1 <= len(key) <= CURSOR_CHARS_MAX or "=" in key:
            raise EdgeError(
                "cloud.name-invalid", f"{key[:80]!r} is not a valid key of {what}", "Use printable text without '='."
            )
        if len(value) > PROPERTY_CHARS_MAX or "\0" in value:
            raise EdgeError(
                "cloud.bad-request", f"{what}: {key!r} is longer than {PROPERTY_CHARS_MAX} characters, or binary"
            )
    return dict(properties)


def _read_cursor(cursor: str, kind: str) -> str:
    try:
        if len(cursor) > CURSOR_CHARS_MAX:
            raise ValueError
        padded = cursor + "=" * (-len(cursor) % 4)
        found, key = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if found != kind or not isinstance(key, str) or "\0" in key:
            raise ValueError
    except (ValueError, TypeError, binascii.Error, RecursionError):
        hint = "Pass back the value of `next` unchanged."
        raise EdgeError("cloud.bad-request", "the cursor does not belong to this list", hint) from None
    return key


def _pairs(texts: Sequence[str], what: str) -> dict[str, str]:
    if len(texts) > _FILTERS_MAX:
        raise EdgeError("cloud.bad-request", f"at most {_FILTERS_MAX} filters by {what} are allowed")
    result: dict[str, str] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key or "\0" in text or key in result:
            raise EdgeError(
                "cloud.bad-request", f"{what} {text[:80]!r} is not one key=value", f"For example {what}=site=north."
            )
        result[key] = value
    return result
