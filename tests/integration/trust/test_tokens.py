"""Keys that are in no file: on a PKCS#11 token (SoftHSM), and in a cloud's key service (a stand-in of it)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner, Key, Signature, Signer, SSlibKey
from tuf.api.metadata import Metadata, Timestamp

from cloud_registry.adapters.tuf_keys import OnlineKeys
from edge_contract.errors import EdgeError
from packager.cli import main
from packager.keys import KeyPlan, RingMaker, set_up
from packager.keystore import DIRECTOR_ROOT, IMAGE_ROOT, IMAGE_TARGETS, KEY_ROLES, KeyFolder
from tests.integration.trust.world import QUIET, SECRET, Device, Site, maker, some_bundle
from tests.support.registry import registry_process
from tests.support.softhsm import PIN, Token, softhsm_token

ONES = dict.fromkeys(KEY_ROLES, 1)


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Token]:
    with pytest.MonkeyPatch.context() as patch, softhsm_token(tmp_path_factory.mktemp("hsm"), "office", patch) as made:
        yield made


@pytest.mark.system
def test_roots_and_targets_on_a_token_from_the_first_root_to_the_device(
    token: Token, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins: list[str] = []

    def pin(label: str) -> str:
        pins.append(label)
        return PIN

    monkeypatch.setattr("tests.integration.trust.world.maker", lambda: RingMaker(lambda _new: SECRET, pin))
    uris = {role: (token.make_key(10 + number),) for number, role in enumerate(KEY_ROLES)}
    site = Site(tmp_path, KeyPlan(ONES, ONES, uris=uris))
    device = Device(site, tmp_path / "device")
    assert not list(site.keys.glob("*.pem"))
    assert {key.uri for key in KeyFolder.open(site.keys).keys} == {uri for (uri,) in uris.values()}
    bundle = some_bundle()
    site.publish(bundle)
    site.assign(bundle)
    assert device.runs() == [bundle.digest]
    site.rotate(
        IMAGE_ROOT, IMAGE_TARGETS, uris={IMAGE_ROOT: (token.make_key(20),), IMAGE_TARGETS: (token.make_key(21),)}
    )
    site.rotate(DIRECTOR_ROOT)  # and from the token back into a file
    assert len(list(site.keys.glob("*.pem"))) == 1
    assert device.runs() == [bundle.digest]
    better = some_bundle(version=2)
    site.publish(better)
    site.assign(better)
    assert device.runs() == [better.digest]
    assert set(pins) == {"office"}
    assert PIN not in (site.keys / "keys.json").read_text()


@pytest.mark.system
def test_the_registrys_own_keys_on_a_token(token: Token, tmp_path: Path) -> None:
    environ = {"LIGHTERMAN_ONLINE_PIN": PIN}
    site = Site(tmp_path)
    site.online._environ = environ
    device = Device(site, tmp_path / "device")
    bundle = some_bundle()
    site.publish(bundle)
    site.assign(bundle)
    assert device.runs() == [bundle.digest]
    wanted = [("image", "timestamp", 30), ("director", "targets", 31)]
    online = [{"repository": name, "role": role, "uri": token.make_key(key)} for name, role, key in wanted]
    site.rotate("online", online=online)
    assert device.runs() == [bundle.digest]
    trust = site.registry.trust()["online_keys"]
    assert trust["image"]["timestamp"]["keytype"] == trust["director"]["targets"]["keytype"] == "ecdsa"
    assert trust["image"]["snapshot"]["keytype"] == "ed25519"
    site.registry.clock.days_ahead = 1
    better = some_bundle(version=2)
    site.publish(better)
    site.assign(better)
    assert device.runs() == [better.digest]
    described = json.loads((site.online._folder / "image-timestamp.1.json").read_bytes())
    assert described["uri"] == "hsm:30?label=office"
    assert PIN not in json.dumps(described)
    # Another process finds them again; without the PIN what is signed holds until it expires.
    assert OnlineKeys(site.online._folder, environ).public() == site.online.public()
    site.registry.repository._keys._environ = {}
    site.online._keys.clear()
    before = site.serve("image", "timestamp.json")
    site.registry.clock.days_ahead = 2
    assert Metadata[Timestamp].from_bytes(before or b"").signed.version > 1
    with pytest.raises(EdgeError) as caught:
        site.publish(some_bundle(version=3))
    assert caught.value.code == "config.key-invalid"


@pytest.mark.system
@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("hsm:99?label=office", "config.key-invalid"),
        ("hsm:10?label=elsewhere", "config.key-invalid"),
        ("file2:/etc/passwd", "config.invalid"),
        ("pem:other.pem", "config.invalid"),
    ],
)
def test_a_key_that_is_not_there_is_named(
    token: Token, tmp_path: Path, uri: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.integration.trust.world.maker", lambda: RingMaker(lambda _new: SECRET, lambda _l: PIN))
    site = Site(tmp_path)
    site.online._environ = {"LIGHTERMAN_ONLINE_PIN": PIN}
    with pytest.raises(EdgeError) as caught:
        site.rotate(IMAGE_ROOT, uris={IMAGE_ROOT: (uri,)})
    assert caught.value.code == code
    if code == "config.key-invalid":
        assert uri in caught.value.detail
    with pytest.raises(EdgeError) as caught:
        site.registry.prepare_online_keys([{"repository": "image", "role": "timestamp", "uri": uri}])
    assert caught.value.code == code
    site.rotate(IMAGE_ROOT)


@pytest.mark.system
def test_a_wrong_pin_signs_nothing(token: Token, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = token.make_key(40)
    monkeypatch.setattr("tests.integration.trust.world.maker", lambda: RingMaker(lambda _new: SECRET, lambda _l: "000"))
    with pytest.raises(EdgeError) as caught:
        Site(tmp_path, KeyPlan(ONES, ONES, uris={IMAGE_ROOT: (uri,)}))
    assert caught.value.code == "config.key-invalid"
    assert "does not sign" in caught.value.detail


@pytest.mark.system
def test_the_commands_that_the_page_names_for_tokens(
    token: Token, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    uris = {number: token.make_key(number) for number in range(50, 56)}
    # The registry is a process of its own and reaches the token by itself; no PIN is in its environment but its own.
    monkeypatch.setenv("LIGHTERMAN_ONLINE_PIN", PIN)
    with registry_process(tmp_path / "registry") as registry:
        secret = home / "pin"
        secret.write_text(PIN)
        for name, value in (
            ("LIGHTERMAN_URL", registry.url),
            ("LIGHTERMAN_TOKEN", registry.admin_token),
            ("LIGHTERMAN_KEY_PIN_FILE", str(secret)),
            ("LIGHTERMAN_KEY_PASSPHRASE", SECRET),
        ):
            monkeypatch.setenv(name, value)

        def said(*words: str) -> Any:
            capsys.readouterr()
            assert main([*words, "--json"]) == 0
            return json.loads(capsys.readouterr().out)

        roots = ["--key", f"image-root={uris[50]}", "--key", f"director-root={uris[51]}"]
        made = said("keys", "init", "keys", *roots, "--online-key", f"director/targets={uris[52]}")
        assert [key["uri"][:4] for key in made["keys"]] == ["hsm:", "pem:", "hsm:"]
        rotated = said(
            "keys", "rotate", "--role", "image-targets", "--key", f"image-targets={uris[53]}", "--keys", "keys"
        )
        assert [key["uri"] for key in rotated["keys"] if key["use"] == "current"] == [uris[50], uris[51], uris[53]]
        said("keys", "delegate", "digits", "--key", uris[54], "--keys", "keys")
        said("keys", "rotate", "--role", "online", "--online-key", f"image/timestamp={uris[55]}", "--keys", "keys")
        with registry.link() as link:
            trust = link.get("/api/v1/trust").json()
            assert trust["online_keys"]["director"]["targets"]["keytype"] == "ecdsa"
            assert trust["online_keys"]["image"]["timestamp"]["keytype"] == "ecdsa"
            assert link.get("/tuf/image/timestamp.json").status_code == 200
        with registry.link(registry.token("publisher")) as link:
            refused = link.post("/api/v1/trust/online-keys", json={})
            assert (refused.status_code, refused.json()["code"]) == (403, "cloud.forbidden")
        assert main(["keys", "bundles", "--keys", "keys"]) == 0


# --- key services ---


class KeyService(Signer):
    """Stands in for a cloud's key service: keys by name, never handed out."""

    keys: dict[str, CryptoSigner] = {}  # noqa: RUF012  # shared on purpose, like the service

    def __init__(self, name: str, public: Key) -> None:
        self.name = name
        self.public = public

    @property
    def public_key(self) -> Key:
        return self.public

    @classmethod
    def import_(cls, name: str) -> tuple[str, Key]:
        signer = cls.keys.setdefault(name, CryptoSigner.generate_ecdsa())
        return f"awskms:{name}", signer.public_key

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: Key, secrets_handler: Any = None) -> KeyService:
        return cls(priv_key_uri.partition(":")[2], public_key)

    def sign(self, payload: bytes) -> Signature:
        return self.keys[self.name].sign(payload)


def test_a_cloud_key_service_by_configuration_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "awskms", KeyService)
    uris = {IMAGE_TARGETS: ("awskms:alias/bundles",)}
    online = [{"repository": "director", "role": "targets", "uri": "awskms:alias/director"}]
    site = Site(tmp_path, KeyPlan(ONES, ONES, uris=uris, online=online))
    device = Device(site, tmp_path / "device")
    bundle = some_bundle()
    site.publish(bundle)
    site.assign(bundle)
    assert device.runs() == [bundle.digest]
    assert site.registry.trust()["online_keys"]["director"]["targets"]["keytype"] == "ecdsa"
    assert set(KeyService.keys) >= {"alias/bundles", "alias/director"}


@pytest.mark.parametrize(
    "uri", ["awskms:alias/a", "azurekms://vault.vault.azure.net/keys/a/1", "gcpkms:projects/p/locations/l/keyRings/r"]
)
def test_a_key_service_whose_library_is_missing_says_what_to_install(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is installed here: the library's own way to say that it is not."""
    scheme = uri.partition(":")[0]

    class Missing:
        @staticmethod
        def import_(*_arguments: str) -> None:
            raise UnsupportedLibraryError("the library of this key service is required")

        @staticmethod
        def from_priv_key_uri(*_arguments: object) -> None:
            raise UnsupportedLibraryError("the library of this key service is required")

    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, scheme, Missing)
    with pytest.raises(EdgeError) as caught:
        set_up(
            Site(tmp_path / "first").client,
            tmp_path / "second",
            KeyPlan(ONES, ONES, uris={IMAGE_ROOT: (uri,)}),
            maker(),
            QUIET,
        )
    assert caught.value.code == "cloud.conflict", "nothing is made for a registry that is set up already"
    site = Site(tmp_path / "third")
    with pytest.raises(EdgeError) as caught:
        site.rotate(IMAGE_ROOT, uris={IMAGE_ROOT: (uri,)})
    assert caught.value.code == "config.dependency-missing"
    assert scheme in caught.value.hint
    with pytest.raises(EdgeError) as caught:
        site.registry.prepare_online_keys([{"repository": "image", "role": "timestamp", "uri": uri}])
    assert caught.value.code == "config.dependency-missing"


def test_the_signing_librarys_own_key_services_are_dispatched_to() -> None:
    assert {"hsm", "awskms", "azurekms", "gcpkms"} <= set(SIGNER_FOR_URI_SCHEME)
    assert issubclass(SSlibKey, Key)


# --- encrypted files of the registry ---


def test_the_registrys_key_files_are_encrypted_where_a_pass_phrase_is_given(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")
    environ = {"LIGHTERMAN_ONLINE_PASSPHRASE_FILE": str(secret)}
    keys = OnlineKeys(tmp_path / "keys", environ)
    public = keys.public()
    files = sorted((tmp_path / "keys").iterdir())
    assert len(files) == 5
    assert all(b"ENCRYPTED" in path.read_bytes() for path in files)
    assert OnlineKeys(tmp_path / "keys", environ).public() == public
    assert OnlineKeys(tmp_path / "keys", {"LIGHTERMAN_ONLINE_PASSPHRASE": SECRET}).public() == public
    for wrong, why in (({}, "no pass phrase was given"), ({"LIGHTERMAN_ONLINE_PASSPHRASE": "x"}, "another one")):
        with pytest.raises(EdgeError, match=why) as caught:
            OnlineKeys(tmp_path / "keys", wrong).public()
        assert caught.value.code == "config.key-invalid"
