"""Which repository holds which blob, manifest and tag, and how far each upload is: one SQLite file beside the layout.

The layout's files alone cannot say that a blob was pushed to one repository and not to another. A row is written only
after the file it names is durable, and a file goes only after its last row went, both under the write lock of the
database: a row therefore always has its file, and what a power cut leaves behind is at worst a file without a row.
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full, LifoQueue
from typing import Final

from cloud_registry.limits import BUSY_TIMEOUT_MS, READERS_MAX
from edge_contract.errors import EdgeError

SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE blobs (
    repository TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE INDEX blobs_by_digest ON blobs (digest);
CREATE TABLE manifests (
    repository TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL, media_type TEXT NOT NULL,
    artifact_type TEXT NOT NULL, subject TEXT, annotations TEXT NOT NULL,
    PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE INDEX manifests_by_digest ON manifests (digest);
CREATE INDEX manifests_by_subject ON manifests (repository, subject, digest) WHERE subject IS NOT NULL;
CREATE TABLE edges (
    repository TEXT NOT NULL, parent TEXT NOT NULL, child TEXT NOT NULL,
    PRIMARY KEY (repository, parent, child)) WITHOUT ROWID;
CREATE INDEX edges_by_child ON edges (repository, child);
CREATE TABLE tags (
    repository TEXT NOT NULL, tag TEXT NOT NULL, digest TEXT NOT NULL,
    PRIMARY KEY (repository, tag)) WITHOUT ROWID;
CREATE INDEX tags_by_digest ON tags (repository, digest);
CREATE TABLE uploads (
    id TEXT PRIMARY KEY, repository TEXT NOT NULL, durable_bytes INTEGER NOT NULL,
    touched_ms INTEGER NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of the layout's `index.json`.

    Attributes:
        media_type: Content type of the manifest.
        digest: Its digest.
        size: Its length in bytes.
        artifact_type: Its artifact type, may be empty.
        repository: The repository it lies in.
        tag: Its tag there, or none.
    """

    media_type: str
    digest: str
    size: int
    artifact_type: str
    repository: str
    tag: str | None


class Catalogue:
    """The SQLite file. Any thread; several processes may have it open. Close it."""

    def __init__(self, path: Path) -> None:
        """Open the file, and create it when it is not there.

        Raises:
            EdgeError: `device.disk-error`, or `config.invalid` for the file of a newer version.
        """
        self._path = path
        self._write_lock = threading.Lock()
        self._readers: LifoQueue[sqlite3.Connection] = LifoQueue(READERS_MAX)
        with _database_errors():
            self._writer = self._connect()
            try:
                self._writer.execute("PRAGMA journal_mode = WAL")
                with self.transaction() as connection:
                    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
                    if version == 0:
                        for statement in _SCHEMA.split(";"):
                            connection.execute(statement)
                        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                if version > SCHEMA_VERSION:
                    raise EdgeError("config.invalid", f"{path} was written by a newer version", "Update the registry.")
            except BaseException:
                self._writer.close()
                raise

    def _connect(self) -> sqlite3.Connection:
        # One connection is handed from thread to thread, never used by two at once.
        connection = sqlite3.connect(
            self._path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def close(self) -> None:
        """Close all connections; nobody may use the catalogue any more."""
        with self._write_lock:
            self._writer.close()
        while True:
            try:
                self._readers.get_nowait().close()
            except Empty:
                return

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The write lock of the database, across threads and processes; durable when the block ends well.

        Raises:
            EdgeError: `device.disk-error`, `device.disk-full`.
        """
        with self._write_lock, _database_errors():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for statements that change nothing."""
        with _database_errors():
            try:
                connection = self._readers.get_nowait()
            except Empty:
                connection = self._connect()
            try:
                yield connection
            finally:
                try:
                    self._readers.put_nowait(connection)
                except Full:
                    connection.close()

    def size_of(self, digest: str, repository: str | None = None) -> int | None:
        """Size of a blob or manifest in one repository, or in any; none when there is none."""
        for table in ("blobs", "manifests"):
            statement = f"SELECT size FROM {table} WHERE digest = ?"  # noqa: S608 - one of two names of ours
            values = [digest]
            if repository is not None:
                statement += " AND repository = ?"
                values.append(repository)
            with self.reading() as connection:
                row = connection.execute(statement + " LIMIT 1", values).fetchone()
            if row is not None:
                return int(row[0])
        return None

    def has_repository(self, repository: str) -> bool:
        """Whether anything was ever pushed into a repository and is still there."""
        with self.reading() as connection:
            row = connection.execute(
                "SELECT EXISTS (SELECT 1 FROM manifests WHERE repository = ?1)"
                " OR EXISTS (SELECT 1 FROM blobs WHERE repository = ?1)",
                (repository,),
            ).fetchone()
        return bool(row[0])

    def digest_of_tag(self, repository: str, tag: str) -> str | None:
        """The digest a tag points to, or none."""
        with self.reading() as connection:
            row = connection.execute(
                "SELECT digest FROM tags WHERE repository = ? AND tag = ?", (repository, tag)
            ).fetchone()
        return None if row is None else str(row[0])

    def media_type_of(self, repository: str, digest: str) -> str | None:
        """The type a manifest was put with, or none when it is not in the repository."""
        with self.reading() as connection:
            row = connection.execute(
                "SELECT media_type FROM manifests WHERE repository = ? AND digest = ?", (repository, digest)
            ).fetchone()
        return None if row is None else str(row[0])

    def tags(self, repository: str, last: str, count: int) -> list[str]:
        """At most `count` tags after `last`, in the order of their bytes."""
        with self.reading() as connection:
            rows = connection.execute(
                "SELECT tag FROM tags WHERE repository = ? AND tag > ? ORDER BY tag LIMIT ?", (repository, last, count)
            ).fetchall()
        return [str(row[0]) for row in rows]

    def referrers(
        self, repository: str, subject: str, artifact_type: str, last: str, count: int
    ) -> list[tuple[str, str, int, str, str]]:
        """(media type, digest, size, artifact type, annotations as JSON) of manifests with a subject, by digest."""
        statement = (
            "SELECT media_type, digest, size, artifact_type, annotations FROM manifests"
            " WHERE repository = ? AND subject = ? AND digest > ?"
        )
        values: list[str | int] = [repository, subject, last]
        if artifact_type:
            statement += " AND artifact_type = ?"
            values.append(artifact_type)
        with self.reading() as connection:
            rows = connection.execute(f"{statement} ORDER BY digest LIMIT ?", [*values, count]).fetchall()
        return [(str(a), str(b), int(c), str(d), str(e)) for a, b, c, d, e in rows]

    def index_entries(self) -> Sequence[IndexEntry]:
        """What `index.json` has to list, in a fixed order.

        Every tag, and every manifest without a tag that no index of its repository lists, so that all content can be
        reached from the layout's index.
        """
        with self.reading() as connection:
            rows = connection.execute(
                "SELECT m.media_type, m.digest, m.size, m.artifact_type, m.repository, t.tag FROM manifests m"
                " LEFT JOIN tags t ON t.repository = m.repository AND t.digest = m.digest"
                " WHERE t.tag IS NOT NULL OR NOT EXISTS"
                " (SELECT 1 FROM edges e WHERE e.repository = m.repository AND e.child = m.digest)"
                " ORDER BY m.repository, t.tag, m.digest"
            ).fetchall()
        return [
            IndexEntry(str(a), str(b), int(c), str(d), str(e), None if f is None else str(f))
            for a, b, c, d, e, f in rows
        ]


def is_needed_by(connection: sqlite3.Connection, repository: str, digest: str) -> str | None:
    """A manifest of the repository that lists a digest, or none."""
    row = connection.execute(
        "SELECT parent FROM edges WHERE repository = ? AND child = ? LIMIT 1", (repository, digest)
    ).fetchone()
    return None if row is None else str(row[0])


def is_held(connection: sqlite3.Connection, digest: str) -> bool:
    """Whether any repository holds a blob or manifest."""
    row = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM blobs WHERE digest = ?1) OR EXISTS (SELECT 1 FROM manifests WHERE digest = ?1)",
        (digest,),
    ).fetchone()
    return bool(row[0])


@contextmanager
def _database_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = "device.disk-full" if "full" in str(error) else "device.disk-error"
        raise EdgeError(code, f"the catalogue of blobs refused an operation: {error}") from None
