"""Deltas of versions, and what of them a fleet could use (`DeltaStore`)."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, insert, or_, select

from cloud_registry.adapters.sql import versions as rows
from cloud_registry.adapters.sql.database import Database
from cloud_registry.adapters.sql.tables import (
    bundles,
    deltas,
    deployment_devices,
    deployments,
    device_modules,
    devices,
    models,
    version_files,
)
from cloud_registry.core.progress import TERMINAL
from cloud_registry.core.records import Affected, BaseCount, Bases, EnteredDelta, KnownDelta
from cloud_registry.limits import STATEMENT_VALUES_MAX
from cloud_registry.ports import Clock
from edge_contract.delta import Delta
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import DELTAS_MAX


class SqlDeltas:
    """Implements `DeltaStore`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Use a migrated database."""
        self._database = database
        self._clock = clock

    def add(self, model: str, version: int, known: KnownDelta, by: str) -> Affected[EnteredDelta]:
        """Enter a delta; the devices are those that a deployment of the version is under way on."""

        def work(connection: Connection) -> Affected[EnteredDelta]:
            _lock(connection, model)
            rows.resolve(connection, model, str(version))
            _require_base(connection, model, known.delta)
            is_it = (deltas.c.model == model) & (deltas.c.number == version)
            have = connection.execute(select(deltas).where(is_it, deltas.c.digest == str(known.delta.digest))).first()
            if have is not None:
                return Affected(EnteredDelta(_known(have)), ())
            # One delta for a pair: the newer one, which somebody made because it is better.
            pair = is_it & (deltas.c.base == str(known.delta.base)) & (deltas.c.new == str(known.delta.new))
            replaced = tuple(_known(row) for row in connection.execute(select(deltas).where(pair)))
            connection.execute(delete(deltas).where(pair))
            count = connection.execute(select(func.count()).select_from(deltas).where(is_it)).scalar_one()
            if count >= DELTAS_MAX:
                raise EdgeError(
                    "cloud.too-large",
                    f"{model} version {version} has {count} deltas already, which is as many as metadata list",
                    f"Delete one that few devices can use: DELETE /api/v1/models/{model}/versions/{version}/deltas/…",
                )
            connection.execute(insert(deltas).values(_values(model, version, known, self._clock.wall_ms(), by)))
            return Affected(EnteredDelta(known, replaced), _under_way(connection, model, version))

        return self._database.write(work)

    def list(self, model: str, reference: str) -> Sequence[KnownDelta]:
        """The deltas of a version, the smallest first."""

        def work(connection: Connection) -> Sequence[KnownDelta]:
            number = rows.resolve(connection, model, reference)
            return list_deltas(connection, model, number)

        return self._database.read(work)

    def remove(self, model: str, reference: str, digest: Digest) -> KnownDelta:
        """Forget a delta."""

        def work(connection: Connection) -> KnownDelta:
            number = rows.resolve(connection, model, reference)
            is_it = (deltas.c.model == model) & (deltas.c.number == number) & (deltas.c.digest == str(digest))
            row = connection.execute(select(deltas).where(is_it)).first()
            if row is None:
                raise EdgeError("cloud.not-found", f"{model} version {number} has no delta {digest}")
            connection.execute(delete(deltas).where(is_it))
            return _known(row)

        return self._database.write(work)

    def bases(self, model: str, reference: str, names: Sequence[str], module: str) -> Bases:
        """What these devices hold."""

        def work(connection: Connection) -> Bases:
            number = rows.resolve(connection, model, reference)
            of_version = (bundles.c.model == model) & (bundles.c.number == number)
            wanted = {row.platform: row.manifest for row in connection.execute(select(bundles).where(of_version))}
            held: list[Any] = []
            for start in range(0, len(names), STATEMENT_VALUES_MAX):
                part = names[start : start + STATEMENT_VALUES_MAX]
                query = (
                    select(devices.c.name, devices.c.platform, device_modules.c.manifest, device_modules.c.fallback)
                    .outerjoin(
                        device_modules,
                        (device_modules.c.device == devices.c.name) & (device_modules.c.module == module),
                    )
                    .where(devices.c.name.in_(part))
                )
                held += connection.execute(query)
            return _counted(held, wanted, _bundles_of(connection, held))

        return self._database.read(work)


def list_deltas(connection: Connection, model: str, number: int) -> list[KnownDelta]:
    """The deltas of a version, the smallest first."""
    is_it = (deltas.c.model == model) & (deltas.c.number == number)
    query = select(deltas).where(is_it).order_by(deltas.c.bytes, deltas.c.digest)
    return [_known(row) for row in connection.execute(query)]


def take_deltas(connection: Connection, model: str, number: int | None) -> tuple[KnownDelta, ...]:
    """Forget the deltas that make files of a version (none: of every version), or that start from files of it alone."""
    is_it = deltas.c.model == model
    if number is not None:
        files = version_files
        others = select(files.c.digest).where(files.c.model == model, files.c.number != number)
        mine = select(files.c.digest).where(files.c.model == model, files.c.number == number)
        is_it &= or_(deltas.c.number == number, deltas.c.base.in_(mine) & deltas.c.base.not_in(others))
    found = tuple(_known(row) for row in connection.execute(select(deltas).where(is_it)))
    connection.execute(delete(deltas).where(is_it))
    return found


def _lock(connection: Connection, model: str) -> None:
    """Keep others from changing the model until the transaction ends."""
    query = select(models.c.name).where(models.c.name == model).with_for_update()
    if connection.execute(query).first() is None:
        raise rows.no_model(model)


def _require_base(connection: Connection, model: str, delta: Delta) -> None:
    files = version_files
    query = select(files.c.size).where(files.c.model == model, files.c.digest == str(delta.base))
    size = connection.execute(query.limit(1)).scalar()
    if size is None:
        raise EdgeError("cloud.not-found", f"no version of {model} has a file {delta.base}")
    if size != delta.base_bytes:
        raise EdgeError("artifact.size-mismatch", f"{delta.base} has {size} bytes, the delta says {delta.base_bytes}")


def _under_way(connection: Connection, model: str, version: int) -> tuple[str, ...]:
    """Devices that have yet to end a deployment of the version."""
    table = deployment_devices
    query = (
        select(table.c.device)
        .join(deployments, deployments.c.id == table.c.deployment)
        .where(
            deployments.c.model == model,
            deployments.c.number == version,
            table.c.is_current.is_(True),
            table.c.standing.not_in([standing.value for standing in TERMINAL]),
        )
        .order_by(table.c.device)
    )
    return tuple(connection.execute(query).scalars())


def _values(model: str, version: int, known: KnownDelta, created_ms: int, by: str) -> dict[str, Any]:
    delta = known.delta
    return {
        "model": model,
        "number": version,
        "digest": str(delta.digest),
        "base": str(delta.base),
        "base_bytes": delta.base_bytes,
        "new": str(delta.new),
        "new_bytes": delta.new_bytes,
        "bytes": delta.bytes,
        "peak_bytes": delta.peak_bytes,
        "format": delta.format,
        "manifest": str(known.manifest),
        "index_digest": str(known.index),
        "created_ms": created_ms,
        "created_by": by,
    }


def _known(row: Any) -> KnownDelta:
    delta = Delta(
        base=Digest(row.base),
        base_bytes=row.base_bytes,
        new=Digest(row.new),
        new_bytes=row.new_bytes,
        digest=Digest(row.digest),
        bytes=row.bytes,
        peak_bytes=row.peak_bytes,
        format=row.format,
    )
    return KnownDelta(delta, Digest(row.manifest), Digest(row.index_digest))


def _bundles_of(connection: Connection, held: Sequence[Any]) -> dict[str, Any]:
    """Rows of the bundles that devices hold, by manifest."""
    manifests = sorted({item for row in held for item in (row.manifest, row.fallback) if item is not None})
    found: dict[str, Any] = {}
    for start in range(0, len(manifests), STATEMENT_VALUES_MAX):
        part = manifests[start : start + STATEMENT_VALUES_MAX]
        for row in connection.execute(select(bundles).where(bundles.c.manifest.in_(part))):
            found[row.manifest] = row
    return found


def _counted(held: Sequence[Any], wanted: dict[str, str], known: dict[str, Any]) -> Bases:
    """Count each device once: by its live bundle where that is known, else by its fallback."""
    live: Counter[tuple[str, str]] = Counter()
    fallback: Counter[tuple[str, str]] = Counter()
    current = without = unserved = 0
    for row in held:
        new = wanted.get(row.platform)
        if new is None:
            unserved += 1
        elif row.manifest == new:
            current += 1
        elif row.manifest in known:
            live[row.platform, row.manifest] += 1
        elif row.fallback in known and row.fallback != new:
            fallback[row.platform, row.fallback] += 1
        else:
            without += 1
    found = [
        BaseCount(
            known[manifest].model,
            known[manifest].number,
            platform,
            Digest(manifest),
            Digest(wanted[platform]),
            live[platform, manifest],
            fallback[platform, manifest],
        )
        for platform, manifest in live.keys() | fallback.keys()
    ]
    found.sort(key=lambda item: (-item.devices, item.platform, str(item.manifest)))
    return Bases(tuple(found), current, without, unserved)
