"""Keys that are in no file of the folder: on a PKCS#11 token (`hsm:`) or in a cloud's key service.

securesystemslib does the work. A token's PIN comes from the environment, a file or a prompt, never from a command line
or a URI.
"""

from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from securesystemslib.exceptions import KeyMismatchError, UnsupportedLibraryError
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, Key, Signer

from edge_contract.errors import EdgeError

_LIBRARIES: Final = {
    "hsm": "lighterman[hsm]",
    "awskms": "securesystemslib[awskms]",
    "azurekms": "securesystemslib[azurekms]",
    "gcpkms": "securesystemslib[gcpkms]",
}
REMOTE_SCHEMES: Final = tuple(_LIBRARIES)

Pin = Callable[[str], str]
"""Gives the PIN of the token with this label; empty for the only token there is."""


def no_pin(label: str) -> str:
    """A `Pin` for where nobody can be asked.

    Raises:
        EdgeError: always, `config.key-invalid`.
    """
    what = f"the token {label!r}" if label else "the token"
    raise EdgeError(
        "config.key-invalid", f"{what} asks for a PIN", "Set LIGHTERMAN_KEY_PIN, or LIGHTERMAN_KEY_PIN_FILE."
    )


def open_signer(uri: str, public: Key, pin: Pin) -> Signer:
    """A signer for a key elsewhere.

    Raises:
        EdgeError: `config.dependency-missing`, `config.key-invalid`.
    """
    try:
        return Signer.from_priv_key_uri(uri, public, lambda _name: pin(_label(uri) or ""))
    except UnsupportedLibraryError as error:
        raise _missing(uri, error) from None
    except (ValueError, KeyMismatchError, OSError) as error:
        raise EdgeError("config.key-invalid", f"the key {uri} cannot be used: {error}") from None


def import_public(uri: str, pin: Pin) -> Key:
    """Ask a token or key service for the public half of a key.

    Raises:
        EdgeError: `config.invalid` for a URI of another kind, `config.dependency-missing`, `config.key-invalid`.
    """
    scheme, _, rest = uri.partition(":")
    if scheme not in REMOTE_SCHEMES:
        raise EdgeError("config.invalid", f"{uri!r} names no key", f"Known kinds: {', '.join(REMOTE_SCHEMES)}.")
    kind: Any = SIGNER_FOR_URI_SCHEME[scheme]
    try:
        if scheme == "hsm":
            _, key = kind.import_(int(urlsplit(uri).path or 2), _label(uri), lambda _name: pin(_label(uri) or ""))
        elif scheme == "azurekms":
            vault, _, path = rest.removeprefix("//").partition("/")
            _, key = kind.import_(vault.partition(".")[0], path.removeprefix("keys/").partition("/")[0])
        else:
            _, key = kind.import_(rest)
    except UnsupportedLibraryError as error:
        raise _missing(uri, error) from None
    except EdgeError:
        raise
    except Exception as error:  # noqa: BLE001  # each key service has exceptions of its own
        why = str(error) or type(error).__name__
        hint = "Set PYKCS11LIB to the token's PKCS#11 library." if "PYKCS11LIB" in why else ""
        raise EdgeError("config.key-invalid", f"the key {uri} cannot be read: {why}", hint) from None
    if not isinstance(key, Key):
        raise EdgeError("config.key-invalid", f"the key {uri} has no public half")
    return key


def _label(uri: str) -> str | None:
    return dict(parse_qsl(urlsplit(uri).query)).get("label")


def _missing(uri: str, error: Exception) -> EdgeError:
    scheme = uri.partition(":")[0]
    hint = f"Run: pip install '{_LIBRARIES.get(scheme, 'securesystemslib')}'"
    return EdgeError("config.dependency-missing", f"the key {uri} cannot be used: {error}", hint)
