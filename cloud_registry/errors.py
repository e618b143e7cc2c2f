"""Errors of the registry that carry more than code, detail and hint."""

from collections.abc import Mapping
from typing import Any

from edge_contract.errors import EdgeError


class RegistryError(EdgeError):
    """An operating error with further members for the problem document.

    Attributes:
        extras: For example `needed_by`, the list of what still needs a thing that was to be deleted.
    """

    def __init__(self, code: str, detail: str, hint: str = "", extras: Mapping[str, Any] | None = None) -> None:
        """As `EdgeError`, with extras that can be written as JSON."""
        super().__init__(code, detail, hint)
        self.extras: dict[str, Any] = dict(extras or {})
