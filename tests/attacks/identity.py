"""A device's identity as a thief of its disk has it: private key, certificate; and what he makes of them."""

from __future__ import annotations

import hashlib
import http.client
import json
import secrets
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from edge_contract.signed import REPORT_TYPE, TOKEN_AUDIENCE, Envelope, signed_content
from tests.attacks.ground import Ground
from tests.e2e.device import Device
from tests.support.net import LOOPBACK

_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Identity:
    """Whose name, and which key.

    Attributes:
        device: Name of the device that it speaks for.
        key: Private key.
        folder: Where the certificate is.
    """

    device: str
    key: ec.EllipticCurvePrivateKey
    folder: Path | None = None

    @property
    def public(self) -> bytes:
        """The public half, as enrolment knows it."""
        return self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def keyid(self) -> str:
        """Its name in tokens and envelopes."""
        return hashlib.sha256(self.public).hexdigest()

    @property
    def user(self) -> str:
        """Its name at the broker."""
        assert self.folder is not None
        certificate = x509.load_pem_x509_certificate((self.folder / "device.crt").read_bytes())
        (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(name.value)

    def tls(self, ground: Ground) -> ssl.SSLContext:
        """TLS towards the broker with its certificate."""
        assert self.folder is not None
        return ground.tls(self.folder / "device.crt", self.folder / "device.key")

    def envelope(self, report: bytes, keyid: str = "") -> bytes:
        """A report in an envelope signed with its key; under another's name, if one is given."""
        signature = self.key.sign(signed_content(REPORT_TYPE, report), ec.ECDSA(hashes.SHA256()))
        return Envelope(REPORT_TYPE, report, keyid or self.keyid, signature).to_bytes()

    def token(self, *, shift_s: int = 0, life_s: int = 300, keyid: str = "", **claims: Any) -> str:
        """A token, with claims that may be anything."""
        now = int(time.time()) + shift_s
        said = {"iss": self.device, "sub": self.device, "aud": TOKEN_AUDIENCE, "iat": now, "exp": now + life_s}
        said |= {"jti": secrets.token_hex(8)} | claims
        return jwt.encode(said, self.key, algorithm="ES256", headers={"kid": keyid or self.keyid})


def identity_of(device: Device) -> Identity:
    """What lies on a device's disk."""
    folder = device.data / "identity"
    key = load_pem_private_key((folder / "device.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Identity(device.name, key, folder)


def stranger(name: str) -> Identity:
    """Somebody who calls himself like a device."""
    return Identity(name, ec.generate_private_key(ec.SECP256R1()))


def get(ground: Ground, path: str, token: str, method: str = "GET") -> tuple[int, str]:
    """Status and error code of what the registry answers."""
    connection = http.client.HTTPConnection(LOOPBACK, ground.port, timeout=_TIMEOUT_S)
    try:
        connection.request(method, path, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    try:
        document = json.loads(body)
    except ValueError:
        return answer.status, ""
    errors = document.get("errors") if isinstance(document, dict) else None
    found = errors[0] if errors else document
    return answer.status, str(found.get("code", "")) if isinstance(found, dict) else ""
