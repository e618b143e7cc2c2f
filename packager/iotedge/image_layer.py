"""Layers of an image: reproducible archives of files, written without putting the files on disk first."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol, cast

from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from packager.iotedge.image_base import GZIP_TYPE, TAR_TYPE, Blob
from packager.iotedge.image_limits import GZIP_LEVEL
from packager.layout import LayoutWriter
from packager.limits import COPY_BYTES

READABLE: Final = 0o644
RUNNABLE: Final = 0o755


@dataclass(frozen=True, slots=True)
class File:
    """A file, folder or link of a layer.

    Attributes:
        path: Below the root, without a leading slash.
        chunks: Gives the bytes of a file; none for a folder or a link.
        size: Of these bytes.
        target: Of a symbolic link; empty for others.
        mode: Permissions.
        owner: Number of user and group.
    """

    path: str
    chunks: Callable[[], Iterator[bytes]] | None = None
    size: int = 0
    target: str = ""
    mode: int = READABLE
    owner: int = 0


def text_file(path: str, data: bytes, mode: int = READABLE) -> File:
    """A file from bytes."""
    return File(path, lambda: iter((data,)), len(data), mode=mode)


def folder(path: str, mode: int = RUNNABLE, owner: int = 0) -> File:
    """A folder with permissions or an owner of its own; others come about by what is in them."""
    return File(path, mode=mode, owner=owner)


def link(path: str, target: str) -> File:
    """A symbolic link."""
    return File(path, target=target, mode=0o777)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that was written.

    Attributes:
        blob: As it lies in the layout.
        content: Digest of the archive before compression, an image's `diff_id`.
    """

    blob: Blob
    content: Digest


class _Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


class _Hashing(io.RawIOBase):
    """Passes bytes on and hashes them."""

    def __init__(self, sink: _Sink) -> None:
        super().__init__()
        self._sink = sink
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]  # narrower than any buffer
        self.hash.update(data)
        self._sink.write(bytes(data))
        return len(data)


def write_layer(writer: LayoutWriter, files: Iterable[File], is_compressed: bool) -> Layer:
    """Write a layer: entries in order of path, owned by root, at the beginning of time.

    Args:
        writer: The layout it goes to.
        files: Its entries, in any order; folders above them come about.
        is_compressed: With gzip, whose bytes depend on the version of zlib; the content's digest never does.

    Raises:
        EdgeError: `config.invalid` for a path that two entries have; what the chunks and the disk raise.
    """
    contents: list[Digest] = []

    def fill(sink: BinaryIO) -> None:
        if is_compressed:
            with gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=sink, mtime=0) as packed:
                contents.append(_pack(files, packed))
        else:
            contents.append(_pack(files, sink))

    digest, size = writer.add_written(fill)
    return Layer(Blob(GZIP_TYPE if is_compressed else TAR_TYPE, digest, size), contents[0])


def _pack(files: Iterable[File], sink: _Sink) -> Digest:
    hashing = _Hashing(sink)
    with tarfile.open(
        fileobj=cast(BinaryIO, hashing), mode="w|", format=tarfile.PAX_FORMAT, bufsize=COPY_BYTES
    ) as archive:
        for file in _in_order(files):
            entry = tarfile.TarInfo(file.path)
            entry.mode, entry.uid, entry.gid = file.mode, file.owner, file.owner
            if file.target:
                entry.type, entry.linkname = tarfile.SYMTYPE, file.target
            elif file.chunks is None:
                entry.type = tarfile.DIRTYPE
            else:
                entry.size = file.size
                chunks = file.chunks()
                archive.addfile(entry, cast(BinaryIO, ChunkReader(chunks)))
                # Verified chunks are proved genuine by their end, which the archive has no need to read.
                if next(chunks, None) is not None:
                    raise EdgeError("artifact.size-mismatch", f"more than {file.size} bytes came for /{file.path}")
                continue
            archive.addfile(entry)
    return Digest.from_hex(hashing.hash.hexdigest())


def _in_order(files: Iterable[File]) -> list[File]:
    """The entries with the folders above them, each once."""
    found: dict[str, File] = {}
    for file in files:
        if file.path in found:
            raise EdgeError("config.invalid", f"two files of the image are at /{file.path}")
        found[file.path] = file
    for path in list(found):
        parts = path.split("/")
        for depth in range(1, len(parts)):
            above = "/".join(parts[:depth])
            if found.setdefault(above, folder(above)).chunks is not None:
                raise EdgeError("config.invalid", f"/{path} lies below a file of the image")
    return [found[path] for path in sorted(found)]


class ChunkReader:
    """Chunks as a file that an archive reads from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        """Read from these."""
        self._chunks = chunks
        self._rest = b""

    def read(self, count: int) -> bytes:
        """So many bytes; fewer at the end alone."""
        parts, missing = [], count
        while missing:
            if not self._rest:
                self._rest = next(self._chunks, b"")
                if not self._rest:
                    break
            part, self._rest = self._rest[:missing], self._rest[missing:]
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)
