"""HTTP/1.1 messages (RFC 9112): httptools parses heads strictly; where a message ends is decided here.

Framing is our own so that a connection's exact unread bytes are always known: they travel with the connection when
another worker takes it over in the middle of a request. A body of known length is received straight into its place.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Final

import httptools

from edge_agent.worker.limits import (
    CHUNK_LINE_BYTES_MAX,
    CHUNKS_MAX,
    HEAD_BYTES_MAX,
    HEADERS_MAX,
    HEADS_KEPT,
    TRAILERS_MAX,
)

END_OF_HEAD: Final = b"\r\n\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
JSON_TYPE: Final = "application/json"
BINARY_TYPE: Final = "application/octet-stream"
INFERENCE_LENGTH: Final = b"inference-header-content-length"


class BadRequestError(Exception):
    """A request that cannot be read as HTTP; the connection ends after the answer.

    Attributes:
        status: HTTP status of the answer.
        detail: What is wrong.
    """

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        """Refuse with `status`, saying `detail`."""
        super().__init__(detail)
        self.status = status
        self.detail = detail


class Head:
    """The head of one request.

    Attributes:
        method: For example `POST`.
        path: Path of the target, without query.
        is_keep_alive: Whether the connection goes on after the answer.
        body_bytes: Length of the body, or none when it comes in chunks.
        headers: Values by lower-case name; of repeated headers the last.
        expects_continue: Whether the client waits for `100 Continue` before it sends the body.
    """

    __slots__ = (
        "_count",
        "_is_complete",
        "_parser",
        "_target",
        "body_bytes",
        "expects_continue",
        "headers",
        "is_keep_alive",
        "method",
        "path",
    )

    def __init__(self, data: bytes) -> None:
        """Parse a whole head, empty line included.

        Raises:
            BadRequestError: With 400, 431, 501 or 505.
        """
        self._count = 0
        self._target = b""
        self._is_complete = False
        self.is_keep_alive = False
        self.headers: dict[bytes, bytes] = {}
        parser = self._parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # RFC 9110 7.8: a server may ignore Upgrade; the method CONNECT finds no route
        except httptools.HttpParserError as error:
            raise BadRequestError(HTTPStatus.BAD_REQUEST, f"not a valid HTTP request: {error}") from None
        if not self._is_complete or self._count > HEADERS_MAX:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if self._count > HEADERS_MAX else HTTPStatus.BAD_REQUEST
            raise BadRequestError(status, f"a request head is complete and has at most {HEADERS_MAX} headers")
        if parser.get_http_version() not in ("1.1", "1.0"):
            raise BadRequestError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.1 and 1.0 are spoken here")
        self.method: str = parser.get_method().decode("ascii")
        del self._parser  # it refers to this object
        self.path = self._path()
        self.body_bytes = self._body_bytes()
        self.expects_continue = self.headers.get(b"expect", b"").lower() == b"100-continue"

    def on_url(self, url: bytes) -> None:
        """Called by the parser with (a part of) the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser for each header; what is raised here makes it give up with its own error."""
        # RFC 9112 5.1. Parsers older than llhttp (Debian 12's httptools has one) take "Content-Length : 3" for a header
        # of another name, where a proxy before us may have read a length.
        if b" " in name:
            raise BadRequestError(HTTPStatus.BAD_REQUEST, "the name of a header holds a space")
        self._count += 1
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Called by the parser at the empty line."""
        self._is_complete = True
        # Asked now: of a message without body the parser forgets it at once.
        self.is_keep_alive = self._parser.should_keep_alive()

    def _path(self) -> str:
        target = self._target
        if target[:7].lower() == b"http://":  # absolute form, as sent to proxies (RFC 9112 3.2.2)
            target = b"/" + target[7:].partition(b"/")[2]
        return target.partition(b"?")[0].decode("latin-1")

    def _body_bytes(self) -> int | None:
        coding = self.headers.get(b"transfer-encoding")
        if coding is None:
            return int(self.headers.get(b"content-length", b"0"))
        if coding.strip().lower() != b"chunked":
            raise BadRequestError(HTTPStatus.NOT_IMPLEMENTED, "the only transfer coding known here is chunked")
        return None


class ChunkedBody:
    """Finds the end of a chunked body (RFC 9112 7.1) in bytes that grow, without consuming them."""

    def __init__(self, bytes_max: int) -> None:
        """Refuse a body of more than `bytes_max` bytes."""
        self._bytes_max = bytes_max
        self._place = 0
        self._parts: list[tuple[int, int]] = []
        self._size = 0
        self._trailers = -1  # lines of the trailer so far, -1 before it

    def scan(self, data: bytearray) -> int | None:
        """Look at all bytes of the body received so far.

        Args:
            data: The same bytes as last time and more behind them.

        Returns:
            Offset behind the body, or none when more has to come.

        Raises:
            BadRequestError: With 400 or 413.
        """
        while True:
            end = data.find(b"\r\n", self._place, self._place + CHUNK_LINE_BYTES_MAX + 2)
            if end < 0:
                if len(data) - self._place > CHUNK_LINE_BYTES_MAX:
                    raise BadRequestError(HTTPStatus.BAD_REQUEST, "a chunk starts with a line that is too long")
                return None
            line = bytes(data[self._place : end])
            if self._trailers >= 0:
                self._place = end + 2
                self._trailers += 1
                if not line:
                    return self._place
                if self._trailers > TRAILERS_MAX:
                    raise BadRequestError(HTTPStatus.BAD_REQUEST, "too many trailers")
                continue
            size = _chunk_size(line)
            start = end + 2
            if self._size + size > self._bytes_max:
                raise BadRequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large(self._bytes_max))
            if len(self._parts) >= CHUNKS_MAX:
                raise BadRequestError(HTTPStatus.BAD_REQUEST, f"a body comes in at most {CHUNKS_MAX} chunks")
            if size == 0:
                self._trailers = 0
                self._place = start
                continue
            if len(data) < start + size + 2:
                return None
            if data[start + size : start + size + 2] != b"\r\n":
                raise BadRequestError(HTTPStatus.BAD_REQUEST, "a chunk does not end where it says")
            self._parts.append((start, start + size))
            self._size += size
            self._place = start + size + 2

    def body(self, data: bytearray) -> bytes:
        """The content, once `scan` has found the end."""
        return b"".join(data[start:end] for start, end in self._parts)


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].rstrip(b" \t")
    # int() alone would take signs, underscores and spaces, which another parser reads differently.
    if not 0 < len(digits) <= 15 or not all(digit in b"0123456789abcdefABCDEF" for digit in digits):
        raise BadRequestError(HTTPStatus.BAD_REQUEST, "a chunk has a size that is not one")
    return int(digits, 16)


def too_large(bytes_max: int) -> str:
    """Says that a body is too large."""
    return f"the body of a request has at most {bytes_max} bytes"


def find_head(data: bytearray, scanned: int) -> int:
    """Find the end of a head.

    Args:
        data: What was received since the last message.
        scanned: How much of it was looked at before.

    Returns:
        Offset behind the head's empty line, 0 when more has to come.

    Raises:
        BadRequestError: With 431.
    """
    place = data.find(END_OF_HEAD, max(0, scanned - 3))
    end = place + 4 if place >= 0 else 0
    if (end or len(data)) > HEAD_BYTES_MAX:
        raise BadRequestError(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the head of a request has at most {HEAD_BYTES_MAX} bytes"
        )
    return end


@dataclass(slots=True)
class Request:
    """One request, whole.

    Attributes:
        head: Its head.
        body: Its body.
        received_ns: Monotonic clock when its last byte came.
        is_gone: Whether its client went away before the answer.
        on_gone: Called once when nobody waits for the answer any more: its client went away, or another worker has it.
    """

    head: Head
    body: bytes | bytearray | memoryview
    received_ns: int
    is_gone: bool = False
    on_gone: Callable[[], object] | None = None


@dataclass(slots=True)
class Response:
    """One answer.

    Attributes:
        status: HTTP status.
        content_type: Of the body.
        parts: The body, in pieces that are sent without joining them.
        headers: More headers, whole lines without their ends.
    """

    status: HTTPStatus
    content_type: str
    parts: list[bytes | memoryview] = field(default_factory=list)
    headers: tuple[str, ...] = ()

    def head(self, common: str, is_last: bool, size: int) -> bytes:
        """The bytes of the head.

        Args:
            common: Header lines that every answer of this worker has, each with its end.
            is_last: Whether the connection ends after this answer.
            size: Bytes of the body.
        """
        return _answer_head(self.status, common, self.headers, is_last, self.content_type, size)


@lru_cache(HEADS_KEPT)
def _answer_head(
    status: HTTPStatus, common: str, headers: tuple[str, ...], is_last: bool, content_type: str, size: int
) -> bytes:
    """Kept, because the same model gives the same head again and again."""
    more = "".join(f"{line}\r\n" for line in headers)
    close = "Connection: close\r\n" if is_last else ""
    return (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n{common}{more}{close}"
        f"Content-Type: {content_type}\r\nContent-Length: {size}\r\n\r\n"
    ).encode("latin-1")
