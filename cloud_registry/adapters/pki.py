"""The authority that signs the certificates of devices, and of the broker they talk to (X.509, RFC 5280).

Its key and certificate lie in one file of mode 0600, made as a whole at first use; the certificate alone is repeated in
`ca.crt` for brokers and people.
"""

import ipaddress
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloud_registry.adapters.device_keys import PublicKey, key_of
from cloud_registry.adapters.durable import create_file, disk_errors, make_folder, write_file
from cloud_registry.identities import DeviceKey
from cloud_registry.limits import (
    AUTHORITY_DAYS,
    CLOCK_SKEW_MS,
    CSR_CHARS_MAX,
    DEVICE_CERTIFICATE_DAYS,
    SERVER_CERTIFICATE_DAYS,
    SERVER_NAMES_MAX,
)
from cloud_registry.ports import Clock
from edge_contract.errors import EdgeError
from edge_contract.names import device_name

_AUTHORITY_NAME: Final = "Lighterman device authority"
# RFC 1123: what a host name may be made of; a leading wildcard label is allowed in certificates.
_HOST: Final = re.compile(r"(?:\*\.)?(?!-)[A-Za-z0-9-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_HOST_CHARS_MAX: Final = 253
_DAY_MS: Final = 24 * 3_600 * 1_000
_SERVICE: Final = re.compile(r"cloud:[a-z][a-z0-9-]{0,31}")
_HINT: Final = "Send a PKCS#10 request (PEM) with an EC P-256 or an Ed25519 key."


@dataclass(frozen=True, slots=True)
class _Authority:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


class LocalAuthority:
    """The `CertificateAuthority` port. Any thread; several processes may start at once."""

    def __init__(self, folder: Path, clock: Clock, device_days: int = DEVICE_CERTIFICATE_DAYS) -> None:
        """Name the folder; the authority is made when it is first needed.

        Args:
            folder: For example `<data>/pki`, 0700.
            clock: The time.
            device_days: How long a device's certificate is good, `1..DEVICE_CERTIFICATE_DAYS_MAX` days.
        """
        self._device_days = device_days
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._authority: _Authority | None = None

    @property
    def device_life_ms(self) -> int:
        """See `CertificateAuthority.device_life_ms`."""
        return self._device_days * _DAY_MS

    def check_request(self, csr_pem: str) -> DeviceKey:
        """See `CertificateAuthority.check_request`."""
        return _key_of(_request_of(csr_pem))[1]

    def issue(self, identity: str, csr_pem: str, until_ms: int) -> str:
        """See `CertificateAuthority.issue`. Nothing of the request but its key is taken over."""
        key, _ = _key_of(_request_of(csr_pem))
        subject = _common_name(device_name(identity))
        return self._sign(self._builder(subject, key, until_ms, ExtendedKeyUsageOID.CLIENT_AUTH))

    def issue_server(self, names: Sequence[str]) -> tuple[str, str]:
        """See `CertificateAuthority.issue_server`."""
        if not 1 <= len(names) <= SERVER_NAMES_MAX:
            raise EdgeError("config.invalid", f"a server certificate has 1 to {SERVER_NAMES_MAX} names")
        alternatives = [_general_name(name) for name in names]
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(
            _common_name(names[0][:64]), key.public_key(), self._server_end(), ExtendedKeyUsageOID.SERVER_AUTH
        ).add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return _private_pem(key).decode(), self._sign(builder)

    def issue_service(self, name: str) -> tuple[str, str]:
        """Key and certificate (PEM) by which a part of the cloud shows the broker who it is.

        Args:
            name: The common name; it holds a ':', so that it can never be the name of a device.

        Raises:
            EdgeError: `config.invalid`.
        """
        if not _SERVICE.fullmatch(name):
            raise EdgeError("config.invalid", f"{name[:80]!r} is not the name of a service", "Use cloud:<name>.")
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(
            _common_name(name), key.public_key(), self._server_end(), ExtendedKeyUsageOID.CLIENT_AUTH
        )
        return _private_pem(key).decode(), self._sign(builder)

    def ca_pem(self) -> str:
        """See `CertificateAuthority.ca_pem`."""
        return self._load().certificate.public_bytes(Encoding.PEM).decode()

    # --- inside ---

    def _server_end(self) -> int:
        return self._clock.wall_ms() + SERVER_CERTIFICATE_DAYS * _DAY_MS

    def _builder(
        self, subject: x509.Name, key: PublicKey, until_ms: int, usage: x509.ObjectIdentifier
    ) -> x509.CertificateBuilder:
        authority = self._load()
        start, end = _validity(self._clock.wall_ms(), until_ms)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(min(end, authority.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
            )
        )

    def _sign(self, builder: x509.CertificateBuilder) -> str:
        return builder.sign(self._load().key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()

    def _load(self) -> _Authority:
        with self._lock:
            if self._authority is None:
                self._authority = self._read_or_make()
            return self._authority

    def _read_or_make(self) -> _Authority:
        path = self._folder / "ca.pem"
        with disk_errors(f"read {path}"):
            if not path.exists():
                make_folder(self._folder, 0o700)
                create_file(path, self._new_authority(), 0o600)
            data = path.read_bytes()
        try:
            key = load_pem_private_key(data, password=None)
            certificate = x509.load_pem_x509_certificate(data)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise EdgeError("config.key-invalid", f"{path} cannot be read", "Restore it from a backup.") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise EdgeError("config.key-invalid", f"{path}: key and certificate differ", "Restore it from a backup.")
        with disk_errors("write ca.crt"):
            pem = certificate.public_bytes(Encoding.PEM)
            public = self._folder / "ca.crt"
            if not public.is_file() or public.read_bytes() != pem:
                write_file(public, pem)
        return _Authority(key, certificate)

    def _new_authority(self) -> bytes:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _common_name(_AUTHORITY_NAME)
        now_ms = self._clock.wall_ms()
        start, end = _validity(now_ms, now_ms + AUTHORITY_DAYS * _DAY_MS)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return _private_pem(key) + certificate.public_bytes(Encoding.PEM)


def _request_of(csr_pem: str) -> x509.CertificateSigningRequest:
    if len(csr_pem) > CSR_CHARS_MAX:
        raise EdgeError("cloud.bad-request", f"a certificate request has at most {CSR_CHARS_MAX} characters")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode("utf-8"))
        is_genuine = request.is_signature_valid
    except (ValueError, UnicodeError, UnsupportedAlgorithm, InvalidSignature):
        raise EdgeError("cloud.bad-request", "the certificate request cannot be read", _HINT) from None
    if not is_genuine:
        raise EdgeError("cloud.bad-request", "the certificate request is not signed by its own key", _HINT)
    return request


def _key_of(request: x509.CertificateSigningRequest) -> tuple[PublicKey, DeviceKey]:
    try:
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise EdgeError("cloud.bad-request", "the certificate request has a key of an unknown kind", _HINT) from None
    kept = key_of(key)
    if kept is None or not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        raise EdgeError("cloud.bad-request", "devices use no keys of the kind in the certificate request", _HINT)
    return key, kept


def _common_name(value: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, value)])


def _general_name(value: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(value))
    except ValueError:
        pass
    if len(value) > _HOST_CHARS_MAX or not _HOST.fullmatch(value):
        raise EdgeError("config.invalid", f"{value[:80]!r} is neither a host name nor an address")
    return x509.DNSName(value)


def _validity(wall_ms: int, until_ms: int) -> tuple[datetime, datetime]:
    start = datetime.fromtimestamp(wall_ms // 1000, UTC) - timedelta(milliseconds=CLOCK_SKEW_MS)
    return start, datetime.fromtimestamp(until_ms // 1000, UTC)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
