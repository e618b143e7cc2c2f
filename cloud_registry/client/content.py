"""Blobs on their way: uploads that go on where they were cut, downloads verified before they get their name."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

from cloud_registry.client.transport import Transport, is_passing, pause
from cloud_registry.limits import CLIENT_ATTEMPTS_MAX, CLIENT_CHUNK_BYTES
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.stream import VerifyingStream

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


def upload(
    transport: Transport,
    repository: str,
    chunks_from: Callable[[int], Iterator[bytes]],
    size: int,
    digest: Digest,
    progress: Progress | None,
) -> int:
    """Upload a blob unless the repository has it; returns the bytes that were sent.

    Args:
        transport: The way there.
        repository: For example `models/digits`.
        chunks_from: Gives the blob's bytes from an offset on; called again after a cut.
        size: Length of the blob in bytes.
        digest: Its digest.
        progress: Called as bytes go.
    """
    has_blob = f"/v2/{quote(repository)}/blobs/{digest}"
    if transport.exists(has_blob):
        if progress:
            progress(size, size)
        return 0
    location = transport.location(transport.request("POST", f"/v2/{quote(repository)}/blobs/uploads/", repeat=True))
    offset = sent = failures = 0
    while offset < size:
        before = offset
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size - offset),
            "Content-Range": f"{offset}-{size - 1}",
        }
        try:
            response = transport.send(location, headers, _counted(chunks_from(offset), offset, size, progress))
            location, offset = transport.location(response), size
        except EdgeError as error:
            if not is_passing(error) and error.code != "cloud.upload-invalid":
                raise
            failures += 1
            if failures >= CLIENT_ATTEMPTS_MAX:
                raise
            pause(failures)
            response = transport.request("GET", location)
            location, offset = transport.location(response), _offset_of(response.headers.get("range", ""))
            failures = 0 if offset > before else failures
        sent += max(0, offset - before)
    try:
        transport.request("PUT", location.copy_add_param("digest", str(digest)), content=b"")
    except EdgeError:
        # The answer of an earlier attempt may have been lost after the blob was made.
        if not transport.exists(has_blob):
            raise
    if progress:
        progress(size, size)
    return sent


def download(
    transport: Transport, path: str, digest: Digest, size: int, target: Path, progress: Progress | None
) -> None:
    """Download a file; it gets its name once verified and durable. `<target>.partial` is kept after a cut and resumed.

    Args:
        transport: The way there.
        path: Path of the URL.
        digest: Digest of the file.
        size: Its length in bytes.
        target: Where it goes; the folder has to exist.
        progress: Called as bytes come.
    """
    partial = target.with_name(target.name + ".partial")
    failures = 0
    while True:
        stream = VerifyingStream(digest, size)
        before = _feed_file(stream, partial)
        try:
            _download_rest(transport, path, stream, partial, progress)
            stream.finish()
            break
        except EdgeError as error:
            if error.code.startswith("artifact."):
                partial.unlink(missing_ok=True)
            if not is_passing(error):
                raise
            failures = 0 if stream.count > before else failures + 1
            if failures >= CLIENT_ATTEMPTS_MAX:
                raise
            pause(failures + 1)
    _publish(partial, target)


def _download_rest(
    transport: Transport, path: str, stream: VerifyingStream, partial: Path, progress: Progress | None
) -> None:
    size = stream.count + stream.remaining
    if stream.remaining == 0:
        with _disk(partial):
            partial.touch()
        return
    headers = {"Range": f"bytes={stream.count}-"} if stream.count else {}
    with transport.stream(path, headers) as response:
        if stream.count and response.status_code != HTTPStatus.PARTIAL_CONTENT:
            raise EdgeError("cloud.not-acceptable", f"{path}: the registry does not resume")
        with _disk(partial), partial.open("ab") as file:
            for chunk in response.iter_bytes(CLIENT_CHUNK_BYTES):
                stream.feed(chunk)
                file.write(chunk)
                if progress:
                    progress(stream.count, size)
            file.flush()
            os.fsync(file.fileno())
    if stream.remaining:
        raise EdgeError("network.cut", f"{path}: {stream.remaining} bytes are missing")


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EdgeError("device.disk-error", f"cannot write {path}: {error.strerror}") from None


def file_chunks(path: Path, offset: int) -> Iterator[bytes]:
    """The bytes of a file from an offset on."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while chunk := file.read(CLIENT_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise EdgeError("config.file-missing", f"cannot read {path}: {error.strerror}") from None


def _counted(chunks: Iterator[bytes], offset: int, size: int, progress: Progress | None) -> Iterator[bytes]:
    count = offset
    for chunk in chunks:
        yield chunk
        count += len(chunk)
        if progress:
            progress(count, size)


def _offset_of(header: str) -> int:
    """Where an upload stands, from `Range: 0-<last byte>`."""
    first, dash, last = header.removeprefix("bytes=").partition("-")
    if first != "0" or not dash or not last.isdecimal():
        return 0
    # Zero bytes and one byte look alike in this header; registries send 0-0 for both.
    return int(last) + 1 if int(last) > 0 else 0


def _feed_file(stream: VerifyingStream, path: Path) -> int:
    """Feed what an earlier attempt left; a file that is too long is not ours and is dropped."""
    if not path.is_file() or path.stat().st_size > stream.remaining:
        path.unlink(missing_ok=True)
        return 0
    for chunk in file_chunks(path, 0):
        stream.feed(chunk)
    return stream.count


def _publish(partial: Path, target: Path) -> None:
    with _disk(target):
        os.replace(partial, target)
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
