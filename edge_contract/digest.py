"""Digests as a validated type (OCI image-spec, digest grammar; sha256 only)."""

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from edge_contract.errors import ContractError

_FORM: Final = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """`sha256:<64 lower-case hexadecimal digits>`; nothing else can be constructed.

    Attributes:
        value: The whole text form.
    """

    value: str

    def __post_init__(self) -> None:
        """Refuse any other form with `artifact.digest-invalid`."""
        value: object = self.value
        if not isinstance(value, str) or not _FORM.fullmatch(value):
            raise ContractError(
                "artifact.digest-invalid",
                f"{str(self.value)[:80]!r} is not a digest",
                "A digest is sha256: and 64 lower-case hexadecimal digits.",
            )

    @classmethod
    def of(cls, data: bytes | memoryview) -> "Digest":
        """The digest of some bytes."""
        return cls("sha256:" + hashlib.sha256(data).hexdigest())

    @classmethod
    def from_hex(cls, hex_digits: str) -> "Digest":
        """The digest with these 64 hexadecimal digits."""
        return cls("sha256:" + hex_digits)

    @property
    def hex(self) -> str:
        """The 64 hexadecimal digits; safe as a file name."""
        return self.value[7:]

    @property
    def short(self) -> str:
        """The first twelve digits, for tables."""
        return self.value[7:19]

    def __str__(self) -> str:
        """The text form."""
        return self.value
