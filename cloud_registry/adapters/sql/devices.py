"""Devices, their tags and the one-time tokens that enrol them (`DeviceStore`, `EnrolmentStore`)."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, delete, insert, select, update

from cloud_registry.adapters.sql.assigning import facts_of, reassign
from cloud_registry.adapters.sql.database import Database
from cloud_registry.adapters.sql.hashing import ENROLMENT_PREFIX, new_token, token_hash
from cloud_registry.adapters.sql.tables import (
    deployment_devices,
    deployments,
    device_modules,
    device_tags,
    devices,
    enrolment_tokens,
)
from cloud_registry.core.condition import Condition
from cloud_registry.core.records import Affected, DesiredModule, Device, EnrolmentToken, Slice
from cloud_registry.core.search import Page, like_pattern
from cloud_registry.limits import ENROLMENT_TTL_S_MAX, LABEL_CHARS_MAX
from cloud_registry.ports import Clock, EnrolledDevice
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.names import device_name, platform_name
from edge_contract.names import tags as checked_tags

_ESCAPE: Final = "\\"
_SPENT: Final = "cloud.token-spent"
_SPENT_HINT: Final = "Ask an operator for a new enrolment token."


class SqlDevices:
    """Implements `DeviceStore` and `EnrolmentStore`."""

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

    def redeem(self, token: str, key: Digest, platform: str, hardware_id: str, device_token: str) -> EnrolledDevice:
        """Spend a token and enrol its device."""
        platform_name(platform)
        if len(hardware_id) > LABEL_CHARS_MAX or not (hardware_id.isprintable() or not hardware_id):
            raise EdgeError(
                "cloud.name-invalid", f"a hardware id is printable, of at most {LABEL_CHARS_MAX} characters"
            )

        def work(connection: Connection) -> EnrolledDevice:
            self._database.lock_assignments(connection)
            spent = self._spend(connection, token, key)
            device = str(spent.device)
            values = {
                "platform": platform,
                "hardware_id": hardware_id,
                "key_digest": str(key),
                "token_hash": token_hash(device_token),
            }
            changed = connection.execute(update(devices).where(devices.c.name == device).values(values))
            is_new = changed.rowcount == 0
            if is_new:
                connection.execute(insert(devices).values(name=device, enrolled_ms=self._clock.wall_ms(), **values))
            tags = json.loads(spent.tags)
            if tags or is_new:
                _write_tags(connection, device, tags)
            reassign(connection, [device], None)
            return EnrolledDevice(device, is_new)

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
            _write_tags(connection, device, kept_tags)
            changed = reassign(connection, [device], None)
            return Affected(_one(connection, device), changed)

        return self._database.write(work)

    def delete(self, device: str) -> None:
        """Forget a device. The watermarks of its boots stay, in case it returns with old records."""

        def work(connection: Connection) -> None:
            self._database.lock_assignments(connection)
            _require(connection, device)
            for table in (deployment_devices, device_modules, device_tags, enrolment_tokens):
                connection.execute(delete(table).where(table.c.device == device))
            connection.execute(delete(devices).where(devices.c.name == device))

        self._database.write(work)

    def _spend(self, connection: Connection, token: str, key: Digest) -> Any:
        table = enrolment_tokens
        is_it = table.c.token_hash == token_hash(token)
        found = connection.execute(select(table).where(is_it).with_for_update()).first()
        if found is None:
            raise EdgeError(_SPENT, "the enrolment token is unknown", _SPENT_HINT)
        if found.expires_ms <= self._clock.wall_ms():
            raise EdgeError(_SPENT, f"the enrolment token of {found.device} is past its expiry", _SPENT_HINT)
        if found.key_digest not in (None, str(key)):
            raise EdgeError(_SPENT, f"the enrolment token of {found.device} was used with another key", _SPENT_HINT)
        connection.execute(update(table).where(is_it).values(key_digest=str(key)))
        return found

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


def _require(connection: Connection, device: str) -> None:
    if connection.execute(select(devices.c.name).where(devices.c.name == device).with_for_update()).first() is None:
        raise no_device(device)


def no_device(device: str) -> EdgeError:
    """The error for a device that is not enrolled."""
    return EdgeError("cloud.not-found", f"there is no device {device[:80]!r}")


def _one(connection: Connection, device: str) -> Device:
    found = _read(connection, [device])
    if not found:
        raise no_device(device)
    return found[0]


def _write_tags(connection: Connection, device: str, tags: Mapping[str, str]) -> None:
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
    found = connection.execute(select(devices).where(devices.c.name.in_(names)).order_by(devices.c.name))
    return tuple(
        Device(
            name=row.name,
            tags=tags.get(row.name, {}),
            platform=row.platform,
            hardware_id=row.hardware_id,
            enrolled_ms=row.enrolled_ms,
            desired=desired.get(row.name, {}),
            report=None if row.report is None else json.loads(row.report),
            report_received_ms=row.report_received_ms,
        )
        for row in found
    )
