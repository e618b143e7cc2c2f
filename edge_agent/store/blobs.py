"""Content-addressed blobs: `blobs/sha256/<hex>` holds whole, verified ones; `partial/<hex>` what has come so far.

`partial/<hex>.made` is what a delta has made of a blob so far, `partial/<hex>.delta` where that stands (ADR 0038).
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self, cast

from edge_agent.limits import RESERVE_BYTES_DEFAULT
from edge_agent.store import durable
from edge_contract.digest import Digest
from edge_contract.errors import ContractError, EdgeError
from edge_contract.limits import BLOB_BYTES_MAX, CHUNK_BYTES
from edge_contract.stream import VerifyingStream

_BLOB_MODE: Final = 0o444  # slots hold hard links to these bytes: nobody may write them
_MADE: Final = ".made"
_RECORD: Final = ".delta"


class FileBlobStore:
    """Implements `ports.BlobStore` in a data directory, and takes blobs in for the fetcher. Used by one thread.

    Another process may read at the same time (`edge-agent verify` uses `check`, which removes nothing).
    """

    def __init__(self, root: Path, reserve_bytes: int = RESERVE_BYTES_DEFAULT, droppable: Sequence[Path] = ()) -> None:
        """Use a data directory; folders are made when the first blob comes.

        Args:
            root: The data directory; `blobs/` and `partial/` lie below it.
            reserve_bytes: Emergency reserve that `require_space` leaves free, 0 or more.
            droppable: Folders on the same disk that nobody needs: they are removed before space is refused.
        """
        self._root = root
        self._blobs = root / "blobs" / "sha256"
        self._partial = root / "partial"
        self._reserve_bytes = reserve_bytes
        self._droppable = tuple(droppable)

    def path(self, digest: Digest) -> Path:
        """Where a whole blob is, or would be."""
        return self._blobs / digest.hex

    def has(self, digest: Digest) -> bool:
        """See `ports.BlobStore.has`."""
        return self.path(digest).is_file()

    def partial_bytes(self, digest: Digest) -> int:
        """See `ports.BlobStore.partial_bytes`."""
        try:
            return (self._partial / digest.hex).stat().st_size
        except OSError:
            return 0

    def remove(self, digest: Digest) -> None:
        """See `ports.BlobStore.remove`."""
        with durable.disk_errors(f"removing {digest}"):
            for path in (self._partial / digest.hex, self.path(digest)):
                durable.remove_file(path)

    def open(self, digest: Digest) -> BinaryIO:
        """A whole blob for reading; the caller closes it.

        Raises:
            EdgeError: `artifact.not-found`, `device.disk-error`.
        """
        path = self.path(digest)
        try:
            return os.fdopen(durable.open_file(path), "rb")
        except FileNotFoundError:
            raise EdgeError("artifact.not-found", f"{digest} is not on this device") from None
        except OSError as error:
            raise durable.disk_error(error, f"reading {path}") from error

    def read(self, digest: Digest, bytes_max: int) -> bytes:
        """See `ports.BlobStore.read`."""
        with self.open(digest) as file:
            try:
                data = file.read(bytes_max + 1)
            except OSError as error:
                if error.errno in durable.UNREADABLE:
                    raise self._corrupt(digest, f"it cannot be read: {error.strerror}") from error
                raise durable.disk_error(error, f"reading {self.path(digest)}") from error
        if len(data) > bytes_max:
            raise EdgeError("artifact.document-too-large", f"{digest} is longer than the {bytes_max} bytes it may have")
        if Digest.of(data) != digest:
            raise self._corrupt(digest, "its digest has changed")
        return data

    def check(self, digest: Digest, size: int | None = None) -> int:
        """Read a blob from disk and compare size and digest, changing nothing.

        Args:
            digest: Which blob.
            size: Its declared length; none to compare the digest alone.

        Returns:
            Its length.

        Raises:
            EdgeError: `device.disk-corrupt`, `device.disk-error`, `artifact.not-found`.
        """
        path = self.path(digest)
        with self.open(digest) as file:
            try:
                durable.forget_cached(file.fileno())
                count = os.fstat(file.fileno()).st_size
                found = hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()
            except OSError as error:
                if error.errno in durable.UNREADABLE:
                    raise self._corrupt(digest, f"it cannot be read: {error.strerror}") from error
                raise durable.disk_error(error, f"reading {path}") from error
        if size is not None and count != size:
            raise self._corrupt(digest, f"it has {count} bytes instead of {size}")
        if found != digest.hex:
            raise self._corrupt(digest, "its digest has changed")
        return count

    def verify(self, digest: Digest, size: int | None = None) -> None:
        """See `ports.BlobStore.verify`; without a size the digest alone is compared.

        A second opinion on the bytes that came in through `PartialBlob`: it shares no code with `VerifyingStream` and
        asks the kernel to read from the disk instead of from memory.
        """
        try:
            self.check(digest, size)
        except EdgeError as error:
            if error.code == "device.disk-corrupt":
                with durable.disk_errors(f"removing the damaged {self.path(digest)}"):
                    durable.remove_file(self.path(digest))
            raise
        with durable.disk_errors(f"syncing {self._blobs}"):
            durable.sync_folder(self._blobs)  # once more, in case that failed when the blob got its name

    def require_space(self, bytes_needed: int) -> None:
        """See `ports.BlobStore.require_space`."""
        with durable.disk_errors(f"asking for the free space of {self._root}"):
            durable.make_folder(self._root)
            free = self._free()
            for folder in self._droppable:
                if free - self._reserve_bytes < bytes_needed and folder.is_dir():
                    shutil.rmtree(folder, ignore_errors=True)  # half of it is of no use and does no harm either
                    free = self._free()
        if free - self._reserve_bytes < bytes_needed:
            raise EdgeError(
                "device.disk-full",
                f"{bytes_needed} bytes are needed in {self._root}, {free} are free, {self._reserve_bytes} reserved",
                "Free some space on the device's data partition, or lower reserve_bytes in its configuration.",
            )

    def _free(self) -> int:
        disk = os.statvfs(self._root)
        return disk.f_bavail * disk.f_frsize

    def collect(self, keep: frozenset[Digest]) -> int:
        """See `ports.BlobStore.collect`. Digests in `keep` that are not here are no error."""
        wanted = {digest.hex for digest in keep}
        freed = 0
        with durable.disk_errors(f"removing unused blobs of {self._root}"):
            # A blob that was made has what it was made with beside it until somebody looks here.
            whole = {path.name for path in durable.list_folder(self._blobs)}
            for folder, kept in ((self._blobs, wanted), (self._partial, wanted - whole)):
                doomed = [path for path in durable.list_folder(folder) if path.name.partition(".")[0] not in kept]
                freed += durable.total_bytes(doomed)
                for path in doomed:
                    path.unlink(missing_ok=True)
                if doomed:
                    durable.sync_folder(folder)
        return freed

    def digests(self) -> Iterator[Digest]:
        """Every whole blob, in order of digest."""
        with durable.disk_errors(f"listing {self._blobs}"):
            paths = durable.list_folder(self._blobs)
        for path in paths:
            with contextlib.suppress(ContractError):
                yield Digest.from_hex(path.name)

    def put(self, digest: Digest, data: bytes) -> None:
        """Keep a small blob at once; durable on return. Nothing happens when it is there.

        Raises:
            EdgeError: `artifact.digest-mismatch`, `device.disk-full`, `device.disk-error`.
        """
        if self.has(digest):
            return
        stream = VerifyingStream(digest, len(data))
        stream.feed(data)
        stream.finish()
        with durable.disk_errors(f"writing {self.path(digest)}"):
            durable.make_folder(self._blobs)
            durable.write_file(self.path(digest), data, _BLOB_MODE)

    def resume(self, digest: Digest, size: int) -> "PartialBlob":
        """Go on with a blob that is not whole yet; what came before is read and hashed again.

        A partial file that is too long or cannot be read starts from nothing. Use the result as a context manager.

        Args:
            digest: Which blob.
            size: Its declared length, `0..BLOB_BYTES_MAX`.

        Raises:
            EdgeError: `device.disk-full`, `device.disk-error`, `artifact.size-mismatch` for an impossible size.
        """
        self._prepare(digest, size)
        return PartialBlob(self._partial / digest.hex, self.path(digest), digest, size)

    def made(self, digest: Digest, size: int) -> "PartialBlob":
        """What a delta made of a blob, read and hashed; `PartialBlob.commit` gives it the blob's name.

        Raises:
            EdgeError: As `resume`.
        """
        self._prepare(digest, size)
        return PartialBlob(self.made_path(digest), self.path(digest), digest, size)

    def made_path(self, digest: Digest) -> Path:
        """Where a delta makes a blob."""
        return self._partial / f"{digest.hex}{_MADE}"

    def open_made(self, digest: Digest) -> BinaryIO:
        """That file, made when it is not there; the caller closes it.

        Raises:
            OSError: The disk refused.
        """
        return _open_partial(self.made_path(digest))

    def record_path(self, digest: Digest) -> Path:
        """Where it is written how far that came."""
        return self._partial / f"{digest.hex}{_RECORD}"

    def forget_making(self, digest: Digest) -> None:
        """Remove what is left of a download and of a making of a blob that is whole.

        Raises:
            EdgeError: `device.disk-error`.
        """
        with durable.disk_errors(f"tidying up behind {digest}"):
            for path in (self._partial / digest.hex, self.record_path(digest), self.made_path(digest)):
                durable.remove_file(path)

    def count_as_partial(self, digest: Digest, count: int) -> int:
        """Let the first bytes of what a delta made count as fetched, unless more was fetched; the rest is removed.

        Args:
            digest: Of the blob.
            count: How many bytes, none beyond what was made.

        Returns:
            How many bytes of the blob have come then.

        Raises:
            EdgeError: `device.disk-full`, `device.disk-error`.
        """
        made, here = self.made_path(digest), self.partial_bytes(digest)
        with durable.disk_errors(f"keeping what was made of {digest}"):
            if not made.is_file():
                return here
            count = min(count, made.stat().st_size)
            if count <= here:
                durable.remove_file(made)
                return here
            with _open_partial(made) as file:
                file.truncate(count)
                os.fsync(file.fileno())
            durable.rename(made, self._partial / digest.hex)
        return count

    def _prepare(self, digest: Digest, size: int) -> None:
        if not 0 <= size <= BLOB_BYTES_MAX:
            raise EdgeError("artifact.size-mismatch", f"{digest} is declared with the impossible size of {size} bytes")
        with durable.disk_errors(f"making {self._partial}"):
            durable.make_folder(self._blobs)
            durable.make_folder(self._partial)

    def _corrupt(self, digest: Digest, why: str) -> EdgeError:
        return EdgeError("device.disk-corrupt", f"{self.path(digest)} is damaged: {why}", "It will be fetched again.")


class PartialBlob:
    """A blob that is coming in, verified while it is written. Used by one thread, as a context manager.

    Leaving the context keeps what has come, unless `commit` or `discard` was called.
    """

    def __init__(self, partial: Path, final: Path, digest: Digest, size: int) -> None:
        """Open or make the partial file; `FileBlobStore.resume` is the way here.

        Raises:
            EdgeError: `device.disk-full`, `device.disk-error`.
        """
        self._partial = partial
        self._final = final
        self._digest = digest
        self._size = size
        self._stream = VerifyingStream(digest, size)
        self._resumed_bytes = 0
        with durable.disk_errors(f"opening {partial}"):
            self._file = _open_partial(partial)
            try:
                self._read_again()
            except BaseException:
                self._file.close()
                raise

    @property
    def count(self) -> int:
        """Bytes that are here and hashed; the next chunk follows them."""
        return self._stream.count

    @property
    def remaining(self) -> int:
        """Bytes still missing."""
        return self._stream.remaining

    @property
    def is_resumed(self) -> bool:
        """Whether some of the bytes were on disk before this process wrote any."""
        return self._resumed_bytes > 0

    def write(self, chunk: bytes | memoryview) -> None:
        """Take the next chunk.

        Raises:
            EdgeError: `artifact.size-mismatch` before a byte too many is written; `device.disk-full`,
                `device.disk-error`.
        """
        self._stream.feed(chunk)
        with durable.disk_errors(f"writing {self._partial}"):
            self._file.write(chunk)

    def restart(self) -> None:
        """Forget everything that came and begin again.

        Raises:
            EdgeError: `device.disk-error`.
        """
        with durable.disk_errors(f"emptying {self._partial}"):
            self._empty()

    def commit(self) -> None:
        """Give the blob its name; durable on return.

        Raises:
            EdgeError: `artifact.size-mismatch`, `artifact.digest-mismatch` (then the file is emptied, nothing bad is
                kept), `device.disk-full`, `device.disk-error`.
        """
        try:
            self._stream.finish()
        except ContractError:
            self.restart()
            raise
        with durable.disk_errors(f"completing {self._final}"):
            self._file.flush()
            os.fchmod(self._file.fileno(), _BLOB_MODE)
            os.fsync(self._file.fileno())
            durable.rename(self._partial, self._final)

    def discard(self) -> None:
        """Remove the partial file.

        Raises:
            EdgeError: `device.disk-error`.
        """
        with durable.disk_errors(f"removing {self._partial}"):
            durable.remove_file(self._partial)

    def __enter__(self) -> Self:
        """The blob itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file; what has come stays for the next attempt."""
        try:
            self._file.close()
        except OSError as problem:
            # Only a full disk gets here; the error on its way says so already.
            if error is None:
                raise durable.disk_error(problem, f"writing {self._partial}") from problem

    def _read_again(self) -> None:
        """Hash what an earlier attempt left; a file longer than declared is not what it should be."""
        if os.fstat(self._file.fileno()).st_size > self._size:
            self._empty()
            return
        try:
            while chunk := self._file.read(CHUNK_BYTES):
                self._stream.feed(chunk)
        except OSError:
            self._empty()
        self._resumed_bytes = self._stream.count
        self._file.seek(self._stream.count)

    def _empty(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()  # what is still to be written would land behind the cut
        self._file.seek(0)
        self._file.truncate(0)
        self._stream = VerifyingStream(self._digest, self._size)
        self._resumed_bytes = 0


def _open_partial(path: Path) -> BinaryIO:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o600)
    except PermissionError:
        # Power failed between taking the right to write away and giving the blob its name.
        path.chmod(0o600)
        descriptor = os.open(path, flags, 0o600)
    return os.fdopen(descriptor, "r+b")
