"""The emulator's certificate authority and its TLS: certificates of servers on loopback addresses, and of clients.

Keys are files of mode 0600 in the emulator's folder. Python's TLS cannot ask for a client's certificate without
verifying it, so a self-signed certificate has to be told (`trust`) before its device connects; its thumbprint alone is
not enough.
"""

import hashlib
import ipaddress
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAYS: Final = 3_650
_CA: Final = "ca.pem"
_CA_KEY: Final = "ca.key"
_PARTIAL_CHAIN: Final = 0x80000  # X509_V_FLAG_PARTIAL_CHAIN: a device's own certificate may be where trust ends


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """A client's certificate that TLS verified.

    Attributes:
        common_name: Of its subject.
        sha1: Thumbprint, upper case.
        sha256: Thumbprint, upper case.
        is_self_issued: Whether subject and issuer are one.
        der: Its bytes.
    """

    common_name: str
    sha1: str
    sha256: str
    is_self_issued: bool
    der: bytes

    @classmethod
    def read(cls, der: bytes) -> "PeerCertificate":
        """Read a certificate; its chain was verified before."""
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        sha1 = hashlib.sha1(der, usedforsecurity=False).hexdigest().upper()
        return cls(
            str(names[0].value) if names else "",
            sha1,
            hashlib.sha256(der).hexdigest().upper(),
            certificate.subject == certificate.issuer,
            der,
        )

    def is_issued_by(self, pem: str) -> bool:
        """Whether the first certificate in `pem` signed this one."""
        try:
            issuer = x509.load_pem_x509_certificate(pem.encode())
            x509.load_der_x509_certificate(self.der).verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


class Authority:
    """Makes certificates, and the context of the emulator's servers. Any thread."""

    def __init__(self, folder: Path) -> None:
        """Take up the authority in a folder, or make one there."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (folder / _CA).exists():
            self._make_authority()
        self.ca_file = folder / _CA
        self.ca_pem = self.ca_file.read_text(encoding="ascii")
        self._certificate = x509.load_pem_x509_certificate(self.ca_pem.encode())
        key = serialization.load_pem_private_key((folder / _CA_KEY).read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{folder / _CA_KEY} holds no key of an elliptic curve")
        self._key = key

    def _make_authority(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Lighterman hub emulator")])
        builder = _builder(name, name, key.public_key()).add_extension(x509.BasicConstraints(True, 1), critical=True)
        certificate = builder.add_extension(_usage(signs=True), critical=True).sign(key, hashes.SHA256())
        _write_secret(self._folder / _CA_KEY, _key_pem(key))
        (self._folder / _CA).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, host: str, names: tuple[str, ...]) -> tuple[Path, Path]:
        """Files of a fresh certificate for a host and other names, and of its key."""
        alternatives: list[x509.GeneralName] = []
        for name in dict.fromkeys((host, "localhost", *names)):
            try:
                alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                alternatives.append(x509.DNSName(name))
        certificate, key = self._issue(host, ExtendedKeyUsageOID.SERVER_AUTH, alternatives)
        files = self._folder / "server.pem", self._folder / "server.key"
        _write_secret(files[1], key)
        files[0].write_text(certificate + self.ca_pem, encoding="ascii")
        return files

    def client(self, name: str) -> tuple[str, str]:
        """(certificate, key) in PEM for a client of this name, signed by this authority."""
        certificate, key = self._issue(name, ExtendedKeyUsageOID.CLIENT_AUTH, [])
        return certificate, key.decode()

    def issue(self, name: str, alternatives: tuple[str, ...] = ()) -> tuple[str, str]:
        """(certificate with chain, key) in PEM for a server that a module runs."""
        names: list[x509.GeneralName] = [x509.DNSName(item) for item in alternatives]
        certificate, key = self._issue(name, ExtendedKeyUsageOID.SERVER_AUTH, names)
        return certificate + self.ca_pem, key.decode()

    def _issue(
        self, name: str, usage: x509.ObjectIdentifier, alternatives: list[x509.GeneralName]
    ) -> tuple[str, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        builder = _builder(subject, self._certificate.subject, key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
        builder = builder.add_extension(_usage(signs=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM).decode(), _key_pem(key)


def self_signed(name: str) -> tuple[str, str]:
    """(certificate, key) in PEM of a client that nobody else vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    builder = _builder(subject, subject, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), _key_pem(key).decode()


def thumbprint(pem: str) -> str:
    """SHA-256 of a certificate, upper case.

    Raises:
        ValueError: it is no certificate in PEM.
    """
    return x509.load_pem_x509_certificate(pem.encode()).fingerprint(hashes.SHA256()).hex().upper()


def server_context(certificate: Path, key: Path, ca_file: Path) -> ssl.SSLContext:
    """TLS 1.2 and later; a client may show a certificate, which is then verified."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(ca_file)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VerifyFlags(_PARTIAL_CHAIN)
    return context


def trust(context: ssl.SSLContext, pem: str) -> None:
    """Let clients show a certificate, or one that it signed, from now on.

    Raises:
        ValueError: it is no certificate in PEM.
    """
    x509.load_pem_x509_certificate(pem.encode())
    context.load_verify_locations(cadata=pem)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
    return builder.not_valid_after(now + timedelta(days=_DAYS))


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_secret(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
