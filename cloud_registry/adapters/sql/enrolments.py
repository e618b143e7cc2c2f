"""Spends enrolment tokens, and keeps the identities that devices get for them (`EnrolmentStore`)."""

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, delete, insert, select, update

from cloud_registry.adapters.sql.assigning import reassign
from cloud_registry.adapters.sql.database import Database
from cloud_registry.adapters.sql.devices import no_device, note_change, write_tags
from cloud_registry.adapters.sql.hashing import token_hash
from cloud_registry.adapters.sql.tables import device_changes, device_keys, devices, enrolment_tokens
from cloud_registry.core.identity import MARK_BYTES, identity_name
from cloud_registry.core.records import DeviceChange
from cloud_registry.identities import DeviceKey, EnrolledDevice, EnrolledKey
from cloud_registry.limits import LABEL_CHARS_MAX
from cloud_registry.ports import Clock
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.names import platform_name

_SPENT: Final = "cloud.token-spent"
_SPENT_HINT: Final = "Ask an operator for a new enrolment token."


class SqlEnrolments:
    """Implements `EnrolmentStore`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Use a migrated database."""
        self._database = database
        self._clock = clock

    def redeem(
        self, token: str, key: DeviceKey, platform: str, hardware_id: str, certificate_until_ms: int
    ) -> EnrolledDevice:
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
            query = select(devices.c.identity, devices.c.revoked_ms).where(devices.c.name == device)
            before = connection.execute(query).first()
            if spent.identity is None:
                identity = identity_name(device, secrets.token_hex(MARK_BYTES))
                is_it = enrolment_tokens.c.token_hash == spent.token_hash
                connection.execute(update(enrolment_tokens).where(is_it).values(keyid=key.keyid, identity=identity))
            elif before is None or before.identity != spent.identity or before.revoked_ms is not None:
                raise EdgeError(_SPENT, f"the identity that this token gave {device} has ended", _SPENT_HINT)
            else:
                identity = str(spent.identity)
            if before is None or before.identity != identity:
                self._begin(connection, device, identity, key, is_new=before is None)
            values = {
                "platform": platform,
                "hardware_id": hardware_id,
                "certificate_until_ms": certificate_until_ms,
            }
            connection.execute(update(devices).where(devices.c.name == device).values(values))
            tags = json.loads(spent.tags)
            if tags or before is None:
                write_tags(connection, device, tags)
            reassign(connection, [device], None)
            former = None if before is None or before.identity == identity else str(before.identity)
            return EnrolledDevice(device, identity, former)

        return self._database.write(work)

    def renew(self, device: str, key: DeviceKey, certificate_until_ms: int) -> str:
        """Note a new certificate."""

        def work(connection: Connection) -> str:
            query = select(devices.c.identity, devices.c.revoked_ms).where(devices.c.name == device)
            found = connection.execute(query.with_for_update()).first()
            if found is None:
                raise no_device(device)
            if found.revoked_ms is not None:
                raise EdgeError("cloud.device-revoked", f"the identity of {device} was revoked")
            table = device_keys
            ours = table.c.device == device
            connection.execute(delete(table).where(ours, table.c.is_next.is_(True)))
            is_known = connection.execute(select(table.c.keyid).where(ours, table.c.keyid == key.keyid)).first()
            if is_known is None:
                connection.execute(insert(table).values(device=device, keyid=key.keyid, pem=key.pem, is_next=True))
            connection.execute(
                update(devices).where(devices.c.name == device).values(certificate_until_ms=certificate_until_ms)
            )
            self._note(connection, device, "renewed", {"keyid": key.keyid, "is_new_key": is_known is None}, device)
            return str(found.identity)

        return self._database.write(work)

    def revoke(self, device: str, by: str) -> str:
        """End an identity. Its keys stay, so that the device can be told why it is refused."""

        def work(connection: Connection) -> str:
            query = select(devices.c.identity, devices.c.revoked_ms).where(devices.c.name == device)
            found = connection.execute(query.with_for_update()).first()
            if found is None:
                raise no_device(device)
            connection.execute(delete(enrolment_tokens).where(enrolment_tokens.c.device == device))
            if found.revoked_ms is None:
                now = self._clock.wall_ms()
                connection.execute(update(devices).where(devices.c.name == device).values(revoked_ms=now))
                self._note(connection, device, "revoked", {"identity": found.identity}, by)
            return str(found.identity)

        return self._database.write(work)

    def identities(self) -> Mapping[str, str]:
        """Devices by identity."""
        query = select(devices.c.identity, devices.c.name).where(devices.c.revoked_ms.is_(None))
        return self._database.read(lambda connection: {row.identity: row.name for row in connection.execute(query)})

    def find_keys(self, keyid: str) -> Sequence[EnrolledKey]:
        """The enrolled keys with this identifier."""
        query = select(device_keys, devices.c.revoked_ms, devices.c.certificate_until_ms).join_from(
            device_keys, devices, devices.c.name == device_keys.c.device
        )
        query = query.where(device_keys.c.keyid == keyid)
        return self._database.read(
            lambda connection: [
                EnrolledKey(
                    row.device, row.keyid, row.pem, row.is_next, row.revoked_ms is not None, row.certificate_until_ms
                )
                for row in connection.execute(query)
            ]
        )

    def promote(self, device: str, keyid: str) -> None:
        """Let the new key of a renewal take the place of the old one."""
        table = device_keys

        def work(connection: Connection) -> None:
            connection.execute(select(devices.c.name).where(devices.c.name == device).with_for_update())
            is_it = (table.c.device == device) & (table.c.keyid == keyid)
            changed = connection.execute(update(table).where(is_it, table.c.is_next.is_(True)).values(is_next=False))
            if changed.rowcount:
                connection.execute(delete(table).where(table.c.device == device, table.c.keyid != keyid))
                self._note(connection, device, "key-replaced", {"keyid": keyid}, device)

        self._database.write(work)

    def history(self, device: str) -> Sequence[DeviceChange]:
        """What happened to a device's identity."""
        table = device_changes
        query = select(table).where(table.c.device == device).order_by(table.c.id)
        return self._database.read(
            lambda connection: [
                DeviceChange(row.kind, json.loads(row.detail), row.changed_ms, row.changed_by)
                for row in connection.execute(query)
            ]
        )

    def _spend(self, connection: Connection, token: str, key: DeviceKey) -> Any:
        table = enrolment_tokens
        is_it = table.c.token_hash == token_hash(token)
        found = connection.execute(select(table).where(is_it).with_for_update()).first()
        if found is None:
            raise EdgeError(_SPENT, "the enrolment token is unknown", _SPENT_HINT)
        if found.expires_ms <= self._clock.wall_ms():
            raise EdgeError(_SPENT, f"the enrolment token of {found.device} is past its expiry", _SPENT_HINT)
        if found.keyid not in (None, key.keyid):
            raise EdgeError(_SPENT, f"the enrolment token of {found.device} was used with another key", _SPENT_HINT)
        return found

    def _begin(self, connection: Connection, device: str, identity: str, key: DeviceKey, *, is_new: bool) -> None:
        """Start an identity in place of whatever the device was before; what it reported counts no more."""
        fresh: dict[str, Any] = {
            "identity": identity,
            "revoked_ms": None,
            "report_boot": None,
            "report_number": None,
            "refusals": 0,
            "refusal_code": None,
            "refusal_detail": "",
            "refusal_ms": None,
        }
        if is_new:
            place = {"name": device, "platform": "", "hardware_id": "", "certificate_until_ms": 0}
            connection.execute(insert(devices).values(**place, enrolled_ms=self._clock.wall_ms(), **fresh))
        else:
            connection.execute(update(devices).where(devices.c.name == device).values(fresh))
        connection.execute(delete(device_keys).where(device_keys.c.device == device))
        connection.execute(insert(device_keys).values(device=device, keyid=key.keyid, pem=key.pem, is_next=False))
        self._note(connection, device, "enrolled", {"identity": identity, "keyid": key.keyid}, device)

    def _note(self, connection: Connection, device: str, kind: str, detail: JsonObject, by: str) -> None:
        note_change(connection, device, kind, detail, self._clock.wall_ms(), by)
