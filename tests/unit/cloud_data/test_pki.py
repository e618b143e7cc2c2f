"""The authority of the devices' certificates."""

from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloud_registry.adapters.pki import LocalAuthority
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from tests.unit.cloud_data.support import SetClock

NOW = datetime.now(UTC).replace(microsecond=0)
UNTIL_MS = int((NOW + timedelta(days=90)).timestamp() * 1000)


@pytest.fixture
def authority(tmp_path: Path) -> LocalAuthority:
    return LocalAuthority(tmp_path / "pki", SetClock(int(NOW.timestamp() * 1000)))


def request_of(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey, name: str = "x") -> str:
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    wish = x509.BasicConstraints(ca=True, path_length=None)
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(wish, critical=True)
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM).decode()


def code_of_issue(authority: LocalAuthority, csr: str) -> str:
    with pytest.raises(EdgeError) as caught:
        authority.check_request(csr)
    with pytest.raises(EdgeError):
        authority.issue("d1", csr, UNTIL_MS)
    return caught.value.code


def test_the_authority_is_made_once_and_its_key_is_the_owners_alone(authority: LocalAuthority, tmp_path: Path) -> None:
    pem = authority.ca_pem()
    assert LocalAuthority(tmp_path / "pki", SetClock()).ca_pem() == pem
    assert stat.S_IMODE((tmp_path / "pki" / "ca.pem").stat().st_mode) == 0o600
    assert (tmp_path / "pki" / "ca.crt").read_text() == pem
    assert "PRIVATE" not in pem
    certificate = x509.load_pem_x509_certificate(pem.encode())
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["p256", "ed25519"],
)
def test_a_certificate_carries_the_identity_and_nothing_the_request_wished(
    authority: LocalAuthority, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
) -> None:
    csr = request_of(key, name="somebody-else")
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    kept = authority.check_request(csr)
    assert kept.keyid == Digest.of(spki).hex
    assert load_pem_public_key(kept.pem.encode()) == key.public_key()
    certificate = x509.load_pem_x509_certificate(authority.issue("d1.0123456789ab", csr, UNTIL_MS).encode())
    issuer = x509.load_pem_x509_certificate(authority.ca_pem().encode())
    certificate.verify_directly_issued_by(issuer)
    assert [item.value for item in certificate.subject] == ["d1.0123456789ab"]
    assert certificate.public_key() == key.public_key()
    extensions = certificate.extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usages = list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert usages == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert certificate.not_valid_before_utc < NOW
    assert certificate.not_valid_after_utc == NOW + timedelta(days=90) <= issuer.not_valid_after_utc


def test_the_life_of_a_devices_certificate_can_be_set(tmp_path: Path) -> None:
    assert LocalAuthority(tmp_path, SetClock(0)).device_life_ms == 90 * 24 * 3_600_000
    assert LocalAuthority(tmp_path, SetClock(0), 7).device_life_ms == 7 * 24 * 3_600_000


def test_no_two_certificates_have_one_serial_number(authority: LocalAuthority) -> None:
    csr = request_of(ec.generate_private_key(ec.SECP256R1()))
    numbers = {
        x509.load_pem_x509_certificate(authority.issue("d1", csr, UNTIL_MS).encode()).serial_number for _ in range(5)
    }
    assert len(numbers) == 5


@pytest.mark.parametrize(
    "csr",
    [
        "",
        "nothing",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        "x" * 20_000,
        "é",
    ],
)
def test_what_is_no_request_is_refused(authority: LocalAuthority, csr: str) -> None:
    assert code_of_issue(authority, csr) == "cloud.bad-request"


def test_a_request_signed_by_another_key_is_refused(authority: LocalAuthority) -> None:
    genuine = x509.load_pem_x509_csr(request_of(ec.generate_private_key(ec.SECP256R1()), "somebody").encode())
    data = genuine.public_bytes(Encoding.DER).replace(b"somebody", b"somebodz")
    forged = x509.load_der_x509_csr(data).public_bytes(Encoding.PEM).decode()
    assert code_of_issue(authority, forged) == "cloud.bad-request"


def test_keys_that_no_token_could_be_signed_with_are_refused(authority: LocalAuthority) -> None:
    for key in (
        rsa.generate_private_key(65_537, 2_048),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
    ):
        assert code_of_issue(authority, request_of(key)) == "cloud.bad-request"
    other = dsa.generate_private_key(2_048)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.sign(other, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
    assert code_of_issue(authority, csr) == "cloud.bad-request"


def test_a_hostile_device_name_gets_no_certificate(authority: LocalAuthority) -> None:
    csr = request_of(ec.generate_private_key(ec.SECP256R1()))
    for name in ("", "../x", "a/b", "a#", "x" * 65, "a\n"):
        with pytest.raises(EdgeError) as caught:
            authority.issue(name, csr, UNTIL_MS)
        assert caught.value.code == "cloud.name-invalid"


def test_a_server_certificate_is_good_for_its_names_in_a_real_handshake(
    authority: LocalAuthority, tmp_path: Path
) -> None:
    key_pem, certificate_pem = authority.issue_server(["broker.example", "127.0.0.1"])
    certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    assert load_pem_private_key(key_pem.encode(), None).public_key() == certificate.public_key()
    (tmp_path / "server.pem").write_text(key_pem + certificate_pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "server.pem")
    for name, is_good in (("broker.example", True), ("127.0.0.1", True), ("other.example", False)):
        link = ssl.create_default_context(cadata=authority.ca_pem())
        assert _handshake(server, link, name) is is_good


def _handshake(server: ssl.SSLContext, link: ssl.SSLContext, name: str) -> bool:
    to_server, to_link = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        link.wrap_bio(to_link, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_link, server_side=True),
    ]
    done = [False, False]
    for _ in range(10):
        for number, side in enumerate(sides):
            try:
                side.do_handshake()
                done[number] = True
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return False
    return all(done)


@pytest.mark.parametrize("names", [[], ["a b"], ["-x"], ["x" * 300], ["a"] * 33, ["évil"], ["a/b"]])
def test_names_that_are_none_get_no_server_certificate(authority: LocalAuthority, names: list[str]) -> None:
    with pytest.raises(EdgeError) as caught:
        authority.issue_server(names)
    assert caught.value.code == "config.invalid"


def test_a_broken_authority_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(EdgeError) as caught:
        LocalAuthority(tmp_path, SetClock()).ca_pem()
    assert caught.value.code == "config.key-invalid"
