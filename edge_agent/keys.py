"""The device's private key in this process: opened or made by its URI. Needs `cryptography`; the control process has
none of it and asks `edge_agent.keyholder` instead.
"""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Final, Protocol

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from edge_agent.keyuri import file_name, parse_pkcs11
from edge_agent.limits import CERTIFICATE_BYTES_MAX
from edge_agent.store import durable
from edge_contract.errors import EdgeError

P256: Final = "p256"
ED25519: Final = "ed25519"
KEY_TYPES: Final = (P256, ED25519)
_SIGNATURE_ALGORITHM: Final = {P256: "ES256", ED25519: "EdDSA"}
_OTHERS: Final = 0o077

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class PinRefusedError(EdgeError):
    """The token does not take the PIN. Another try with the same one brings it nearer to locking itself."""


class DeviceKey(Protocol):
    """A `ports.DeviceSigner` that is at hand: it signs, and asks for a certificate. Any thread."""

    @property
    def keyid(self) -> str:
        """See `ports.DeviceSigner.keyid`."""
        ...

    @property
    def algorithm(self) -> str:
        """See `ports.DeviceSigner.algorithm`."""
        ...

    def sign(self, content: bytes) -> bytes:
        """See `ports.DeviceSigner.sign`."""
        ...

    @property
    def uri(self) -> str:
        """Where it is, exactly: opening this URI gives this key."""
        ...

    @property
    def public(self) -> PublicKey:
        """Its public half."""
        ...

    def request_pem(self) -> str:
        """A certificate request (PKCS#10) signed with it. Its subject is empty: the registry knows the name.

        Raises:
            EdgeError: `device.key-unusable`.
        """
        ...

    def close(self) -> None:
        """Give back what holds it."""
        ...


class FileKey:
    """A key in memory, from a file or made just now. Implements `DeviceKey`. Any thread."""

    def __init__(self, private: PrivateKey, uri: str = "") -> None:
        """Hold a key.

        Args:
            private: P-256 or Ed25519.
            uri: Where it is stored, empty when it is not.
        """
        self._private = private
        self._uri = uri
        self._keyid = keyid_of(private.public_key())

    @property
    def uri(self) -> str:
        """See `DeviceKey.uri`."""
        return self._uri

    @property
    def public(self) -> PublicKey:
        """See `DeviceKey.public`."""
        return self._private.public_key()

    @property
    def keyid(self) -> str:
        """See `ports.DeviceSigner.keyid`."""
        return self._keyid

    @property
    def algorithm(self) -> str:
        """See `ports.DeviceSigner.algorithm`."""
        return algorithm_of(self.public)

    def sign(self, content: bytes) -> bytes:
        """See `ports.DeviceSigner.sign`."""
        if isinstance(self._private, ed25519.Ed25519PrivateKey):
            return self._private.sign(content)
        return self._private.sign(content, ec.ECDSA(hashes.SHA256()))

    def request_pem(self) -> str:
        """See `DeviceKey.request_pem`."""
        return request_pem(self._private)

    def close(self) -> None:
        """See `DeviceKey.close`; nothing is held."""

    def to_pem(self) -> bytes:
        """The key as its file has it: PKCS#8, not encrypted."""
        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def new_file_key(key_type: str = P256, uri: str = "") -> FileKey:
    """Make a key in memory.

    Args:
        key_type: One of `KEY_TYPES`.
        uri: Where it will be stored.
    """
    if key_type == ED25519:
        return FileKey(ed25519.Ed25519PrivateKey.generate(), uri)
    return FileKey(ec.generate_private_key(ec.SECP256R1()), uri)


def open_key(uri: str, folder: Path) -> DeviceKey:
    """Open the key that is there.

    Args:
        uri: `file:NAME.key` or `pkcs11:...`.
        folder: The identity's folder, for files.

    Raises:
        EdgeError: `config.invalid` for an unknown URI, `config.dependency-missing` for a token without the library
            that speaks to it, `device.key-unusable`, `device.disk-error`.
    """
    name = file_name(uri)
    if name is None:
        from edge_agent.keys_pkcs11 import TokenKey

        return TokenKey.open(parse_pkcs11(uri))
    return _read(folder / name, uri)


def provide_key(uri: str, folder: Path, key_type: str = P256) -> DeviceKey:
    """Open the key, or make it where it belongs when there is none yet: durable on return.

    Args:
        uri: `file:NAME.key` or `pkcs11:...`; the result's own URI says exactly which key it is.
        folder: The identity's folder, for files; it is there.
        key_type: What to make, one of `KEY_TYPES`.

    Raises:
        EdgeError: As `open_key`; a file that holds no usable key, or one of another type, is replaced.
    """
    name = file_name(uri)
    if name is None:
        from edge_agent.keys_pkcs11 import TokenKey

        return TokenKey.provide(parse_pkcs11(uri), key_type)
    path = folder / name
    with durable.disk_errors(f"reading {path}"):
        pem = durable.read_file(path, CERTIFICATE_BYTES_MAX)
    if pem is not None:
        with contextlib.suppress(EdgeError):  # not a key: half of a file of an attempt that power ended
            found = _loaded(pem, path, uri)
            if found.algorithm == _SIGNATURE_ALGORITHM[key_type]:
                return found
    key = new_file_key(key_type, uri)
    with durable.disk_errors(f"writing {path}"):
        durable.write_file(path, key.to_pem(), 0o600)
    return key


def _read(path: Path, uri: str) -> FileKey:
    with durable.disk_errors(f"reading {path}"):
        pem = durable.read_file(path, CERTIFICATE_BYTES_MAX)
    if pem is None:
        raise unusable(f"its file {path} is missing", "Enrol the device again: edge-agent enroll --force.")
    require_private(path)
    return _loaded(pem, path, uri)


def require_private(path: Path) -> None:
    """Require that nobody but the owner may read or write a file.

    Raises:
        EdgeError: `device.key-unusable`, `device.disk-error`.
    """
    with durable.disk_errors(f"looking at {path}"):
        mode = os.stat(path).st_mode & 0o777
    if mode & _OTHERS:
        raise unusable(f"others may use the file {path} (mode {mode:04o})", f"Let its owner alone: chmod 600 {path}.")


def _loaded(pem: bytes, path: Path, uri: str) -> FileKey:
    try:
        private = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        raise unusable(f"the file {path} holds no private key", "Enrol the device again.") from None
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return FileKey(private, uri)
    if isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(private.curve, ec.SECP256R1):
        return FileKey(private, uri)
    raise unusable(f"the key in {path} is neither P-256 nor Ed25519", "Enrol the device again.")


def unusable(why: str, hint: str = "") -> EdgeError:
    """The error for a key that cannot be used, for a reason that names no secret."""
    return EdgeError("device.key-unusable", f"the device's key cannot be used: {why}", hint)


def keyid_of(public: PublicKey) -> str:
    """SHA-256 of a public key (SubjectPublicKeyInfo, DER), hexadecimal."""
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def algorithm_of(public: PublicKey) -> str:
    """How signatures of a key are called in JSON (RFC 7518, RFC 8037)."""
    return _SIGNATURE_ALGORITHM[type_of(public)]


def type_of(public: PublicKey) -> str:
    """One of `KEY_TYPES`."""
    return ED25519 if isinstance(public, ed25519.Ed25519PublicKey) else P256


def request_pem(private: PrivateKey) -> str:
    """A certificate request without a name, signed with a key."""
    from cryptography import x509  # here, because it is most of what the process that holds the key would load

    algorithm = None if isinstance(private, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(private, algorithm)
    return request.public_bytes(serialization.Encoding.PEM).decode("ascii")
