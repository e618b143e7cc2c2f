"""Which Python interpreter a base has, found in the names of its layers' files; nothing of it is run."""

import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, cast

from edge_contract.errors import EdgeError
from packager.iotedge.image_base import GZIP_TYPE, TAR_TYPE, BaseImage, ImageSource
from packager.iotedge.image_layer import ChunkReader
from packager.iotedge.image_limits import (
    BASE_ENTRIES_MAX,
    BASE_UNPACKED_BYTES_MAX,
    HEADER_BYTES_MAX,
    LINK_DEPTH_MAX,
)
from packager.limits import COPY_BYTES

_PATH_DEFAULT: Final = "/usr/local/bin:/usr/bin:/bin"
_PYTHON: Final = re.compile(r"(?P<folder>/.{1,200})/python3\.(?P<minor>\d{1,2})")
_WHITEOUT: Final = ".wh."
_HEADERS: Final = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_HINT: Final = "Name it: --python /usr/local/bin/python3.12."
_MINOR_MIN: Final = 11
_MINOR_MAX: Final = 13


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python interpreter of a base.

    Attributes:
        path: Of the program, with its version in the name.
        minor: The version's second number.
    """

    path: str
    minor: int

    @property
    def folder(self) -> str:
        """Where it is."""
        return posixpath.dirname(self.path)


def parse_interpreter(path: str) -> Interpreter:
    """An interpreter from its path.

    Raises:
        EdgeError: `config.invalid`.
    """
    match = _PYTHON.fullmatch(path)
    if match is None or posixpath.normpath(path) != path:
        raise EdgeError("config.invalid", f"{path!r} is not the path of a Python like /usr/bin/python3.11", _HINT)
    minor = int(match["minor"])
    if not _MINOR_MIN <= minor <= _MINOR_MAX:
        raise EdgeError(
            "config.invalid", f"{path} is of Python 3.{minor}; the agent runs on 3.{_MINOR_MIN} to 3.{_MINOR_MAX}"
        )
    return Interpreter(path, minor)


def find_interpreter(source: ImageSource, image: BaseImage) -> Interpreter:
    """The `python3` that a container of the image would find on its PATH.

    Reads the layers through, which takes a second for 50 MB of compressed ones.

    Raises:
        EdgeError: `config.invalid` where there is none, or the layers' compression cannot be read;
            `artifact.archive-invalid`; as the source's methods.
    """
    names: dict[str, str] = {}
    count = 0
    for blob in image.layers:
        if blob.media_type not in (TAR_TYPE, GZIP_TYPE):
            raise EdgeError("config.invalid", f"{source.name} has layers of type {blob.media_type}", _HINT)
        for path, target in _entries(source.chunks(blob), blob.media_type == GZIP_TYPE, source.name):
            count += 1
            if count > BASE_ENTRIES_MAX:
                raise EdgeError("config.invalid", f"{source.name} has more than {BASE_ENTRIES_MAX} files", _HINT)
            name = posixpath.basename(path)
            if name.startswith(_WHITEOUT):
                names.pop(posixpath.join(posixpath.dirname(path), name.removeprefix(_WHITEOUT)), None)
            elif name.startswith("python3") or target:
                names[path] = target
    path = image.environment.get("PATH") or _PATH_DEFAULT
    for folder in path.split(":"):
        found = _resolve(posixpath.join(folder, "python3"), names)
        if found is not None:
            return parse_interpreter(found)
    raise EdgeError("config.invalid", f"{source.name} for {image.platform} has no python3 on its PATH {path}", _HINT)


def _resolve(path: str, names: dict[str, str]) -> str | None:
    """Follow links by name to `python3.N`; folders may be links too, as /bin is."""
    for _ in range(LINK_DEPTH_MAX):
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            above = "/" + "/".join(parts[:depth])
            target = names.get(above)
            if target:
                rest = "/".join(parts[depth:])
                path = posixpath.normpath(posixpath.join(posixpath.dirname(above), target, rest))
                break
        else:
            return path if path in names and _PYTHON.fullmatch(path) else None
    return None


class _Entry(tarfile.TarInfo):
    """An entry whose own headers are bounded: the library reads a long name, or attributes, as a whole."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADERS and self.size > HEADER_BYTES_MAX:
            raise EdgeError("artifact.archive-bomb", f"a layer of the base has a header of {self.size} bytes")
        entry: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return entry


def _entries(chunks: Iterator[bytes], is_compressed: bool, name: str) -> Iterator[tuple[str, str]]:
    """Path and target of links of each entry; the chunks are read to their end, which verifies them."""
    plain = _bounded(_inflated(chunks) if is_compressed else chunks, name)
    try:
        reader = cast(BinaryIO, ChunkReader(plain))
        with tarfile.open(fileobj=reader, mode="r|", bufsize=COPY_BYTES, tarinfo=_Entry) as archive:
            for entry in archive:
                path = posixpath.normpath("/" + entry.name.lstrip("/"))
                target = entry.linkname if entry.issym() else f"/{entry.linkname}" if entry.islnk() else ""
                yield path, target
        for _ in plain:
            pass
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise EdgeError("artifact.archive-invalid", f"a layer of {name} is not an archive: {error}") from None


def _inflated(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Unpack gzip, several members one after another included."""
    packed = zlib.decompressobj(wbits=31)
    for chunk in chunks:
        rest = chunk
        while rest:
            yield packed.decompress(rest, COPY_BYTES)
            rest = packed.unconsumed_tail
            if packed.eof:
                rest = packed.unused_data
                packed = zlib.decompressobj(wbits=31)
                if not rest.strip(b"\0"):
                    break


def _bounded(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    count = 0
    for chunk in chunks:
        count += len(chunk)
        if count > BASE_UNPACKED_BYTES_MAX:
            raise EdgeError("artifact.archive-bomb", f"a layer of {name} unpacks to too many bytes")
        if chunk:
            yield chunk
