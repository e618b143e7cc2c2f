"""Checks what devices sign with their own keys: the tokens of their requests (RFC 7519), and their reports.

A key is Ed25519 or ECDSA P-256; its kind alone says which algorithm a signature has to be of, never the message.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

import jwt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from cloud_registry.core.roles import Principal
from cloud_registry.identities import DeviceKey, EnrolledKey
from cloud_registry.limits import DEVICE_TOKEN_CHARS_MAX, DEVICE_TOKEN_LEEWAY_MS, KEYS_HELD_MAX
from cloud_registry.ports import Authenticator, Clock
from edge_contract.errors import EdgeError
from edge_contract.limits import DEVICE_TOKEN_MS_MAX
from edge_contract.signed import TOKEN_AUDIENCE, TOKEN_BODY, Envelope

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

_KEYID: Final = re.compile(r"[0-9a-f]{64}")
_CLAIMS: Final = ("iss", "sub", "aud", "iat", "exp", "jti")
_JTI_CHARS_MAX: Final = 128
_AGAIN: Final = "Enrol the device again."


def key_of(public: object) -> DeviceKey | None:
    """The key in the form it is kept in, or none when devices may not have such a key."""
    if not _is_usable(public):
        return None
    assert isinstance(public, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey)
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")
    return DeviceKey(hashlib.sha256(spki).hexdigest(), pem)


def is_signed(envelope: Envelope, pem: str) -> bool:
    """Whether the signature of an envelope is one of this key over exactly its content."""
    key = _load(pem)
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(envelope.signature, envelope.content)
        else:
            key.verify(envelope.signature, envelope.content, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


class DeviceTokenVerifier:
    """Tells devices by the tokens that they sign for themselves. Any thread."""

    def __init__(
        self,
        find: Callable[[str], Sequence[EnrolledKey]],
        promote: Callable[[str, str], object],
        clock: Clock,
    ) -> None:
        """Verify with enrolled keys.

        Args:
            find: The enrolled keys with a key id; more than one when devices share a key.
            promote: Called with device and key id when the new key of a renewal was used for the first time.
            clock: The time.
        """
        self._find = find
        self._promote = promote
        self._clock = clock

    def verify(self, token: str) -> Principal:
        """The device that signed a token.

        Raises:
            EdgeError: `cloud.unauthorized`, `cloud.token-expired`, `cloud.device-revoked`.
        """
        found = self._find(_keyid_of(token))
        if not found:
            raise _refused("no enrolled device has the key that the token names", _AGAIN)
        claims = _claims_of(token, found[0].pem)
        device = claims["iss"]
        enrolled = next((item for item in found if item.device == device), None)
        if enrolled is None or claims["sub"] != device:
            raise _refused("the key that signed the token belongs to another device")
        self._check_time(claims)
        if enrolled.is_revoked:
            raise EdgeError("cloud.device-revoked", f"the identity of {device} was revoked", _AGAIN)
        if enrolled.certificate_until_ms <= self._clock.wall_ms():
            raise _refused(f"the certificate of {device} ended before it was renewed", _AGAIN)
        if enrolled.is_next:
            self._promote(device, enrolled.keyid)
        body = claims.get(TOKEN_BODY, "")
        return Principal(device, None, body if isinstance(body, str) else "")

    def _check_time(self, claims: dict[str, Any]) -> None:
        issued_ms, ends_ms = claims["iat"] * 1000, claims["exp"] * 1000
        if not 0 < ends_ms - issued_ms <= DEVICE_TOKEN_MS_MAX:
            raise _refused(f"a device's token lives at most {DEVICE_TOKEN_MS_MAX // 1000} seconds")
        now = self._clock.wall_ms()
        if issued_ms > now + DEVICE_TOKEN_LEEWAY_MS or ends_ms <= now - DEVICE_TOKEN_LEEWAY_MS:
            when = "is not valid yet" if issued_ms > now else "has expired"
            raise EdgeError(
                "cloud.token-expired",
                f"the token of {claims['iss']} {when}",
                "Compare the device's clock with the Date of this answer, and sign a new token.",
            )


class AnyAuthenticator:
    """The `Authenticator` port: operators by what is stored of their tokens, devices by their signatures."""

    def __init__(self, operators: Authenticator, devices: DeviceTokenVerifier) -> None:
        """Ask both."""
        self._operators = operators
        self._devices = devices

    def authenticate(self, token: str) -> Principal | None:
        """See `Authenticator.authenticate`. Operators' tokens hold no dot."""
        return self._devices.verify(token) if token.count(".") == 2 else self._operators.authenticate(token)


@lru_cache(maxsize=KEYS_HELD_MAX)
def _load(pem: str) -> PublicKey:
    key = load_pem_public_key(pem.encode("ascii"))
    if not _is_usable(key):
        raise EdgeError("internal.bug", "a key of another kind is stored for a device")
    assert isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey)
    return key


def _is_usable(key: object) -> bool:
    is_p256 = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    return is_p256 or isinstance(key, ed25519.Ed25519PublicKey)


def _keyid_of(token: str) -> str:
    if len(token) > DEVICE_TOKEN_CHARS_MAX:
        raise _refused(f"a device's token has at most {DEVICE_TOKEN_CHARS_MAX} characters")
    try:
        keyid = jwt.get_unverified_header(token).get("kid")
    except (jwt.PyJWTError, ValueError):
        raise _refused("the token cannot be read") from None
    if not isinstance(keyid, str) or not _KEYID.fullmatch(keyid):
        raise _refused("the token names no key")
    return keyid


def _claims_of(token: str, pem: str) -> dict[str, Any]:
    """The claims of a token whose signature is this key's. Times are judged by our own clock, later."""
    key = _load(pem)
    algorithm = "EdDSA" if isinstance(key, ed25519.Ed25519PublicKey) else "ES256"
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=TOKEN_AUDIENCE,
            options={
                "require": list(_CLAIMS),
                "strict_aud": True,
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
    except (jwt.PyJWTError, ValueError) as error:
        raise _refused(f"the token is not good: {str(error)[:100]}") from None
    for name in ("iat", "exp"):
        if type(claims[name]) is not int or not 0 <= claims[name] < 2**40:
            raise _refused(f"the token's {name} is not a number of seconds")
    for name in ("iss", "sub", "jti"):
        if not isinstance(claims[name], str) or not 0 < len(claims[name]) <= _JTI_CHARS_MAX:
            raise _refused(f"the token's {name} is not a text")
    return claims


def _refused(detail: str, hint: str = "") -> EdgeError:
    return EdgeError("cloud.unauthorized", detail, hint)
