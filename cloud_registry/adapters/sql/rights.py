"""Which bundles a device may read (`ContentRights`)."""

from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import Connection, select, union_all

from cloud_registry.adapters.sql.database import Database
from cloud_registry.adapters.sql.tables import deltas, deployment_devices, device_bundles, device_modules
from cloud_registry.identities import BundleGrant
from edge_contract.digest import Digest


class SqlRights:
    """Implements `ContentRights`."""

    def __init__(self, database: Database) -> None:
        """Use a migrated database."""
        self._database = database

    def bundles_of(self, device: str) -> Sequence[BundleGrant]:
        """What a device may read; a few lookups by key."""
        ever, assigned, reported = device_bundles, deployment_devices, device_modules
        wanted = union_all(
            select(assigned.c.manifest).where(assigned.c.device == device, assigned.c.is_current.is_(True)),
            *(
                select(column).where(reported.c.device == device, column.is_not(None))
                for column in (reported.c.manifest, reported.c.fallback, reported.c.confirmed)
            ),
        )
        # A device cannot open a bundle to itself by reporting it: it has to have been assigned at some time.
        query = select(ever).where(ever.c.device == device, ever.c.manifest.in_(wanted))

        def work(connection: Connection) -> Sequence[BundleGrant]:
            found = list(connection.execute(query))
            indexes = {row.index_digest for row in found}
            made: dict[str, set[Digest]] = defaultdict(set)
            listed = select(deltas.c.index_digest, deltas.c.digest).where(deltas.c.index_digest.in_(indexes))
            for row in connection.execute(listed) if indexes else ():
                made[row.index_digest].add(Digest(row.digest))
            return [
                BundleGrant(
                    row.repository, Digest(row.manifest), Digest(row.index_digest), frozenset(made[row.index_digest])
                )
                for row in found
            ]

        return self._database.read(work)
