"""Keys that are not here: on a PKCS#11 token (`hsm:`) or in a cloud's key service, through securesystemslib."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, Key, Signature, Signer

from edge_contract.errors import EdgeError
from edge_contract.limits import KIB

REMOTE_SCHEMES: Final = ("hsm", "awskms", "azurekms", "gcpkms")
_PIN: Final = "ONLINE_PIN"
_SECRET_BYTES_MAX: Final = 64 * KIB
_LIBRARIES: Final = {
    "hsm": "lighterman[hsm]",
    "awskms": "securesystemslib[awskms]",
    "azurekms": "securesystemslib[azurekms]",
    "gcpkms": "securesystemslib[gcpkms]",
}
_TOKEN: Final = threading.Lock()
"""A token is logged in to once a process, so that two threads would disturb each other."""


def secret(environ: Mapping[str, str], name: str) -> str:
    """A secret from `LIGHTERMAN_<name>`, or the first line of the file that `LIGHTERMAN_<name>_FILE` names, or empty.

    Raises:
        EdgeError: `config.file-missing`.
    """
    given = environ.get(f"LIGHTERMAN_{name}", "")
    path = environ.get(f"LIGHTERMAN_{name}_FILE", "")
    if given or not path:
        return given
    try:
        with Path(path).open(encoding="utf-8") as file:
            return file.readline(_SECRET_BYTES_MAX).strip()
    except (OSError, UnicodeError) as error:
        raise EdgeError("config.file-missing", f"cannot read {path} for LIGHTERMAN_{name}_FILE: {error}") from None


class RemoteSigner(Signer):
    """A key elsewhere, used by one thread at a time."""

    def __init__(self, inner: Signer) -> None:
        """Wrap the library's signer."""
        self._inner = inner

    @property
    def public_key(self) -> Key:
        """Public half."""
        return self._inner.public_key

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: Key, secrets_handler: Any = None) -> "RemoteSigner":
        """Wrap what the library finds for a URI."""
        return cls(Signer.from_priv_key_uri(priv_key_uri, public_key, secrets_handler))

    def sign(self, payload: bytes) -> Signature:
        """Sign; the library's own exceptions, which `tuf_rules.signed` turns into ours."""
        with _TOKEN:
            return self._inner.sign(payload)


def open_remote(uri: str, public: Key, environ: Mapping[str, str]) -> Signer:
    """A signer for a key elsewhere.

    Raises:
        EdgeError: `config.dependency-missing`, `config.key-invalid`.
    """
    try:
        return RemoteSigner.from_priv_key_uri(uri, public, lambda _name: _pin(environ))
    except UnsupportedLibraryError as error:
        raise _missing(uri, error) from None
    except (ValueError, OSError) as error:
        raise EdgeError("config.key-invalid", f"the key {uri} cannot be used: {error}") from None


def public_of(uri: str, environ: Mapping[str, str]) -> Key:
    """Ask a token or key service for the public half of a key.

    Raises:
        EdgeError: `config.invalid` for a URI of another kind, `config.dependency-missing`, `config.key-invalid`.
    """
    scheme = uri.partition(":")[0]
    if scheme not in REMOTE_SCHEMES:
        raise EdgeError("config.invalid", f"{uri!r} names no online key", f"Known kinds: {', '.join(REMOTE_SCHEMES)}.")
    kind: Any = SIGNER_FOR_URI_SCHEME[scheme]
    rest = uri.partition(":")[2]
    try:
        with _TOKEN:
            if scheme == "hsm":
                parts = urlsplit(uri)
                label = dict(parse_qsl(parts.query)).get("label")
                _, key = kind.import_(int(parts.path or 2), label, lambda _name: _pin(environ))
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
        raise EdgeError("config.key-invalid", f"the key {uri} cannot be read: {error!r}") from None
    if not isinstance(key, Key):
        raise EdgeError("config.key-invalid", f"the key {uri} has no public half")
    return key


def _pin(environ: Mapping[str, str]) -> str:
    pin = secret(environ, _PIN)
    if not pin:
        raise EdgeError(
            "config.key-invalid",
            "the token asks for a PIN",
            "Set LIGHTERMAN_ONLINE_PIN, or LIGHTERMAN_ONLINE_PIN_FILE.",
        )
    return pin


def _missing(uri: str, error: Exception) -> EdgeError:
    scheme = uri.partition(":")[0]
    hint = f"Run: pip install '{_LIBRARIES.get(scheme, 'securesystemslib')}'"
    return EdgeError("config.dependency-missing", f"the key {uri} cannot be used: {error}", hint)
