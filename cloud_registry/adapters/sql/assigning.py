"""Brings stored assignments in line with deployments, bundles and devices, in the transaction that changed them."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, tuple_, update

from cloud_registry.adapters.sql.tables import (
    bundles,
    deployment_devices,
    deployments,
    device_bundles,
    device_tags,
    devices,
)
from cloud_registry.core import assignment
from cloud_registry.core.assignment import Candidate, Row
from cloud_registry.core.condition import Condition, Facts, parse_condition
from cloud_registry.core.progress import TERMINAL, Standing
from cloud_registry.core.records import Bundle
from cloud_registry.limits import STATEMENT_VALUES_MAX
from edge_contract.digest import Digest


@lru_cache(maxsize=1024)
def condition_of(text: str) -> Condition:
    """The condition of a stored text."""
    return parse_condition(text)


def reassign(connection: Connection, only: Sequence[str] | None, modules: Iterable[str] | None) -> tuple[str, ...]:
    """Work out who should run what and store the differences; the assignment lock has to be held.

    Args:
        connection: A transaction that writes.
        only: Names of the devices to look at; none for all.
        modules: Modules to look at; none for all.

    Returns:
        The devices whose assignments changed.
    """
    wanted = None if modules is None else set(modules)
    candidates = _candidates(connection, wanted)
    rows = _rows(connection, only, wanted)
    changed: list[str] = []
    plans: list[tuple[str, tuple[assignment.Change, ...]]] = []
    for facts in facts_of(connection, only):
        changes = assignment.plan(facts, candidates, rows.get(facts.name, {}))
        if changes:
            plans.append((facts.name, changes))
            if assignment.is_felt(changes):
                changed.append(facts.name)
    if plans:
        _store(connection, plans, {item.deployment: item.module for item in candidates}, rows)
    return tuple(changed)


def facts_of(connection: Connection, only: Sequence[str] | None) -> list[Facts]:
    """What conditions can ask, by name of the device."""
    query = select(devices.c.name, devices.c.platform, devices.c.hardware_id).order_by(devices.c.name)
    tag_query = select(device_tags)
    tags: dict[str, dict[str, str]] = defaultdict(dict)
    result: list[Facts] = []
    for part in _parts(only):
        found = tag_query if part is None else tag_query.where(device_tags.c.device.in_(part))
        for row in connection.execute(found):
            tags[row.device][row.key] = row.value
        rows = connection.execute(query if part is None else query.where(devices.c.name.in_(part)))
        result += [Facts(row.name, row.platform, row.hardware_id, tags.get(row.name, {})) for row in rows]
    return result


def read_bundle(row: Any) -> Bundle:
    """A row of the table of bundles as a record."""
    return Bundle(
        platform=row.platform,
        manifest=Digest(row.manifest),
        manifest_bytes=row.manifest_bytes,
        release_counter=row.release_counter,
        hardware_ids=tuple(json.loads(row.hardware_ids)),
        repository=row.repository,
        index=Digest(row.index_digest),
    )


def _parts(only: Sequence[str] | None) -> list[Sequence[str] | None]:
    if only is None:
        return [None]
    return [only[start : start + STATEMENT_VALUES_MAX] for start in range(0, len(only), STATEMENT_VALUES_MAX)]


def _candidates(connection: Connection, modules: set[str] | None) -> list[Candidate]:
    query = select(deployments).where(deployments.c.is_cancelled.is_(False))
    if modules is not None:
        query = query.where(deployments.c.module.in_(sorted(modules)))
    found = list(connection.execute(query))
    pairs = sorted({(row.model, row.number) for row in found})
    by_version: dict[tuple[str, int], dict[str, Bundle]] = defaultdict(dict)
    for start in range(0, len(pairs), STATEMENT_VALUES_MAX):
        part = pairs[start : start + STATEMENT_VALUES_MAX]
        for row in connection.execute(select(bundles).where(tuple_(bundles.c.model, bundles.c.number).in_(part))):
            by_version[(row.model, row.number)][row.platform] = read_bundle(row)
    return [
        Candidate(
            deployment=row.id,
            age=row.age,
            module=row.module,
            priority=row.priority,
            condition=condition_of(row.condition),
            title=f"{row.model} version {row.number}",
            bundles=by_version[(row.model, row.number)],
        )
        for row in found
    ]


def _rows(connection: Connection, only: Sequence[str] | None, modules: set[str] | None) -> dict[str, dict[str, Row]]:
    """Rows by device and deployment, but for those that ended under a deployment that was cancelled."""
    table = deployment_devices
    query = select(table.c.deployment, table.c.device, table.c.is_current, table.c.standing, table.c.manifest).join(
        deployments, deployments.c.id == table.c.deployment
    )
    ended = [standing.value for standing in TERMINAL]
    query = query.where(
        deployments.c.is_cancelled.is_(False) | table.c.is_current.is_(True) | table.c.standing.not_in(ended)
    )
    if modules is not None:
        query = query.where(table.c.module.in_(sorted(modules)))
    result: dict[str, dict[str, Row]] = defaultdict(dict)
    for part in _parts(only):
        for row in connection.execute(query if part is None else query.where(table.c.device.in_(part))):
            result[row.device][row.deployment] = Row(
                row.deployment, row.is_current, Standing(row.standing), row.manifest
            )
    return result


def _store(
    connection: Connection,
    plans: Sequence[tuple[str, tuple[assignment.Change, ...]]],
    modules: Mapping[str, str],
    rows: Mapping[str, Mapping[str, Row]],
) -> None:
    """Write the changes, what is taken away first: a module never has two current deployments, not even in between."""
    table = deployment_devices
    dropped: list[dict[str, Any]] = []
    released: list[dict[str, Any]] = []
    updated: list[dict[str, Any]] = []
    inserted: list[dict[str, Any]] = []
    for device, changes in plans:
        for change in changes:
            key = {"b_deployment": change.deployment, "b_device": device}
            found = rows.get(device, {}).get(change.deployment)
            if isinstance(change, assignment.Drop):
                dropped.append(key)
            elif isinstance(change, assignment.Release):
                ended = found is not None and found.standing in TERMINAL
                standing = found.standing if found is not None and ended else Standing.SUPERSEDED
                released.append(key | {"b_standing": standing.value})
            else:
                values = _fresh(change)
                if found is None:
                    module = modules[change.deployment]
                    inserted.append({"deployment": change.deployment, "device": device, "module": module, **values})
                else:
                    updated.append(key | {f"b_{name}": value for name, value in values.items()})
    _grant(connection, plans)
    is_key = (table.c.deployment == bindparam("b_deployment")) & (table.c.device == bindparam("b_device"))
    if dropped:
        connection.execute(delete(table).where(is_key), dropped)
    if released:
        taken = update(table).where(is_key).values(is_current=False, standing=bindparam("b_standing"))
        connection.execute(taken, released)
    # Refusals first: one may free the module for what is assigned next.
    for batch in (
        [row for row in updated if not row["b_is_current"]],
        [row for row in updated if row["b_is_current"]],
    ):
        if batch:
            names = [name.removeprefix("b_") for name in batch[0] if name not in ("b_deployment", "b_device")]
            connection.execute(update(table).where(is_key).values({n: bindparam(f"b_{n}") for n in names}), batch)
    if inserted:
        connection.execute(insert(table), inserted)


def _grant(connection: Connection, plans: Sequence[tuple[str, tuple[assignment.Change, ...]]]) -> None:
    """Remember every bundle that a device is assigned: it may read it as long as it runs it."""
    table = device_bundles
    rows = {
        (device, str(change.bundle.manifest)): {
            "device": device,
            "manifest": str(change.bundle.manifest),
            "repository": change.bundle.repository,
            "index_digest": str(change.bundle.index),
        }
        for device, changes in plans
        for change in changes
        if isinstance(change, assignment.Assign)
    }
    if rows:
        is_key = (table.c.device == bindparam("b_device")) & (table.c.manifest == bindparam("b_manifest"))
        keys = [{"b_device": device, "b_manifest": manifest} for device, manifest in rows]
        connection.execute(delete(table).where(is_key), keys)
        connection.execute(insert(table), list(rows.values()))


def _fresh(change: assignment.Assign | assignment.Refuse) -> dict[str, Any]:
    """The columns of a row that starts anew."""
    nothing = {"phase": None, "outcome": None, "golden": None, "reported_ms": None}
    if isinstance(change, assignment.Assign):
        return nothing | {
            "is_current": True,
            "manifest": str(change.bundle.manifest),
            "standing": Standing.PENDING.value,
            "error_code": None,
            "error_detail": "",
        }
    return nothing | {
        "is_current": False,
        "manifest": None,
        "standing": Standing.REFUSED.value,
        "error_code": "artifact.platform-mismatch",
        "error_detail": change.detail,
    }
