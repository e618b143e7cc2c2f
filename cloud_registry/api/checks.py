"""Checks of names that come in URLs, so that nothing odd reaches a database or a file system."""

import re
from typing import Final

from edge_contract.errors import EdgeError
from edge_contract.names import alias_name, device_name, model_name

_DEPLOYMENT: Final = re.compile(r"d[0-9]{1,15}-[0-9a-f]{6}")


def checked_model(name: str) -> str:
    """A model's name.

    Raises:
        EdgeError: `cloud.name-invalid`.
    """
    return model_name(name)


def checked_device(name: str) -> str:
    """A device's name, or a token's.

    Raises:
        EdgeError: `cloud.name-invalid`.
    """
    return device_name(name)


def checked_reference(version: str) -> str:
    """A version's number, or an alias.

    Raises:
        EdgeError: `cloud.name-invalid`.
    """
    return version if version.isascii() and version.isdecimal() and len(version) < 20 else alias_name(version)


def checked_deployment(deployment: str) -> str:
    """A deployment's identifier.

    Raises:
        EdgeError: `cloud.not-found` for what cannot be one.
    """
    if not _DEPLOYMENT.fullmatch(deployment):
        raise EdgeError("cloud.not-found", f"there is no deployment {deployment[:80]!r}")
    return deployment
