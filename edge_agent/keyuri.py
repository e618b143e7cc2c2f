"""Where a device's private key is, as a URI: `file:NAME` in the identity's folder, or `pkcs11:` (RFC 7512).

Nothing here needs a library, because the control process reads these URIs and holds no key.
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from edge_agent.limits import KEY_URI_CHARS_MAX
from edge_contract.errors import EdgeError

FILE_DEFAULT: Final = "file:device.key"
PKCS11: Final = "pkcs11:"
PIN_VARIABLE: Final = "LIGHTERMAN_KEY_PIN"
"""Holds the PIN where the URI names no file. A file is better: programs that an agent starts see its environment."""

_FILE: Final = "file:"
_NAME_CHARS: Final = frozenset(string.ascii_letters + string.digits + ".-_")
_HINT: Final = "Use file:device.key, or pkcs11:token=TOKEN;object=NAME?module-path=/PATH&pin-source=file:/PATH."
_PATH_PARTS: Final = frozenset(
    {"token", "manufacturer", "serial", "model", "object", "id", "type", "slot-id"}
)  # what finds a token and a key on it
_QUERY_PARTS: Final = frozenset({"module-path", "pin-source"})


@dataclass(frozen=True, slots=True)
class Pkcs11Uri:
    """A key on a PKCS#11 token.

    Attributes:
        module: The driver's shared library.
        token: The token's label, or none when another attribute finds it.
        serial: Its serial number, or none.
        slot: Its slot, or none.
        label: The key's label (CKA_LABEL), or none.
        key_id: The key's identifier (CKA_ID), or none.
        pin_file: File that holds the PIN, or none.
    """

    module: Path
    token: str | None
    serial: str | None
    slot: int | None
    label: str | None
    key_id: bytes | None
    pin_file: Path | None

    def naming(self, label: str, key_id: bytes) -> "Pkcs11Uri":
        """The same token, and a certain key on it."""
        return replace(self, label=label, key_id=key_id)

    def __str__(self) -> str:
        """The URI. It never holds the PIN."""
        path = [
            *([f"token={_quote(self.token)}"] if self.token is not None else []),
            *([f"serial={_quote(self.serial)}"] if self.serial is not None else []),
            *([f"slot-id={self.slot}"] if self.slot is not None else []),
            *([f"object={_quote(self.label)}"] if self.label is not None else []),
            *(["id=" + "".join(f"%{byte:02X}" for byte in self.key_id)] if self.key_id is not None else []),
        ]
        query = [f"module-path={quote(str(self.module))}"]
        if self.pin_file is not None:
            query.append(f"pin-source=file:{quote(str(self.pin_file))}")
        return f"{PKCS11}{';'.join(path)}?{'&'.join(query)}"


def without_pin(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for programs that have no business with the key."""
    return {name: value for name, value in environment.items() if name != PIN_VARIABLE}


def file_name(uri: str) -> str | None:
    """The name of the key's file in the identity's folder, or none when the URI is for a key that is elsewhere.

    Raises:
        EdgeError: `config.invalid` for any other URI than this module's two kinds.
    """
    if len(uri) > KEY_URI_CHARS_MAX:
        raise _invalid(uri, f"is longer than {KEY_URI_CHARS_MAX} characters")
    if uri.startswith(PKCS11):
        return None
    name = uri.removeprefix(_FILE)
    if name == uri or not name.endswith(".key") or name.startswith(".") or not set(name) <= _NAME_CHARS:
        raise _invalid(uri, "is not file:NAME.key, a name in the identity's folder, nor pkcs11:")
    return name


def parse_pkcs11(uri: str) -> Pkcs11Uri:
    """Read a PKCS#11 URI.

    Raises:
        EdgeError: `config.invalid`; a PIN inside the URI is refused, because others would see it.
    """
    if len(uri) > KEY_URI_CHARS_MAX or not uri.startswith(PKCS11):
        raise _invalid(uri, "is no PKCS#11 URI")
    path, _, query = uri.removeprefix(PKCS11).partition("?")
    if "pin-value" in query:
        raise EdgeError("config.invalid", "the key's URI holds a PIN (pin-value), which others can read", _HINT)
    found = _parts(uri, path, ";", _PATH_PARTS) | _parts(uri, query, "&", _QUERY_PARTS)
    module = found.get("module-path", b"").decode("utf-8", "replace")
    if not module.startswith("/"):
        raise _invalid(uri, "does not name the token's driver: module-path=/usr/lib/...")
    if found.get("type", b"private") != b"private":
        raise _invalid(uri, "is not for a private key")
    slot = found.get("slot-id")
    if slot is not None and not (slot.isdigit() and len(slot) <= 10):
        raise _invalid(uri, "has a slot-id that is no number")
    result = Pkcs11Uri(
        module=Path(module),
        token=_text(found, "token"),
        serial=_text(found, "serial"),
        slot=None if slot is None else int(slot),
        label=_text(found, "object"),
        key_id=found.get("id"),
        pin_file=_pin_file(uri, _text(found, "pin-source")),
    )
    if result.token is None and result.serial is None and result.slot is None:
        raise _invalid(uri, "does not say which token: token=LABEL, serial=NUMBER or slot-id=NUMBER")
    return result


def _parts(uri: str, text: str, separator: str, known: frozenset[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in filter(None, text.split(separator)):
        name, equals, value = part.partition("=")
        if not equals or name not in known or name in found:
            raise _invalid(uri, f"has {part[:40]!r}, which is not known or not its first of that name")
        found[name] = unquote_to_bytes(value)
    return found


def _text(found: dict[str, bytes], name: str) -> str | None:
    value = found.get(name)
    return None if value is None else value.decode("utf-8", "replace")


def _pin_file(uri: str, source: str | None) -> Path | None:
    if source is None:
        return None
    path = source.removeprefix("file://").removeprefix("file:")
    if not path.startswith("/"):
        raise _invalid(uri, "has a pin-source that is no file: pin-source=file:/etc/lighterman/pin")
    return Path(path)


def _quote(text: str) -> str:
    return quote(text, safe="")


def _invalid(uri: str, why: str) -> EdgeError:
    return EdgeError("config.invalid", f"the key's URI {uri[:120]!r} {why}", _HINT)
