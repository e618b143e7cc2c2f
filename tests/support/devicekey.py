"""A device's key as tests of the cloud need it: requests, tokens and signed reports, made without the agent."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from cloud_registry.identities import DeviceKey
from edge_contract.signed import REPORT_TYPE, TOKEN_AUDIENCE, Envelope
from edge_contract.twin import Report

Kind = Literal["p256", "ed25519"]


@dataclass(frozen=True)
class TestKey:
    """A private key of a device."""

    __test__ = False

    private: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

    @classmethod
    def make(cls, kind: Kind = "p256") -> TestKey:
        """A fresh key."""
        is_p256 = kind == "p256"
        return cls(ec.generate_private_key(ec.SECP256R1()) if is_p256 else ed25519.Ed25519PrivateKey.generate())

    @classmethod
    def of(cls, name: str) -> TestKey:
        """A key that is the same for the same name."""
        return cls(ed25519.Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))

    @property
    def algorithm(self) -> str:
        """As tokens name it."""
        return "EdDSA" if isinstance(self.private, ed25519.Ed25519PrivateKey) else "ES256"

    @property
    def public(self) -> DeviceKey:
        """What the registry keeps of it."""
        public = self.private.public_key()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return DeviceKey(hashlib.sha256(spki).hexdigest(), pem)

    @property
    def pem(self) -> bytes:
        """The private key."""
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def csr(self) -> str:
        """A certificate request (PEM)."""
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        algorithm = None if isinstance(self.private, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        return builder.sign(self.private, algorithm).public_bytes(Encoding.PEM).decode()

    def sign(self, content: bytes) -> bytes:
        """A signature as reports have it."""
        if isinstance(self.private, ed25519.Ed25519PrivateKey):
            return self.private.sign(content)
        return self.private.sign(content, ec.ECDSA(hashes.SHA256()))

    def token(self, device: str, now_ms: int, life_s: int = 300, **changes: Any) -> str:
        """A device's token; `changes` replace claims."""
        claims = {"iss": device, "sub": device, "aud": TOKEN_AUDIENCE, "iat": now_ms // 1000, "jti": "one"}
        claims |= {"exp": now_ms // 1000 + life_s} | changes
        return self.jwt(claims)

    def jwt(self, claims: dict[str, Any], **header: Any) -> str:
        """Any claims under any header, signed with this key."""
        head = {"alg": self.algorithm, "kid": self.public.keyid, "typ": "JWT"} | header
        content = f"{_encode(json.dumps(head).encode())}.{_encode(json.dumps(claims).encode())}"
        signature = self.sign(content.encode())
        if self.algorithm == "ES256":
            first, second = decode_dss_signature(signature)
            signature = first.to_bytes(32, "big") + second.to_bytes(32, "big")
        return f"{content}.{_encode(signature)}"

    def envelope(self, report: Report | bytes) -> Envelope:
        """A signed report."""
        payload = report if isinstance(report, bytes) else report.to_bytes()
        unsigned = Envelope(REPORT_TYPE, payload, self.public.keyid, b"")
        return Envelope(REPORT_TYPE, payload, self.public.keyid, self.sign(unsigned.content))


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
