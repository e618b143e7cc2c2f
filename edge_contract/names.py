"""Names and paths that are safe in URLs, topics, file names and SQL, because nothing else passes."""

import re
from typing import Any, Final

from edge_contract.errors import ContractError
from edge_contract.limits import (
    NAME_CHARS_MAX,
    PATH_CHARS_MAX,
    PATH_DEPTH_MAX,
    REPOSITORY_CHARS_MAX,
    TAG_CHARS_MAX,
    TAGS_MAX,
)

# One path component of an OCI repository name (distribution-spec 1.1), so that a model name is one too.
_NAME: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_DEVICE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ALIAS: Final = re.compile(r"[a-z][a-z0-9._-]*")
_TAG_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z_][A-Za-z0-9_-]*)*")
_PLATFORM: Final = re.compile(r"linux/(?:amd64|arm64|arm/v7|arm/v6)")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._+@=,()\[\]{}~!#$%&' -]+")

PLATFORMS: Final = ("linux/amd64", "linux/arm64", "linux/arm/v7", "linux/arm/v6")


def _matching(value: object, form: re.Pattern[str], what: str, rule: str) -> str:
    if not isinstance(value, str) or len(value) > NAME_CHARS_MAX or not form.fullmatch(value):
        raise ContractError("cloud.name-invalid", f"{str(value)[:80]!r} is not a valid {what}", rule)
    return value


def model_name(value: object) -> str:
    """Check the name of a model, and of a module, which follows the same rule; give it back.

    Raises:
        ContractError: `cloud.name-invalid`.
    """
    rule = f"Use lower-case letters and digits, joined by '.', '_' or '-', at most {NAME_CHARS_MAX} characters."
    return _matching(value, _NAME, "name", rule)


def device_name(value: object) -> str:
    """Check the name of a device; give it back.

    Raises:
        ContractError: `cloud.name-invalid`.
    """
    rule = (
        f"Use letters, digits, '.', '_' and '-', starting with a letter or digit, at most {NAME_CHARS_MAX} characters."
    )
    return _matching(value, _DEVICE, "device name", rule)


def alias_name(value: object) -> str:
    """Check an alias of a model version, for example `production`; a number is never an alias.

    Raises:
        ContractError: `cloud.name-invalid`.
    """
    return _matching(value, _ALIAS, "alias", "Start with a lower-case letter; then letters, digits, '.', '_', '-'.")


def platform_name(value: object) -> str:
    """Check a platform, `os/architecture[/variant]`.

    Raises:
        ContractError: `cloud.name-invalid`.
    """
    return _matching(value, _PLATFORM, "platform", f"Known platforms: {', '.join(PLATFORMS)}.")


def repository_name(value: object) -> str:
    """Check the name of an OCI repository (distribution-spec 1.1): names joined by '/'; give it back.

    Raises:
        ContractError: `cloud.name-invalid`.
    """
    parts = value.split("/") if isinstance(value, str) and len(value) <= REPOSITORY_CHARS_MAX else []
    if not isinstance(value, str) or not parts or not all(_NAME.fullmatch(part) for part in parts):
        raise ContractError("cloud.name-invalid", f"{str(value)[:80]!r} is not a valid repository name")
    return value


def tags(value: dict[str, Any]) -> dict[str, str]:
    """Check tags: dotted keys, string values; give them back.

    Raises:
        ContractError: `cloud.name-invalid`.
    """
    if len(value) > TAGS_MAX:
        raise ContractError("cloud.name-invalid", f"{len(value)} tags, at most {TAGS_MAX} are allowed")
    for key, text in value.items():
        _matching(key, _TAG_KEY, "tag key", "Use letters, digits, '_', '-', and '.' between parts.")
        if not isinstance(text, str) or len(text) > TAG_CHARS_MAX:
            raise ContractError(
                "cloud.name-invalid", f"the tag {key!r} has to be a string of at most {TAG_CHARS_MAX} characters"
            )
    return value


def relative_path(value: object) -> str:
    """Check a path inside a bundle: relative, '/'-separated, no '.', '..', empty or odd parts; give it back.

    Raises:
        ContractError: `artifact.path-unsafe`.
    """
    if not isinstance(value, str) or not value or len(value) > PATH_CHARS_MAX:
        raise ContractError("artifact.path-unsafe", f"a path has to have 1 to {PATH_CHARS_MAX} characters")
    parts = value.split("/")
    if len(parts) > PATH_DEPTH_MAX:
        raise ContractError("artifact.path-unsafe", f"the path {value!r} is deeper than {PATH_DEPTH_MAX}")
    for part in parts:
        if part in ("", ".", "..") or not _SEGMENT.fullmatch(part) or part != part.strip(" "):
            raise ContractError(
                "artifact.path-unsafe",
                f"the path {value!r} is not a plain relative path",
                "Paths in a bundle are relative, without '.', '..', empty parts or control characters.",
            )
    return value
