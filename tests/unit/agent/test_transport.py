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
from tests.support.rawhttp import Asked, answer, raw_server


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


class Tokens:
    """Numbered tokens; notes what it hears."""

    def __init__(self) -> None:
        self.count = 1
        self.dates: list[str] = []

    def __call__(self) -> str:
        return f"token-{self.count}"

    def fresh(self) -> str:
        return self()

    def refused(self, date: str) -> bool:
        self.dates.append(date)
        self.count += 1
        return True


DATE = "Fri, 15 Jan 2027 08:00:00 GMT"
EXPIRED = answer(401, b'{"code":"cloud.token-expired","detail":"too old"}', Date=DATE)


def test_a_token_that_is_out_of_time_is_replaced_once() -> None:
    def script(asked: Asked) -> list[bytes]:
        return [answer(200, b"ok")] if asked.headers["authorization"] == "Bearer token-2" else [EXPIRED]

    tokens = Tokens()
    with raw_server(script) as server:
        origin = Origin(server.url, tokens)
        with origin.request("POST", "/x", body=b"same") as found:
            assert (found.status, found.read(10, "cloud.unavailable")) == (200, b"ok")
        assert [asked.body for asked in server.asked] == [b"same", b"same"]
        assert tokens.dates == [DATE]
        origin.close()


def test_a_server_that_finds_every_token_out_of_time_is_not_asked_for_ever() -> None:
    with raw_server(lambda _: [EXPIRED]) as server:
        origin = Origin(server.url, Tokens())
        with origin.request("GET", "/x") as found:
            assert found.refusal().code == "cloud.token-expired"
        assert len(server.asked) == 2
        origin.close()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"code":"cloud.device-revoked","detail":"revoked"}', "cloud.device-revoked"),
        (b'{"code":"cloud.unauthorized","detail":"unknown key"}', "network.refused"),
        (b"<html>", "network.refused"),
    ],
)
def test_any_other_refusal_is_final(body: bytes, code: str) -> None:
    tokens = Tokens()
    with raw_server(lambda _: [answer(401, body)]) as server:
        origin = Origin(server.url, tokens)
        with origin.request("GET", "/x") as found:
            assert found.refusal().code == code
        assert (len(server.asked), tokens.dates) == (1, [])
        origin.close()
