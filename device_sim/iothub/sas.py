"""Shared access signatures, as IoT Hub, its provisioning service and Event Hubs understand them. Pure.

`SharedAccessSignature sr=…&sig=…&se=…[&skn=…]`, where the signature is HMAC-SHA256 with the key over the resource as it
is written and the expiry, a line each. Source: Azure IoT Hub documentation, "Control access with shared access
signatures".
"""

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote

_SCHEME: Final = "SharedAccessSignature "
_FIELDS_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Signature:
    """What a token says.

    Attributes:
        resource: As it is written, still URL-encoded: that is what is signed.
        signature: Base64.
        expires_s: Seconds since 1970.
        policy: Name of the key, or empty.
    """

    resource: str
    signature: str
    expires_s: int
    policy: str = ""

    @property
    def plain_resource(self) -> str:
        """The resource, decoded and in lower case, because hosts have no case."""
        return unquote(self.resource)

    def is_signed_with(self, key: str) -> bool:
        """Whether a key in base64 made it; compares in constant time."""
        return hmac.compare_digest(self.signature.encode(), sign(key, self.resource, self.expires_s).encode())


def parse(text: str) -> Signature | None:
    """Read a token; none for a text that is no token."""
    if not text.startswith(_SCHEME):
        return None
    parts = text.removeprefix(_SCHEME).split("&")
    if len(parts) > _FIELDS_MAX:
        return None
    fields = {name: value for name, _, value in (part.partition("=") for part in parts)}
    expires = fields.get("se", "")
    if not (expires.isascii() and expires.isdecimal()) or len(expires) > 15 or not {"sr", "sig"} <= set(fields):
        return None
    return Signature(fields["sr"], unquote(fields["sig"]), int(expires), unquote(fields.get("skn", "")))


def make(key: str, resource: str, expires_s: int, policy: str = "") -> str:
    """A token for a resource, with a key in base64."""
    written = quote(resource, safe="")
    text = f"{_SCHEME}sr={written}&sig={quote(sign(key, written, expires_s), safe='')}&se={expires_s}"
    return f"{text}&skn={quote(policy, safe='')}" if policy else text


def sign(key: str, written: str, expires_s: int) -> str:
    """The signature in base64 over a resource as it is written; empty for a key that is not base64."""
    return hmac_b64(key, f"{written}\n{expires_s}")


def hmac_b64(key: str, text: str) -> str:
    """HMAC-SHA256 of a text in base64, with a key in base64; empty for a key that is none."""
    try:
        secret = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return base64.b64encode(hmac.new(secret, text.encode(), hashlib.sha256).digest()).decode()
