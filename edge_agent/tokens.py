"""Short-lived tokens (RFC 7519) that a device signs with its own key for its HTTP requests. Standard library only.

A token says who asks, whom, and until when; it is worth minutes. The registry refuses one that is outside its time and
says what time it is there; a device whose clock is wrong then dates its tokens by that, and nothing else by it.
"""

import base64
import hashlib
import logging
import secrets
import threading
from email.utils import parsedate_to_datetime
from typing import Final

from edge_agent import ports
from edge_agent.limits import (
    KEY_CHANGES_MAX,
    TOKEN_CLOCK_MS_MAX,
    TOKEN_CLOCK_MS_MIN,
    TOKEN_FRESH_MS,
    TOKEN_MS,
    TOKEN_SPARE_MS,
)
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject, dump
from edge_contract.signed import TOKEN_AUDIENCE, TOKEN_BODY

_LOG: Final = logging.getLogger(__name__)
_COORDINATE_BYTES: Final = 32  # of a point or a scalar of P-256
_JTI_BYTES: Final = 12


def token_for(
    device: str, signer: ports.DeviceSigner, now_s: int, life_s: int = TOKEN_MS // 1000, body: bytes | None = None
) -> str:
    """Make a token in its compact form.

    Args:
        device: Name of the device, which the token is from and about.
        signer: The device's key.
        now_s: Seconds since 1970 that the token is dated by.
        life_s: How long it is good for.
        body: What the one request carries that the token is for; none for a token that is for any request.

    Raises:
        EdgeError: `device.key-unusable`.
    """
    claims: JsonObject = {
        "iss": device,
        "sub": device,
        "aud": TOKEN_AUDIENCE,
        "iat": now_s,
        "exp": now_s + life_s,
        "jti": secrets.token_hex(_JTI_BYTES),
    }
    if body is not None:
        claims[TOKEN_BODY] = hashlib.sha256(body).hexdigest()
    for _ in range(KEY_CHANGES_MAX):
        keyid, algorithm = signer.keyid, signer.algorithm
        header: JsonObject = {"alg": algorithm, "kid": keyid, "typ": "JWT"}
        content = f"{_encode(dump(header))}.{_encode(dump(claims))}"
        signature = signer.sign(content.encode("ascii"))
        if signer.keyid == keyid:  # else the key was renewed meanwhile, and nobody knows which one signed
            raw = signature if algorithm == "EdDSA" else raw_signature(signature)
            return f"{content}.{_encode(raw)}"
    raise EdgeError("device.key-unusable", "the device's key changes at every look")


class DeviceTokens:
    """A `transport.TokenSource`: one token for many requests, renewed shortly before its end. Any thread."""

    def __init__(self, device: str, signer: ports.DeviceSigner, clock: ports.Clock, body: bytes | None = None) -> None:
        """Begin without a token.

        Args:
            device: Name of the device.
            signer: The device's key; asked while a lock is held, so it has to answer within a bound.
            clock: Dates tokens.
            body: What the one request carries that the tokens are for; none for any request.
        """
        self._body = body
        self._device = device
        self._signer = signer
        self._clock = clock
        self._lock = threading.Lock()
        self._shift_ms = 0
        self._token = ""
        self._keyid = ""
        self._good_until = 0  # monotonic: a clock that is put right meanwhile changes nothing about a token

    def __call__(self) -> str:
        """A token that the registry takes for at least a minute, if our idea of its clock is right.

        Raises:
            EdgeError: `device.key-unusable`.
        """
        with self._lock:
            now = self._clock.monotonic_ms()
            if now >= self._good_until or self._keyid != self._signer.keyid:
                self._keyid = self._signer.keyid
                self._token = self._make(TOKEN_MS)
                self._good_until = now + TOKEN_MS - TOKEN_SPARE_MS
            return self._token

    def fresh(self) -> str:
        """See `transport.TokenSource.fresh`."""
        with self._lock:
            return self._make(TOKEN_FRESH_MS)

    def refused(self, date: str) -> bool:
        """Learn from a registry that found a token outside its time what time it is there.

        Args:
            date: The answer's `Date` (RFC 9110).

        Returns:
            Whether another token is worth a try.
        """
        with self._lock:
            self._good_until = 0
            try:
                there_ms = int(parsedate_to_datetime(date).timestamp() * 1000)
            except (ValueError, TypeError, OverflowError):
                return False
            if not TOKEN_CLOCK_MS_MIN <= there_ms <= TOKEN_CLOCK_MS_MAX:
                return False
            self._shift_ms = there_ms - self._clock.wall_ms()
            _LOG.info("tokens are dated %d s off this device's clock from now on", self._shift_ms // 1000)
            return True

    def _make(self, life_ms: int) -> str:
        now_s = (self._clock.wall_ms() + self._shift_ms) // 1000
        return token_for(self._device, self._signer, now_s, life_ms // 1000, self._body)


class FixedToken:
    """A `transport.TokenSource` of one token that somebody else made. One thread."""

    def __init__(self, token: str) -> None:
        """Hold a token."""
        self._token = token
        self.refused_at = ""

    def __call__(self) -> str:
        """The token."""
        return self._token

    def fresh(self) -> str:
        """The token."""
        return self._token

    def refused(self, date: str) -> bool:
        """Remember the date; there is no other token to try."""
        self.refused_at = date
        return False


def raw_signature(der: bytes) -> bytes:
    """An ECDSA P-256 signature as a JSON web signature has it (RFC 7518, 3.4), from its DER form (RFC 3279, 2.2.3).

    Raises:
        EdgeError: `device.key-unusable` when it is no such signature.
    """
    try:
        if der[0] != 0x30 or der[1] != len(der) - 2:
            raise ValueError
        r, rest = _integer(der[2:])
        s, rest = _integer(rest)
        if rest:
            raise ValueError
        return r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")
    except (ValueError, IndexError, OverflowError):
        raise EdgeError("device.key-unusable", "the key gave something that is no ECDSA P-256 signature") from None


def _integer(data: bytes) -> tuple[int, bytes]:
    """A short DER integer that is not negative, and what follows it."""
    end = 2 + data[1]
    if data[0] != 0x02 or not 2 < end <= len(data):
        raise ValueError
    return int.from_bytes(data[2:end], "big", signed=True), data[end:]


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
