"""Moving blobs over HTTP without ever holding one: ranges and conditions on the way out, batches on the way in.

File reads and writes happen in threads; the next chunk is read only when the connection has taken the one before, and
the next part of a body only when the former is on its way to the disk.
"""

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Final

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from cloud_registry.core.distribution import parse_range
from cloud_registry.errors import RegistryError
from cloud_registry.limits import UPLOAD_BATCH_BYTES, UPLOAD_SILENCE_S_MAX
from cloud_registry.ports import BlobStorage
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import BLOB_BYTES_MAX

OCTET_STREAM: Final = "application/octet-stream"
# Content that is named by its digest never changes, but only those with a token may see it.
_FOREVER: Final = "private, max-age=31536000, immutable"


class _ChunkResponse(StreamingResponse):
    """Sends the chunks of a generator, and closes it whatever becomes of the connection."""

    def __init__(self, chunks: Generator[bytes, None, None], status: int, headers: Mapping[str, str]) -> None:
        super().__init__(_in_threads(chunks), status, headers)
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._chunks.close()


async def _in_threads(chunks: Generator[bytes, None, None]) -> AsyncGenerator[bytes, None]:
    while (chunk := await run_in_threadpool(next, chunks, None)) is not None:
        yield chunk


async def blob_response(
    request: Request,
    blobs: BlobStorage,
    digest: Digest,
    size: int,
    media_type: str = OCTET_STREAM,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer to GET or HEAD of a blob: 200, 206 for one range, 304 when the asker has it (RFC 9110, 13 and 14).

    Args:
        request: For its method, `Range`, `If-Range` and `If-None-Match`.
        blobs: The storage.
        digest: The blob; whether the asker may see it has been decided.
        size: Its length in bytes.
        media_type: Content type of the answer.
        headers: Further headers.

    Raises:
        EdgeError: `cloud.not-acceptable` (with the extra `size`), `artifact.not-found`.
    """
    tag = f'"{digest}"'
    all_headers = {
        "Content-Type": media_type,
        "Accept-Ranges": "bytes",
        "ETag": tag,
        "Cache-Control": _FOREVER,
        **(headers or {}),
    }
    if names_tag(request.headers.get("if-none-match"), tag):
        return Response(status_code=304, headers=all_headers)
    offset, length, status = 0, size, 200
    wanted = request.headers.get("range")
    # RFC 9110: a range is for GET alone, and with If-Range only for the very same content.
    if wanted and request.method == "GET" and request.headers.get("if-range", tag) == tag:
        try:
            found = parse_range(wanted, size)
        except EdgeError as error:
            raise RegistryError(error.code, error.detail, error.hint, {"size": size}) from None
        if found is not None:
            offset, length = found
            status = 206
            all_headers["Content-Range"] = f"bytes {offset}-{offset + length - 1}/{size}"
    all_headers["Content-Length"] = str(length)
    if request.method == "HEAD":
        return Response(status_code=status, headers=all_headers)
    chunks = await run_in_threadpool(blobs.open, digest, offset, length)
    return _ChunkResponse(chunks, status, all_headers)


def names_tag(condition: str | None, tag: str) -> bool:
    """Whether an `If-None-Match` header holds for content with this entity tag."""
    if condition is None:
        return False
    if condition.strip() == "*":
        return True
    return any(item.strip().removeprefix("W/") == tag for item in condition.split(","))


async def receive_upload(
    request: Request, blobs: BlobStorage, upload: str, offset: int, announced: int | None = None
) -> int:
    """Append a request's body to an upload, durably; returns the offset behind it.

    What came before the connection was cut or fell silent is kept, so that the other side can go on from there.

    Args:
        request: Whose body it is.
        blobs: The storage.
        upload: Identifier of the upload.
        offset: Where the upload stands.
        announced: Bytes that the request said it would bring, or none.

    Raises:
        EdgeError: as `BlobStorage.append`; `artifact.size-mismatch`; `network.cut`, `network.timeout`.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and offset + int(declared) > BLOB_BYTES_MAX:
        raise EdgeError("cloud.too-large", f"a blob has at most {BLOB_BYTES_MAX} bytes")
    end = None if announced is None else offset + announced
    if announced is not None and declared.isdecimal() and int(declared) != announced:
        raise EdgeError("artifact.size-mismatch", f"{announced} bytes were announced, {declared} are coming")
    batch: list[bytes] = []
    batch_bytes = 0
    failure: EdgeError | None = None
    body = request.stream()
    while True:
        try:
            async with asyncio.timeout(UPLOAD_SILENCE_S_MAX):
                chunk = await anext(body, None)
        except ClientDisconnect:
            failure = EdgeError("network.cut", "the connection ended before the last byte of the body")
            chunk = None
        except TimeoutError:
            failure = EdgeError("network.timeout", f"no byte came for {UPLOAD_SILENCE_S_MAX} seconds")
            chunk = None
        if chunk:
            batch.append(chunk)
            batch_bytes += len(chunk)
            if end is not None and offset + batch_bytes > end:
                raise EdgeError("artifact.size-mismatch", f"{announced} bytes were announced, more came")
        if batch and (chunk is None or batch_bytes >= UPLOAD_BATCH_BYTES):
            offset = await run_in_threadpool(blobs.append, upload, offset, batch)
            batch, batch_bytes = [], 0
        if chunk is None:
            break
    await run_in_threadpool(blobs.checkpoint, upload)
    if failure is None and end is not None and offset != end:
        failure = EdgeError("artifact.size-mismatch", f"{announced} bytes were announced, fewer came")
    if failure is not None:
        raise failure
    return offset


async def read_body(request: Request, bytes_max: int, what: str) -> bytes:
    """A small body as a whole.

    Args:
        request: Whose body it is.
        bytes_max: Its bound.
        what: Name for messages.

    Raises:
        EdgeError: `cloud.too-large`, before more than that is held; `network.cut`, `network.timeout`.
    """
    too_large = EdgeError("cloud.too-large", f"{what} has at most {bytes_max} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > bytes_max:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(UPLOAD_SILENCE_S_MAX):
            async for chunk in request.stream():
                if len(data) + len(chunk) > bytes_max:
                    raise too_large
                data += chunk
    except ClientDisconnect:
        raise EdgeError("network.cut", "the connection ended before the last byte of the body") from None
    except TimeoutError:
        raise EdgeError("network.timeout", f"{what} did not come within {UPLOAD_SILENCE_S_MAX} seconds") from None
    return bytes(data)
