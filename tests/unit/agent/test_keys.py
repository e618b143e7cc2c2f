"""The device's private key: in a file for its owner alone, or on a token that never gives it away."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_public_key

from edge_agent.keys import DeviceKey, keyid_of, new_file_key, open_key, provide_key
from edge_agent.keyuri import file_name, parse_pkcs11
from edge_contract.errors import EdgeError
from tests.support.devicetoken import PIN, SoftToken, make_token, run_python

URI = "file:device.key"


def code_of(function: Any, *arguments: Any) -> str:
    with pytest.raises(EdgeError) as caught:
        function(*arguments)
    return caught.value.code


def verify(public: Any, signature: bytes, content: bytes) -> None:
    if isinstance(public, ed25519.Ed25519PublicKey):
        public.verify(signature, content)
    else:
        public.verify(signature, content, ec.ECDSA(hashes.SHA256()))


def require_works(key: DeviceKey) -> None:
    verify(key.public, key.sign(b"content"), b"content")
    request = x509.load_pem_x509_csr(key.request_pem().encode())
    assert request.is_signature_valid
    assert keyid_of(request.public_key()) == key.keyid  # type: ignore[arg-type]
    assert list(request.subject) == []


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key_type", ["p256", "ed25519"])
def test_a_key_in_a_file_signs_and_asks_for_a_certificate(tmp_path: Path, key_type: str) -> None:
    made = provide_key(URI, tmp_path, key_type)
    require_works(made)
    opened = open_key(made.uri, tmp_path)
    assert (opened.keyid, opened.algorithm) == (made.keyid, made.algorithm)
    assert (tmp_path / "device.key").stat().st_mode & 0o777 == 0o600


def test_a_key_that_is_there_is_kept(tmp_path: Path) -> None:
    assert provide_key(URI, tmp_path).keyid == provide_key(URI, tmp_path).keyid


def test_a_key_of_another_type_is_replaced(tmp_path: Path) -> None:
    first = provide_key(URI, tmp_path, "p256")
    second = provide_key(URI, tmp_path, "ed25519")
    assert (first.algorithm, second.algorithm) == ("ES256", "EdDSA")


def test_half_a_key_of_an_attempt_that_was_cut_off_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "device.key").write_bytes(new_file_key().to_pem()[:80])
    require_works(provide_key(URI, tmp_path))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o644])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    provide_key(URI, tmp_path)
    (tmp_path / "device.key").chmod(mode)
    with pytest.raises(EdgeError, match="chmod 600") as caught:
        open_key(URI, tmp_path)
    assert caught.value.code == "device.key-unusable"


def test_a_file_that_holds_no_key_of_ours_is_an_error_that_shows_nothing_of_it(tmp_path: Path) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for content in (b"", b"-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n", pem):
        (tmp_path / "device.key").write_bytes(content)
        (tmp_path / "device.key").chmod(0o600)
        with pytest.raises(EdgeError) as caught:
            open_key(URI, tmp_path)
        assert caught.value.code == "device.key-unusable"
        assert "secret" not in str(caught.value)
    assert code_of(open_key, "file:absent.key", tmp_path) == "device.key-unusable"


# --- URIs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "device.key",
        "file:",
        "file:../device.key",
        "file:/etc/device.key",
        "file:.key",
        "file:device.pem",
        "http://x/y.key",
        "file:" + "x" * 2000 + ".key",
    ],
)
def test_a_uri_that_is_no_place_for_a_key_is_refused(uri: str) -> None:
    assert code_of(file_name, uri) == "config.invalid"


def test_a_pkcs11_uri_is_read_and_written() -> None:
    uri = parse_pkcs11("pkcs11:token=my%20token;object=key;id=%01%ff?module-path=/lib/x.so&pin-source=file:/etc/pin")
    assert (uri.token, uri.label, uri.key_id) == ("my token", "key", b"\x01\xff")
    assert (uri.module, uri.pin_file) == (Path("/lib/x.so"), Path("/etc/pin"))
    assert parse_pkcs11(str(uri)) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "pkcs11:",
        "pkcs11:token=a",
        "pkcs11:object=a?module-path=/x.so",
        "pkcs11:token=a?module-path=relative.so",
        "pkcs11:token=a;token=b?module-path=/x.so",
        "pkcs11:token=a;type=public?module-path=/x.so",
        "pkcs11:token=a;slot-id=x?module-path=/x.so",
        "pkcs11:token=a;what=b?module-path=/x.so",
        "pkcs11:token=a?module-path=/x.so&pin-source=|cat",
    ],
)
def test_a_pkcs11_uri_that_names_no_key_for_certain_is_refused(uri: str) -> None:
    assert code_of(parse_pkcs11, uri) == "config.invalid"


def test_a_pin_in_the_uri_is_refused_and_not_repeated() -> None:
    with pytest.raises(EdgeError) as caught:
        parse_pkcs11("pkcs11:token=a?module-path=/x.so&pin-value=4711")
    assert "4711" not in str(caught.value)


# --- tokens, in children because the driver is set up once a process --------------------------------------------------

USE = """
import base64, json, sys
from pathlib import Path
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from edge_agent.keys import open_key, provide_key
from edge_contract.errors import EdgeError

how, uri, key_type = sys.argv[1:]
try:
    key = open_key(uri, Path("/nowhere")) if how == "open" else provide_key(uri, Path("/nowhere"), key_type)
    print(json.dumps({
        "uri": key.uri,
        "keyid": key.keyid,
        "algorithm": key.algorithm,
        "signature": base64.b64encode(key.sign(b"content")).decode(),
        "request": key.request_pem(),
        "public": key.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
    }))
    key.close()
except EdgeError as error:
    print(json.dumps({"code": error.code, "text": str(error)}))
"""


@pytest.fixture
def token(tmp_path: Path) -> SoftToken:
    return make_token(tmp_path / "hsm")


def use(token: SoftToken, how: str, uri: str, key_type: str = "p256", **variables: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(run_python(USE, [how, uri, key_type], token.environment | variables))
    assert PIN not in found.get("text", "")
    return found


@pytest.mark.system
@pytest.mark.parametrize("key_type", ["p256", "ed25519"])
def test_a_key_is_made_on_the_token_and_found_again(token: SoftToken, key_type: str) -> None:
    import base64

    made = use(token, "provide", token.uri(), key_type)
    assert PIN not in made["uri"]
    public = load_pem_public_key(made["public"].encode())
    verify(public, base64.b64decode(made["signature"]), b"content")
    request = x509.load_pem_x509_csr(made["request"].encode())
    assert request.is_signature_valid
    assert request.public_key() == public
    for uri in (made["uri"], token.uri()):
        assert use(token, "open", uri)["keyid"] == made["keyid"]
    assert use(token, "provide", token.uri(), key_type)["keyid"] == made["keyid"]
    assert use(token, "provide", token.uri(label="another"), key_type)["keyid"] != made["keyid"]


@pytest.mark.system
def test_the_key_does_not_leave_the_token(token: SoftToken) -> None:
    use(token, "provide", token.uri())
    program = """
import sys
import pkcs11
from pkcs11 import Attribute, ObjectClass
from pkcs11.exceptions import PKCS11Error

link = pkcs11.lib(sys.argv[1]).get_token(token_label="device").open(user_pin=sys.argv[2])
key = link.get_key(object_class=ObjectClass.PRIVATE_KEY)
print(key[Attribute.EXTRACTABLE], key[Attribute.SENSITIVE])
try:
    print(key[Attribute.VALUE])
except PKCS11Error as error:
    print(type(error).__name__)
"""
    said = run_python(program, [str(token.driver), PIN], token.environment).split()
    assert said == ["False", "True", "AttributeSensitive"]


@pytest.mark.system
def test_the_pin_may_come_from_the_environment(token: SoftToken) -> None:
    uri = token.uri().partition("&pin-source")[0]
    assert "keyid" in use(token, "provide", uri, LIGHTERMAN_KEY_PIN=PIN)


@pytest.mark.system
def test_what_is_wrong_with_a_token_is_said(token: SoftToken, tmp_path: Path) -> None:
    wrong, open_to_all = tmp_path / "wrong", tmp_path / "open"
    for path, pin, mode in ((wrong, "0000", 0o600), (open_to_all, PIN, 0o644)):
        path.write_text(pin)
        path.chmod(mode)
    cases = [
        (token.uri(label="absent"), "no private key"),
        (token.uri(pin_file=wrong), "does not take the PIN"),
        (token.uri(pin_file=open_to_all), "chmod 600"),
        (token.uri(pin_file=tmp_path / "absent"), "is missing"),
        (token.uri().replace("token=device", "token=other"), "no token"),
        (token.uri().replace(str(token.driver), "/usr/lib/absent.so"), "driver"),
    ]
    for uri, said in cases:
        found = use(token, "open", uri)
        assert found["code"] == "device.key-unusable"
        assert said in found["text"]


def test_without_the_library_a_token_says_what_to_install(tmp_path: Path) -> None:
    driver = tmp_path / "driver.so"
    driver.touch()
    program = (
        "import sys; sys.modules['pkcs11'] = None\n"
        "from pathlib import Path\nfrom edge_agent.keys import open_key\nfrom edge_contract.errors import EdgeError\n"
        f"try: open_key('pkcs11:token=a?module-path={driver}', Path('/'))\nexcept EdgeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "lighterman[hsm]" in done.stdout
    assert "config.dependency-missing" in done.stdout
