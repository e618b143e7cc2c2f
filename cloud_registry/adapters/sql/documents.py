"""Versioned documents, for TUF metadata (`MetadataTable`)."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, delete, insert, select, update

from cloud_registry.adapters.sql.database import Database
from cloud_registry.adapters.sql.tables import documents
from cloud_registry.limits import METADATA_BYTES_MAX
from cloud_registry.ports import MetadataRow
from edge_contract.errors import EdgeError


class SqlDocuments:
    """Implements `MetadataTable`."""

    def __init__(self, database: Database) -> None:
        """Use a migrated database."""
        self._database = database

    def get(self, repository: str, name: str) -> tuple[int, bytes] | None:
        """(version, bytes) of a document."""
        table = documents

        def work(connection: Connection) -> tuple[int, bytes] | None:
            row = connection.execute(
                select(table.c.version, table.c.data).where(table.c.repository == repository, table.c.name == name)
            ).first()
            return None if row is None else (row.version, bytes(row.data))

        return self._database.read(work)

    def versions(self, repository: str) -> dict[str, int]:
        """Versions by name."""
        table = documents

        def work(connection: Connection) -> dict[str, int]:
            rows = connection.execute(select(table.c.name, table.c.version).where(table.c.repository == repository))
            return {row.name: row.version for row in rows}

        return self._database.read(work)

    def put_many(
        self,
        rows: Sequence[MetadataRow],
        expect: Mapping[tuple[str, str], int],
        remove: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Change documents together, if the expected versions are what is stored."""
        for row in rows:
            if len(row.data) > METADATA_BYTES_MAX or row.version < 1:
                raise EdgeError("cloud.too-large", f"{row.repository}/{row.name}: version or length is out of bounds")
        self._database.write(lambda connection: self._put_many(connection, rows, expect, remove))

    def remove_repository(self, repository: str) -> None:
        """Remove every document of a repository."""
        self._database.write(
            lambda connection: connection.execute(delete(documents).where(documents.c.repository == repository))
        )

    def _put_many(
        self,
        connection: Connection,
        rows: Sequence[MetadataRow],
        expect: Mapping[tuple[str, str], int],
        remove: Sequence[tuple[str, str]],
    ) -> None:
        # In one order everywhere, so that two transactions wait for each other and never in a circle.
        for (repository, name), version in sorted(expect.items()):
            have = self._locked_version(connection, repository, name)
            if have != version:
                detail = f"{repository}/{name} has version {have}, not {version}"
                raise EdgeError("cloud.conflict", detail, "Somebody else was faster: read it again.")
        for repository, name in sorted(remove):
            connection.execute(delete(documents).where(documents.c.repository == repository, documents.c.name == name))
        for row in sorted(rows, key=lambda item: (item.repository, item.name)):
            self._put(connection, row, is_first=expect.get((row.repository, row.name)) == 0)

    def _put(self, connection: Connection, row: MetadataRow, is_first: bool) -> None:
        values = {"version": row.version, "data": row.data}
        matching = (documents.c.repository == row.repository, documents.c.name == row.name)
        # A row that was not there cannot be locked, so another first writer may have committed since it was looked for:
        # an update would overwrite that one's row, while a second insert fails on the key, which is a conflict.
        if is_first or connection.execute(update(documents).where(*matching).values(values)).rowcount == 0:
            connection.execute(insert(documents).values(repository=row.repository, name=row.name, **values))

    def _locked_version(self, connection: Connection, repository: str, name: str) -> int:
        table = documents
        query = select(table.c.version).where(table.c.repository == repository, table.c.name == name)
        return connection.execute(query.with_for_update()).scalar_one_or_none() or 0
