"""Identities over their life, at a real registry and a real broker: enrolled, renewed, enrolled again, revoked."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from edge_contract import topics
from tests.integration.registry.running import Registry, running_registry
from tests.integration.telemetry.parts import Peer
from tests.integration.telemetry.secure import V5, SecureBroker
from tests.support.author import Author
from tests.support.devicekey import TestKey
from tests.support.net import wait_until

RENEWAL = "/api/v1/devices/self/certificate"

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


@dataclass
class Place:
    """A registry that keeps the broker's list.

    Attributes:
        registry: The registry.
        broker: The broker.
    """

    registry: Registry
    broker: SecureBroker

    @property
    def admin(self) -> str:
        """The first token."""
        return self.registry.admin_token

    def call(self, method: str, path: str, token: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        answer = self.registry.request(method, path, token, json=body)
        return answer.status_code, answer.json()

    def enrol(self, device: str, key: TestKey, **more: str) -> dict[str, Any]:
        """Have an operator make a token, and spend it."""
        _, made = self.call("POST", "/api/v1/enrolment-tokens", self.admin, {"device": device, "ttl_s": 60})
        body = {"token": made["token"], "csr_pem": key.csr(), "platform": "linux/amd64", "hardware_id": ""} | more
        status, answer = self.call("POST", "/api/v1/enrol", "", body)
        assert status == 201, answer
        found: dict[str, Any] = answer
        return found

    def renew(self, signer: TestKey, key: TestKey, device: str = "cam-1") -> tuple[int, Any]:
        """Ask for the next certificate."""
        return self.ask_renewal(signer, {"csr_pem": key.csr()}, device)

    def ask_renewal(self, signer: TestKey, wanted: Any, device: str = "cam-1") -> tuple[int, Any]:
        """Ask for it with any body, and a token for exactly this body."""
        data = json.dumps(wanted).encode()
        token = signer.token(device, self.registry.clock.now_ms, body_sha256=hashlib.sha256(data).hexdigest())
        answer = self.registry.request("POST", RENEWAL, token, content=data)
        return answer.status_code, answer.json()

    def token(self, key: TestKey, device: str = "cam-1") -> str:
        """A device's token of this moment."""
        return key.token(device, self.registry.clock.now_ms)

    def status(self, key: TestKey, device: str = "cam-1") -> tuple[int, str]:
        """What the registry says to a request of a device, and the code of a refusal."""
        status, answer = self.call("GET", "/api/v1/tokens/self", self.token(key, device))
        return status, answer.get("code", "")

    def connect(self, key: TestKey, certificate: str) -> Peer:
        """A connection to the broker with this certificate."""
        return Peer(self.broker.device_port, "any", tls=self.broker.tls_with(key, certificate), protocol=V5)

    def wait_admitted(self, peer: Peer, device: str = "cam-1") -> None:
        """Wait until the broker's list has an entry for this connection."""
        wait_until(lambda: peer.subscribe(topics.ack(device))[-1], 20, what="the entry", poll_s=0.1)


@pytest.fixture
def place(secure: SecureBroker, tmp_path: Path) -> Iterator[Place]:
    mqtt = replace(secure.cloud_config(), keeps_roster=True)
    # Certificates are judged by the system's clock.
    with running_registry(tmp_path / "data", mqtt=mqtt, start_ms=time.time_ns() // 1_000_000) as registry:
        author = Author(registry.services.images.trust_summary()["online_keys"])
        registry.services.images.submit_roots(author.signed_root("image"), author.signed_root("director"))
        yield Place(registry, secure)


def test_after_enrolling_again_nothing_of_the_old_identity_works(place: Place) -> None:
    old, new = TestKey.make("p256"), TestKey.make("ed25519")
    first = place.enrol("cam-1", old)
    before = place.connect(old, first["certificate_pem"])
    try:
        place.wait_admitted(before)
        assert place.status(old) == (200, "")
        second = place.enrol("cam-1", new)
        assert first["identity"] != second["identity"]
        assert first["identity"].startswith("cam-1.")
        wait_until(lambda: before.losses, 20, what="the old connection's end")
        assert place.status(old) == (401, "cloud.unauthorized")
        assert place.status(new) == (200, "")
    finally:
        before.close()
    after, current = place.connect(old, first["certificate_pem"]), place.connect(new, second["certificate_pem"])
    try:
        assert after.subscribe(topics.ack("cam-1"), topics.nudge("cam-1")) == [False, False]
        assert after.publish(topics.report("cam-1"), b"x") == "Not authorized"
        assert after.publish(topics.telemetry("cam-1"), b"x") == "Not authorized"
        place.wait_admitted(current)
        assert current.publish(topics.report("cam-1"), b"x") != "Not authorized"
    finally:
        after.close()
        current.close()


def test_a_revoked_device_is_put_out_and_told_so_until_it_enrols_again(place: Place) -> None:
    key = TestKey.make()
    answer = place.enrol("cam-1", key)
    _, spare = place.call("POST", "/api/v1/enrolment-tokens", place.admin, {"device": "cam-1"})
    peer = place.connect(key, answer["certificate_pem"])
    try:
        place.wait_admitted(peer)
        status, shown = place.call("POST", "/api/v1/devices/cam-1/revocation", place.admin)
        assert status == 200
        assert shown["revoked_at"] is not None
        wait_until(lambda: peer.losses, 20, what="the connection's end")
    finally:
        peer.close()
    assert place.status(key) == (401, "cloud.device-revoked")
    assert place.renew(key, TestKey.make())[0] == 401
    again = {"token": spare["token"], "csr_pem": key.csr(), "platform": "linux/amd64"}
    assert place.call("POST", "/api/v1/enrol", "", again)[1]["code"] == "cloud.token-spent"
    assert place.call("POST", "/api/v1/devices/cam-1/revocation", place.admin)[1]["revoked_at"] == shown["revoked_at"]
    fresh = TestKey.make()
    answer = place.enrol("cam-1", fresh)
    assert place.status(fresh) == (200, "")
    assert place.status(key) == (401, "cloud.unauthorized")
    _, history = place.call("GET", "/api/v1/devices/cam-1/history", place.admin)
    assert [(line["kind"], line["changed_by"]) for line in history["items"]] == [
        ("enrolled", "cam-1"),
        ("revoked", "admin"),
        ("enrolled", "cam-1"),
    ]


def test_a_renewed_certificate_speaks_for_the_same_identity_and_needs_no_new_entry(place: Place) -> None:
    key = TestKey.make()
    answer = place.enrol("cam-1", key)
    peer = place.connect(key, answer["certificate_pem"])
    try:
        place.wait_admitted(peer)
        status, renewed = place.renew(key, key)
        assert status == 201
        assert renewed["identity"] == answer["identity"]
        assert renewed["certificate_pem"] != answer["certificate_pem"]
        certificate = x509.load_pem_x509_certificate(renewed["certificate_pem"].encode())
        assert [item.value for item in certificate.subject] == [answer["identity"]]
        again = place.connect(key, renewed["certificate_pem"])
        try:
            assert again.subscribe(topics.ack("cam-1")) == [True]
        finally:
            again.close()
        assert place.status(key) == (200, "")
    finally:
        peer.close()


def test_a_power_cut_in_a_renewal_with_a_new_key_leaves_a_key_that_works(place: Place) -> None:
    old, lost, new = TestKey.make(), TestKey.make(), TestKey.make("ed25519")
    place.enrol("cam-1", old)
    # The answer to the first renewal never arrives: the device still has the old key, and asks with another new one.
    assert place.renew(old, lost)[0] == 201
    assert place.status(old) == (200, "")
    assert place.renew(old, new)[0] == 201
    assert place.status(lost) == (401, "cloud.unauthorized")
    assert place.status(old) == (200, "")
    assert place.status(new) == (200, "")
    assert place.status(old) == (401, "cloud.unauthorized")
    assert place.call("GET", "/api/v1/devices/cam-1", place.admin)[1]["keyid"] == new.public.keyid


def test_a_device_whose_key_is_on_a_token_has_another_one_for_tls(place: Place) -> None:
    key, link, next_link = TestKey.make(), TestKey.make(), TestKey.make()
    answer = place.enrol("cam-1", key, link_csr_pem=link.csr())
    _, renewed = place.ask_renewal(key, {"csr_pem": key.csr(), "link_csr_pem": next_link.csr()})
    assert place.status(link) == (401, "cloud.unauthorized"), "it signs nothing"
    for holder, certificate in ((link, answer), (next_link, renewed)):
        peer = place.connect(holder, certificate["link_certificate_pem"])
        try:
            place.wait_admitted(peer)
        finally:
            peer.close()
    assert place.renew(key, key)[1]["link_certificate_pem"] is None


def test_only_a_device_renews_and_only_for_itself(place: Place) -> None:
    key = TestKey.make()
    place.enrol("cam-1", key)
    place.enrol("cam-2", TestKey.make())
    body = {"csr_pem": TestKey.make().csr()}
    assert place.call("POST", RENEWAL, place.admin, body)[1]["code"] == "cloud.forbidden"
    assert place.renew(key, key, "cam-2")[1]["code"] == "cloud.unauthorized"
    for wrong in ({}, {"csr_pem": "x"}, body | {"link_csr_pem": "x"}, {"csr_pem": 7}, body | {"device": "cam-2"}):
        status, answer = place.ask_renewal(key, wrong)
        assert (status, answer["code"]) == (400, "cloud.bad-request")


def test_a_token_that_somebody_saw_gets_no_certificate(place: Place) -> None:
    key, thief = TestKey.make(), TestKey.make()
    place.enrol("cam-1", key)
    genuine, stolen = {"csr_pem": key.csr()}, {"csr_pem": thief.csr()}
    # One for any request, and one for the device's own renewal.
    assert place.call("POST", RENEWAL, place.token(key), stolen)[1]["code"] == "cloud.unauthorized"
    hashed = hashlib.sha256(json.dumps(genuine).encode()).hexdigest()
    token = key.token("cam-1", place.registry.clock.now_ms, body_sha256=hashed)
    assert place.call("POST", RENEWAL, token, stolen)[1]["code"] == "cloud.unauthorized"
    for_tls = genuine | {"link_csr_pem": thief.csr()}
    assert place.call("POST", RENEWAL, token, for_tls)[1]["code"] == "cloud.unauthorized"
    assert place.status(thief) == (401, "cloud.unauthorized")
    assert place.ask_renewal(key, genuine)[0] == 201
