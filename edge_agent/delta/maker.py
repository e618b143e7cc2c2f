"""Implements `ports.DeltaMaker` on the disk: verifies what goes in, remembers how far it came, verifies what comes out.

What is made lies beside ordinary downloads (`store.blobs`). A checkpoint is durable in this order: the bytes, then the
record that names them. So power may fail at any instant: the next start finds a record whose bytes are all there.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

from edge_agent.delta.limits import LOCK_MS_MAX, POLL_MS
from edge_agent.delta.process import ChildDecoding, Decoding, Work
from edge_agent.delta.record import Point, Record, load_record, save_record
from edge_agent.store import durable
from edge_agent.store.blobs import FileBlobStore
from edge_contract.delta import Delta
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import CHUNK_BYTES
from edge_contract.manifest import Descriptor

_LOG: Final = logging.getLogger(__name__)
_LIBRARIES: Final = ("numpy", "zstandard", "edge_delta")
_ZSTANDARD_MIN: Final = (0, 24)
"""Earlier ones cannot read the header of a frame without zstd's magic number."""
_OF_THE_DISK: Final = frozenset({"device.disk-full", "device.disk-error", "device.disk-corrupt", "artifact.not-found"})
"""What ends a decoding and says nothing about the delta."""


def can_decode() -> bool:
    """Whether this device has what decoding takes; looked up and not imported."""
    if any(importlib.util.find_spec(name) is None for name in _LIBRARIES):
        return False
    try:
        found = tuple(int(part) for part in importlib.metadata.version("zstandard").split(".")[:2])
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False
    return found >= _ZSTANDARD_MIN


class FileDeltaMaker:
    """Makes blobs in a store. Used by the thread that uses the store."""

    def __init__(self, blobs: FileBlobStore, decode: Decoding | None = None) -> None:
        """Work in a store.

        Args:
            blobs: Has bases and deltas, and gets what is made.
            decode: Decodes; in a process of its own when none.
        """
        self._blobs = blobs
        self._decode = decode or ChildDecoding()
        self._can_decode: bool | None = None

    def can_make(self, delta: Delta) -> bool:
        """See `ports.DeltaMaker.can_make`."""
        if self._can_decode is None:
            self._can_decode = can_decode()
        return self._can_decode and not self._record(delta.new).of(delta.digest).is_hopeless

    def made_bytes(self, delta: Delta) -> int:
        """See `ports.DeltaMaker.made_bytes`."""
        point = self._record(delta.new).point_of(delta.digest)
        return 0 if point is None or self._made_size(delta.new) < point.output_bytes else point.output_bytes

    def make(self, delta: Delta, is_cancelled: Callable[[], bool]) -> None:
        """See `ports.DeltaMaker.make`."""
        if self._blobs.has(delta.new):
            return
        record = self._record(delta.new)
        if record.of(delta.digest).is_hopeless:
            raise EdgeError("artifact.delta-invalid", f"the delta {delta.digest} failed on this device before")
        with contextlib.ExitStack() as files:
            base = files.enter_context(self._verified(delta.base, delta.base_bytes, is_cancelled))
            source = files.enter_context(self._verified(delta.digest, delta.bytes, is_cancelled))
            output = files.enter_context(self._output(delta.new, is_cancelled))
            self._run(delta, base, source, output, record, is_cancelled)
        self._blobs.forget_making(delta.new)
        _LOG.info("%s was made out of %s by a delta of %d bytes", delta.new, delta.base, delta.bytes)

    def hand_over(self, blob: Descriptor) -> int:
        """See `ports.DeltaMaker.hand_over`."""
        if not self._blobs.made_path(blob.digest).is_file():
            return self._blobs.partial_bytes(blob.digest)
        record = self._record(blob.digest)
        verified_bytes = 0 if record.point is None else min(record.point.verified_bytes, blob.size)
        with durable.disk_errors(f"opening {self._blobs.made_path(blob.digest)}"):
            file = self._blobs.open_made(blob.digest)
        with file:
            if not _lock(file, lambda: True):
                verified_bytes = 0  # somebody still writes there: it loses its name, and whoever it is ends alone
            count = self._blobs.count_as_partial(blob.digest, verified_bytes)
        if record.point is not None:
            self._save(blob.digest, Record(record.tried))
        return count

    # -- one decoding ----------------------------------------------------------------------------------------------

    def _run(
        self,
        delta: Delta,
        base: BinaryIO,
        source: BinaryIO,
        output: BinaryIO,
        record: Record,
        is_cancelled: Callable[[], bool],
    ) -> None:
        """Decode, count what happens, and give the blob its name."""
        point = self._point_to_go_on_from(delta, output, record)
        record = record.begun(delta.digest) if point else Record(record.tried).begun(delta.digest)
        self._save(delta.new, record)
        work = Work(delta, base.fileno(), source.fileno(), output.fileno(), b"" if point is None else point.state)

        def came_to(output_bytes: int, verified_bytes: int, state: bytes) -> None:
            nonlocal record
            with durable.disk_errors(f"making {delta.new}"):
                os.fsync(output.fileno())
            record = record.came_to(Point(delta.digest, output_bytes, verified_bytes, state))
            self._save(delta.new, record)

        try:
            self._decode(work, came_to, is_cancelled)
            with self._blobs.made(delta.new, delta.new_bytes) as made:
                made.commit()
        except EdgeError as error:
            if is_cancelled():
                self._save(delta.new, record.interrupted(delta.digest))
                raise EdgeError("network.cut", f"making {delta.new} was cancelled") from error
            _LOG.warning("%s cannot be made by the delta %s: %s", delta.new, delta.digest, error)
            if error.code not in _OF_THE_DISK:
                self._save(delta.new, record.failed(delta.digest, error.code))
            raise

    def _point_to_go_on_from(self, delta: Delta, output: BinaryIO, record: Record) -> Point | None:
        """The checkpoint of this very delta, and the output cut to it; else the output is emptied."""
        point = record.point_of(delta.digest)
        with durable.disk_errors(f"making {delta.new}"):
            if point is not None and os.fstat(output.fileno()).st_size < point.output_bytes:
                point = None
            output.truncate(0 if point is None else point.output_bytes)
        return point

    # -- files -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _verified(self, digest: Digest, size: int, is_cancelled: Callable[[], bool]) -> Iterator[BinaryIO]:
        """A blob that was read whole through the descriptor that is given away: nobody can change it in between.

        Raises:
            EdgeError: `device.disk-corrupt`, `device.disk-error`, `artifact.not-found`; `network.cut` when cancelled.
        """
        with self._blobs.open(digest) as file:
            state, count = hashlib.sha256(), 0
            with durable.disk_errors(f"reading {digest}"):
                while chunk := file.read(CHUNK_BYTES):
                    if is_cancelled():
                        raise EdgeError("network.cut", f"reading {digest} was cancelled")
                    state.update(chunk)
                    count += len(chunk)
            if (count, state.hexdigest()) != (size, digest.hex):
                raise EdgeError("device.disk-corrupt", f"{digest} on this disk is no longer what its name says")
            yield file

    @contextlib.contextmanager
    def _output(self, digest: Digest, is_cancelled: Callable[[], bool]) -> Iterator[BinaryIO]:
        """The file that the blob is made in; nobody else writes it, a decoder of the agent before this one neither."""
        path = self._blobs.made_path(digest)
        with durable.disk_errors(f"opening {path}"):
            durable.make_folder(path.parent)
            file = self._blobs.open_made(digest)
        with file:
            if not _lock(file, is_cancelled):
                raise EdgeError("device.busy", f"another process still makes {digest}")
            with durable.disk_errors(f"opening {path}"):
                durable.sync_folder(path.parent)
            yield file

    def _made_size(self, digest: Digest) -> int:
        with contextlib.suppress(OSError):
            return self._blobs.made_path(digest).stat().st_size
        return 0

    def _record(self, digest: Digest) -> Record:
        return load_record(self._blobs.record_path(digest))

    def _save(self, digest: Digest, record: Record) -> None:
        save_record(self._blobs.record_path(digest), record)


def _lock(file: BinaryIO, is_cancelled: Callable[[], bool]) -> bool:
    """Wait a moment for the decoder of an agent that was killed: it notices, and its descriptor holds the lock."""
    end = time.monotonic() + LOCK_MS_MAX / 1000
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() > end or is_cancelled():
                return False
        time.sleep(POLL_MS / 1000)
