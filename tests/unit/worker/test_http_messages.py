"""Heads and chunked bodies of HTTP/1.1, valid and hostile."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from edge_agent.worker.http import BadRequestError, ChunkedBody, Head, Response, find_head
from edge_agent.worker.limits import CHUNKS_MAX, HEAD_BYTES_MAX, HEADERS_MAX


def test_a_head_says_what_is_needed_to_go_on() -> None:
    head = Head(
        b"POST /v2/models/m/infer?x=1 HTTP/1.1\r\nHost: d\r\nContent-Length: 12\r\n"
        b"Inference-Header-Content-Length: 5\r\nExpect: 100-Continue\r\n\r\n"
    )
    assert (head.method, head.path, head.body_bytes) == ("POST", "/v2/models/m/infer", 12)
    assert head.is_keep_alive
    assert head.expects_continue
    assert head.headers[b"inference-header-content-length"] == b"5"


@pytest.mark.parametrize(
    ("lines", "is_keep_alive"),
    [
        (b"GET / HTTP/1.1\r\nHost: d\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", True),
    ],
)
def test_keep_alive_follows_version_and_header(lines: bytes, is_keep_alive: bool) -> None:
    assert Head(lines).is_keep_alive is is_keep_alive


def test_a_target_in_absolute_form_is_a_path_all_the_same() -> None:
    assert Head(b"GET http://device:80/v2/health/live HTTP/1.1\r\nHost: d\r\n\r\n").path == "/v2/health/live"


def test_an_offer_to_upgrade_is_ignored() -> None:
    head = Head(b"POST /x HTTP/1.1\r\nHost: d\r\nContent-Length: 3\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert (head.path, head.body_bytes) == ("/x", 3)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        pytest.param(b"nonsense\r\n\r\n", HTTPStatus.BAD_REQUEST, id="no HTTP"),
        pytest.param(b"GET / HTTP/2.0\r\n\r\n", HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, id="HTTP/2"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HTTPStatus.BAD_REQUEST, id="HTTP/2 preface"),
        pytest.param(
            b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            HTTPStatus.BAD_REQUEST,
            id="smuggling with length and chunks",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
            HTTPStatus.BAD_REQUEST,
            id="two lengths",
        ),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: -3\r\n\r\n", HTTPStatus.BAD_REQUEST, id="negative length"),
        pytest.param(
            b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n", HTTPStatus.BAD_REQUEST, id="huge"
        ),
        pytest.param(b"POST / HTTP/1.1\r\nHost : d\r\n\r\n", HTTPStatus.BAD_REQUEST, id="space before the colon"),
        pytest.param(
            b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            HTTPStatus.NOT_IMPLEMENTED,
            id="other coding",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * (HEADERS_MAX + 1) + b"\r\n",
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            id="too many headers",
        ),
    ],
)
def test_a_hostile_head_is_refused(lines: bytes, status: HTTPStatus) -> None:
    with pytest.raises(BadRequestError) as caught:
        Head(lines)
    assert caught.value.status is status


def test_the_end_of_a_head_is_found_across_any_cut() -> None:
    whole = b"GET / HTTP/1.1\r\nHost: d\r\n\r\nrest"
    for cut in range(1, len(whole)):
        data = bytearray(whole[:cut])
        end = find_head(data, 0)
        if not end:
            scanned = len(data)
            data += whole[cut:]
            end = find_head(data, scanned)
        assert end == whole.index(b"rest")


def test_a_head_without_end_is_refused_at_its_bound() -> None:
    with pytest.raises(BadRequestError) as caught:
        find_head(bytearray(b"GET / HTTP/1.1\r\nA: " + b"x" * HEAD_BYTES_MAX), 0)
    assert caught.value.status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


_CHUNKED = b"4\r\nWiki\r\n6;name=value\r\npedia \r\n0A\r\nin chunks.\r\n0\r\nTrailer: x\r\n\r\n"


def test_a_chunked_body_is_put_together_whatever_the_cuts() -> None:
    for step in (1, 2, 3, 7, len(_CHUNKED)):
        body, data = ChunkedBody(1000), bytearray()
        end = None
        for place in range(0, len(_CHUNKED), step):
            assert end is None
            data += _CHUNKED[place : place + step]
            end = body.scan(data)
        assert end == len(_CHUNKED)
        assert body.body(data) == b"Wikipedia in chunks."


def test_what_follows_a_chunked_body_is_left_alone() -> None:
    body, data = ChunkedBody(1000), bytearray(_CHUNKED + b"GET /next")
    assert body.scan(data) == len(_CHUNKED)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"zz\r\nxx\r\n", HTTPStatus.BAD_REQUEST, id="no number"),
        pytest.param(b"-1\r\n", HTTPStatus.BAD_REQUEST, id="negative"),
        pytest.param(b"+4\r\nWiki\r\n", HTTPStatus.BAD_REQUEST, id="sign"),
        pytest.param(b"1_0\r\n", HTTPStatus.BAD_REQUEST, id="underscore"),
        pytest.param(b"\r\n", HTTPStatus.BAD_REQUEST, id="empty"),
        pytest.param(b"4\r\nWikiXX", HTTPStatus.BAD_REQUEST, id="chunk without end"),
        pytest.param(b"4;" + b"x" * 1000, HTTPStatus.BAD_REQUEST, id="endless line"),
        pytest.param(b"3E9\r\n", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, id="one byte too many"),
        pytest.param(b"FFFFFFFFFFFFFFF\r\n", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, id="huge"),
        pytest.param(b"0\r\n" + b"A: b\r\n" * 100, HTTPStatus.BAD_REQUEST, id="endless trailer"),
    ],
)
def test_a_hostile_chunked_body_is_refused(data: bytes, status: HTTPStatus) -> None:
    with pytest.raises(BadRequestError) as caught:
        ChunkedBody(1000).scan(bytearray(data))
    assert caught.value.status is status


def test_a_body_in_crumbs_is_refused() -> None:
    with pytest.raises(BadRequestError):
        ChunkedBody(10 * CHUNKS_MAX).scan(bytearray(b"1\r\nx\r\n" * (CHUNKS_MAX + 1)))


def test_an_answer_says_its_length_and_who_made_it() -> None:
    response = Response(HTTPStatus.OK, "application/json", [b"{}", memoryview(b"abc")], ("Retry-After: 1",))
    head = response.head("Lighterman-Manifest: m\r\n", is_last=True, size=5)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert head.endswith(b"\r\n\r\n")
    lines = set(head.split(b"\r\n"))
    assert {b"Content-Length: 5", b"Lighterman-Manifest: m", b"Retry-After: 1", b"Connection: close"} <= lines
