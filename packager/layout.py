"""OCI image layouts on disk: written so that the same bundle gives the same bytes, read so that every byte is checked.

`oci-layout`, `index.json` and `blobs/sha256/<hex>` as in OCI image-spec 1.1 (image-layout.md). A layout made here holds
one bundle: `index.json` names its index with the version as tag, the index names one manifest for each platform.
"""

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from edge_contract.digest import Digest
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import dump, parse_object
from edge_contract.limits import MANIFEST_BYTES_MAX
from edge_contract.manifest import FILEPATH, INDEX_TYPE, MODEL, REF_NAME, Descriptor
from edge_contract.names import relative_path
from edge_contract.stream import VerifyingStream, verify_bytes
from packager.bundle import BundleSet
from packager.files import Advance, chunks_of, disk_errors, quiet, replace_folder, sync_folder, write_durably
from packager.limits import CODE_FILES_MAX, COPY_BYTES

LAYOUT_FILE: Final = "oci-layout"
INDEX_FILE: Final = "index.json"
_LAYOUT_BYTES: Final = dump({"imageLayoutVersion": "1.0.0"})
_SKIPPED_FOLDERS: Final = frozenset({"__pycache__", ".git", ".hg", ".svn", ".venv", ".mypy_cache", ".ruff_cache"})
_SKIPPED_SUFFIXES: Final = (".pyc", ".pyo")


class LayoutWriter:
    """Writes blobs below a folder; each is durable when its digest is given. Used by one thread."""

    def __init__(self, folder: Path) -> None:
        """Begin a layout in an existing empty folder."""
        self._folder = folder
        self._blobs = folder / "blobs" / "sha256"
        with disk_errors(folder):
            self._blobs.mkdir(parents=True)

    def add_bytes(self, data: bytes) -> tuple[Digest, int]:
        """Write a small blob."""
        return self._write(lambda sink: sink.write(data))

    def add_file(self, source: Path, advance: Advance = quiet) -> tuple[Digest, int]:
        """Copy a file, hashing it on the way.

        Raises:
            EdgeError: `config.file-missing`, `device.disk-full`, `device.disk-error`.
        """

        def copy(sink: BinaryIO) -> None:
            for chunk in chunks_of(source):
                sink.write(chunk)
                advance(len(chunk))

        return self._write(copy)

    def add_folder(self, source: Path) -> tuple[Digest, int]:
        """Pack a folder of code as a reproducible tar archive.

        Raises:
            EdgeError: as `add_file`; `artifact.path-unsafe`, `artifact.entry-forbidden`, `config.invalid`.
        """
        return self._write(lambda sink: write_tar(source, sink))

    def has(self, digest: Digest) -> bool:
        """Whether a blob is written already."""
        return (self._blobs / digest.hex).is_file()

    def add_written(self, fill: Callable[[BinaryIO], object]) -> tuple[Digest, int]:
        """Write a blob by a function that is given where its bytes go.

        Raises:
            EdgeError: `device.disk-full`, `device.disk-error`, and what the function raises.
        """
        return self._write(fill)

    def _write(self, fill: Callable[[BinaryIO], object]) -> tuple[Digest, int]:
        partial = self._blobs / ".partial"
        with disk_errors(partial), partial.open("wb", buffering=0) as file:
            sink = _HashingSink(file)
            fill(sink)
            os.fsync(file.fileno())
        digest = sink.digest()
        with disk_errors(partial):
            os.replace(partial, self._blobs / digest.hex)
        return digest, sink.count

    def finish(self, index: bytes, tag: str, model: str) -> Digest:
        """Write the bundle's index, then `index.json`; the layout is complete and durable after that."""
        digest, size = self.add_bytes(index)
        entry = Descriptor(INDEX_TYPE, digest, size, {REF_NAME: tag, MODEL: model})
        document = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry.to_json()]}
        with disk_errors(self._folder):
            for folder in (self._blobs, self._blobs.parent):
                sync_folder(folder)
        write_durably(self._folder / LAYOUT_FILE, _LAYOUT_BYTES)
        write_durably(self._folder / INDEX_FILE, dump(document))
        return digest


class _HashingSink(io.RawIOBase, BinaryIO):
    """Passes bytes on to a file and hashes them."""

    def __init__(self, file: io.RawIOBase) -> None:
        super().__init__()
        self._file = file
        self._hash = hashlib.sha256()
        self.count = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]  # narrower than any buffer
        view = memoryview(data)
        self._hash.update(view)
        done = 0
        while done < len(view):
            done += self._file.write(view[done:]) or 0
        self.count += done
        return done

    def digest(self) -> Digest:
        return Digest.from_hex(self._hash.hexdigest())


def write_tar(folder: Path, sink: BinaryIO) -> None:
    """Pack regular files below a folder: in order of name, without times, owners or modes of their own.

    Raises:
        EdgeError: `artifact.entry-forbidden` for anything but files and folders, `artifact.path-unsafe`,
            `config.invalid` for too many files or a path that the format has no room for.
    """
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.USTAR_FORMAT, bufsize=COPY_BYTES) as archive:
        for path, name in code_files(folder):
            entry = tarfile.TarInfo(name)
            entry.size = path.stat().st_size
            entry.mode = 0o644
            try:
                with path.open("rb") as file:
                    archive.addfile(entry, file)
            except ValueError as error:
                raise EdgeError("config.invalid", f"{path}: {error}", "Shorten the path.") from None


def code_files(folder: Path) -> list[tuple[Path, str]]:
    """The files of a code folder that go into a bundle, with their paths below it, in order of path.

    Raises:
        EdgeError: as `write_tar`.
    """
    result: list[tuple[Path, str]] = []
    for place, folders, files in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS)
        for name in [*folders, *files]:
            path = Path(place, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise EdgeError(
                    "artifact.entry-forbidden", f"{path} is a link or a special file", "Put the file itself there."
                )
        for name in files:
            if not name.endswith(_SKIPPED_SUFFIXES):
                path = Path(place, name)
                result.append((path, relative_path(path.relative_to(folder).as_posix())))
    if not 0 < len(result) <= CODE_FILES_MAX:
        raise EdgeError("config.invalid", f"{folder} holds {len(result)} files, 1 to {CODE_FILES_MAX} are allowed")
    return sorted(result, key=lambda item: item[1])


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """A new folder that takes the place of `target` when the block ends well, and vanishes when it does not.

    Raises:
        EdgeError: `config.invalid` when the target holds something else than a layout.
    """
    if target.exists() and not (target / LAYOUT_FILE).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise EdgeError("config.invalid", f"{target} exists and is not an OCI layout", "Name another --out folder.")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.building-", dir=target.parent))
        folder.chmod(0o755)
    try:
        yield folder
        replace_folder(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Layout(BundleSet):
    """A layout that was opened: its index and manifests have been verified and parsed."""

    def __init__(self, folder: Path, tag: str = "") -> None:
        """Open a layout.

        Args:
            folder: The folder with `oci-layout`.
            tag: Which tag; may be empty when there is one.

        Raises:
            EdgeError: `config.file-missing`, and `artifact.*` for content that is not a Lighterman bundle.
        """
        self.folder = folder
        if not (folder / LAYOUT_FILE).is_file():
            hint = "Build one with `packager build … --out DIR`."
            raise EdgeError("config.file-missing", f"{folder} is not an OCI layout", hint)
        digest, size = self._entry(tag)
        super().__init__(self.read(digest, size, MANIFEST_BYTES_MAX))

    def _entry(self, tag: str) -> tuple[Digest, int]:
        with disk_errors(self.folder), (self.folder / INDEX_FILE).open("rb") as file:
            data = file.read(MANIFEST_BYTES_MAX + 1)
        document = parse_object(data, INDEX_FILE, MANIFEST_BYTES_MAX)
        items = document.get("manifests")
        entries = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
        found = [
            item
            for item in entries
            if item.get("mediaType") == INDEX_TYPE
            and isinstance(item.get("size"), int)
            and (not tag or (item.get("annotations") or {}).get(REF_NAME) == tag)
        ]
        if len(found) != 1:
            what = f"the tag {tag!r}" if tag else "one bundle"
            raise EdgeError("artifact.manifest-invalid", f"{self.folder} does not hold {what}: {len(found)} are there")
        return Digest(str(found[0].get("digest"))), int(found[0]["size"])

    def blob_path(self, digest: Digest) -> Path:
        """Where a blob's file is, if it is there."""
        return self.folder / "blobs" / "sha256" / digest.hex

    def read(self, digest: Digest, size: int, bytes_max: int) -> bytes:
        """See `BundleSet.read`."""
        if not 0 <= size <= bytes_max:
            why = f"{digest} has {size} bytes, at most {bytes_max} are allowed"
            raise EdgeError("artifact.document-too-large", why)
        try:
            with self.blob_path(digest).open("rb") as file:
                data = file.read(size + 1)
        except OSError:
            raise EdgeError("artifact.not-found", f"{self.folder} lacks the blob {digest}", "Build it again.") from None
        return verify_bytes(data, digest, size)

    def verify_blob(self, blob: Descriptor, advance: Advance = quiet) -> None:
        """Read a blob and require its size and digest.

        Raises:
            EdgeError: `artifact.not-found`, `artifact.digest-mismatch`, `artifact.size-mismatch`.
        """
        path = self.blob_path(blob.digest)
        name = blob.annotations.get(FILEPATH, "the configuration")
        if not path.is_file():
            raise EdgeError("artifact.not-found", f"{self.folder} lacks {name}, {blob.digest}", "Build it again.")
        stream = VerifyingStream(blob.digest, blob.size)
        try:
            for chunk in chunks_of(path):
                stream.feed(chunk)
                advance(len(chunk))
            stream.finish()
        except ContractError as error:
            raise EdgeError(error.code, f"{name}: {error.detail}", "Build the bundle again.") from None
