"""Reads tar layers and wheels entry by entry, refusing what a bundle has no use for before a byte of it is written.

Only regular files and folders with plain relative paths pass. Links, devices, sparse files, encrypted or oddly
compressed members, too many entries and bombs are refused. Nothing here writes: the caller gets a path and chunks.
"""

import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, Final, cast

from edge_agent.limits import BOMB_FREE_BYTES, TAR_READ_BYTES_MAX, WHEEL_DIRECTORY_BYTES_MAX
from edge_agent.store.limits import ENTRY_BYTES
from edge_contract.errors import ContractError
from edge_contract.limits import CHUNK_BYTES, UNPACK_BYTES_MAX, UNPACK_ENTRIES_MAX, UNPACK_RATIO_MAX
from edge_contract.names import relative_path

_ZIP_ERRORS: Final = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    KeyError,
)
_END_RECORD: Final = struct.Struct("<4s4H2LH")
_END_SIGNATURE: Final = b"PK\x05\x06"
_LOCATOR_SIGNATURE: Final = b"PK\x06\x07"
_LOCATOR_BYTES: Final = 20
_ENCRYPTED: Final = 0x1


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an archive.

    Attributes:
        path: Checked relative path.
        is_folder: Whether it is a folder; then there are no chunks.
        chunks: The bytes; to be used up before the next entry is asked for.
    """

    path: str
    is_folder: bool
    chunks: Iterator[bytes]


class _Budget:
    """Counts entries and bytes against the bounds of unpacking."""

    def __init__(self, what: str, archive_bytes: int) -> None:
        self._what = what
        self._bytes_max = min(UNPACK_BYTES_MAX, max(BOMB_FREE_BYTES, archive_bytes * UNPACK_RATIO_MAX))
        self._bytes = 0
        self._entries = 0

    def count_entry(self, declared_bytes: int) -> None:
        """Take one entry into account, and refuse early what it declares."""
        self._entries += 1
        if self._entries > UNPACK_ENTRIES_MAX:
            raise ContractError("artifact.archive-bomb", f"{self._what} has more than {UNPACK_ENTRIES_MAX} entries")
        if declared_bytes < 0:
            raise ContractError("artifact.archive-invalid", f"{self._what} has an entry of negative size")
        self._check(self._bytes + declared_bytes)

    def count_bytes(self, count: int) -> None:
        """Take bytes into account that came out of the archive."""
        self._bytes += count
        self._check(self._bytes)

    def _check(self, total: int) -> None:
        if total > self._bytes_max:
            raise ContractError(
                "artifact.archive-bomb", f"{self._what} unpacks to more than the {self._bytes_max} bytes it may"
            )


def tar_entries(file: BinaryIO, what: str) -> Iterator[Entry]:
    """Read an uncompressed tar layer.

    Args:
        file: The whole archive, seekable, verified.
        what: Name for messages.

    Raises:
        ContractError: `artifact.path-unsafe`, `artifact.entry-forbidden`, `artifact.archive-bomb`,
            `artifact.archive-invalid`.
        OSError: The archive cannot be read from disk.
    """
    budget = _Budget(what, _length(file))
    try:
        with tarfile.open(fileobj=cast(BinaryIO, _Capped(file, what)), mode="r:") as archive:
            # Not `for info in archive`: members are forgotten as they pass, so that memory stays flat.
            while (info := archive.next()) is not None:
                cast(Any, archive).members.clear()
                yield _tar_entry(archive, info, budget, what)
            _require_zeros(file, archive.offset, what)
    except (tarfile.TarError, ValueError, EOFError, RecursionError, struct.error) as error:
        raise ContractError("artifact.archive-invalid", f"{what} is not a readable tar archive: {error}") from None


def _tar_entry(archive: tarfile.TarFile, info: tarfile.TarInfo, budget: _Budget, what: str) -> Entry:
    budget.count_entry(info.size)
    name = info.name.removeprefix("./") if info.name != "." else ""
    if info.type == tarfile.DIRTYPE:
        path = name.rstrip("/")
        return Entry(_path(path, what) if path else "", True, iter(()))
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse():
        raise ContractError(
            "artifact.entry-forbidden",
            f"{what}: {info.name[:200]!r} is neither a plain file nor a folder",
            "Links, devices and sparse files are not allowed in a bundle: pack the files themselves.",
        )
    path = _path(name, what)
    source = archive.extractfile(info)
    if source is None:
        raise ContractError("artifact.archive-invalid", f"{what}: {path!r} cannot be read")
    return Entry(path, False, _tar_chunks(source, info.size, budget, f"{what}: {path!r}"))


def _tar_chunks(source: IO[bytes], size: int, budget: _Budget, what: str) -> Iterator[bytes]:
    left = size
    while left > 0:
        try:
            chunk = source.read(min(CHUNK_BYTES, left))
        except tarfile.TarError:
            chunk = b""
        if not chunk:
            raise ContractError("artifact.archive-invalid", f"{what} ends too early")
        left -= len(chunk)
        budget.count_bytes(len(chunk))
        yield chunk


class _Capped:
    """A file that refuses to hand out more than a tar header may need in one read."""

    def __init__(self, file: BinaryIO, what: str) -> None:
        self._file = file
        self._what = what

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= TAR_READ_BYTES_MAX:
            raise ContractError("artifact.archive-bomb", f"{self._what} has an extension header of {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _require_zeros(file: BinaryIO, offset: int, what: str) -> None:
    """Behind the last entry only padding may follow; tarfile takes a broken header for the end."""
    file.seek(offset)
    while chunk := file.read(CHUNK_BYTES):
        if chunk.count(0) != len(chunk):
            raise ContractError("artifact.archive-invalid", f"{what} has a broken header at or behind byte {offset}")


def wheel_entries(file: BinaryIO, what: str) -> Iterator[Entry]:
    """Read what of a wheel belongs on the module path (binary distribution format, PEP 427).

    Library files keep their path; those below `*.data/purelib` and `*.data/platlib` lose that prefix; scripts,
    headers and data of `*.data` have no use in a slot and are passed over.

    Args:
        file: The whole wheel, seekable, verified.
        what: Name for messages.

    Raises:
        ContractError: As `tar_entries`.
        OSError: The wheel cannot be read from disk.
    """
    length = _length(file)
    try:
        _require_small_directory(file, length, what)
        with zipfile.ZipFile(file) as archive:
            budget = _Budget(what, length)
            for info in archive.infolist():
                budget.count_entry(info.file_size)
                path = _wheel_path(info, what)
                if path is None:
                    continue
                chunks = iter(()) if info.is_dir() else _wheel_chunks(archive, info, budget, what)
                yield Entry(path, info.is_dir(), chunks)
    except _ZIP_ERRORS as error:
        raise ContractError("artifact.archive-invalid", f"{what} is not a readable wheel: {error}") from None


def tar_bytes(file: BinaryIO, what: str) -> int:
    """Bytes of the disk that a tar layer takes unpacked, in whole blocks; for asking for the space beforehand.

    Raises:
        ContractError: As `tar_entries`.
        OSError: The archive cannot be read from disk.
    """
    total = 0
    for entry in tar_entries(file, what):
        total += _blocks(sum(len(chunk) for chunk in entry.chunks))
    return total


def wheel_bytes(file: BinaryIO, what: str) -> int:
    """Bytes of the disk that a wheel claims to take unpacked, in whole blocks; for asking for the space beforehand.

    Raises:
        ContractError: `artifact.archive-invalid`, `artifact.archive-bomb`.
        OSError: The wheel cannot be read from disk.
    """
    try:
        _require_small_directory(file, _length(file), what)
        with zipfile.ZipFile(file) as archive:
            return sum(_blocks(info.file_size) for info in archive.infolist())
    except _ZIP_ERRORS as error:
        raise ContractError("artifact.archive-invalid", f"{what} is not a readable wheel: {error}") from None


def _blocks(size: int) -> int:
    """A file's length in whole blocks; an empty one still needs its name."""
    return max(-(-size // ENTRY_BYTES), 1) * ENTRY_BYTES


def _wheel_path(info: zipfile.ZipInfo, what: str) -> str | None:
    """The checked path on the module path, or none for what is passed over."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR and not info.is_dir()):
        raise ContractError(
            "artifact.entry-forbidden",
            f"{what}: {info.filename[:200]!r} is neither a plain file nor a folder",
            "Links and other special entries are not allowed in a wheel.",
        )
    # zipfile cuts names at a zero byte; the original tells.
    if info.filename != info.orig_filename:
        raise ContractError(
            "artifact.path-unsafe", f"{what} has an entry with an odd name {info.orig_filename[:200]!r}"
        )
    if info.flag_bits & _ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ContractError(
            "artifact.archive-invalid", f"{what}: {info.filename[:200]!r} is encrypted or oddly compressed"
        )
    path = _path(info.filename.rstrip("/"), what)
    parts = path.split("/")
    if not parts[0].endswith(".data"):
        return path
    if len(parts) > 2 and parts[1] in ("purelib", "platlib"):
        return "/".join(parts[2:])
    return None


def _wheel_chunks(archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: _Budget, what: str) -> Iterator[bytes]:
    try:
        with archive.open(info) as source:
            while chunk := source.read(CHUNK_BYTES):
                budget.count_bytes(len(chunk))
                yield chunk
    except _ZIP_ERRORS as error:
        raise ContractError("artifact.archive-invalid", f"{what}: {info.filename!r} cannot be read: {error}") from None


def _require_small_directory(file: BinaryIO, length: int, what: str) -> None:
    """Refuse a central directory that would not fit in memory; zipfile reads all of it before one can check."""
    tail_bytes = min(length, _END_RECORD.size + 0x10000)
    file.seek(length - tail_bytes)
    tail = file.read(tail_bytes)
    place = tail.rfind(_END_SIGNATURE)
    if place < 0 or place + _END_RECORD.size > len(tail):
        raise ContractError("artifact.archive-invalid", f"{what} is not a wheel: it has no end record")
    _, disk, _, _, entries, directory_bytes, offset, _ = _END_RECORD.unpack_from(tail, place)
    # zipfile believes a 64-bit locator before the record whatever the record itself says.
    has_locator = tail[max(place - _LOCATOR_BYTES, 0) : place].startswith(_LOCATOR_SIGNATURE)
    if has_locator or disk != 0 or entries == 0xFFFF or 0xFFFFFFFF in (directory_bytes, offset):
        raise ContractError("artifact.layer-unsupported", f"{what} is a multi-volume or 64-bit archive")
    if entries > UNPACK_ENTRIES_MAX or directory_bytes > WHEEL_DIRECTORY_BYTES_MAX:
        raise ContractError("artifact.archive-bomb", f"{what} lists {entries} entries in {directory_bytes} bytes")
    file.seek(0)


def _path(name: str, what: str) -> str:
    try:
        return relative_path(name)
    except ContractError as error:
        raise ContractError(error.code, f"{what}: {error.detail}", error.hint) from None


def _length(file: BinaryIO) -> int:
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    return length
