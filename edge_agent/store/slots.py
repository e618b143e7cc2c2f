"""Slots: unpacked bundles, `slots/<manifest hex>/{slot.json, files/<bundle paths>, site/}`.

A slot appears under its name only when all of it is durable; `slot.json` is written last and marks it complete. Raw
layers are hard links to their blobs, so that a slot costs almost no space; archives are unpacked entry by entry.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from edge_agent.limits import SLOT_MARK_BYTES_MAX
from edge_agent.store import durable
from edge_agent.store.blobs import FileBlobStore
from edge_agent.store.limits import ENTRY_BYTES, TAR_GROWTH, WHEEL_GROWTH
from edge_contract.digest import Digest
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import JsonObject, dump, parse_object
from edge_contract.limits import CHUNK_BYTES, MANIFEST_BYTES_MAX, RUNTIME_BYTES_MAX
from edge_contract.manifest import TAR_TYPES, Descriptor, Manifest, Role
from edge_contract.runtime import Runtime

MARK: Final = "slot.json"
FILES: Final = "files"
SITE: Final = "site"
_FILE_MODE: Final = 0o444
_FOLDER_MODE: Final = 0o755
_CLASHES: Final = (FileExistsError, NotADirectoryError, IsADirectoryError)
_NO_LINKS: Final = frozenset({errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP})


class FileSlotStore:
    """Implements `ports.SlotStore` below a data directory. Used by one thread; other processes may read."""

    def __init__(self, root: Path, blobs: FileBlobStore) -> None:
        """Use a data directory; `slots/` is made when the first bundle is staged.

        Args:
            root: The data directory, on the same file system as the blobs where hard links are to save space.
            blobs: Where the bundles' blobs are.
        """
        self._slots = root / "slots"
        self._blobs = blobs
        self._has_links: bool | None = None

    def stage(self, manifest_digest: Digest, manifest: Manifest) -> Path:
        """See `ports.SlotStore.stage`. A complete slot whose links no longer are the blobs' files is made anew."""
        folder = self._slots / manifest_digest.hex
        runtime = _runtime(self._blobs, manifest)
        with durable.disk_errors(f"staging {folder}"):
            durable.make_folder(self._slots)
            durable.remove_leftovers(self._slots)
            if self._is_complete(folder, manifest):
                # Who renamed it may have been killed before it could sync the name.
                durable.sync_folder(self._slots)
                return folder
            durable.remove_tree(folder)
            staging = self._slots / f"{durable.TEMPORARY_PREFIX}{secrets.token_hex(8)}"
            try:
                self._build(staging, manifest)
                durable.write_file(staging / MARK, _mark(manifest_digest, runtime), _FILE_MODE)
                durable.rename(staging, folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    durable.remove_tree(staging)
                raise
        return folder

    def path(self, manifest_digest: Digest) -> Path:
        """See `ports.SlotStore.path`."""
        folder = self._slots / manifest_digest.hex
        if not (folder / MARK).is_file():
            raise EdgeError("artifact.not-found", f"there is no slot of {manifest_digest} on this device")
        return folder

    def describe(self, manifest_digest: Digest) -> JsonObject:
        """What the mark of a complete slot says: `manifest`, `model`, `version`.

        Raises:
            EdgeError: `artifact.not-found`, `device.disk-corrupt`, `device.disk-error`.
        """
        mark = self.path(manifest_digest) / MARK
        with durable.disk_errors(f"reading {mark}"):
            data = durable.read_file(mark, SLOT_MARK_BYTES_MAX)
        try:
            return parse_object(data or b"", str(mark), SLOT_MARK_BYTES_MAX)
        except ContractError as error:
            raise EdgeError("device.disk-corrupt", error.detail) from None

    def complete(self) -> list[Digest]:
        """Digests of the manifests of all complete slots, in order."""
        with durable.disk_errors(f"listing {self._slots}"):
            folders = durable.list_folder(self._slots)
        result = []
        for folder in folders:
            if (folder / MARK).is_file():
                with contextlib.suppress(ContractError):
                    result.append(Digest.from_hex(folder.name))
        return result

    def collect(self, keep: frozenset[Digest]) -> None:
        """See `ports.SlotStore.collect`."""
        wanted = {digest.hex for digest in keep}
        with durable.disk_errors(f"removing unused slots of {self._slots}"):
            for item in durable.list_folder(self._slots):
                if item.name not in wanted:
                    durable.remove(item)

    def verify(self, manifest_digest: Digest, is_cancelled: Callable[[], bool]) -> None:
        """See `ports.SlotStore.verify`; also compares its blobs, the mark, and that nothing else lies in the slot."""
        self.path(manifest_digest)
        try:
            manifest = Manifest.parse(self._blobs.read(manifest_digest, MANIFEST_BYTES_MAX))
            self.check(manifest_digest, manifest, is_cancelled)
        except EdgeError as error:
            if not error.code.startswith("artifact."):
                raise
            # It was good when it was staged: whatever is wrong with it now is the disk's fault and not the bundle's.
            raise EdgeError("device.disk-corrupt", error.detail, "The bundle will be fetched again.") from None

    def check(
        self, manifest_digest: Digest, manifest: Manifest, is_cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Compare every file of a slot with the verified blobs it was made from, changing nothing.

        Raises:
            EdgeError: `device.disk-corrupt` for a file that is missing, differs, cannot be read or does not belong
                there; `artifact.not-found` for a slot or blob that is not there; `network.cut` when cancelled;
                `device.disk-error`.
        """
        folder = self.path(manifest_digest)
        known = {MARK, FILES, SITE}
        with durable.disk_errors(f"reading {folder}"):
            self._blobs.check(manifest.config.digest, manifest.config.size)
            for layer in manifest.layers:
                _go_on(is_cancelled)
                self._blobs.check(layer.digest, layer.size)
                known.update(_above(f"{FILES}/{layer.path}"))
                for path, chunks in self._contents(layer):
                    _go_on(is_cancelled)
                    known.update(_above(path))
                    if chunks is not None and not _is_same(folder / path, chunks):
                        raise _corrupt(folder / path, "is damaged or missing")
            mark = _mark(manifest_digest, _runtime(self._blobs, manifest))
            if not _is_same(folder / MARK, iter((mark,))):
                raise _corrupt(folder / MARK, "is damaged")
            for found in durable.walk(folder):
                if str(found.relative_to(folder)) not in known:
                    raise _corrupt(found, "is not part of the bundle")

    def set_aside(self, manifest_digest: Digest) -> None:
        """See `ports.SlotStore.set_aside`.

        The slot goes first: were power to fail in between, damaged blobs without a slot are found by the verification
        before the next activation, while a slot that links to them would be served.
        """
        folder = self._slots / manifest_digest.hex
        if not folder.exists():
            return
        with durable.disk_errors(f"setting {folder} aside"):
            durable.remove_tree(folder)
        for digest in self._blobs_of(manifest_digest):
            if self._blobs.has(digest):
                with contextlib.suppress(EdgeError):  # says what was damaged, and is gone now
                    self._blobs.verify(digest)

    def bytes_needed(self, manifest: Manifest) -> int:
        """See `ports.SlotStore.bytes_needed`.

        Exact but for archives that are not here yet, or cannot be read: those are taken for `WHEEL_GROWTH` or
        `TAR_GROWTH` times their length. `stage` asks for the exact space again before it writes.

        Raises:
            EdgeError: `device.disk-full`, `device.disk-error`.
        """
        with durable.disk_errors(f"asking for the space of a slot in {self._slots}"):
            # A manifest that is not written in the one form is not found here; then the bound is only a high one.
            if self._is_complete(self._slots / Digest.of(manifest.to_bytes()).hex, manifest):
                return 0
            total = 4 * ENTRY_BYTES  # the mark, and the folders that every slot has
            for layer in manifest.layers:
                total += ENTRY_BYTES * (1 + layer.path.count("/"))
                if layer.media_type not in TAR_TYPES and not self._can_link():
                    total += layer.size
                total += self._unpacked_bytes(layer)
        return total

    def _is_complete(self, folder: Path, manifest: Manifest) -> bool:
        """Whether a slot is whole and made of the very blobs that are in the store now.

        A damaged blob is removed and fetched again, as a new file; a slot that still links to the damaged one must
        not stay.
        """
        if not (folder / MARK).is_file():
            return False
        for layer in manifest.layers:
            if layer.media_type in TAR_TYPES:
                continue
            here = folder / FILES / layer.path
            try:
                if here.samefile(self._blobs.path(layer.digest)):
                    continue
            except OSError:
                return False
            # A copy, where the file system has no links; or a link to what the blob was before.
            with self._blobs.open(layer.digest) as file:
                if not _is_same(here, _chunks(file)):
                    return False
        return True

    def _build(self, staging: Path, manifest: Manifest) -> None:
        for folder in (staging, staging / FILES, staging / SITE):
            folder.mkdir(mode=_FOLDER_MODE)
        self._blobs.require_space(self.bytes_needed(manifest))
        for layer in manifest.layers:
            target = staging / FILES / layer.path
            _make_parents(target, staging)
            if layer.media_type in TAR_TYPES:
                target.mkdir(mode=_FOLDER_MODE)
            else:
                self._link(layer, target)
            for path, chunks in self._unpacked(layer):
                _put(staging, path, chunks, layer)
        durable.sync_tree(staging)

    def _contents(self, layer: Descriptor) -> Iterator[tuple[str, Iterator[bytes] | None]]:
        """Paths below the slot that a layer fills: its own if it is no tar, and what it unpacks to."""
        if layer.media_type not in TAR_TYPES:
            with self._blobs.open(layer.digest) as file:
                yield f"{FILES}/{layer.path}", _chunks(file)
        yield from self._unpacked(layer)

    def _unpacked(self, layer: Descriptor) -> Iterator[tuple[str, Iterator[bytes] | None]]:
        """Paths below the slot that the entries of an archive fill, each with its bytes, or none for a folder."""
        # Imported here because the archive modules stay in memory, and most bundles have no archive.
        from edge_agent.store import unpack

        what = f"layer {layer.path}"
        if layer.media_type in TAR_TYPES:
            with self._blobs.open(layer.digest) as file:
                for entry in unpack.tar_entries(file, what):
                    path = "/".join(part for part in (FILES, layer.path, entry.path) if part)
                    yield path, None if entry.is_folder else entry.chunks
        elif layer.role == Role.WHEEL:
            with self._blobs.open(layer.digest) as file:
                for entry in unpack.wheel_entries(file, what):
                    yield f"{SITE}/{entry.path}", None if entry.is_folder else entry.chunks

    def _link(self, layer: Descriptor, target: Path) -> None:
        """A hard link to the blob; a copy where the file system has none."""
        source = self._blobs.path(layer.digest)
        try:
            os.link(source, target)
        except FileNotFoundError:
            raise EdgeError("artifact.not-found", f"{layer.digest} is not on this device") from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._has_links = False
            self._blobs.require_space(layer.size)
            with self._blobs.open(layer.digest) as file:
                _write(target, _chunks(file))

    def _unpacked_bytes(self, layer: Descriptor) -> int:
        """What a layer unpacks to, in whole blocks; assumed when it is not here yet, 0 when it is no archive."""
        is_tar = layer.media_type in TAR_TYPES
        if not is_tar and layer.role != Role.WHEEL:
            return 0
        from edge_agent.store import unpack

        what = f"layer {layer.path}"
        if self._blobs.has(layer.digest):
            # What is wrong with a blob is found where blobs are verified, and is not the bundle's fault before.
            with contextlib.suppress(EdgeError, OSError), self._blobs.open(layer.digest) as file:
                return unpack.tar_bytes(file, what) if is_tar else unpack.wheel_bytes(file, what)
        return layer.size * (TAR_GROWTH if is_tar else WHEEL_GROWTH)

    def _can_link(self) -> bool:
        """Whether this file system has hard links; tried once a process."""
        if self._has_links is None:
            durable.make_folder(self._slots)
            one, two = (self._slots / f"{durable.TEMPORARY_PREFIX}{secrets.token_hex(8)}" for _ in range(2))
            try:
                os.close(durable.create_file(one))
                os.link(one, two)
                self._has_links = True
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self._has_links = False
            finally:
                for path in (one, two):
                    path.unlink(missing_ok=True)
        return self._has_links

    def _blobs_of(self, manifest_digest: Digest) -> list[Digest]:
        """The blobs of a bundle and its manifest; every blob there is when the manifest cannot be read."""
        try:
            manifest = Manifest.parse(self._blobs.read(manifest_digest, MANIFEST_BYTES_MAX))
        except EdgeError:
            return list(self._blobs.digests())
        return [manifest_digest, *(blob.digest for blob in manifest.blobs)]


def _runtime(blobs: FileBlobStore, manifest: Manifest) -> Runtime:
    """The checked runtime descriptor, so that a bundle without a usable one never gets a slot."""
    layer = manifest.with_role(Role.RUNTIME)[0]
    return Runtime.parse(blobs.read(layer.digest, RUNTIME_BYTES_MAX))


def _mark(manifest_digest: Digest, runtime: Runtime) -> bytes:
    return dump({"manifest": str(manifest_digest), "model": runtime.model, "version": runtime.version})


def _go_on(is_cancelled: Callable[[], bool]) -> None:
    if is_cancelled():
        raise EdgeError("network.cut", "reading the slot again was cancelled")


def _corrupt(path: Path, why: str) -> EdgeError:
    return EdgeError("device.disk-corrupt", f"{path} {why}", "The bundle will be fetched again.")


def _above(path: str) -> Iterator[str]:
    """A relative path and those of the folders above it."""
    parts = path.split("/")
    for count in range(1, len(parts) + 1):
        yield "/".join(parts[:count])


def _put(staging: Path, path: str, chunks: Iterator[bytes] | None, layer: Descriptor) -> None:
    """Write one entry of an archive; two that need the same name refuse the bundle, unless they are the same file."""
    target = staging / path
    try:
        if chunks is None:
            _make_parents(target / "any", staging)
            return
        _make_parents(target, staging)
        # Wheels often bring the same empty __init__.py or licence file.
        if path.startswith(f"{SITE}/") and target.is_file():
            if not _is_same(target, chunks):
                raise ContractError("artifact.archive-invalid", f"two wheels bring different files {path!r}")
            return
        _write(target, chunks)
    except _CLASHES:
        raise ContractError(
            "artifact.archive-invalid", f"layer {layer.path}: {path!r} clashes with another entry of that name"
        ) from None


def _make_parents(target: Path, stop: Path) -> None:
    """Make the folders above a path, all of them inside `stop`, which exists."""
    missing = []
    place = target.parent
    while place != stop and not place.is_dir():
        missing.append(place)
        place = place.parent
    for folder in reversed(missing):
        folder.mkdir(mode=_FOLDER_MODE)


def _write(target: Path, chunks: Iterator[bytes]) -> None:
    descriptor = durable.create_file(target, _FILE_MODE)
    try:
        for chunk in chunks:
            durable.write_all(descriptor, chunk)
    finally:
        os.close(descriptor)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _is_same(path: Path, chunks: Iterator[bytes]) -> bool:
    """Whether a file holds exactly these bytes."""
    try:
        with os.fdopen(durable.open_file(path), "rb") as file:
            durable.forget_cached(file.fileno())
            is_same = True
            for chunk in chunks:  # used up in any case: an archive's entries come one after the other
                is_same = is_same and file.read(len(chunk)) == chunk
            return is_same and not file.read(1)
    except OSError:
        return False
