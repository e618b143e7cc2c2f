"""A device's identity against the real registry: keys, short-lived tokens, renewal, revocation, enrolling again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509

from edge_agent.enroll import enroll
from edge_agent.identity import LiveIdentity, load_identity
from edge_agent.keyholder import KeyHolder
from edge_agent.keys import open_key
from edge_agent.renewal import CertificateRenewal, renew
from edge_agent.shell.clock import SystemClock
from edge_agent.tokens import DeviceTokens
from edge_agent.transport import Origin, TokenSource
from edge_agent.trust.child import ChildVerification
from edge_agent.trust.metastore import MetadataStore
from edge_agent.trust.source import HttpMetadataSource, director_prefix
from edge_agent.trust.timefloor import Times
from edge_contract.errors import EdgeError
from tests.support.author import Author
from tests.support.devicetoken import make_token
from tests.support.registry import RegistryProcess, registry_process

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Site:
    """A registry whose trust is set up, and devices in folders."""

    registry: RegistryProcess
    admin: httpx.Client
    folder: Path
    count: int = field(default=0)

    def token(self, device: str) -> str:
        answer = self.admin.post("/api/v1/enrolment-tokens", json={"device": device})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])

    def name(self) -> str:
        self.count += 1
        return f"cam-{self.count}"

    def enrol(self, name: str, **options: Any) -> Path:
        data = self.folder / name
        enroll(self.registry.url, self.token(name), data, **options)
        return data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with registry_process(folder / "registry") as registry, registry.link() as admin:
        author = Author(admin.get("/api/v1/trust").json()["online_keys"])
        roots = {name: author.signed_root(name).decode() for name in ("image", "director")}
        assert admin.post("/api/v1/trust/roots", json=roots).status_code == 204
        files = {role: data.decode() for role, data in author.first_publish().items()}
        assert admin.post("/api/v1/trust/metadata", json={"files": files}).status_code == 204
        yield Site(registry, admin, folder)


class Clock(SystemClock):
    """The system's, so many milliseconds off."""

    def __init__(self, shift_ms: int) -> None:
        self.shift_ms = shift_ms

    def wall_ms(self) -> int:
        return super().wall_ms() + self.shift_ms


def tokens_of(data: Path, shift_ms: int = 0) -> DeviceTokens:
    identity = load_identity(data)
    return DeviceTokens(identity.device, open_key(identity.key.uri, identity.folder), Clock(shift_ms))


def ask(data: Path, tokens: TokenSource | None, device: str = "") -> bytes | None:
    """What the registry serves as the timestamp of a device's director."""
    identity = load_identity(data)
    source = HttpMetadataSource(identity.url, director_prefix(device or identity.device), tokens)
    try:
        return source("timestamp.json", 16_384)
    finally:
        source.close()


def code_of(data: Path, tokens: TokenSource | None, device: str = "") -> str:
    with pytest.raises(EdgeError) as caught:
        ask(data, tokens, device)
    return caught.value.code


@pytest.mark.parametrize("key_type", ["p256", "ed25519"])
def test_a_device_reads_its_metadata_with_a_token_it_signed(site: Site, key_type: str) -> None:
    data = site.enrol(site.name(), key_type=key_type)
    assert ask(data, tokens_of(data))
    assert code_of(data, None) == "network.refused"


def test_a_device_does_not_read_the_metadata_of_another(site: Site) -> None:
    data, other = site.enrol(site.name()), site.enrol(site.name())
    assert code_of(data, tokens_of(data), load_identity(other).device) == "network.refused"


@pytest.mark.parametrize("shift_ms", [-20 * 365 * 86_400_000, -400_000, 3_600_000])
def test_a_device_whose_clock_is_wrong_is_served_all_the_same(site: Site, shift_ms: int) -> None:
    data = site.enrol(site.name())
    tokens = tokens_of(data, shift_ms)
    assert ask(data, tokens)
    assert ask(data, tokens)


def test_the_process_that_verifies_gets_a_token_by_the_registrys_clock(site: Site) -> None:
    data = site.enrol(site.name())
    identity = load_identity(data)
    for store, root in zip(("director", "image"), identity.roots(), strict=True):
        MetadataStore(data / "trust" / store).seed(root)
    verify = ChildVerification(data / "trust", identity.device, identity.url, tokens_of(data, -3_600_000))
    assert verify(Times(SystemClock().wall_ms())).desired.assignments == ()


def test_a_renewed_key_takes_the_place_of_the_old_one_when_it_is_first_used(site: Site) -> None:
    data = site.enrol(site.name())
    old = tokens_of(data)
    renew(data, SystemClock())
    assert ask(data, old)  # as after a power cut that lost the answer
    new = tokens_of(data)
    assert ask(data, new)
    assert code_of(data, old) == "network.refused"
    assert ask(data, new)


def test_the_agents_own_parts_renew_and_go_on(site: Site) -> None:
    data = site.enrol(site.name())
    identity = LiveIdentity(data)
    holder = KeyHolder(identity.key)
    tokens = DeviceTokens(identity.current().device, holder, SystemClock())
    assert ask(data, tokens)
    before = holder.keyid
    renewal = CertificateRenewal(identity, data, SystemClock())
    assert not renewal.due(SystemClock().wall_ms())
    assert renewal.due(identity.current().valid.until_ms)
    renewal.renew()
    assert holder.keyid != before
    assert ask(data, tokens)
    holder.close()


def test_nothing_of_a_former_identity_works_after_enrolling_again(site: Site) -> None:
    name = site.name()
    data = site.enrol(name)
    old = tokens_of(data)
    assert ask(data, old)
    certificate = load_identity(data).link_certificate.read_bytes()
    enroll(site.registry.url, site.token(name), data, is_forced=True)
    assert ask(data, tokens_of(data))
    assert code_of(data, old) == "network.refused"
    names = [
        x509.load_pem_x509_certificate(pem).subject.rfc4514_string()
        for pem in (certificate, load_identity(data).link_certificate.read_bytes())
    ]
    assert names[0] != names[1]
    assert all(name in text for text in names)


def test_a_revoked_device_is_told_so_and_comes_back_with_a_new_token(site: Site) -> None:
    name = site.name()
    data = site.enrol(name)
    tokens = tokens_of(data)
    assert ask(data, tokens)
    answer = site.admin.post(f"/api/v1/devices/{name}/revocation")
    assert answer.status_code == 200, answer.text
    assert code_of(data, tokens) == "cloud.device-revoked"
    with pytest.raises(EdgeError) as caught:
        renew(data, SystemClock())
    assert caught.value.code == "cloud.device-revoked"
    enroll(site.registry.url, site.token(name), data, is_forced=True)
    assert ask(data, tokens_of(data))


@pytest.mark.system
@pytest.mark.parametrize("key_type", ["p256", "ed25519"])
def test_a_device_with_its_key_on_a_token(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key_type: str
) -> None:
    hsm = make_token(tmp_path / "hsm")
    hsm.use(monkeypatch)
    name, data = site.name(), tmp_path / "data"
    agent = [sys.executable, "-m", "edge_agent.cli"]
    enrolling = [*agent, "enroll", "--url", site.registry.url, "--token", "-", "--data", str(data), "--json"]
    done = subprocess.run(
        [*enrolling, "--key", hsm.uri(), "--key-type", key_type],
        input=site.token(name),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["key"] == f"PKCS#11 {'P-256' if key_type == 'p256' else 'Ed25519'}"
    identity = LiveIdentity(data)
    holder = KeyHolder(identity.key)
    tokens = DeviceTokens(name, holder, SystemClock())
    assert ask(data, tokens)
    first = identity.current()
    done = subprocess.run(
        [*agent, "renew", "--data", str(data), "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["keyid"] == first.key.keyid
    assert identity.current().valid.until_ms >= first.valid.until_ms
    assert ask(data, tokens)
    holder.close()


def test_an_expired_token_is_refused_with_the_time_of_the_registry(site: Site) -> None:
    data = site.enrol(site.name())
    identity = load_identity(data)
    tokens = tokens_of(data, -3_600_000)
    origin = Origin(identity.url, _Once(tokens()))
    with origin.request("GET", f"{director_prefix(identity.device)}/timestamp.json") as answer:
        assert answer.error().code == "cloud.token-expired"
        assert answer.header("Date")
    origin.close()


class _Once:
    """A token that is not replaced."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self) -> str:
        return self._token

    def fresh(self) -> str:
        return self._token

    def refused(self, date: str) -> bool:
        assert date
        return False
