"""HTTP towards one origin: TLS, tokens, errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_agent.tokens import FixedToken
from edge_agent.transport import Origin
from edge_agent.trust.source import HttpMetadataSource, director_prefix
from edge_contract.errors import EdgeError
from tests.support.certs import Authority, server_context
from tests.support.rawhttp import answer, raw_server


def get(origin: Origin) -> bytes:
    try:
        with origin.request("GET", "/x") as reply:
            return reply.read(100, "cloud.unavailable")
    finally:
        origin.close()


def test_https_trusts_the_authority_it_is_told_and_no_other(tmp_path: Path) -> None:
    ours, strange = Authority(tmp_path, "ours"), Authority(tmp_path, "strange")
    pair = ours.issue("server", "127.0.0.1")
    with raw_server(lambda _: [answer(200, b"hello")], tls=server_context(pair)) as server:
        assert get(Origin(server.url, ca=ours.file)) == b"hello"
        for ca in (strange.file, None):
            with pytest.raises(EdgeError) as caught:
                get(Origin(server.url, ca=ca))
            assert caught.value.code == "network.unreachable"
            assert "--ca" in caught.value.hint


def test_a_certificate_for_another_host_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("server", "127.0.0.2")
    with raw_server(lambda _: [answer(200)], tls=server_context(pair)) as server:
        with pytest.raises(EdgeError) as caught:
            get(Origin(server.url, ca=authority.file))
        assert caught.value.code == "network.unreachable"


def test_a_ca_file_that_holds_no_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("nothing")
    for ca in (tmp_path / "ca.crt", tmp_path / "absent.crt"):
        with pytest.raises(EdgeError, match=r"\.crt") as caught:
            get(Origin("https://127.0.0.1:1", ca=ca))
        assert caught.value.code == "config.file-missing"


@pytest.mark.parametrize("url", ["", "registry", "ftp://host", "http://", "http://user:word@host", "http://host:99999"])
def test_a_url_that_cannot_be_used_is_refused_at_once(url: str) -> None:
    with pytest.raises(EdgeError) as caught:
        Origin(url)
    assert caught.value.code == "config.invalid"


def test_a_prefix_of_the_url_is_kept() -> None:
    with raw_server(lambda _: [answer(200, b"ok")]) as server:
        assert get(Origin(f"{server.url}/registry/")) == b"ok"
        assert server.asked[0].path == "/registry/x"


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (409, {"code": "cloud.conflict", "detail": "it exists"}, "cloud.conflict"),
        (400, {"code": "cloud.token-spent", "detail": "used"}, "cloud.token-spent"),
        (500, {"code": "internal.bug"}, "cloud.unavailable"),
        (418, {"code": "no.such-code"}, "cloud.bad-request"),
        (404, {}, "cloud.not-found"),
        (302, {}, "cloud.unavailable"),
    ],
)
def test_a_problem_document_says_what_is_wrong(status: int, body: dict[str, str], code: str) -> None:
    with raw_server(lambda _: [answer(status, json.dumps(body).encode())]) as server:
        origin = Origin(server.url)
        with origin.request("GET", "/x") as reply:
            error = reply.error()
        origin.close()
    assert error.code == code
    assert body.get("detail", "") in error.detail


def test_a_secret_is_not_in_an_error() -> None:
    with raw_server(lambda _: [answer(401)]) as server:
        source = HttpMetadataSource(server.url, "/tuf/image", FixedToken("very-secret"))
        with pytest.raises(EdgeError) as caught:
            source("timestamp.json", 100)
        source.close()
        assert server.asked[0].headers["authorization"] == "Bearer very-secret"
    assert caught.value.code == "network.refused"
    assert "very-secret" not in str(caught.value)


def test_metadata_is_bounded_and_absence_is_no_error() -> None:
    def script(asked: object) -> list[bytes]:
        return [answer(404) if "2.root" in getattr(asked, "path", "") else answer(200, b"x" * 101)]

    with raw_server(script, keep_alive=True) as server:
        source = HttpMetadataSource(server.url, director_prefix("dev 1"))
        assert source("2.root.json", 100) is None
        with pytest.raises(EdgeError) as caught:
            source("timestamp.json", 100)
        source.close()
        assert caught.value.code == "trust.metadata-too-large"
        assert server.asked[0].path == "/tuf/director/dev%201/2.root.json"
        assert server.connections == 1
