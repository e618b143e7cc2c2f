"""Registries of images that want credentials, send elsewhere, stumble or lie."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from packager.iotedge import image_remote
from packager.iotedge.image_base import Blob
from packager.iotedge.image_remote import Reference, RegistryImage
from tests.support.images import MANIFEST
from tests.support.rawhttp import Asked, RawServer, Script, answer, raw_server

DATA = b"a layer" * 1000
LAYER = Blob("application/vnd.oci.image.layer.v1.tar", Digest.of(DATA), len(DATA))
DOCUMENT = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST}).encode()
LOGIN = base64.b64encode(b"someone:secret").decode()


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(image_remote, "HTTP_PAUSE_S", 0.0)
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))


def image(server: RawServer, target: str = "1") -> RegistryImage:
    return RegistryImage(Reference(f"127.0.0.1:{server.port}", "edge/base", target))


def sign_in(server: RawServer, path: Path) -> None:
    path.write_text(json.dumps({"auths": {f"127.0.0.1:{server.port}": {"auth": LOGIN}}}))


def plain(asked: Asked) -> Iterable[bytes]:
    """A registry that has one manifest and one layer."""
    if "/manifests/" in asked.path:
        return [answer(200, DOCUMENT, Content_Type=MANIFEST)]
    return [answer(200, DATA)] if asked.path.endswith(str(LAYER.digest)) else [answer(404)]


def guarded(challenge: str, wanted: str) -> Script:
    """One that asks for an authorisation."""

    def script(asked: Asked) -> Iterable[bytes]:
        if asked.path.startswith("/token"):
            is_known = asked.headers.get("authorization") == f"Basic {LOGIN}"
            return [answer(200, b'{"token": "bearer-token"}')] if is_known else [answer(401)]
        if asked.headers.get("authorization") != wanted:
            return [answer(401, WWW_Authenticate=challenge.replace("HOST", asked.headers["host"]))]
        return plain(asked)

    return script


BEARER = 'Bearer realm="http://HOST/token",service="r",scope="repository:edge/base:pull"'


@pytest.mark.parametrize(
    ("challenge", "wanted"),
    [(BEARER, "Bearer bearer-token"), ('Basic realm="r"', f"Basic {LOGIN}")],
    ids=["bearer", "basic"],
)
def test_credentials_of_other_tools_are_used(challenge: str, wanted: str, tmp_path: Path) -> None:
    with raw_server(guarded(challenge, wanted)) as server:
        sign_in(server, tmp_path / "auth.json")
        with image(server) as found:
            assert found.first() == (MANIFEST, DOCUMENT)
            assert b"".join(found.chunks(LAYER)) == DATA
        asked = [item.path for item in server.asked if item.path.startswith("/token")]
        assert all("scope=repository" in path for path in asked)


@pytest.mark.parametrize("challenge", [BEARER, 'Basic realm="r"', "Negotiate", ""])
def test_who_is_not_signed_in_is_told_how(challenge: str) -> None:
    with raw_server(guarded(challenge, "nobody has this")) as server, image(server) as found:
        with pytest.raises(EdgeError) as caught:
            found.first()
        assert caught.value.code == "cloud.unauthorized"
        assert "login" in (caught.value.hint or "")
        assert not any("authorization" in item.headers for item in server.asked)


def test_a_token_is_not_fetched_where_the_way_is_open(tmp_path: Path) -> None:
    """Credentials go to https, or to the registry itself."""
    with raw_server(plain) as other:
        challenge = f'Bearer realm="http://127.0.0.1:{other.port}/token",service="r"'
        with raw_server(guarded(challenge, "nobody has this")) as server:
            sign_in(server, tmp_path / "auth.json")
            with image(server) as found, pytest.raises(EdgeError, match=r"cloud\.unauthorized"):
                found.first()
        assert not other.asked


def test_a_redirect_is_followed_without_the_credentials(tmp_path: Path) -> None:
    with raw_server(plain) as store:

        def script(asked: Asked) -> Iterable[bytes]:
            if "/blobs/" in asked.path and "authorization" in asked.headers:
                return [answer(307, Location=f"{store.url}/elsewhere/{LAYER.digest}")]
            return guarded('Basic realm="r"', f"Basic {LOGIN}")(asked)

        with raw_server(script) as server:
            sign_in(server, tmp_path / "auth.json")
            with image(server) as found:
                assert b"".join(found.chunks(LAYER)) == DATA
        assert len(store.asked) == 1
        assert "authorization" not in store.asked[0].headers


def test_whom_a_download_was_sent_on_to_gets_no_credentials_by_asking(tmp_path: Path) -> None:
    with raw_server(lambda asked: [answer(200, b'{"token": "x"}')]) as thief:
        challenge = f'Bearer realm="http://127.0.0.1:{thief.port}/token"'.replace("http://", "https://")
        with raw_server(lambda asked: [answer(401, WWW_Authenticate=challenge)]) as store:

            def script(asked: Asked) -> Iterable[bytes]:
                if "/blobs/" in asked.path:
                    return [answer(307, Location=f"{store.url}/elsewhere")]
                return plain(asked)

            with raw_server(script) as server:
                sign_in(server, tmp_path / "auth.json")
                with image(server) as found, pytest.raises(EdgeError) as refused:
                    b"".join(found.chunks(LAYER))
            assert refused.value.code == "cloud.unauthorized"
        assert not thief.asked


def test_what_passes_is_asked_again_and_no_more_often_than_that() -> None:
    with raw_server(lambda _: [answer(503)]) as server, image(server) as found:
        with pytest.raises(EdgeError, match=r"cloud\.unavailable"):
            found.first()
        assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (DATA[:-1] + b"!", "artifact.digest-mismatch"),
        (DATA[:-1], "artifact.size-mismatch"),
        (DATA + b"!", "artifact.size-mismatch"),
    ],
)
def test_a_layer_that_is_not_what_its_digest_says_is_refused(sent: bytes, code: str) -> None:
    with raw_server(lambda _: [answer(200, sent)]) as server, image(server) as found:
        with pytest.raises(EdgeError) as caught:
            list(found.chunks(LAYER))
        assert caught.value.code == code


def test_a_digest_in_the_reference_holds() -> None:
    with raw_server(plain) as server:
        with image(server, str(Digest.of(DOCUMENT))) as found:
            assert found.first()[1] == DOCUMENT
        with image(server, str(LAYER.digest)) as found, pytest.raises(EdgeError, match=r"artifact\.digest-mismatch"):
            found.first()


def test_a_connection_that_is_cut_is_the_networks_fault() -> None:
    with raw_server(lambda _: [answer(200, DATA[:100], length=len(DATA))]) as server, image(server) as found:
        with pytest.raises(EdgeError) as caught:
            list(found.chunks(LAYER))
        assert caught.value.code == "network.unreachable"


def test_an_upload_that_is_sent_to_another_host_is_refused(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(DATA)

    def script(asked: Asked) -> Iterable[bytes]:
        return [answer(404)] if asked.method == "HEAD" else [answer(202, Location="http://elsewhere.example/upload")]

    with raw_server(script) as server, image(server) as found:
        with pytest.raises(EdgeError, match=r"elsewhere\.example"):
            found.upload(LAYER, tmp_path / "blob")
        assert [item.method for item in server.asked] == ["HEAD", "POST"]


def test_a_file_of_credentials_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "auth.json").write_text("{")
    with raw_server(plain) as server, pytest.raises(EdgeError, match=r"auth\.json"):
        image(server)
