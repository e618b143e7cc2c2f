"""Devices, their tags and the one-time tokens that enrol them (`DeviceStore`)."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, delete, insert, select

from cloud_registry.adapters.sql.assigning import facts_of, reassign
from cloud_registry.adapters.sql.database import Database
from cloud_registry.adapters.sql.hashing import ENROLMENT_PREFIX, new_token, token_hash
from cloud_registry.adapters.sql.tables import (
    deployment_devices,
    deployments,
    device_bundles,
    device_changes,
    device_keys,
    device_modules,
    device_tags,
    devices,
    enrolment_tokens,
)
from cloud_registry.core.condition import Condition
from cloud_registry.core.records import Affected, DesiredModule, Device, EnrolmentToken, Refusal, Slice
from cloud_registry.core.search import Page, like_pattern
from cloud_registry.limits import DEVICE_CHANGES_MAX, ENROLMENT_TTL_S_MAX
from cloud_registry.ports import Clock
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.names import device_name
from edge_contract.names import tags as checked_tags

_ESCAPE: Final = "\\"
_OF_DEVICES: Final = (
    deployment_devices,
    device_bundles,
    device_keys,
    device_modules,
    device_tags,
    enrolment_tokens,
)


class SqlDevices:
    """Implements `DeviceStore`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Use a migrated database."""
        self._database = database
        self._clock = clock

    def create_enrolment(self, device: str, tags: Mapping[str, str], ttl_s: int, by: str) -> EnrolmentToken:
        """Make a one-time token."""
        device_name(device)
        kept_tags = checked_tags(dict(tags))
        token = new_token(ENROLMENT_PREFIX)
        now = self._clock.wall_ms()
        expires_ms = now + ttl_s * 1000

        def work(connection: Connection) -> EnrolmentToken:
            forgotten_ms = now - ENROLMENT_TTL_S_MAX * 1000
            connection.execute(delete(enrolment_tokens).where(enrolment_tokens.c.expires_ms < forgotten_ms))
            connection.execute(
                insert(enrolment_tokens).values(
                    token_hash=token_hash(token),
                    device=device,
                    tags=json.dumps(kept_tags),
                    created_ms=now,
                    created_by=by,
                    expires_ms=expires_ms,
                )
            )
            return EnrolmentToken(token, device, expires_ms)

        return self._database.write(work)

    def get(self, device: str) -> Device:
        """One device."""
        return self._database.read(lambda connection: _one(connection, device))

    def list(self, name: str, condition: Condition | None, page: Page) -> Slice[Device]:
        """Devices by name. A condition is evaluated here, so that there is one meaning of it."""

        def work(connection: Connection) -> Slice[Device]:
            if condition is not None:
                return self._matching_slice(connection, name, condition, page)
            query = _named(select(devices.c.name), name).order_by(devices.c.name).limit(page.limit + 1)
            if page.after is not None:
                query = query.where(devices.c.name > page.after)
            return _slice(connection, list(connection.execute(query).scalars()), page.limit)

        return self._database.read(work)

    def matching(self, condition: Condition) -> Sequence[str]:
        """Names of the devices a condition matches."""

        def work(connection: Connection) -> Sequence[str]:
            return [facts.name for facts in facts_of(connection, None) if condition.matches(facts)]

        return self._database.read(work)

    def set_tags(self, device: str, tags: Mapping[str, str]) -> Affected[Device]:
        """Replace a device's tags; its assignments follow."""
        kept_tags = checked_tags(dict(tags))

        def work(connection: Connection) -> Affected[Device]:
            self._database.lock_assignments(connection)
            _require(connection, device)
            write_tags(connection, device, kept_tags)
            changed = reassign(connection, [device], None)
            return Affected(_one(connection, device), changed)

        return self._database.write(work)

    def delete(self, device: str, by: str) -> str:
        """Forget a device. The watermarks of its boots stay, in case it returns with old records."""

        def work(connection: Connection) -> str:
            self._database.lock_assignments(connection)
            identity = _require(connection, device)
            for table in _OF_DEVICES:
                connection.execute(delete(table).where(table.c.device == device))
            connection.execute(delete(devices).where(devices.c.name == device))
            note_change(connection, device, "deleted", {"identity": identity}, self._clock.wall_ms(), by)
            return identity

        return self._database.write(work)

    def _matching_slice(self, connection: Connection, name: str, condition: Condition, page: Page) -> Slice[Device]:
        query = _named(select(devices.c.name), name)
        wanted = set(connection.execute(query).scalars())
        names = [
            facts.name
            for facts in facts_of(connection, None)
            if facts.name in wanted and condition.matches(facts) and (page.after is None or facts.name > page.after)
        ]
        return _slice(connection, sorted(names)[: page.limit + 1], page.limit)


def _named(query: Any, name: str) -> Any:
    if "*" in name:
        return query.where(devices.c.name.like(like_pattern(name, is_wild=True), escape=_ESCAPE))
    return query.where(devices.c.name == name) if name else query


def _slice(connection: Connection, names: list[str], limit: int) -> Slice[Device]:
    items = _read(connection, names[:limit])
    return Slice(items, names[limit - 1] if len(names) > limit else None)


def _require(connection: Connection, device: str) -> str:
    """The identity of a device, which stays as it is until the end of the transaction."""
    found = connection.execute(select(devices.c.identity).where(devices.c.name == device).with_for_update()).first()
    if found is None:
        raise no_device(device)
    return str(found.identity)


def no_device(device: str) -> EdgeError:
    """The error for a device that is not enrolled."""
    return EdgeError("cloud.not-found", f"there is no device {device[:80]!r}")


def _one(connection: Connection, device: str) -> Device:
    found = _read(connection, [device])
    if not found:
        raise no_device(device)
    return found[0]


def write_tags(connection: Connection, device: str, tags: Mapping[str, str]) -> None:
    """Replace a device's tags; its assignments are brought in line by the caller."""
    connection.execute(delete(device_tags).where(device_tags.c.device == device))
    if tags:
        rows = [{"device": device, "key": key, "value": value} for key, value in tags.items()]
        connection.execute(insert(device_tags), rows)


def _read(connection: Connection, names: Sequence[str]) -> tuple[Device, ...]:
    """Devices with their tags and desired modules, by name."""
    tags: dict[str, dict[str, str]] = defaultdict(dict)
    query = select(device_tags).where(device_tags.c.device.in_(names)).order_by(device_tags.c.key)
    for row in connection.execute(query):
        tags[row.device][row.key] = row.value
    desired: dict[str, dict[str, DesiredModule]] = defaultdict(dict)
    table = deployment_devices
    current = (
        select(table.c.device, table.c.module, table.c.manifest, deployments.c.id, deployments.c.model)
        .add_columns(deployments.c.number)
        .join_from(table, deployments, deployments.c.id == table.c.deployment)
        .where(table.c.device.in_(names), table.c.is_current.is_(True))
        .order_by(table.c.module)
    )
    for row in connection.execute(current):
        desired[row.device][row.module] = DesiredModule(row.id, row.model, row.number, Digest(row.manifest))
    keys = select(device_keys).where(device_keys.c.device.in_(names), device_keys.c.is_next.is_(False))
    keyids = {row.device: row.keyid for row in connection.execute(keys)}
    found = connection.execute(select(devices).where(devices.c.name.in_(names)).order_by(devices.c.name))
    return tuple(
        Device(
            name=row.name,
            tags=tags.get(row.name, {}),
            platform=row.platform,
            hardware_id=row.hardware_id,
            enrolled_ms=row.enrolled_ms,
            identity=row.identity,
            keyid=keyids.get(row.name),
            certificate_until_ms=row.certificate_until_ms,
            revoked_ms=row.revoked_ms,
            refusal=_refusal(row),
            desired=desired.get(row.name, {}),
            report=None if row.report is None else json.loads(row.report),
            report_received_ms=row.report_received_ms,
        )
        for row in found
    )


def note_change(connection: Connection, device: str, kind: str, detail: JsonObject, now_ms: int, by: str) -> None:
    """Add a line to the history of a device's identity, and forget the oldest beyond the bound."""
    table = device_changes
    connection.execute(
        insert(table).values(device=device, kind=kind, detail=json.dumps(detail), changed_ms=now_ms, changed_by=by)
    )
    newest = select(table.c.id).where(table.c.device == device).order_by(table.c.id.desc())
    last_kept = connection.execute(newest.offset(DEVICE_CHANGES_MAX - 1).limit(1)).scalar_one_or_none()
    if last_kept is not None:
        connection.execute(delete(table).where(table.c.device == device, table.c.id < last_kept))


def _refusal(row: Any) -> Refusal | None:
    if row.refusal_code is None:
        return None
    return Refusal(row.refusal_code, row.refusal_detail, row.refusal_ms, row.refusals)
