"""Compressed request bodies (RFC 9110 8.4), with a bound on what they grow to. Pure, any thread."""

import zlib
from http import HTTPStatus
from typing import Final

from edge_agent.worker.http import BadRequestError, too_large

_WINDOWS: Final = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
CODINGS: Final = "gzip, deflate"
"""What is understood, as the header `Accept-Encoding` of a refusal says it (RFC 9110 15.5.16)."""


def coding_of(headers: dict[bytes, bytes]) -> bytes:
    """The content coding of a request; empty when it is sent as it is.

    Raises:
        BadRequestError: With 415 for one that is not understood, or several.
    """
    coding = headers.get(b"content-encoding", b"").strip().lower()
    if coding in (b"", b"identity"):
        return b""
    if coding not in _WINDOWS:
        raise BadRequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"bodies may be coded with {CODINGS}, one of them")
    return coding


def inflate(body: bytes | bytearray | memoryview, coding: bytes, bytes_max: int) -> bytes:
    """Undo a content coding.

    Args:
        body: The body as it came.
        coding: As `coding_of` gave it.
        bytes_max: Bound of the result; not one byte more is ever made.

    Raises:
        BadRequestError: With 400 for what is not of that coding, or not whole; 413.
    """
    inflater = zlib.decompressobj(_WINDOWS[coding])
    try:
        data = inflater.decompress(body, bytes_max + 1)
    except zlib.error as error:
        raise BadRequestError(HTTPStatus.BAD_REQUEST, f"the body is not {coding.decode()}: {error}") from None
    if len(data) > bytes_max:
        raise BadRequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large(bytes_max))
    if not inflater.eof or inflater.unused_data:
        raise BadRequestError(HTTPStatus.BAD_REQUEST, f"the body is not one whole {coding.decode()} stream")
    return data
