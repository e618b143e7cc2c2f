"""Blobs, manifests and tags in a local OCI layout: the `BlobStorage` port (ADR 0007)."""

import json
import threading
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from sqlite3 import Connection

from cloud_registry.adapters.catalogue import Catalogue, is_held, is_needed_by
from cloud_registry.adapters.durable import disk_errors, make_folder
from cloud_registry.adapters.oci_layout import OciLayout
from cloud_registry.adapters.uploads import Uploads
from cloud_registry.core.distribution import Document, parse_reference, read_document
from cloud_registry.limits import ORPHAN_AGE_MS, REFERRERS_BYTES_MAX, REFERRERS_PAGE_MAX, TAGS_PAGE_MAX
from cloud_registry.ports import Clock, Referrer, StoredManifest
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import MANIFEST_BYTES_MAX


class FileBlobStorage:
    """The blob storage of one data folder. Any thread; one process serves uploads. Close it."""

    def __init__(self, layout_folder: Path, clock: Clock) -> None:
        """Open the storage, create what is missing, and finish what a power cut left half done.

        Args:
            layout_folder: The OCI layout, for example `<data>/oci`; the catalogue (`<data>/oci.db`) and the uploads
                (`<data>/oci.uploads`) lie beside it, because a layout holds nothing else.
            clock: The time.

        Raises:
            EdgeError: `device.disk-error`, `device.disk-full`, `config.invalid`.
        """
        with disk_errors(f"create {layout_folder.parent}"):
            make_folder(layout_folder.parent)
        beside = layout_folder.name
        self._clock = clock
        self._catalogue = Catalogue(layout_folder.with_name(f"{beside}.db"))
        try:
            self._layout = OciLayout(layout_folder, layout_folder.with_name(f"{beside}.scratch"))
            self._uploads = Uploads(layout_folder.with_name(f"{beside}.uploads"), self._catalogue, clock)
            self._publish()
        except BaseException:
            self._catalogue.close()
            raise
        self._orphans_lock = threading.Lock()
        self._is_swept = False

    def close(self) -> None:
        """Close the catalogue; nobody may use the storage any more."""
        self._catalogue.close()

    # --- blobs ---

    def exists(self, digest: Digest) -> int | None:
        """See `BlobStorage.exists`."""
        return self._catalogue.size_of(str(digest))

    def in_repository(self, repository: str, digest: Digest) -> int | None:
        """See `BlobStorage.in_repository`."""
        return self._catalogue.size_of(str(digest), repository)

    def open(self, digest: Digest, offset: int = 0, length: int | None = None) -> Generator[bytes, None, None]:
        """See `BlobStorage.open`."""
        return self._layout.open_blob(digest, offset, length)

    def link_blob(self, repository: str, digest: Digest) -> None:
        """See `BlobStorage.link_blob`."""
        with self._catalogue.transaction() as connection:
            row = connection.execute("SELECT size FROM blobs WHERE digest = ? LIMIT 1", (str(digest),)).fetchone()
            if row is None:
                raise EdgeError("artifact.not-found", f"the registry has no blob {digest}", "Upload it.")
            connection.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?, ?)", (repository, str(digest), row[0]))

    def delete_blob(self, repository: str, digest: Digest) -> None:
        """See `BlobStorage.delete_blob`.

        Raises:
            EdgeError: `artifact.not-found`; `cloud.in-use` while a manifest of the repository lists the blob.
        """
        with self._catalogue.transaction() as connection:
            _refuse_if_needed(connection, repository, digest)
            found = connection.execute(
                "DELETE FROM blobs WHERE repository = ? AND digest = ?", (repository, str(digest))
            ).rowcount
        if not found:
            raise EdgeError("artifact.not-found", f"{repository} has no blob {digest}")
        self._release(digest)

    # --- uploads ---

    def begin_upload(self, repository: str) -> str:
        """See `BlobStorage.begin_upload`."""
        self._sweep_orphans()
        return self._uploads.begin(repository)

    def append(self, upload: str, offset: int, chunks: Iterable[bytes]) -> int:
        """See `BlobStorage.append`."""
        return self._uploads.append(upload, offset, chunks)

    def checkpoint(self, upload: str) -> int:
        """See `BlobStorage.checkpoint`."""
        return self._uploads.checkpoint(upload)

    def upload_offset(self, repository: str, upload: str) -> int:
        """See `BlobStorage.upload_offset`."""
        return self._uploads.offset(repository, upload)

    def finish_upload(self, upload: str, digest: Digest) -> int:
        """See `BlobStorage.finish_upload`."""
        with self._uploads.whole(upload, digest) as whole, self._catalogue.transaction() as connection:
            self._layout.adopt(whole.file, digest)
            connection.execute(
                "INSERT OR IGNORE INTO blobs VALUES (?, ?, ?)", (whole.repository, str(digest), whole.size)
            )
            connection.execute("DELETE FROM uploads WHERE id = ?", (upload,))
        return whole.size

    def abort(self, upload: str) -> None:
        """See `BlobStorage.abort`."""
        self._uploads.abort(upload)

    # --- manifests ---

    def put_manifest(self, repository: str, reference: str, media_type: str, data: bytes) -> Digest:
        """See `BlobStorage.put_manifest`."""
        if len(data) > MANIFEST_BYTES_MAX:
            raise EdgeError("cloud.too-large", f"a manifest has at most {MANIFEST_BYTES_MAX} bytes")
        target = parse_reference(reference)
        digest = Digest.of(data)
        if target.digest not in (None, digest):
            raise EdgeError("artifact.digest-mismatch", f"the manifest was put as {target.digest}, it is {digest}")
        document = read_document(media_type, data)
        with self._catalogue.transaction() as connection:
            _require_children(connection, repository, document)
            self._layout.write_blob(digest, data)
            _insert_manifest(connection, repository, digest, len(data), document)
            if target.tag is not None:
                connection.execute(
                    "INSERT OR REPLACE INTO tags VALUES (?, ?, ?)", (repository, target.tag, str(digest))
                )
        self._publish()
        return digest

    def get_manifest(self, repository: str, reference: str) -> StoredManifest:
        """See `BlobStorage.get_manifest`."""
        target = parse_reference(reference)
        text = str(target.digest) if target.tag is None else self._catalogue.digest_of_tag(repository, target.tag)
        media_type = None if text is None else self._catalogue.media_type_of(repository, text)
        if text is None or media_type is None:
            raise _no_manifest(repository, reference)
        digest = Digest(text)
        return StoredManifest(media_type, self._layout.read_blob(digest, MANIFEST_BYTES_MAX), digest)

    def tags(self, repository: str, last: str = "", count: int = TAGS_PAGE_MAX) -> Sequence[str]:
        """See `BlobStorage.tags`; never more than `TAGS_PAGE_MAX`."""
        if not self._catalogue.has_repository(repository):
            raise EdgeError("artifact.not-found", f"there is no repository {repository}")
        return self._catalogue.tags(repository, last, min(count, TAGS_PAGE_MAX))

    def referrers(
        self, repository: str, digest: Digest, artifact_type: str = "", last: Digest | None = None
    ) -> Sequence[Referrer]:
        """See `BlobStorage.referrers`."""
        rows = self._catalogue.referrers(repository, str(digest), artifact_type, str(last or ""), REFERRERS_PAGE_MAX)
        page: list[Referrer] = []
        annotation_bytes = 0
        for media_type, own_digest, size, own_type, annotations in rows:
            annotation_bytes += len(annotations)
            if page and annotation_bytes > REFERRERS_BYTES_MAX:
                break
            page.append(Referrer(media_type, Digest(own_digest), size, own_type, json.loads(annotations)))
        return page

    def delete_manifest(self, repository: str, reference: str) -> None:
        """See `BlobStorage.delete_manifest`.

        Raises:
            EdgeError: `artifact.not-found`; `cloud.in-use` while an index of the repository lists the manifest.
        """
        target = parse_reference(reference)
        with self._catalogue.transaction() as connection:
            if target.digest is None:
                where, values = "tags WHERE repository = ? AND tag = ?", (repository, target.tag)
            else:
                _refuse_if_needed(connection, repository, target.digest)
                values = (repository, str(target.digest))
                connection.execute("DELETE FROM tags WHERE repository = ? AND digest = ?", values)
                connection.execute("DELETE FROM edges WHERE repository = ? AND parent = ?", values)
                where = "manifests WHERE repository = ? AND digest = ?"
            found = connection.execute(f"DELETE FROM {where}", values).rowcount  # noqa: S608 - one of two texts of ours
        if not found:
            raise _no_manifest(repository, reference)
        self._publish()
        if target.digest is not None:
            self._release(target.digest)

    # --- inside ---

    def _publish(self) -> None:
        self._layout.publish_index(self._catalogue.index_entries)

    def _release(self, digest: Digest) -> None:
        """Remove a blob's file if its last row went; after the row, so that no row is ever without its file."""
        with self._catalogue.transaction() as connection:
            if not is_held(connection, str(digest)):
                self._layout.remove_blob(digest)

    def _sweep_orphans(self) -> None:
        """Remove files that a power cut left without a row; once a process, on its first upload."""
        with self._orphans_lock:
            if self._is_swept:
                return
            self._is_swept = True
        for digest in self._layout.blobs_older_than((self._clock.wall_ms() - ORPHAN_AGE_MS) / 1000):
            if self.exists(digest) is None:
                self._release(digest)


def _refuse_if_needed(connection: Connection, repository: str, digest: Digest) -> None:
    parent = is_needed_by(connection, repository, str(digest))
    if parent is not None:
        raise EdgeError("cloud.in-use", f"{digest} is listed by the manifest {parent}", "Delete that manifest first.")


def _require_children(connection: Connection, repository: str, document: Document) -> None:
    for child in document.children:
        if child.is_elsewhere:
            continue
        row = connection.execute(
            "SELECT size FROM blobs WHERE repository = ?1 AND digest = ?2"
            " UNION ALL SELECT size FROM manifests WHERE repository = ?1 AND digest = ?2",
            (repository, str(child.digest)),
        ).fetchone()
        if row is None:
            kind = "manifest" if child.is_manifest else "blob"
            raise EdgeError("artifact.not-found", f"{repository} has no {kind} {child.digest}", "Push it first.")
        if row[0] != child.size:
            raise EdgeError(
                "artifact.size-mismatch", f"{child.digest} is listed with {child.size} bytes, it has {row[0]}"
            )


def _insert_manifest(connection: Connection, repository: str, digest: Digest, size: int, document: Document) -> None:
    subject = None if document.subject is None else str(document.subject)
    annotations = json.dumps(document.annotations, sort_keys=True)
    connection.execute(
        "INSERT OR REPLACE INTO manifests VALUES (?, ?, ?, ?, ?, ?, ?)",
        (repository, str(digest), size, document.media_type, document.artifact_type, subject, annotations),
    )
    connection.executemany(
        "INSERT OR IGNORE INTO edges VALUES (?, ?, ?)",
        [(repository, str(digest), str(child.digest)) for child in document.children],
    )


def _no_manifest(repository: str, reference: str) -> EdgeError:
    return EdgeError("artifact.not-found", f"{repository} has no manifest {reference}")
