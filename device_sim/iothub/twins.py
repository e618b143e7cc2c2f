"""Twins: tags, desired and reported properties with their versions, metadata and limits. Pure; time is an argument.

Source: Azure IoT Hub documentation, "Understand and use device twins" and "Quotas and throttling".
"""

import copy
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from device_sim.iothub.limits import (
    PROPERTIES_CHARS_MAX,
    TAGS_CHARS_MAX,
    TWIN_DEPTH_MAX,
    TWIN_FLAG_CHARS,
    TWIN_KEY_BYTES_MAX,
    TWIN_NUMBER_CHARS,
    TWIN_TEXT_BYTES_MAX,
    TWIN_WHOLE_MAX,
    TWIN_WHOLE_MIN,
)
from edge_contract.jsonio import JsonObject

_BARRED: Final = re.compile(r"[\x00-\x1f\x7f-\x9f.$ ]")
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class TwinError(Exception):
    """A write that the service would refuse; `status` is its HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        """Say why."""
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(slots=True)
class Section:
    """Desired or reported properties.

    Attributes:
        values: What was written.
        version: Counts every write, also one that changes nothing.
        metadata: When each value was written, nested as the values are.
    """

    values: JsonObject = field(default_factory=dict)
    version: int = 1
    metadata: JsonObject = field(default_factory=dict)

    def document(self) -> JsonObject:
        """As a device reads it."""
        return {**copy.deepcopy(self.values), "$version": self.version}

    def service_document(self) -> JsonObject:
        """As the service API shows it."""
        return {**self.document(), "$metadata": copy.deepcopy(self.metadata)}


@dataclass(slots=True)
class Twin:
    """One device's or module's twin. `version` counts writes to tags and desired properties by the service."""

    desired: Section = field(default_factory=Section)
    reported: Section = field(default_factory=Section)
    tags: JsonObject = field(default_factory=dict)
    version: int = 2
    configurations: JsonObject = field(default_factory=dict)

    @property
    def etag(self) -> str:
        """Changes with tags and desired properties."""
        return f"AAAA{self.version:08d}"

    def patch_desired(self, patch: JsonObject, now_ms: int) -> JsonObject:
        """Merge into desired properties; gives what devices are told.

        Raises:
            TwinError: the result is no twin.
        """
        self._write(self.desired, merged(self.desired.values, patch), patch, now_ms)
        self.version += 1
        return {**clean(patch), "$version": self.desired.version}

    def replace_desired(self, values: JsonObject, now_ms: int) -> JsonObject:
        """Put others in the place of all desired properties; gives what devices are told, the whole document.

        Raises:
            TwinError: the new ones are no desired properties.
        """
        self._write(self.desired, without_nulls(clean(values)), values, now_ms)
        self.version += 1
        return self.desired.document()

    def patch_reported(self, patch: JsonObject, now_ms: int) -> int:
        """Merge into reported properties; gives their new version.

        Raises:
            TwinError: the result is no twin.
        """
        self._write(self.reported, merged(self.reported.values, patch), patch, now_ms)
        return self.reported.version

    def set_tags(self, tags: JsonObject, *, is_patch: bool) -> None:
        """Merge into tags, or replace them.

        Raises:
            TwinError: the result are no tags.
        """
        new = merged(self.tags, tags) if is_patch else without_nulls(clean(tags))
        _require_valid(new, TAGS_CHARS_MAX, "tags")
        self.tags = new
        self.version += 1

    def device_document(self) -> JsonObject:
        """What a device gets when it asks."""
        return {"desired": self.desired.document(), "reported": self.reported.document()}

    def _write(self, section: Section, values: JsonObject, written: JsonObject, now_ms: int) -> None:
        _require_valid(values, PROPERTIES_CHARS_MAX, "properties")
        section.values = values
        section.version += 1
        section.metadata = _stamped(section.metadata, values, clean(written), instant(now_ms))


def clean(document: JsonObject) -> JsonObject:
    """A document without the service's own keys at its top."""
    return {key: value for key, value in document.items() if not key.startswith("$")}


def merged(values: JsonObject, patch: JsonObject) -> JsonObject:
    """A JSON merge (RFC 7396): null removes, objects merge, everything else replaces."""
    result = copy.deepcopy(values)
    for key, value in clean(patch).items():
        before = result.get(key)
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = merged(before if isinstance(before, dict) else {}, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def without_nulls(value: JsonObject) -> JsonObject:
    """A document as it is after nulls took away what they name."""
    return merged({}, value)


def instant(now_ms: int) -> str:
    """A time as the service writes it."""
    return datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f0Z")


def _stamped(before: JsonObject, values: JsonObject, written: JsonObject, now: str) -> JsonObject:
    result: JsonObject = {"$lastUpdated": now}
    for key, value in values.items():
        if key in written:
            inner = written[key]
            if isinstance(value, dict):
                old = before.get(key)
                result[key] = _stamped(
                    old if isinstance(old, dict) else {}, value, inner if isinstance(inner, dict) else {}, now
                )
            else:
                result[key] = {"$lastUpdated": now}
        else:
            result[key] = before.get(key, {"$lastUpdated": now})
    return result


def _require_valid(values: JsonObject, chars_max: int, what: str) -> None:
    chars = _chars(values, 0)
    if chars > chars_max:
        raise TwinError(413, f"{what} count {chars} characters, at most {chars_max} are allowed")


def _chars(value: Any, depth: int) -> int:
    if depth > TWIN_DEPTH_MAX:
        raise TwinError(400, f"nested deeper than {TWIN_DEPTH_MAX} levels")
    if isinstance(value, dict):
        return sum(_key_chars(key) + _chars(item, depth + 1) for key, item in value.items())
    if isinstance(value, list):
        return sum(_chars(item, depth + 1) for item in value)
    if isinstance(value, str):
        if len(value.encode("utf-8", "surrogatepass")) > TWIN_TEXT_BYTES_MAX:
            raise TwinError(400, f"a text of more than {TWIN_TEXT_BYTES_MAX} bytes")
        return len(_CONTROLS.sub("", value))
    if isinstance(value, bool):
        return TWIN_FLAG_CHARS
    if isinstance(value, int) and not TWIN_WHOLE_MIN <= value <= TWIN_WHOLE_MAX:
        raise TwinError(400, "a whole number that a twin cannot hold")
    return 0 if value is None else TWIN_NUMBER_CHARS


def _key_chars(key: str) -> int:
    if not key or len(key.encode("utf-8", "surrogatepass")) > TWIN_KEY_BYTES_MAX or _BARRED.search(key):
        raise TwinError(400, f"the key {key[:40]!r}, which a twin cannot hold")
    return len(key)
