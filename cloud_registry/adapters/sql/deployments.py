"""Deployments and how they stand on devices (`DeploymentStore`), and what a device should run (`AssignmentSource`)."""

import json
import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import Connection, func, insert, select, update

from cloud_registry.adapters.sql import versions as version_rows
from cloud_registry.adapters.sql.assigning import read_bundle, reassign
from cloud_registry.adapters.sql.database import Database
from cloud_registry.adapters.sql.deltas import list_deltas
from cloud_registry.adapters.sql.tables import (
    bundles,
    deployment_changes,
    deployment_devices,
    deployments,
    devices,
)
from cloud_registry.core.progress import Standing
from cloud_registry.core.records import (
    Affected,
    Deployment,
    DeploymentChange,
    DeploymentChanges,
    DeploymentDevice,
    NewDeployment,
    Slice,
)
from cloud_registry.core.search import Page
from cloud_registry.ports import Clock
from edge_contract.delta import Delta
from edge_contract.deployment import Artifact, Assignment, Policy
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

_HISTORY_MAX: Final = 10_000


class SqlDeployments:
    """Implements `DeploymentStore` and `AssignmentSource`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Use a migrated database."""
        self._database = database
        self._clock = clock

    def create(self, content: NewDeployment, by: str) -> Affected[Deployment]:
        """Create a deployment and write its assignments."""

        def work(connection: Connection) -> Affected[Deployment]:
            self._database.lock_assignments(connection)
            version_rows.resolve(connection, content.model, str(content.version))
            age = (connection.execute(select(func.max(deployments.c.age))).scalar_one_or_none() or 0) + 1
            # The random part keeps a device's old report from being taken for one about a new registry's deployment.
            deployment = f"d{age}-{secrets.token_hex(3)}"
            now = self._clock.wall_ms()
            connection.execute(
                insert(deployments).values(
                    id=deployment,
                    age=age,
                    name=content.name,
                    model=content.model,
                    number=content.version,
                    module=content.module,
                    condition=content.condition,
                    policy=json.dumps(content.policy.to_json()),
                    priority=content.priority,
                    is_cancelled=False,
                    created_ms=now,
                    created_by=by,
                    updated_ms=now,
                )
            )
            detail = {
                "version": content.version,
                "condition": content.condition,
                "policy": asdict(content.policy),
                "priority": content.priority,
            }
            _note(connection, deployment, "created", detail, now, by)
            changed = reassign(connection, None, {content.module})
            return Affected(_one(connection, deployment), changed)

        return self._database.write(work)

    def get(self, deployment: str) -> Deployment:
        """One deployment."""
        return self._database.read(lambda connection: _one(connection, deployment))

    def list(self, page: Page) -> Slice[Deployment]:
        """Deployments, newest first."""

        def work(connection: Connection) -> Slice[Deployment]:
            query = select(deployments).order_by(deployments.c.age.desc()).limit(page.limit + 1)
            if page.after is not None:
                after = select(deployments.c.age).where(deployments.c.id == page.after).scalar_subquery()
                query = query.where(deployments.c.age < after)
            found = list(connection.execute(query))
            items = _read(connection, found[: page.limit])
            return Slice(items, items[-1].id if len(found) > page.limit else None)

        return self._database.read(work)

    def devices(self, deployment: str, page: Page) -> Slice[DeploymentDevice]:
        """How it stands on each device, by name."""
        table = deployment_devices

        def work(connection: Connection) -> Slice[DeploymentDevice]:
            _row(connection, deployment)
            query = select(table).where(table.c.deployment == deployment).order_by(table.c.device)
            if page.after is not None:
                query = query.where(table.c.device > page.after)
            found = list(connection.execute(query.limit(page.limit + 1)))
            items = tuple(_device(row) for row in found[: page.limit])
            return Slice(items, items[-1].device if len(found) > page.limit else None)

        return self._database.read(work)

    def update(self, deployment: str, changes: DeploymentChanges, by: str) -> Affected[Deployment]:
        """Change an active deployment."""

        def work(connection: Connection) -> Affected[Deployment]:
            self._database.lock_assignments(connection)
            row = _row(connection, deployment)
            if row.is_cancelled:
                raise EdgeError("cloud.conflict", f"deployment {deployment} was cancelled", "Create a new one.")
            values, detail = _differences(row, changes)
            if not values:
                return Affected(_one(connection, deployment), ())
            if "number" in values:
                version_rows.resolve(connection, row.model, str(values["number"]))
            now = self._clock.wall_ms()
            connection.execute(
                update(deployments).where(deployments.c.id == deployment).values(**values, updated_ms=now)
            )
            _note(connection, deployment, "updated", detail, now, by)
            changed = set(reassign(connection, None, {row.module}))
            if "policy" in values:
                changed |= set(_current_devices(connection, deployment))
            return Affected(_one(connection, deployment), tuple(sorted(changed)))

        return self._database.write(work)

    def cancel(self, deployment: str, by: str) -> Affected[Deployment]:
        """Cancel a deployment; its devices go back to what the next one assigns, if any does."""

        def work(connection: Connection) -> Affected[Deployment]:
            self._database.lock_assignments(connection)
            row = _row(connection, deployment)
            if row.is_cancelled:
                return Affected(_one(connection, deployment), ())
            now = self._clock.wall_ms()
            connection.execute(
                update(deployments).where(deployments.c.id == deployment).values(is_cancelled=True, updated_ms=now)
            )
            _note(connection, deployment, "cancelled", {}, now, by)
            changed = reassign(connection, None, {row.module})
            return Affected(_one(connection, deployment), changed)

        return self._database.write(work)

    def standings(self) -> Mapping[str, int]:
        """Assignments in force by how they stand."""
        table = deployment_devices
        query = select(table.c.standing, func.count().label("number")).where(table.c.is_current.is_(True))

        def work(connection: Connection) -> Mapping[str, int]:
            found = {row.standing: row.number for row in connection.execute(query.group_by(table.c.standing))}
            return {standing.value: found.get(standing.value, 0) for standing in Standing}

        return self._database.read(work)

    def history(self, deployment: str) -> Sequence[DeploymentChange]:
        """Every change by an operator, oldest first."""
        table = deployment_changes

        def work(connection: Connection) -> Sequence[DeploymentChange]:
            _row(connection, deployment)
            query = select(table).where(table.c.deployment == deployment).order_by(table.c.id).limit(_HISTORY_MAX)
            return [
                DeploymentChange(row.kind, json.loads(row.detail), row.changed_ms, row.changed_by)
                for row in connection.execute(query)
            ]

        return self._database.read(work)

    def assignments(self, device: str) -> tuple[Assignment, ...]:
        """What a device should run, by module."""
        table = deployment_devices

        def work(connection: Connection) -> tuple[Assignment, ...]:
            if connection.execute(select(devices.c.name).where(devices.c.name == device)).first() is None:
                raise EdgeError("cloud.not-found", f"there is no device {device[:80]!r}")
            query = (
                select(bundles, deployments.c.id.label("deployment"), deployments.c.policy, table.c.module)
                .join_from(table, deployments, deployments.c.id == table.c.deployment)
                .join(
                    bundles,
                    (bundles.c.model == deployments.c.model)
                    & (bundles.c.number == deployments.c.number)
                    & (bundles.c.manifest == table.c.manifest),
                )
                .where(table.c.device == device, table.c.is_current.is_(True))
                .order_by(table.c.module)
            )
            found = list(connection.execute(query))
            pairs = {(row.model, row.number) for row in found}
            known = {pair: tuple(item.delta for item in list_deltas(connection, *pair)) for pair in pairs}
            return tuple(_assignment(row, known[row.model, row.number]) for row in found)

        return self._database.read(work)


def _assignment(row: Any, deltas: tuple[Delta, ...]) -> Assignment:
    bundle = read_bundle(row)
    return Assignment(
        module=row.module,
        deployment=row.deployment,
        manifest=bundle.manifest,
        manifest_bytes=bundle.manifest_bytes,
        artifact=Artifact(
            model=row.model,
            version=row.number,
            platform=bundle.platform,
            release_counter=bundle.release_counter,
            repository=bundle.repository,
            hardware_ids=bundle.hardware_ids,
        ),
        policy=Policy.from_json(json.loads(row.policy)),
        deltas=deltas,
    )


def _row(connection: Connection, deployment: str) -> Any:
    row = connection.execute(select(deployments).where(deployments.c.id == deployment)).first()
    if row is None:
        raise EdgeError("cloud.not-found", f"there is no deployment {deployment[:80]!r}")
    return row


def _one(connection: Connection, deployment: str) -> Deployment:
    return _read(connection, [_row(connection, deployment)])[0]


def _read(connection: Connection, found: Sequence[Any]) -> tuple[Deployment, ...]:
    table = deployment_devices
    ids = [row.id for row in found]
    counts: dict[str, dict[str, int]] = defaultdict(lambda: {standing.value: 0 for standing in Standing})
    held: dict[str, int] = defaultdict(int)
    if ids:
        is_held = table.c.is_current.is_(True) | table.c.manifest.is_(None)
        query = select(table.c.deployment, table.c.standing, is_held.label("is_held"), func.count().label("number"))
        query = query.where(table.c.deployment.in_(ids)).group_by(table.c.deployment, table.c.standing, is_held)
        for row in connection.execute(query):
            counts[row.deployment][row.standing] += row.number
            held[row.deployment] += row.number if row.is_held else 0
    result = []
    for row in found:
        total = sum(counts[row.id].values())
        state = "cancelled" if row.is_cancelled else "superseded" if total and not held[row.id] else "active"
        result.append(
            Deployment(
                id=row.id,
                content=NewDeployment(
                    name=row.name,
                    model=row.model,
                    version=row.number,
                    module=row.module,
                    condition=row.condition,
                    policy=Policy.from_json(json.loads(row.policy)),
                    priority=row.priority,
                ),
                state=state,
                counts=counts[row.id],
                devices=total,
                created_ms=row.created_ms,
                created_by=row.created_by,
                updated_ms=row.updated_ms,
            )
        )
    return tuple(result)


def _device(row: Any) -> DeploymentDevice:
    return DeploymentDevice(
        device=row.device,
        standing=row.standing,
        phase=row.phase,
        outcome=row.outcome,
        error_code=row.error_code,
        error_detail=row.error_detail,
        manifest=None if row.manifest is None else Digest(row.manifest),
        reported_ms=row.reported_ms,
    )


def _differences(row: Any, changes: DeploymentChanges) -> tuple[dict[str, Any], JsonObject]:
    """Columns to change, and the line of history that says from what to what."""
    values: dict[str, Any] = {}
    detail: JsonObject = {}
    if changes.version is not None and changes.version != row.number:
        values["number"] = changes.version
        detail["version"] = {"from": row.number, "to": changes.version}
    if changes.condition is not None and changes.condition != row.condition:
        values["condition"] = changes.condition
        detail["condition"] = {"from": row.condition, "to": changes.condition}
    if changes.policy is not None and changes.policy != Policy.from_json(json.loads(row.policy)):
        values["policy"] = json.dumps(changes.policy.to_json())
        before = Policy.from_json(json.loads(row.policy))
        detail["policy"] = {"from": asdict(before), "to": asdict(changes.policy)}
    return values, detail


def _note(connection: Connection, deployment: str, kind: str, detail: JsonObject, now: int, by: str) -> None:
    connection.execute(
        insert(deployment_changes).values(
            deployment=deployment, kind=kind, detail=json.dumps(detail), changed_ms=now, changed_by=by
        )
    )


def _current_devices(connection: Connection, deployment: str) -> Sequence[str]:
    table = deployment_devices
    query = select(table.c.device).where(table.c.deployment == deployment, table.c.is_current.is_(True))
    return list(connection.execute(query).scalars())
