"""Models, versions, aliases and bundles (`ModelStore`)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, delete, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from cloud_registry.adapters.sql import versions as rows
from cloud_registry.adapters.sql.assigning import read_bundle, reassign
from cloud_registry.adapters.sql.database import Database
from cloud_registry.adapters.sql.deltas import take_deltas
from cloud_registry.adapters.sql.needs import needs_of
from cloud_registry.adapters.sql.tables import (
    alias_changes,
    aliases,
    bundles,
    deployments,
    labels,
    model_numbers,
    models,
    version_files,
    versions,
)
from cloud_registry.core.records import (
    Affected,
    AliasChange,
    Bundle,
    Changes,
    Model,
    NewVersion,
    Removed,
    Slice,
    Version,
)
from cloud_registry.core.search import ModelSearch, Page, like_pattern
from cloud_registry.errors import RegistryError
from cloud_registry.limits import ALIASES_MAX
from cloud_registry.ports import Clock
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.names import alias_name, model_name

_ESCAPE: Final = "\\"
_HISTORY_MAX: Final = 10_000


class SqlModels:
    """Implements `ModelStore`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Use a migrated database."""
        self._database = database
        self._clock = clock

    # --- models -------------------------------------------------------------------------------------------------------

    def create(self, name: str, changes: Changes, by: str) -> Model:
        """Create a model."""
        model_name(name)
        values = {
            "name": name,
            "description": changes.description or "",
            "created_ms": self._clock.wall_ms(),
            "created_by": by,
        }

        def work(connection: Connection) -> Model:
            dialect = sqlite if self._database.is_sqlite else postgresql
            adding = dialect.insert(models).values(values).on_conflict_do_nothing()
            if connection.execute(adding.returning(models.c.name)).first() is None:
                raise EdgeError("cloud.conflict", f"there is a model {name!r} already")
            connection.execute(dialect.insert(model_numbers).values(name=name, last=0).on_conflict_do_nothing())
            rows.write_labels(connection, name, 0, changes)
            return self._one(connection, name)

        return self._database.write(work)

    def get(self, name: str) -> Model:
        """One model."""
        return self._database.read(lambda connection: self._one(connection, name))

    def update(self, name: str, changes: Changes) -> Model:
        """Change description, tags, properties."""

        def work(connection: Connection) -> Model:
            self._lock(connection, name)
            if changes.description is not None:
                connection.execute(update(models).where(models.c.name == name).values(description=changes.description))
            rows.write_labels(connection, name, 0, changes)
            return self._one(connection, name)

        return self._database.write(work)

    def delete(self, name: str) -> Removed:
        """Delete a model that nothing needs."""

        def work(connection: Connection) -> Removed:
            self._database.lock_assignments(connection)
            self._lock(connection, name)
            _refuse_if_needed(connection, name, None)
            removed = replace(rows.read_removed(connection, name, None), deltas=take_deltas(connection, name, None))
            for table in (bundles, version_files, labels, versions):
                connection.execute(delete(table).where(table.c.model == name))
            connection.execute(delete(models).where(models.c.name == name))
            return removed

        return self._database.write(work)

    def search(self, search: ModelSearch, page: Page) -> Slice[Model]:
        """Models by name."""

        def work(connection: Connection) -> Slice[Model]:
            query = select(models).where(*_filters(search)).order_by(models.c.name).limit(page.limit + 1)
            if page.after is not None:
                query = query.where(models.c.name > page.after)
            found = list(connection.execute(query))
            items = rows.read_models(connection, found[: page.limit])
            return Slice(items, items[-1].name if len(found) > page.limit else None)

        return self._database.read(work)

    # --- versions -----------------------------------------------------------------------------------------------------

    def register(self, model: str, content: NewVersion, by: str, confirm: Callable[[], None]) -> Version:
        """Give the next number. The counter's row is locked until the version is stored, so no number is lost."""

        def work(connection: Connection) -> Version:
            self._lock(connection, model)
            counted = update(model_numbers).where(model_numbers.c.name == model).values(last=model_numbers.c.last + 1)
            number = connection.execute(counted.returning(model_numbers.c.last)).scalar_one()
            confirm()
            rows.insert_version(connection, model, number, content, self._clock.wall_ms(), by)
            return self._version(connection, model, str(number))

        return self._database.write(work)

    def version(self, model: str, reference: str) -> Version:
        """A version by number or alias."""
        return self._database.read(lambda connection: self._version(connection, model, reference))

    def versions(self, model: str, page: Page) -> Slice[Version]:
        """Versions, newest first."""

        def work(connection: Connection) -> Slice[Version]:
            self._one(connection, model)
            query = select(versions).where(versions.c.model == model)
            query = query.order_by(versions.c.number.desc()).limit(page.limit + 1)
            if page.after is not None:
                if not page.after.isdecimal():
                    raise EdgeError("cloud.bad-request", "the cursor does not belong to this list")
                query = query.where(versions.c.number < int(page.after))
            found = list(connection.execute(query))
            items = rows.read_versions(connection, model, found[: page.limit])
            return Slice(items, str(items[-1].number) if len(found) > page.limit else None)

        return self._database.read(work)

    def update_version(self, model: str, reference: str, changes: Changes) -> Version:
        """Change description, tags, properties."""

        def work(connection: Connection) -> Version:
            self._lock(connection, model)
            number = rows.resolve(connection, model, reference)
            if changes.description is not None:
                found = (versions.c.model == model) & (versions.c.number == number)
                connection.execute(update(versions).where(found).values(description=changes.description))
            rows.write_labels(connection, model, number, changes)
            return self._version(connection, model, str(number))

        return self._database.write(work)

    def delete_version(self, model: str, reference: str) -> Removed:
        """Delete a version that nothing needs."""

        def work(connection: Connection) -> Removed:
            self._database.lock_assignments(connection)
            self._lock(connection, model)
            number = rows.resolve(connection, model, reference)
            _refuse_if_needed(connection, model, number)
            removed = replace(
                rows.read_removed(connection, model, number), deltas=take_deltas(connection, model, number)
            )
            for table in (bundles, version_files, labels, versions):
                connection.execute(delete(table).where(table.c.model == model, table.c.number == number))
            return removed

        return self._database.write(work)

    def free_files(self, model: str, files: Sequence[Digest], free: Callable[[Digest], None]) -> None:
        """Free what no version uses. The counter's row keeps registrations out, and is there when the model is not."""
        wanted = [str(digest) for digest in files]

        def work(connection: Connection) -> None:
            counter = select(model_numbers.c.last).where(model_numbers.c.name == model)
            connection.execute(counter.with_for_update())
            table = version_files
            query = select(table.c.digest).where(table.c.model == model, table.c.digest.in_(wanted))
            used = set(connection.execute(query).scalars())
            for digest in files:
                if str(digest) not in used:
                    free(digest)

        self._database.write(work)

    # --- aliases ------------------------------------------------------------------------------------------------------

    def set_alias(self, model: str, alias: str, version: int, by: str) -> AliasChange:
        """Point an alias at a version."""
        alias_name(alias)

        def work(connection: Connection) -> AliasChange:
            self._lock(connection, model)
            rows.resolve(connection, model, str(version))
            is_it = (aliases.c.model == model) & (aliases.c.alias == alias)
            before = connection.execute(select(aliases).where(is_it)).first()
            if before is not None and before.number == version:
                return _alias(before)
            now = self._clock.wall_ms()
            values = {"number": version, "changed_ms": now, "changed_by": by}
            if before is not None:
                connection.execute(update(aliases).where(is_it).values(values))
            else:
                count = select(func.count()).where(aliases.c.model == model)
                if connection.execute(count).scalar_one() >= ALIASES_MAX:
                    raise EdgeError("cloud.too-large", f"{model} has {ALIASES_MAX} aliases", "Remove one first.")
                connection.execute(insert(aliases).values(model=model, alias=alias, **values))
            connection.execute(insert(alias_changes).values(model=model, alias=alias, **values))
            return AliasChange(alias, version, now, by)

        return self._database.write(work)

    def delete_alias(self, model: str, alias: str, by: str) -> None:
        """Remove an alias, keeping its history."""

        def work(connection: Connection) -> None:
            self._lock(connection, model)
            gone = connection.execute(delete(aliases).where(aliases.c.model == model, aliases.c.alias == alias))
            if gone.rowcount == 0:
                raise EdgeError("cloud.not-found", f"{model} has no alias {alias[:80]!r}")
            now = self._clock.wall_ms()
            connection.execute(
                insert(alias_changes).values(model=model, alias=alias, number=None, changed_ms=now, changed_by=by)
            )

        self._database.write(work)

    def aliases(self, model: str) -> Sequence[AliasChange]:
        """Where each alias points."""

        def work(connection: Connection) -> Sequence[AliasChange]:
            self._one(connection, model)
            found = connection.execute(select(aliases).where(aliases.c.model == model).order_by(aliases.c.alias))
            return [_alias(row) for row in found]

        return self._database.read(work)

    def alias_history(self, model: str, alias: str) -> Sequence[AliasChange]:
        """Every change, oldest first."""

        def work(connection: Connection) -> Sequence[AliasChange]:
            table = alias_changes
            query = select(table).where(table.c.model == model, table.c.alias == alias).order_by(table.c.id)
            found = [_alias(row) for row in connection.execute(query.limit(_HISTORY_MAX))]
            if not found:
                raise EdgeError("cloud.not-found", f"{model[:80]} never had an alias {alias[:80]!r}")
            return found

        return self._database.read(work)

    # --- bundles ------------------------------------------------------------------------------------------------------

    def add_bundles(self, model: str, version: int, added: Sequence[Bundle]) -> Affected[Sequence[Bundle]]:
        """Enter bundles; devices that waited for their platform get their assignments."""

        def work(connection: Connection) -> Affected[Sequence[Bundle]]:
            self._database.lock_assignments(connection)
            self._lock(connection, model)
            rows.resolve(connection, model, str(version))
            known = {bundle.platform: bundle for bundle in _bundles(connection, model, version)}
            for bundle in added:
                have = known.get(bundle.platform)
                if have is not None and have.manifest != bundle.manifest:
                    detail = f"{model} version {version} has another bundle for {bundle.platform}: {have.manifest}"
                    raise EdgeError("cloud.conflict", detail, "Bundles never change: register a new version.")
            fresh = [rows.bundle_values(model, version, bundle) for bundle in added if bundle.platform not in known]
            changed: tuple[str, ...] = ()
            if fresh:
                connection.execute(insert(bundles), fresh)
                query = select(deployments.c.module).where(
                    deployments.c.model == model, deployments.c.number == version, deployments.c.is_cancelled.is_(False)
                )
                changed = reassign(connection, None, set(connection.execute(query).scalars()))
            return Affected(_bundles(connection, model, version), changed)

        return self._database.write(work)

    def bundles(self, model: str, reference: str) -> Sequence[Bundle]:
        """The bundles of a version."""

        def work(connection: Connection) -> Sequence[Bundle]:
            return _bundles(connection, model, rows.resolve(connection, model, reference))

        return self._database.read(work)

    # --- shared -------------------------------------------------------------------------------------------------------

    def _lock(self, connection: Connection, model: str) -> None:
        """Require that a model exists and keep others from changing it until the transaction ends."""
        query = select(models.c.name).where(models.c.name == model).with_for_update()
        if connection.execute(query).first() is None:
            raise rows.no_model(model)

    def _one(self, connection: Connection, name: str) -> Model:
        found = list(connection.execute(select(models).where(models.c.name == name)))
        if not found:
            raise rows.no_model(name)
        return rows.read_models(connection, found)[0]

    def _version(self, connection: Connection, model: str, reference: str) -> Version:
        number = rows.resolve(connection, model, reference)
        query = select(versions).where(versions.c.model == model, versions.c.number == number)
        return rows.read_versions(connection, model, list(connection.execute(query)))[0]


def _bundles(connection: Connection, model: str, number: int) -> Sequence[Bundle]:
    query = select(bundles).where(bundles.c.model == model, bundles.c.number == number).order_by(bundles.c.platform)
    return [read_bundle(row) for row in connection.execute(query)]


def _alias(row: Any) -> AliasChange:
    return AliasChange(row.alias, row.number, row.changed_ms, row.changed_by)


def _refuse_if_needed(connection: Connection, model: str, number: int | None) -> None:
    needs, count = needs_of(connection, model, number)
    if count:
        what = model if number is None else f"{model} version {number}"
        kinds = ", ".join(sorted({str(item["kind"]) for item in needs}))
        hint = "Remove the aliases, cancel the deployments and bring the devices to another version first."
        raise RegistryError(
            "cloud.in-use",
            f"{what} is still needed by {count} things ({kinds})"
            if count > 1
            else f"{what} is still needed by a {kinds}",
            hint,
            {"needed_by": needs, "needed_by_count": count},
        )


def _filters(search: ModelSearch) -> list[ColumnElement[bool]]:
    result: list[ColumnElement[bool]] = []
    if "*" in search.name:
        result.append(models.c.name.like(like_pattern(search.name, is_wild=True), escape=_ESCAPE))
    elif search.name:
        result.append(models.c.name == search.name)
    of_model = versions.c.model == models.c.name
    if search.query:
        pattern = f"%{like_pattern(search.query, is_wild=False).lower()}%"
        in_version = select(versions.c.number).where(
            of_model, func.lower(versions.c.description).like(pattern, escape=_ESCAPE)
        )
        result.append(
            or_(
                func.lower(models.c.name).like(pattern, escape=_ESCAPE),
                func.lower(models.c.description).like(pattern, escape=_ESCAPE),
                in_version.exists(),
            )
        )
    if search.format:
        result.append(select(versions.c.number).where(of_model, versions.c.format == search.format).exists())
    for kind, wanted in (("tag", search.tags), ("property", search.properties)):
        for key, value in wanted.items():
            is_it = (labels.c.kind == kind) & (labels.c.key == key) & (labels.c.value == value)
            result.append(select(labels.c.number).where(labels.c.model == models.c.name, is_it).exists())
    if search.created_after_ms is not None:
        result.append(models.c.created_ms >= search.created_after_ms)
    if search.created_before_ms is not None:
        result.append(models.c.created_ms < search.created_before_ms)
    return result
