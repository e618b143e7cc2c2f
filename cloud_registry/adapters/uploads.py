"""Uploads in the making: one file each, a durable mark of how far it is, and in memory the digest so far."""

import hashlib
import os
import re
import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloud_registry.adapters.catalogue import Catalogue
from cloud_registry.adapters.durable import disk_errors, make_folder, sync_folder
from cloud_registry.limits import UPLOAD_CHECKPOINT_BYTES, UPLOAD_IDLE_MS_MAX, UPLOAD_SWEEP_MS, UPLOADS_MAX
from cloud_registry.ports import Clock
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import BLOB_BYTES_MAX, CHUNK_BYTES

if TYPE_CHECKING:
    from hashlib import _Hash

_ID: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(slots=True)
class _Progress:
    """What is known of an upload in memory; guarded by its lock. One object an upload until it is gone."""

    offset: int = 0
    durable: int = 0
    digest: "_Hash" = field(default_factory=hashlib.sha256)
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_loaded: bool = False
    is_gone: bool = False


@dataclass(frozen=True, slots=True)
class WholeUpload:
    """An upload whose bytes are synced and have the digest that was announced.

    Attributes:
        file: Where its bytes lie.
        repository: Where it was pushed to.
        size: Its length in bytes.
    """

    file: Path
    repository: str
    size: int


class Uploads:
    """All uploads of one data folder. Any thread; only one process at a time may write to them."""

    def __init__(self, folder: Path, catalogue: Catalogue, clock: Clock) -> None:
        """Use a folder on the file system of the blobs.

        Raises:
            EdgeError: `device.disk-error`, `device.disk-full`.
        """
        self._folder = folder
        self._catalogue = catalogue
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, _Progress] = {}
        self._swept_ms: int | None = None
        with disk_errors(f"create the folder {folder}"):
            make_folder(folder, 0o700)

    def begin(self, repository: str) -> str:
        """Start an upload; returns its identifier.

        Raises:
            EdgeError: `device.busy` when too many are open.
        """
        self._sweep()
        upload = secrets.token_hex(16)
        with disk_errors("start an upload"):
            self._path(upload).touch(mode=0o600, exist_ok=False)
            sync_folder(self._folder)
        with self._catalogue.transaction() as connection:
            if connection.execute("SELECT count(*) FROM uploads").fetchone()[0] >= UPLOADS_MAX:
                self._path(upload).unlink(missing_ok=True)
                raise EdgeError("device.busy", f"{UPLOADS_MAX} uploads are open", "Try again later.")
            connection.execute("INSERT INTO uploads VALUES (?, ?, 0, ?)", (upload, repository, self._clock.wall_ms()))
        return upload

    def append(self, upload: str, offset: int, chunks: Iterable[bytes]) -> int:
        """Add bytes at `offset`; returns the offset behind them.

        Durable only after `checkpoint` or `whole`. What came before a failure of `chunks` is kept.

        Raises:
            EdgeError: `cloud.not-found`, `cloud.upload-invalid`, `cloud.too-large`, `device.disk-*`.
        """
        with self._locked(upload) as progress:
            if offset != progress.offset:
                raise EdgeError(
                    "cloud.upload-invalid",
                    f"the upload stands at {progress.offset} bytes, the chunk begins at {offset}",
                    "Ask where the upload stands and go on from there.",
                )
            with disk_errors("write an upload"), self._path(upload).open("r+b", buffering=0) as file:
                file.seek(offset)
                for chunk in chunks:
                    if progress.offset + len(chunk) > BLOB_BYTES_MAX:
                        raise EdgeError("cloud.too-large", f"a blob has at most {BLOB_BYTES_MAX} bytes")
                    _write(file.fileno(), chunk, progress)
            if progress.offset - progress.durable >= UPLOAD_CHECKPOINT_BYTES:
                self._make_durable(upload, progress)
            return progress.offset

    def offset(self, repository: str, upload: str) -> int:
        """Where an upload of a repository stands.

        Raises:
            EdgeError: `cloud.not-found`.
        """
        row = self._row(upload)
        if row is None or row[0] != repository:
            raise _unknown(upload)
        with self._locked(upload) as progress:
            return progress.offset

    def checkpoint(self, upload: str) -> int:
        """Make durable what came so far; returns the offset.

        Raises:
            EdgeError: `cloud.not-found`, `device.disk-*`.
        """
        with self._locked(upload) as progress:
            self._make_durable(upload, progress)
            return progress.offset

    @contextmanager
    def whole(self, upload: str, digest: Digest) -> Iterator[WholeUpload]:
        """Compare the digest of all bytes and sync them; the upload is over when the block ends well.

        The block moves the file away and removes the upload's row in the transaction that makes the blob known.

        Raises:
            EdgeError: `artifact.digest-mismatch` (the upload is gone then), `cloud.not-found`, `device.disk-*`.
        """
        row = self._row(upload)
        if row is None:
            raise _unknown(upload)
        with self._locked(upload) as progress:
            if progress.digest.hexdigest() != digest.hex:
                self._forget(upload, progress)
                raise EdgeError(
                    "artifact.digest-mismatch",
                    f"the {progress.offset} bytes that came have sha256:{progress.digest.hexdigest()}, not {digest}",
                    "Upload the blob again.",
                )
            self._make_durable(upload, progress)
            yield WholeUpload(self._path(upload), row[0], progress.offset)
            self._drop(upload, progress)

    def abort(self, upload: str) -> None:
        """Forget an upload; nothing happens if there is none."""
        if self._row(upload) is not None:
            with self._locked(upload) as progress:
                self._forget(upload, progress)

    # --- inside, with the upload's lock held ---

    def _make_durable(self, upload: str, progress: _Progress) -> None:
        if progress.durable == progress.offset:
            return
        with disk_errors("sync an upload"), self._path(upload).open("rb") as file:
            os.fsync(file.fileno())
        with self._catalogue.transaction() as connection:
            connection.execute(
                "UPDATE uploads SET durable_bytes = ?, touched_ms = ? WHERE id = ?",
                (progress.offset, self._clock.wall_ms(), upload),
            )
        progress.durable = progress.offset

    def _forget(self, upload: str, progress: _Progress) -> None:
        with self._catalogue.transaction() as connection:
            connection.execute("DELETE FROM uploads WHERE id = ?", (upload,))
        with disk_errors("remove an upload"):
            self._path(upload).unlink(missing_ok=True)
        self._drop(upload, progress)

    def _drop(self, upload: str, progress: _Progress) -> None:
        progress.is_gone = True
        with self._lock:
            self._known.pop(upload, None)

    def _load(self, upload: str, progress: _Progress) -> None:
        """Read again what is durable. Bytes behind the mark may be anything after a power cut, so they go."""
        row = self._row(upload)
        if row is None:
            raise _unknown(upload)
        with disk_errors("read an upload"):
            try:
                file = self._path(upload).open("r+b")
            except FileNotFoundError:
                raise _unknown(upload) from None
            with file:
                while progress.offset < row[1] and (chunk := file.read(min(CHUNK_BYTES, row[1] - progress.offset))):
                    progress.digest.update(chunk)
                    progress.offset += len(chunk)
                file.truncate(progress.offset)
        progress.durable = progress.offset
        progress.is_loaded = True

    @contextmanager
    def _locked(self, upload: str) -> Iterator[_Progress]:
        with self._lock:
            progress = self._known.setdefault(upload, _Progress())
        with progress.lock:
            if progress.is_gone:
                raise _unknown(upload)
            if not progress.is_loaded:
                try:
                    self._load(upload, progress)
                except BaseException:
                    self._drop(upload, progress)
                    raise
            yield progress

    # --- outside ---

    def _path(self, upload: str) -> Path:
        return self._folder / upload

    def _row(self, upload: str) -> tuple[str, int] | None:
        if not _ID.fullmatch(upload):
            return None
        with self._catalogue.reading() as connection:
            row = connection.execute("SELECT repository, durable_bytes FROM uploads WHERE id = ?", (upload,)).fetchone()
        return None if row is None else (str(row[0]), int(row[1]))

    def _sweep(self) -> None:
        """Forget uploads that stand still, and files without a row; at most once in `UPLOAD_SWEEP_MS`."""
        now = self._clock.wall_ms()
        with self._lock:
            if self._swept_ms is not None and now - self._swept_ms < UPLOAD_SWEEP_MS:
                return
            self._swept_ms = now
        with self._catalogue.reading() as connection:
            rows = connection.execute("SELECT id, touched_ms FROM uploads").fetchall()
        for upload, touched_ms in rows:
            if now - touched_ms > UPLOAD_IDLE_MS_MAX:
                self.abort(upload)
        known = {str(row[0]) for row in rows}
        limit_s = (now - UPLOAD_IDLE_MS_MAX) / 1000
        with disk_errors("list the uploads"), os.scandir(self._folder) as entries:
            for entry in entries:
                if _ID.fullmatch(entry.name) and entry.name not in known and entry.stat().st_mtime < limit_s:
                    Path(entry.path).unlink(missing_ok=True)


def _write(descriptor: int, chunk: bytes, progress: _Progress) -> None:
    left = memoryview(chunk)
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except OSError:
        # The digest so far does not know the part that got through.
        os.ftruncate(descriptor, progress.offset)
        raise
    progress.digest.update(chunk)
    progress.offset += len(chunk)


def _unknown(upload: str) -> EdgeError:
    return EdgeError("cloud.not-found", f"there is no upload {upload[:40]!r}", "Start a new upload.")
