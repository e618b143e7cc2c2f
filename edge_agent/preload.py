"""Content that was put beside the agent, in its container's image for one: taken from there, not over the network.

Such a folder is a source of bytes and nothing more (ADR 0034). What is asked of it are digests that signed metadata
lead to, and what it gives goes through the same checks as what a registry sends; bytes that fail them are left where
they are and fetched.
"""

import hashlib
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from edge_agent import ports
from edge_agent.store.blobs import FileBlobStore, PartialBlob
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import CHUNK_BYTES
from edge_contract.manifest import Descriptor

_log: Final = logging.getLogger(__name__)
_WRONG: Final = frozenset({"artifact.digest-mismatch", "artifact.size-mismatch"})


class PreloadedFetcher:
    """Implements `ports.BundleFetcher`: copies what a folder has, the rest comes from another. Used by one thread."""

    def __init__(self, folder: Path, blobs: FileBlobStore, rest: ports.BundleFetcher) -> None:
        """Name the folder; it need not exist.

        Args:
            folder: An OCI image layout; only files below `blobs/sha256` are read, each when its digest is asked for.
            blobs: Where blobs go.
            rest: Fetches what the folder does not have.
        """
        self._folder = folder / "blobs" / "sha256"
        self._blobs = blobs
        self._rest = rest
        self._damaged: set[Digest] = set()  # found so since the process began; as many as the folder has at most

    def fetch(self, repository: str, blob: Descriptor, is_cancelled: Callable[[], bool]) -> int:
        """See `ports.BundleFetcher.fetch`; what comes from the folder counts no bytes of the network."""
        if self._blobs.has(blob.digest) or self._take(blob, is_cancelled):
            return 0
        return self._rest.fetch(repository, blob, is_cancelled)

    def is_near(self, blob: Descriptor) -> bool:
        """See `ports.BundleFetcher.is_near`: the folder has a file of that name and length, not known to be damaged."""
        source = self._source(blob)
        if source is None:
            return self._rest.is_near(blob)
        source.close()
        return True

    def _take(self, blob: Descriptor, is_cancelled: Callable[[], bool]) -> bool:
        """Copy a blob from the folder; false when it does not have it, whole and readable.

        Raises:
            EdgeError: `network.cut` when cancelled, `device.disk-full`, `device.disk-error`.
        """
        source = self._source(blob)
        if source is None:
            return False
        with source:
            # What has come over the network must not be lost to a file that turns out to be damaged.
            if self._blobs.partial_bytes(blob.digest) and not _is_whole(source, blob, is_cancelled):
                return self._refuse(blob, "its digest is another")
            return self._copy_from(source, blob, is_cancelled)

    def _source(self, blob: Descriptor) -> BinaryIO | None:
        return None if blob.digest in self._damaged else _open(self._folder / blob.digest.hex, blob.size)

    def _refuse(self, blob: Descriptor, why: str) -> bool:
        _log.warning("%s in %s is not what its name says: %s", blob.digest, self._folder, why)
        self._damaged.add(blob.digest)
        return False

    def _copy_from(self, source: BinaryIO, blob: Descriptor, is_cancelled: Callable[[], bool]) -> bool:
        with self._blobs.resume(blob.digest, blob.size) as partial:
            self._blobs.require_space(partial.remaining)
            has_old_bytes = partial.is_resumed
            try:
                _copy(source, partial, is_cancelled)
                partial.commit()
            except EdgeError as error:
                if error.code not in _WRONG:
                    raise
                partial.discard()
                if not has_old_bytes:
                    return self._refuse(blob, error.detail)
            else:
                _log.info("%s was taken from %s", blob.digest, self._folder)
                return True
        # The file was read whole before, so the bytes that were here are to blame, and gone.
        return self._copy_from(source, blob, is_cancelled)


def _open(path: Path, size: int) -> BinaryIO | None:
    try:
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    found = os.fstat(number)
    if stat.S_ISREG(found.st_mode) and found.st_size == size:
        return os.fdopen(number, "rb")
    os.close(number)
    return None


def _is_whole(source: BinaryIO, blob: Descriptor, is_cancelled: Callable[[], bool]) -> bool:
    """Whether a file has the digest of its name.

    Raises:
        EdgeError: `network.cut` when cancelled.
    """
    state = hashlib.sha256()
    try:
        while chunk := source.read(CHUNK_BYTES):
            if is_cancelled():
                raise EdgeError("network.cut", "the copy was cancelled")
            state.update(chunk)
    except OSError:
        return False
    return state.hexdigest() == blob.digest.hex


def _copy(source: BinaryIO, partial: PartialBlob, is_cancelled: Callable[[], bool]) -> None:
    """Append what is missing; bytes of an earlier attempt have been hashed again, so they may stay.

    Raises:
        EdgeError: `network.cut` when cancelled; as `PartialBlob.write`.
    """
    try:
        source.seek(partial.count)
        while chunk := source.read(CHUNK_BYTES):
            if is_cancelled():
                raise EdgeError("network.cut", "the copy was cancelled")
            partial.write(chunk)
    except OSError as error:
        # An image's disk that fails to read is no reason to go without the blob.
        raise EdgeError("artifact.size-mismatch", f"it cannot be read: {error.strerror}") from None
