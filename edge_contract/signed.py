"""Statements that a device signs with its own key: reports, in a DSSE envelope. Pure; keys are used elsewhere.

The envelope is the one of the Dead Simple Signing Envelope specification 1.0 (JSON form, one signature), so that any
DSSE reader can check it. Signatures are Ed25519 (64 bytes) or ECDSA P-256 over SHA-256 in DER, as such readers expect.
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Final

from edge_contract.errors import ContractError
from edge_contract.jsonio import Fields, dump, parse_object
from edge_contract.limits import ENVELOPE_BYTES_MAX, REPORT_BYTES_MAX

REPORT_TYPE: Final = "application/vnd.lighterman.report.v1+json"
TOKEN_AUDIENCE: Final = "lighterman-registry"
"""The `aud` of the tokens (RFC 7519) that a device signs for its HTTP requests; `iss` is the device's name, `kid` the
SHA-256 of its public key (SubjectPublicKeyInfo, DER) in hexadecimal digits."""
TOKEN_BODY: Final = "body_sha256"
"""Claim of a token that is for one request alone: SHA-256 of the request's body, hexadecimal. A renewal needs it: else
whoever saw a token could ask for a certificate for a key of its own."""
_CODE: Final = "artifact.document-invalid"
_SIGNATURE_BYTES_MAX: Final = 512
_KEYID_CHARS_MAX: Final = 128


def signed_content(payload_type: str, payload: bytes) -> bytes:
    """The bytes a DSSE signature is over (its pre-authentication encoding)."""
    name = payload_type.encode()
    return b" ".join((b"DSSEv1", str(len(name)).encode(), name, str(len(payload)).encode(), payload))


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload with one signature. Nothing of it is true before the signature was checked.

    Attributes:
        payload_type: Says how to read the payload, for example `REPORT_TYPE`.
        payload: At most `REPORT_BYTES_MAX` bytes; parse these very bytes once they are verified.
        keyid: SHA-256 of the signer's public key (SubjectPublicKeyInfo, DER), hexadecimal.
        signature: Over `content`.
    """

    payload_type: str
    payload: bytes
    keyid: str
    signature: bytes

    @property
    def content(self) -> bytes:
        """What the signature is over."""
        return signed_content(self.payload_type, self.payload)

    def to_bytes(self) -> bytes:
        """The message."""
        return dump(
            {
                "payloadType": self.payload_type,
                "payload": base64.b64encode(self.payload).decode("ascii"),
                "signatures": [{"keyid": self.keyid, "sig": base64.b64encode(self.signature).decode("ascii")}],
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> "Envelope":
        """Read a message.

        Raises:
            ContractError: with an `artifact.` code.
        """
        fields = Fields(parse_object(data, "envelope", ENVELOPE_BYTES_MAX), "envelope", _CODE)
        signatures = fields.items("signatures", 1, required=True)
        if len(signatures) != 1:
            raise ContractError(_CODE, "an envelope has one signature")
        signature = Fields(signatures[0], "signature", _CODE)
        payload = _decode(fields.text("payload", chars_max=ENVELOPE_BYTES_MAX), "payload")
        if len(payload) > REPORT_BYTES_MAX:
            raise ContractError("artifact.document-too-large", f"a payload has at most {REPORT_BYTES_MAX} bytes")
        return cls(
            payload_type=fields.text("payloadType", chars_max=256),
            payload=payload,
            keyid=signature.text("keyid", chars_max=_KEYID_CHARS_MAX),
            signature=_decode(signature.text("sig", chars_max=2 * _SIGNATURE_BYTES_MAX), "signature"),
        )


def _decode(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ContractError(_CODE, f"the {what} of an envelope is not base64") from None
