"""The OCI image layout on disk (image-spec 1.1, image-layout): valid at every instant, readable by any other tool.

`oci-layout`, `index.json` and `blobs/sha256/<hex>` are all that ever lies in the folder; temporary files are kept
outside. `index.json` is derived from the catalogue and replaced as a whole.
"""

import fcntl
import json
import os
import re
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Final

from cloud_registry.adapters.catalogue import IndexEntry
from cloud_registry.adapters.durable import disk_errors, make_folder, sync_folder, write_file
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject, dump
from edge_contract.limits import CHUNK_BYTES
from edge_contract.manifest import INDEX_TYPE, REF_NAME

LAYOUT_DOCUMENT: Final = {"imageLayoutVersion": "1.0.0"}
# image-spec, annotations: the grammar of org.opencontainers.image.ref.name. A few tags (`a__b`, `v1_`) are outside it.
_PART: Final = r"[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*"
_REF_NAME: Final = re.compile(rf"{_PART}(?:/{_PART})*")
_BLOB_MODE: Final = 0o444


class OciLayout:
    """One layout folder. Any thread; several processes may use it."""

    def __init__(self, root: Path, scratch: Path) -> None:
        """Create what is missing of the folder.

        Args:
            root: The layout.
            scratch: Folder on the same file system for files that are not whole yet.

        Raises:
            EdgeError: `device.disk-error`, `device.disk-full`.
        """
        self.root = root
        self.scratch = scratch
        self._blobs = root / "blobs" / "sha256"
        self._index_lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._wanted = self._written = 0
        with disk_errors(f"create the layout {root}"):
            make_folder(scratch, 0o700)
            make_folder(self._blobs)
            if not (root / "index.json").exists():
                write_file(root / "index.json", _index_bytes(()), scratch=scratch)
            # Last, because its presence says that the folder is a layout.
            if not (root / "oci-layout").exists():
                write_file(root / "oci-layout", json.dumps(LAYOUT_DOCUMENT).encode(), scratch=scratch)

    def path_of(self, digest: Digest) -> Path:
        """Where a blob lies; made from a checked digest alone, never from a name."""
        return self._blobs / digest.hex

    def has_blob(self, digest: Digest) -> bool:
        """Whether the file is there."""
        return self.path_of(digest).is_file()

    def adopt(self, file: Path, digest: Digest) -> None:
        """Make a synced file a blob. Its bytes have been verified; a former file of the same digest is replaced.

        Raises:
            EdgeError: `device.disk-error`, `device.disk-full`.
        """
        with disk_errors(f"keep the blob {digest}"):
            os.chmod(file, _BLOB_MODE)
            os.replace(file, self.path_of(digest))
            sync_folder(self._blobs)

    def write_blob(self, digest: Digest, data: bytes) -> None:
        """Write a small blob whose bytes are at hand.

        Raises:
            EdgeError: `device.disk-error`, `device.disk-full`.
        """
        with disk_errors(f"keep the blob {digest}"):
            write_file(self.path_of(digest), data, _BLOB_MODE, self.scratch)

    def remove_blob(self, digest: Digest) -> None:
        """Remove a blob's file if it is there."""
        with disk_errors(f"remove the blob {digest}"):
            self.path_of(digest).unlink(missing_ok=True)

    def read_blob(self, digest: Digest, bytes_max: int) -> bytes:
        """A small blob as a whole, verified against its digest.

        Raises:
            EdgeError: `artifact.not-found`, `device.disk-corrupt`, `device.disk-error`.
        """
        try:
            with self.path_of(digest).open("rb") as file:
                data = file.read(bytes_max + 1)
        except FileNotFoundError:
            raise self._missing(digest) from None
        except OSError as error:
            raise EdgeError("device.disk-error", f"cannot read the blob {digest}: {error.strerror}") from None
        if Digest.of(data) != digest:
            raise EdgeError("device.disk-corrupt", f"the file of {digest} has other bytes", "Push it again.")
        return data

    def open_blob(self, digest: Digest, offset: int, length: int | None) -> Generator[bytes, None, None]:
        """Chunks of at most `CHUNK_BYTES`; the file is open when this returns, and closed with the generator.

        Raises:
            EdgeError: `artifact.not-found` at once; `device.disk-error`, `device.disk-corrupt` while reading.
        """
        chunks = self._chunks(digest, offset, length)
        # Runs to the first yield: whoever got the generator knows that the file is there, and close() always frees it.
        next(chunks)
        return chunks

    def _chunks(self, digest: Digest, offset: int, length: int | None) -> Generator[bytes, None, None]:
        try:
            file = self.path_of(digest).open("rb", buffering=0)
        except FileNotFoundError:
            raise self._missing(digest) from None
        except OSError as error:
            raise EdgeError("device.disk-error", f"cannot read the blob {digest}: {error.strerror}") from None
        with file:
            size = os.fstat(file.fileno()).st_size
            left = max(0, size - offset) if length is None else length
            yield b""
            file.seek(offset)
            while left > 0:
                with disk_errors(f"read the blob {digest}"):
                    chunk = file.read(min(CHUNK_BYTES, left))
                if not chunk:
                    raise EdgeError("device.disk-corrupt", f"the file of {digest} ends too early", "Push it again.")
                left -= len(chunk)
                yield chunk

    def _missing(self, digest: Digest) -> EdgeError:
        return EdgeError("artifact.not-found", f"the registry has no blob {digest}")

    def blobs_older_than(self, instant_s: float) -> list[Digest]:
        """Blob files whose last change lies before an instant (seconds since 1970)."""
        found = []
        with disk_errors("list the blobs"), os.scandir(self._blobs) as entries:
            for entry in entries:
                if re.fullmatch(r"[0-9a-f]{64}", entry.name) and entry.stat().st_mtime < instant_s:
                    found.append(Digest.from_hex(entry.name))
        return found

    # --- index.json ---

    def publish_index(self, entries: Callable[[], Sequence[IndexEntry]]) -> None:
        """Bring `index.json` up to what the catalogue says, durably. Callers that wait together share one write.

        Args:
            entries: Reads the catalogue; called after the caller's own change was committed.

        Raises:
            EdgeError: `device.disk-error`, `device.disk-full`.
        """
        with self._count_lock:
            self._wanted += 1
            mine = self._wanted
        with self._index_lock:
            if self._written >= mine:
                return
            with self._count_lock:
                covered = self._wanted
            with disk_errors("write index.json"), (self.scratch / "index.lock").open("wb") as lock:
                # Another process must not overwrite a newer index with what it read earlier.
                fcntl.flock(lock, fcntl.LOCK_EX)
                data = _index_bytes(entries())
                path = self.root / "index.json"
                if not path.is_file() or path.read_bytes() != data:
                    write_file(path, data, scratch=self.scratch)
            self._written = covered


def ref_name(repository: str, tag: str) -> str | None:
    """The name of a tag in `index.json`, `<repository>:<tag>`, or none if the specification has no form for it."""
    name = f"{repository}:{tag}"
    return name if _REF_NAME.fullmatch(name) else None


def _index_bytes(entries: Sequence[IndexEntry]) -> bytes:
    manifests: list[JsonObject] = []
    nameless: set[str] = set()
    for entry in entries:
        name = None if entry.tag is None else ref_name(entry.repository, entry.tag)
        if name is None:
            if entry.digest in nameless:
                continue
            nameless.add(entry.digest)
        item: JsonObject = {"mediaType": entry.media_type, "digest": entry.digest, "size": entry.size}
        if entry.artifact_type:
            item["artifactType"] = entry.artifact_type
        if name is not None:
            item["annotations"] = {REF_NAME: name}
        manifests.append(item)
    return dump({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests})
