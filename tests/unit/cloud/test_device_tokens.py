"""Which tokens of devices are believed: signed by the enrolled key, in the algorithm of that key, in their time."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from cloud_registry.adapters.device_keys import DeviceTokenVerifier
from cloud_registry.identities import EnrolledKey
from edge_contract.errors import EdgeError
from tests.support.devicekey import Kind, TestKey

NOW = 1_790_000_000_000


@dataclass
class Register:
    """Enrolled keys, and a verifier over them."""

    keys: list[EnrolledKey] = field(default_factory=list)
    promoted: list[tuple[str, str]] = field(default_factory=list)
    now_ms: int = NOW

    def wall_ms(self) -> int:
        return self.now_ms

    def enrol(self, device: str, key: TestKey, **more: Any) -> None:
        values = {"is_next": False, "is_revoked": False, "certificate_until_ms": NOW + 1_000_000} | more
        self.keys.append(EnrolledKey(device, key.public.keyid, key.public.pem, **values))

    def verify(self, token: str) -> str:
        verifier = DeviceTokenVerifier(self.find, lambda *names: self.promoted.append(names), self)
        return verifier.verify(token).name

    def find(self, keyid: str) -> list[EnrolledKey]:
        return [key for key in self.keys if key.keyid == keyid]

    def code(self, token: str) -> str:
        with pytest.raises(EdgeError) as caught:
            self.verify(token)
        return caught.value.code


@pytest.fixture(params=["p256", "ed25519"])
def key(request: pytest.FixtureRequest) -> TestKey:
    kind: Kind = request.param
    return TestKey.make(kind)


@pytest.fixture
def register(key: TestKey) -> Register:
    made = Register()
    made.enrol("cam-1", key)
    return made


def test_a_device_is_told_by_its_signature(register: Register, key: TestKey) -> None:
    assert register.verify(key.token("cam-1", NOW)) == "cam-1"
    assert register.promoted == []


def test_a_key_speaks_for_its_own_device_alone(register: Register, key: TestKey) -> None:
    register.enrol("cam-2", TestKey.make())
    assert register.code(key.token("cam-2", NOW)) == "cloud.unauthorized"
    assert register.code(key.token("cam-1", NOW, sub="cam-2")) == "cloud.unauthorized"
    assert register.code(TestKey.make().token("cam-1", NOW)) == "cloud.unauthorized"


def test_another_key_cannot_borrow_a_key_id(register: Register, key: TestKey) -> None:
    for thief in (TestKey.make("p256"), TestKey.make("ed25519")):
        forged = thief.jwt({"iss": "cam-1", "sub": "cam-1"}, kid=key.public.keyid)
        assert register.code(forged) == "cloud.unauthorized"


@pytest.mark.parametrize("algorithm", ["none", "HS256", "ES384", "RS256", "EdDSA", "ES256", "", 7, None])
def test_the_key_decides_the_algorithm(register: Register, key: TestKey, algorithm: Any) -> None:
    if algorithm != key.algorithm:
        claims = claims_of(key.token("cam-1", NOW))
        assert register.code(key.jwt(claims, alg=algorithm)) == "cloud.unauthorized"


def test_a_token_without_a_signature_is_worth_nothing(register: Register, key: TestKey) -> None:
    head, body, signature = key.token("cam-1", NOW).split(".")
    changed = base64.urlsafe_b64encode(b'{"iss":"cam-1"}').rstrip(b"=").decode()
    for token in (f"{head}.{body}.", f"{head}.{changed}.{signature}", f"{head}.{body}.{signature[:-4]}AAAA"):
        assert register.code(token) == "cloud.unauthorized"


def test_a_token_is_for_us_and_says_everything(register: Register, key: TestKey) -> None:
    for name in ("iss", "sub", "aud", "iat", "exp", "jti"):
        claims = claims_of(key.token("cam-1", NOW))
        del claims[name]
        assert register.code(key.jwt(claims)) == "cloud.unauthorized"
    for changes in (
        {"aud": "another-registry"},
        {"aud": ["lighterman-registry", "another"]},
        {"iat": "now"},
        {"exp": float(NOW)},
        {"iat": True},
        {"jti": 7},
        {"jti": "x" * 500},
        {"iss": ["cam-1"]},
        {"exp": 2**70},
    ):
        assert register.code(key.token("cam-1", NOW, **changes)) == "cloud.unauthorized", changes


def test_a_tokens_time_may_be_off_by_a_minute(register: Register, key: TestKey) -> None:
    for off_s in (-359, -300, 0, 60):
        assert register.verify(key.token("cam-1", NOW + off_s * 1000)) == "cam-1", off_s
    for off_s in (-361, -1_000_000_000, 61, 86_400):
        assert register.code(key.token("cam-1", NOW + off_s * 1000)) == "cloud.token-expired", off_s


def test_a_token_that_would_live_too_long_is_refused(register: Register, key: TestKey) -> None:
    assert register.verify(key.token("cam-1", NOW, life_s=600)) == "cam-1"
    for life_s in (601, 0, -5):
        assert register.code(key.token("cam-1", NOW, life_s=life_s)) == "cloud.unauthorized"


def test_a_revoked_device_is_told_so_by_its_own_key_alone(key: TestKey) -> None:
    register = Register()
    register.enrol("cam-1", key, is_revoked=True)
    assert register.code(key.token("cam-1", NOW)) == "cloud.device-revoked"
    assert register.code(TestKey.make().jwt({"iss": "cam-1"}, kid=key.public.keyid)) == "cloud.unauthorized"


def test_an_identity_ends_with_its_certificate(register: Register, key: TestKey) -> None:
    register.now_ms += 999_999
    assert register.verify(key.token("cam-1", register.now_ms)) == "cam-1"
    register.now_ms += 1
    assert register.code(key.token("cam-1", register.now_ms)) == "cloud.unauthorized"


def test_the_first_use_of_a_new_key_is_noticed(register: Register, key: TestKey) -> None:
    new = TestKey.make()
    register.enrol("cam-1", new, is_next=True)
    assert register.verify(key.token("cam-1", NOW)) == "cam-1"
    assert register.promoted == []
    assert register.code(new.token("cam-1", NOW + 86_400_000)) == "cloud.token-expired"
    assert register.promoted == []
    assert register.verify(new.token("cam-1", NOW)) == "cam-1"
    assert register.promoted == [("cam-1", new.public.keyid)]


def test_devices_that_share_a_key_are_told_apart_by_what_they_say(register: Register, key: TestKey) -> None:
    register.enrol("cam-2", key, is_revoked=True)
    assert register.verify(key.token("cam-1", NOW)) == "cam-1"
    assert register.code(key.token("cam-2", NOW)) == "cloud.device-revoked"


@pytest.mark.parametrize(
    "damage",
    [
        lambda token: "..",
        lambda token: "a.b.c",
        lambda token: token + "x" * 2_000,
        lambda token: "é" + token,
        lambda token: "." + token.partition(".")[2],
        lambda token: f"{_json([1])}.{token.partition('.')[2]}",
        lambda token: f"{_json({'alg': 'ES256', 'kid': 7})}.{token.partition('.')[2]}",
        lambda token: f"{_json({'alg': 'ES256', 'kid': '../x'})}.{token.partition('.')[2]}",
    ],
)
def test_what_is_no_token_is_refused(register: Register, key: TestKey, damage: Callable[[str], str]) -> None:
    assert register.code(damage(key.token("cam-1", NOW))) == "cloud.unauthorized"


def claims_of(token: str) -> dict[str, Any]:
    body = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return found


def _json(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
