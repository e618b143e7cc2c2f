"""Short-lived tokens: what they say, that others can check them, and whose clock dates them."""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.keys import FileKey, new_file_key
from edge_agent.tokens import DeviceTokens, FixedToken, raw_signature, token_for
from edge_contract.errors import EdgeError
from edge_contract.limits import DEVICE_TOKEN_MS_MAX
from edge_contract.signed import TOKEN_AUDIENCE, TOKEN_BODY

NOW_S = 1_800_000_000
P256_MAX = 2**256 - 1


class Clock:
    """Tells what it is told."""

    def __init__(self) -> None:
        self.wall = NOW_S * 1000
        self.monotonic = 5_000

    def wall_ms(self) -> int:
        return self.wall

    def monotonic_ms(self) -> int:
        return self.monotonic


def read(token: str, key: FileKey, now_s: int = NOW_S) -> dict[str, Any]:
    """What an independent library reads in a token whose signature holds."""
    found: dict[str, Any] = jwt.decode(
        token,
        key.public,
        algorithms=[key.algorithm],
        audience=TOKEN_AUDIENCE,
        options={"verify_exp": False, "verify_iat": False, "require": ["exp", "iat", "iss", "sub", "jti"]},
    )
    assert found["iat"] <= now_s < found["exp"]
    return found


@pytest.mark.parametrize("key_type", ["p256", "ed25519"])
def test_another_library_accepts_a_token(key_type: str) -> None:
    key = new_file_key(key_type)
    token = token_for("cam-1", key, NOW_S)
    claims = read(token, key)
    assert (claims["iss"], claims["sub"], claims["exp"] - claims["iat"]) == ("cam-1", "cam-1", 300)
    assert jwt.get_unverified_header(token) == {"alg": key.algorithm, "kid": key.keyid, "typ": "JWT"}
    assert read(token_for("cam-1", key, NOW_S), key)["jti"] != claims["jti"]
    assert TOKEN_BODY not in claims
    bound = read(token_for("cam-1", key, NOW_S, body=b"{}"), key)
    assert bound[TOKEN_BODY] == hashlib.sha256(b"{}").hexdigest()


@given(st.integers(0, P256_MAX), st.integers(0, P256_MAX))
def test_a_raw_signature_holds_the_numbers_of_the_der_form(r: int, s: int) -> None:
    raw = raw_signature(encode_dss_signature(r, s))
    assert (int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"), len(raw)) == (r, s, 64)
    assert decode_dss_signature(encode_dss_signature(r, s)) == (r, s)


@given(st.integers(0, P256_MAX), st.integers(0, P256_MAX), st.integers(0, 71))
def test_half_a_signature_is_an_error_and_no_crash(r: int, s: int, length: int) -> None:
    der = encode_dss_signature(r, s)
    with pytest.raises(EdgeError) as caught:
        raw_signature(der[: min(length, len(der) - 1)])
    assert caught.value.code == "device.key-unusable"


@pytest.mark.parametrize("der", [b"", b"\x31\x00", b"0\x06\x02\x01\xff\x02\x01\x05", encode_dss_signature(2**256, 5)])
def test_what_is_no_signature_of_p256_is_an_error(der: bytes) -> None:
    with pytest.raises(EdgeError):
        raw_signature(der)


def test_one_token_serves_many_requests_until_shortly_before_its_end() -> None:
    clock, key = Clock(), new_file_key()
    tokens = DeviceTokens("cam-1", key, clock)
    first = tokens()
    clock.monotonic += 239_999
    assert tokens() == first
    clock.monotonic += 1
    clock.wall += 240_000
    assert read(tokens(), key, NOW_S + 240)["iat"] == NOW_S + 240


def test_a_clock_that_is_set_meanwhile_does_not_age_a_token() -> None:
    clock = Clock()
    tokens = DeviceTokens("cam-1", new_file_key(), clock)
    first = tokens()
    clock.wall += 10 * 365 * 86_400_000
    assert tokens() == first


def test_a_token_that_is_out_of_time_is_dated_by_the_registrys_clock_from_then_on() -> None:
    clock, key = Clock(), new_file_key()
    clock.wall = 0  # woken up in 1970
    tokens = DeviceTokens("cam-1", key, clock)
    assert read(tokens(), key, 1)["iat"] == 0
    assert tokens.refused("Fri, 15 Jan 2027 08:00:00 GMT")
    assert read(tokens(), key)["iat"] == NOW_S
    clock.wall += 300_000
    clock.monotonic += 300_000
    assert read(tokens(), key, NOW_S + 300)["iat"] == NOW_S + 300


@pytest.mark.parametrize(
    "date", ["", "yesterday", "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "1" * 5000]
)
def test_a_date_that_makes_no_sense_is_not_believed(date: str) -> None:
    clock, key = Clock(), new_file_key()
    tokens = DeviceTokens("cam-1", key, clock)
    assert not tokens.refused(date)
    assert read(tokens(), key)["iat"] == NOW_S


def test_a_fresh_token_has_the_longest_life_that_the_registry_takes() -> None:
    key = new_file_key()
    claims = read(DeviceTokens("cam-1", key, Clock()).fresh(), key)
    assert (claims["exp"] - claims["iat"]) * 1000 == DEVICE_TOKEN_MS_MAX


class Renewed:
    """A key that is renewed between any two looks, so many times."""

    def __init__(self, renewals: int) -> None:
        self.keys = [new_file_key("ed25519") for _ in range(renewals + 1)]

    @property
    def keyid(self) -> str:
        return self.keys[0].keyid

    @property
    def algorithm(self) -> str:
        return self.keys[0].algorithm

    def sign(self, content: bytes) -> bytes:
        if len(self.keys) > 1:
            self.keys.pop(0)
        return self.keys[0].sign(content)


def test_a_key_that_is_renewed_in_the_middle_never_makes_a_token_of_two_keys() -> None:
    signer = Renewed(1)
    assert read(token_for("cam-1", signer, NOW_S), signer.keys[0])["sub"] == "cam-1"


def test_a_key_that_never_rests_is_an_error() -> None:
    with pytest.raises(EdgeError) as caught:
        token_for("cam-1", Renewed(100), NOW_S)
    assert caught.value.code == "device.key-unusable"


def test_a_new_key_is_used_at_once() -> None:
    signer = Renewed(0)
    tokens = DeviceTokens("cam-1", signer, Clock())
    first = tokens()
    assert read(first, signer.keys[0])["sub"] == "cam-1"
    signer.keys = [new_file_key("p256")]
    assert tokens() != first
    assert read(tokens(), signer.keys[0])["sub"] == "cam-1"


def test_many_threads_share_one_token() -> None:
    tokens = DeviceTokens("cam-1", new_file_key(), Clock())
    seen: list[str] = []
    threads = [threading.Thread(target=lambda: seen.append(tokens())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(seen) == 8
    assert len(set(seen)) == 1


def test_a_token_from_elsewhere_remembers_when_it_was_refused() -> None:
    token = FixedToken("abc")
    assert (token(), token.fresh(), token.refused_at) == ("abc", "abc", "")
    assert not token.refused("Fri, 15 Jan 2027 08:00:00 GMT")
    assert token.refused_at == "Fri, 15 Jan 2027 08:00:00 GMT"
