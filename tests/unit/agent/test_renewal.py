"""Renewal of the certificate: in time, with a new key, and never without a key that the registry takes."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509

from edge_agent import exchange as exchange_module
from edge_agent.enroll import enroll
from edge_agent.identity import FOLDER, DeviceIdentity, LiveIdentity, Validity, load_identity
from edge_agent.keyholder import KeyHolder
from edge_agent.keys import PublicKey, keyid_of, open_key
from edge_agent.renewal import PATH, CertificateRenewal, renew, renewal_ms
from edge_agent.shell.clock import SystemClock
from edge_agent.store import durable
from edge_agent.store.lock import DataLock
from edge_agent.tokens import token_for
from edge_agent.transport import tls_context
from edge_contract.errors import EdgeError
from edge_contract.signed import TOKEN_AUDIENCE, TOKEN_BODY
from tests.support.certs import Authority
from tests.support.devicetoken import make_token, run_python
from tests.support.rawhttp import Asked, RawServer, answer, raw_server
from tests.support.tufrepo import TwoRepositories

DAY_MS = 86_400_000


class Registry:
    """Keeps a device's key and its next one, as the real registry does: the first use of the next ends the other."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.repositories = TwoRepositories()
        self.key: PublicKey | None = None
        self.next: PublicKey | None = None
        self.requests: list[str] = []
        self.reply: Callable[[], list[bytes]] | None = None

    def __call__(self, asked: Asked) -> list[bytes]:
        wanted = json.loads(asked.body)
        public = _public(wanted["csr_pem"])
        if asked.path == "/api/v1/enrol":
            self.key, self.next = public, None
        else:
            assert asked.path == PATH
            token = asked.headers["authorization"].removeprefix("Bearer ")
            claims = jwt.decode(token, options={"verify_signature": False})
            assert claims[TOKEN_BODY] == hashlib.sha256(asked.body).hexdigest()
            if not self.takes(token):
                return [answer(401, b'{"code":"cloud.unauthorized","detail":"unknown key"}')]
            self.next = public if public != self.key else None
            self.requests.append(keyid_of(public))
            if self.reply is not None:
                return self.reply()
        document = {
            "device": "cam-1",
            "certificate_pem": self.authority.sign_request(wanted["csr_pem"].encode(), "cam-1.abc"),
            "ca_pem": self.authority.pem,
            "mqtt": {"host": "broker.example", "port": 8883, "tls": True, "ca_pem": self.authority.pem},
            "image_root": self.repositories.image.files["1.root.json"].decode(),
            "director_root": self.repositories.director.files["1.root.json"].decode(),
        }
        if "link_csr_pem" in wanted:
            assert _public(wanted["link_csr_pem"]) != public
            link = self.authority.sign_request(wanted["link_csr_pem"].encode(), "cam-1.abc")
            document["link_certificate_pem"] = link
        return [answer(201, json.dumps(document).encode())]

    def takes(self, token: str) -> bool:
        """Whether a token is signed by the key, or by the next one, which is the key from then on."""
        keyid = jwt.get_unverified_header(token)["kid"]
        for public in (self.key, self.next):
            if public is not None and keyid_of(public) == keyid:
                jwt.decode(token, public, algorithms=["ES256", "EdDSA"], audience=TOKEN_AUDIENCE, issuer="cam-1")
                if public is self.next:
                    self.key, self.next = public, None
                return True
        return False


def _public(request_pem: str) -> Any:
    return x509.load_pem_x509_csr(request_pem.encode()).public_key()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


@pytest.fixture
def server(registry: Registry) -> Iterator[RawServer]:
    with raw_server(registry) as running:
        yield running


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def require_works(identity: DeviceIdentity, registry: Registry) -> None:
    """The key fits the certificate, and the registry takes its tokens."""
    tls_context(identity.broker_ca).load_cert_chain(identity.link_certificate, identity.link_key)
    identity.roots()
    key = open_key(identity.key.uri, identity.folder)
    assert key.keyid == identity.key.keyid
    assert registry.takes(token_for(identity.device, key, SystemClock().wall_ms() // 1000))


@pytest.mark.parametrize("key_type", ["p256", "ed25519"])
def test_a_renewed_identity_has_a_new_key_of_the_same_type_and_all_the_rest(
    server: RawServer, registry: Registry, data: Path, tmp_path: Path, key_type: str
) -> None:
    ca = registry.authority.file
    first = enroll(server.url, "one-time", data, hardware_id="board-7", ca=ca, key_type=key_type)
    renew(data, SystemClock())
    second = load_identity(data)
    assert second.key.keyid != first.key.keyid
    assert replace(second, key=first.key, valid=first.valid) == first
    assert second.key.algorithm == first.key.algorithm
    assert sorted(path.name for path in (data / FOLDER).iterdir()) == [
        "broker-ca.crt",
        "ca.crt",
        "device.crt",
        "device.key",
        "director-root.json",
        "enrolment.json",
        "image-root.json",
        "registry-ca.crt",
    ]
    assert sorted(path.name for path in data.iterdir()) == ["identity", "identity.lock", "lock"]
    require_works(second, registry)


def test_a_running_agent_does_not_hinder_a_renewal_and_another_one_does(
    server: RawServer, registry: Registry, data: Path
) -> None:
    enroll(server.url, "one-time", data)
    with DataLock(data / "lock"):
        renew(data, SystemClock())
    with DataLock(data / "identity.lock"), pytest.raises(EdgeError) as caught:
        renew(data, SystemClock())
    assert caught.value.code == "device.busy"


def test_the_new_key_of_an_attempt_whose_answer_got_lost_is_asked_for_again(
    server: RawServer, registry: Registry, data: Path
) -> None:
    first = enroll(server.url, "one-time", data)
    registry.reply = list
    with pytest.raises(EdgeError) as caught:
        renew(data, SystemClock())
    assert caught.value.code == "network.cut"
    require_works(load_identity(data), registry)
    assert load_identity(data) == first
    registry.reply = None
    second = renew(data, SystemClock())
    assert registry.requests[0] == registry.requests[1] == second.key.keyid
    require_works(load_identity(data), registry)


def test_a_power_cut_at_any_step_leaves_a_key_that_the_registry_takes(
    server: RawServer, registry: Registry, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroll(server.url, "one-time", data)
    for survivors in range(60):
        with monkeypatch.context() as patched:
            calls = 0

            def dying(real: Callable[..., Any], limit: int = survivors) -> Callable[..., Any]:
                def call(*arguments: Any) -> Any:
                    nonlocal calls
                    calls += 1
                    if calls > limit:
                        raise KeyboardInterrupt
                    return real(*arguments)

                return call

            for name in ("write_file", "rename", "remove_tree", "remove_file", "make_folder"):
                patched.setattr(durable, name, dying(getattr(durable, name)))
            try:
                renew(data, SystemClock())
            except KeyboardInterrupt:
                is_done = False
            else:
                is_done = True
        require_works(load_identity(data), registry)
        exchange_module.finish_interrupted(data)  # as an agent does that starts
        identity = load_identity(data)
        assert identity.folder == data / FOLDER
        require_works(identity, registry)
        if is_done:
            assert survivors > 10
            return
    pytest.fail("renewal never came to its end")


@pytest.mark.parametrize(
    ("status", "document", "code"),
    [
        (401, {"code": "cloud.device-revoked", "detail": "revoked"}, "cloud.device-revoked"),
        (503, {}, "cloud.unavailable"),
        (201, {}, "cloud.unavailable"),
        (201, {"certificate_pem": "nothing"}, "cloud.unavailable"),
    ],
)
def test_what_the_registry_refuses_leaves_the_old_identity(
    server: RawServer, registry: Registry, data: Path, status: int, document: dict[str, str], code: str
) -> None:
    first = enroll(server.url, "one-time", data)
    registry.reply = lambda: [answer(status, json.dumps(document).encode())]
    with pytest.raises(EdgeError) as caught:
        renew(data, SystemClock())
    assert caught.value.code == code
    assert load_identity(data) == first


def test_a_device_that_is_not_enrolled_has_nothing_to_renew(data: Path) -> None:
    with pytest.raises(EdgeError) as caught:
        renew(data, SystemClock())
    assert caught.value.code == "device.not-enrolled"
    assert not data.exists()


# --- when -------------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.monotonic = 0

    def wall_ms(self) -> int:
        return 0

    def monotonic_ms(self) -> int:
        return self.monotonic


def test_it_is_due_between_two_thirds_and_three_quarters_of_the_certificates_life(
    server: RawServer, data: Path
) -> None:
    identity = enroll(server.url, "one-time", data)
    life_ms = 90 * DAY_MS
    for keyid, at_ms in (("0000", life_ms * 2 // 3), ("ffff", life_ms * 3 // 4)):
        aged = replace(identity, valid=Validity(5, 5 + life_ms), key=replace(identity.key, keyid=keyid + "0" * 60))
        assert abs(renewal_ms(aged) - 5 - at_ms) <= DAY_MS // 100


@pytest.fixture
def watched(server: RawServer, data: Path) -> tuple[LiveIdentity, Clock]:
    enroll(server.url, "one-time", data)
    return LiveIdentity(data), Clock()


def test_it_waits_longer_after_each_failure_and_says_what_failed(
    watched: tuple[LiveIdentity, Clock], data: Path
) -> None:
    identity, clock = watched
    late_ms = identity.current().valid.until_ms
    program = """import sys; sys.stdout.write('{"error":{"code":"cloud.unavailable","detail":"full"}}')"""
    renewal = CertificateRenewal(identity, data, clock, command=(sys.executable, "-c", program))
    assert not renewal.due(identity.current().valid.from_ms)
    renewal.duty(identity.current().valid.from_ms)
    waits = []
    for _ in range(11):
        assert renewal.due(late_ms)
        with pytest.raises(EdgeError, match="full") as caught:
            renewal.duty(late_ms)
        assert caught.value.code == "cloud.unavailable"
        assert renewal.error is not None
        begun = clock.monotonic
        while not renewal.due(late_ms):
            clock.monotonic += 60_000
        waits.append(clock.monotonic - begun)
    assert waits == [min(6 * 3_600_000, 60_000 * 2**number) for number in range(11)]


def test_a_clock_that_is_far_ahead_does_not_renew_for_ever(watched: tuple[LiveIdentity, Clock], data: Path) -> None:
    identity, clock = watched
    renewed: list[int] = []
    renewal = CertificateRenewal(
        identity, data, clock, lambda: renewed.append(1), command=(sys.executable, "-c", "print('{}')")
    )
    late_ms = identity.current().valid.until_ms + 10 * 365 * DAY_MS
    for _ in range(10):
        renewal.duty(late_ms)
    assert renewed == [1]
    clock.monotonic += 3_600_000
    renewal.duty(late_ms)
    assert renewed == [1, 1]


def test_a_process_that_fails_or_hangs_is_an_error(watched: tuple[LiveIdentity, Clock], data: Path) -> None:
    identity, clock = watched
    for program, code in (("import time; time.sleep(60)", "network.timeout"), ("1/0", "internal.bug")):
        command = (sys.executable, "-c", program)
        renewal = CertificateRenewal(identity, data, clock, command=command, timeout_ms=500)
        with pytest.raises(EdgeError) as caught:
            renewal.renew()
        assert caught.value.code == code


def test_the_agent_goes_on_with_the_new_key_at_once(server: RawServer, registry: Registry, data: Path) -> None:
    enroll(server.url, "one-time", data)
    identity = LiveIdentity(data)
    holder = KeyHolder(identity.key)
    before = holder.keyid
    assert registry.takes(token_for("cam-1", holder, SystemClock().wall_ms() // 1000))
    renewed: list[str] = []
    CertificateRenewal(identity, data, SystemClock(), lambda: renewed.append(holder.keyid)).renew()
    assert renewed == [holder.keyid]
    assert holder.keyid != before
    assert registry.takes(token_for("cam-1", holder, SystemClock().wall_ms() // 1000))
    holder.close()
    require_works(identity.current(), registry)


@pytest.mark.system
def test_a_key_on_a_token_stays_and_the_one_for_tls_changes(
    server: RawServer, registry: Registry, data: Path, tmp_path: Path
) -> None:
    token = make_token(tmp_path / "hsm")
    program = """
import sys
from pathlib import Path
from edge_agent.enroll import enroll
enroll(sys.argv[1], "one-time", Path(sys.argv[2]), key_uri=sys.argv[3])
"""
    run_python(program, [server.url, str(data), token.uri()], token.environment)
    first = load_identity(data)
    link_key = first.link_key.read_bytes()
    assert not (data / FOLDER / "device.key").exists()
    assert first.key.kind == "PKCS#11 P-256"
    program = """
import sys
from pathlib import Path
from edge_agent.renewal import renew
from edge_agent.shell.clock import SystemClock
renew(Path(sys.argv[1]), SystemClock())
"""
    run_python(program, [str(data)], token.environment)
    second = load_identity(data)
    assert second.key == first.key
    assert second.link_key.read_bytes() != link_key
    assert second.link_key == data / FOLDER / "link.key"
    tls_context(second.broker_ca).load_cert_chain(second.link_certificate, second.link_key)
    assert os.stat(second.link_key).st_mode & 0o777 == 0o600
