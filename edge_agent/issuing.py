"""What enrolment and renewal share: keys, requests for certificates, and what comes of them. Needs `cryptography`.

A new identity's keys are kept even when an answer gets lost: the registry lets the same key repeat the same request.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from edge_agent import identity as ids
from edge_agent.identity import KeyPlace, Validity
from edge_agent.keys import DeviceKey, PublicKey, provide_key, type_of
from edge_agent.keyuri import file_name
from edge_agent.limits import CERTIFICATE_BYTES_MAX
from edge_contract.errors import ContractError
from edge_contract.jsonio import Fields, JsonObject

_LINK_URI: Final = f"file:{ids.LINK_KEY}"


@dataclass(frozen=True, slots=True)
class Prepared:
    """Keys that ask for certificates.

    Attributes:
        key: The device's key.
        link: Another one for TLS when the device's key is on a token, which Python's TLS cannot use.
    """

    key: DeviceKey
    link: DeviceKey | None

    def place(self, folder: Path) -> KeyPlace:
        """How the identity in a folder will name the key."""
        return KeyPlace(self.key.uri, self.key.algorithm, self.key.keyid, folder)

    def request(self) -> JsonObject:
        """What the registry is asked with.

        Raises:
            EdgeError: `device.key-unusable`.
        """
        wanted: JsonObject = {"csr_pem": self.key.request_pem()}
        return wanted if self.link is None else {**wanted, "link_csr_pem": self.link.request_pem()}

    def certificates(self, fields: Fields) -> tuple[dict[str, bytes], Validity]:
        """The checked certificates of an answer as files, and when all of them are valid.

        Raises:
            ContractError: `artifact.document-invalid`.
        """
        own, valid = _certificate(fields, "certificate_pem", self.key.public)
        if self.link is None:
            return {ids.CERTIFICATE: own}, valid
        link, link_valid = _certificate(fields, "link_certificate_pem", self.link.public)
        both = Validity(max(valid.from_ms, link_valid.from_ms), min(valid.until_ms, link_valid.until_ms))
        return {ids.CERTIFICATE: own, ids.LINK_CERTIFICATE: link}, both


def prepare(folder: Path, uri: str, key_type: str) -> Prepared:
    """Make or find the keys of a new identity; files are in `folder`, durable on return.

    Raises:
        EdgeError: `config.invalid`, `config.dependency-missing`, `device.*`.
    """
    key = provide_key(uri, folder, key_type)
    return Prepared(key, provide_key(_LINK_URI, folder) if file_name(uri) is None else None)


def prepare_renewal(folder: Path, key: DeviceKey) -> Prepared:
    """Make or find the keys of a renewed identity: a new one for a key in a file, the same one on a token.

    Args:
        folder: Where files go, durable on return.
        key: The key until now.

    Raises:
        EdgeError: `device.*`.
    """
    if file_name(key.uri) is None:
        return Prepared(key, provide_key(_LINK_URI, folder))
    return Prepared(provide_key(key.uri, folder, type_of(key.public)), None)


def require_certificates(fields: Fields, key: str) -> bytes:
    """A text of an answer that holds certificates.

    Raises:
        ContractError: `artifact.document-invalid`.
    """
    data = fields.text(key, chars_max=CERTIFICATE_BYTES_MAX).encode()
    try:
        x509.load_pem_x509_certificates(data)
    except ValueError:
        raise ContractError("artifact.document-invalid", f"{key} holds no certificates") from None
    return data


def _certificate(fields: Fields, name: str, public: PublicKey) -> tuple[bytes, Validity]:
    data = fields.text(name, chars_max=CERTIFICATE_BYTES_MAX).encode()
    try:
        certificate = x509.load_pem_x509_certificate(data)
    except ValueError:
        raise ContractError("artifact.document-invalid", f"{name} holds no certificate") from None
    if certificate.public_key() != public:
        raise ContractError("artifact.document-invalid", f"the certificate in {name} is for another key")
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return data, Validity(int(begins.timestamp() * 1000), int(ends.timestamp() * 1000))
