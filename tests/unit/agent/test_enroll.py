"""Enrolment: the identity comes as a whole or not at all, and secrets stay where they belong."""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent import enroll as enroll_module
from edge_agent.enroll import enroll
from edge_agent.identity import FOLDER, load_identity
from edge_agent.keys import open_key
from edge_agent.platforms import detect_platform
from edge_agent.store import durable
from edge_agent.store.lock import DataLock
from edge_agent.transport import tls_context
from edge_agent.trust.timefloor import TimeFloor
from edge_agent.trust.uptane import UptaneVerifier
from edge_contract.errors import EdgeError
from tests.support.certs import Authority, server_context
from tests.support.rawhttp import Asked, RawServer, answer, raw_server
from tests.support.tufrepo import NOW_MS, TwoRepositories


class Registry:
    """Enrols whoever asks, and can be told to answer oddly."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.repositories = TwoRepositories()
        self.changes: dict[str, Any] = {}
        self.reply: Callable[[Asked], list[bytes]] | None = None
        self.count = 0

    def __call__(self, asked: Asked) -> list[bytes]:
        if self.reply is not None:
            return self.reply(asked)
        self.count += 1
        wanted = json.loads(asked.body)
        document = {
            "device": f"dev-{self.count}",
            "certificate_pem": self.authority.sign_request(wanted["csr_pem"].encode(), "dev-1"),
            "ca_pem": self.authority.pem,
            "mqtt": {"host": "broker.example", "port": 8883, "tls": True, "ca_pem": self.authority.pem},
            "image_root": self.repositories.image.files["1.root.json"].decode(),
            "director_root": self.repositories.director.files["1.root.json"].decode(),
            **self.changes,
        }
        return [answer(201, json.dumps(document).encode())]


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


def refused(server: RawServer, data: Path, **options: Any) -> EdgeError:
    with pytest.raises(EdgeError) as caught:
        enroll(server.url, "one-time", data, **options)
    return caught.value


def test_a_device_gets_an_identity(server: RawServer, registry: Registry, data: Path) -> None:
    made = enroll(server.url, " one-time\n", data, hardware_id="board-7")
    identity = load_identity(data)
    assert identity == made
    assert (identity.device, identity.url, identity.key.uri) == ("dev-1", server.url, "file:device.key")
    assert identity.key.kind == "file P-256"
    assert identity.valid.until_ms - identity.valid.from_ms == 49 * 3_600_000
    assert (identity.platform, identity.hardware_id) == (detect_platform(), "board-7")
    assert identity.broker is not None
    assert (identity.broker.host, identity.broker.port, identity.broker.tls) == ("broker.example", 8883, True)
    director, image = registry.repositories.director, registry.repositories.image
    assert identity.roots() == (director.files["1.root.json"], image.files["1.root.json"])
    asked = json.loads(server.asked[0].body)
    assert asked["token"] == "one-time"
    assert "BEGIN CERTIFICATE REQUEST" in asked["csr_pem"]


def test_key_and_certificate_work_together(server: RawServer, data: Path) -> None:
    identity = enroll(server.url, "one-time", data)
    context = tls_context(identity.broker_ca)
    context.load_cert_chain(identity.link_certificate, identity.link_key)


@pytest.mark.parametrize(("key_type", "algorithm"), [("p256", "ES256"), ("ed25519", "EdDSA")])
def test_the_key_is_of_the_type_that_was_asked_for(
    server: RawServer, data: Path, key_type: str, algorithm: str
) -> None:
    identity = enroll(server.url, "one-time", data, key_type=key_type)
    key = open_key(identity.key.uri, identity.folder)
    assert (key.algorithm, key.keyid) == (algorithm, identity.key.keyid)
    assert identity.key.algorithm == algorithm


def test_a_key_uri_that_nobody_knows_is_refused_before_anything_is_sent(server: RawServer, data: Path) -> None:
    assert refused(server, data, key_uri="file:../elsewhere.key").code == "config.invalid"
    assert server.asked == []


def test_secrets_are_for_their_owner_alone(server: RawServer, data: Path) -> None:
    identity = enroll(server.url, "one-time", data)
    for path in (data / FOLDER).iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE((data / FOLDER).stat().st_mode) == 0o700
    assert not [path for path in (data / FOLDER).iterdir() if b"one-time" in path.read_bytes()]
    assert identity.key.file == data / FOLDER / "device.key"


def test_an_enrolled_device_is_not_enrolled_again_by_accident(server: RawServer, data: Path) -> None:
    enroll(server.url, "one-time", data)
    error = refused(server, data)
    assert error.code == "config.invalid"
    assert "--force" in error.hint
    assert len(server.asked) == 1


def test_force_brings_a_new_key_and_identity(server: RawServer, data: Path) -> None:
    first = enroll(server.url, "one-time", data)
    key = first.link_key.read_bytes()
    second = enroll(server.url, "one-time", data, is_forced=True)
    assert second.device == "dev-2"
    assert second.link_key.read_bytes() != key
    assert second.key.keyid != first.key.keyid
    assert sorted(path.name for path in data.iterdir()) == ["identity", "identity.lock", "lock"]


def test_a_device_enrolled_again_forgets_what_it_trusted_even_under_the_same_roots(
    server: RawServer, registry: Registry, data: Path
) -> None:
    def refresh() -> int:
        two = registry.repositories
        floor = TimeFloor(data / "trust" / "time.json")
        verifier = UptaneVerifier(data / "trust", two.device, two.director.fetch, two.image.fetch, dict, floor)
        verifier.seed(*load_identity(data).roots())
        return verifier.refresh(NOW_MS).director_version

    director = registry.repositories.director
    enroll(server.url, "one-time", data)
    first = dict(director.files)
    for _ in range(5):
        director.publish()
    assert refresh() == 6
    # Deleted and created anew, the device's director metadata begins at version 1 again.
    director.files = first
    with pytest.raises(EdgeError) as caught:
        refresh()
    assert caught.value.code == "trust.metadata-rollback"
    enroll(server.url, "one-time", data, is_forced=True)
    assert refresh() == 1
    assert (data / "trust" / "time.json").exists()


def test_a_running_agent_is_not_robbed_of_its_identity(server: RawServer, data: Path) -> None:
    enroll(server.url, "one-time", data)
    with DataLock(data / "lock"):
        assert refused(server, data, is_forced=True).code == "device.busy"


def test_the_key_of_an_attempt_whose_answer_got_lost_is_used_again(
    server: RawServer, registry: Registry, data: Path
) -> None:
    registry.reply = lambda _: []
    assert refused(server, data).code == "network.cut"
    with pytest.raises(EdgeError) as caught:
        load_identity(data)
    assert caught.value.code == "device.not-enrolled"
    registry.reply = None
    enroll(server.url, "one-time", data)

    def key_of(asked: Asked) -> bytes:
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        request = x509.load_pem_x509_csr(json.loads(asked.body)["csr_pem"].encode())
        return request.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    assert key_of(server.asked[0]) == key_of(server.asked[1])


@pytest.mark.parametrize(
    ("status", "document", "code"),
    [
        (409, {"code": "cloud.token-spent", "detail": "used before"}, "cloud.token-spent"),
        (401, {}, "network.refused"),
        (503, {}, "cloud.unavailable"),
        (404, {}, "cloud.not-found"),
        (500, {"code": "trust.root-unknown", "detail": "no roots yet"}, "trust.root-unknown"),
    ],
)
def test_what_the_registry_refuses_is_passed_on(
    server: RawServer, registry: Registry, data: Path, status: int, document: dict[str, str], code: str
) -> None:
    registry.reply = lambda _: [answer(status, json.dumps(document).encode())]
    error = refused(server, data)
    assert error.code == code
    assert "one-time" not in str(error)
    assert not (data / FOLDER).exists()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"device": "../etc"}, "cloud.unavailable"),
        ({"device": None}, "cloud.unavailable"),
        ({"certificate_pem": "nothing"}, "cloud.unavailable"),
        ({"ca_pem": ""}, "cloud.unavailable"),
        ({"mqtt": {"host": "b", "port": 0}}, "cloud.unavailable"),
        ({"mqtt": "broker"}, "cloud.unavailable"),
        ({"image_root": "{}"}, "trust.metadata-invalid"),
        ({"director_root": 5}, "cloud.unavailable"),
    ],
)
def test_an_answer_that_cannot_be_used_leaves_no_identity(
    server: RawServer, registry: Registry, data: Path, changes: dict[str, Any], code: str
) -> None:
    registry.changes = changes
    assert refused(server, data).code == code
    assert not (data / FOLDER).exists()


def test_a_certificate_for_another_key_is_refused(server: RawServer, registry: Registry, data: Path) -> None:
    pair = registry.authority.issue("other")
    registry.changes = {"certificate_pem": pair.certificate.read_text()}
    assert "another key" in refused(server, data).detail


def test_a_root_that_nobody_signed_is_refused(server: RawServer, registry: Registry, data: Path) -> None:
    root = json.loads(registry.repositories.image.files["1.root.json"])
    registry.changes = {"image_root": json.dumps({**root, "signatures": []})}
    assert refused(server, data).code == "trust.signature-invalid"


def test_an_answer_that_is_no_json_or_endless_is_refused(server: RawServer, registry: Registry, data: Path) -> None:
    for body in (b"<html>", b"[]", b"x" * 5_000_000):
        replies = [answer(201, body)]
        registry.reply = lambda _, replies=replies: replies
        assert refused(server, data).code == "cloud.unavailable"


def test_no_broker_is_fine(server: RawServer, registry: Registry, data: Path) -> None:
    registry.changes = {"mqtt": None}
    identity = enroll(server.url, "one-time", data)
    assert identity.broker is None
    assert identity.broker_ca is None


@pytest.mark.parametrize("token", ["", "  ", "a\nb", "x" * 1000])
def test_what_is_no_token_is_not_sent(server: RawServer, data: Path, token: str) -> None:
    with pytest.raises(EdgeError) as caught:
        enroll(server.url, token, data)
    assert caught.value.code == "config.invalid"
    assert server.asked == []


def test_an_authority_of_our_own_is_kept_for_later(registry: Registry, tmp_path: Path, data: Path) -> None:
    pair = registry.authority.issue("server", "127.0.0.1")
    with raw_server(registry, tls=server_context(pair)) as server:
        identity = enroll(server.url, "one-time", data, ca=registry.authority.file)
    assert identity.registry_ca is not None
    assert identity.registry_ca.read_bytes() == registry.authority.file.read_bytes()


def test_plain_http_to_a_far_registry_is_warned_about(
    data: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object) -> None:
        raise EdgeError("network.unreachable", "far away")

    monkeypatch.setattr(enroll_module, "_ask", unreachable)
    with caplog.at_level(logging.WARNING), pytest.raises(EdgeError):
        enroll("http://registry.invalid", "one-time", data)
    assert "not https" in caplog.text


def test_a_power_cut_at_any_step_leaves_the_old_identity_or_the_new(
    server: RawServer, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroll(server.url, "one-time", data)
    for survivors in range(60):
        before = load_identity(data).device
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

            for name in ("write_file", "rename", "remove_tree", "make_folder"):
                patched.setattr(durable, name, dying(getattr(durable, name)))
            try:
                enroll(server.url, "one-time", data, is_forced=True)
            except KeyboardInterrupt:
                pass
            else:
                assert load_identity(data).device != before
                return
        identity = load_identity(data)
        tls_context(identity.broker_ca).load_cert_chain(identity.link_certificate, identity.link_key)
        identity.roots()
    pytest.fail("enrolment never came to its end")


def test_an_identity_that_is_damaged_or_missing_says_what_to_do(server: RawServer, data: Path) -> None:
    with pytest.raises(EdgeError, match="enroll") as caught:
        load_identity(data)
    assert caught.value.code == "device.not-enrolled"
    enroll(server.url, "one-time", data)
    (data / FOLDER / "image-root.json").unlink()
    with pytest.raises(EdgeError) as caught:
        load_identity(data).roots()
    assert caught.value.code == "trust.root-unknown"
    (data / FOLDER / "enrolment.json").write_bytes(b'{"schema":"lighterman.enrolment/2"}')
    with pytest.raises(EdgeError, match="--force") as caught:
        load_identity(data)
    assert caught.value.code == "device.disk-corrupt"


def test_importing_enrolment_is_cheap() -> None:
    assert not hasattr(enroll_module, "x509"), "cryptography is imported when somebody enrols"
