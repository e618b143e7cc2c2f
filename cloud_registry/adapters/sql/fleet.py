"""What the collector keeps: reports, watermarks, and the catalogue of the lake's files (`FleetStore`)."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Connection, delete, func, insert, select, update

from cloud_registry.adapters.sql.database import Database
from cloud_registry.adapters.sql.devices import no_device
from cloud_registry.adapters.sql.tables import (
    deployment_devices,
    device_boots,
    device_modules,
    devices,
    lake_files,
)
from cloud_registry.core.progress import TERMINAL, progress_of
from cloud_registry.ports import LakeFile, Watermark
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.twin import Report

_BOOTS_KEPT_MAX: Final = 1_000
_REPORTS_A_PAGE: Final = 200


class SqlFleet:
    """Implements `FleetStore`."""

    def __init__(self, database: Database) -> None:
        """Use a migrated database."""
        self._database = database

    def apply_report(self, report: Report, received_ms: int) -> bool:
        """Take a report and what follows from it."""

        def work(connection: Connection) -> bool:
            query = select(devices.c.report_boot, devices.c.report_number).where(devices.c.name == report.device)
            stored = connection.execute(query.with_for_update()).first()
            if stored is None:
                raise no_device(report.device)
            if not _is_newer(connection, report, stored):
                return False
            connection.execute(
                update(devices)
                .where(devices.c.name == report.device)
                .values(
                    report=report.to_bytes().decode("utf-8"),
                    report_boot=report.boot,
                    report_number=report.number,
                    report_received_ms=received_ms,
                )
            )
            _write_modules(connection, report)
            _write_progress(connection, report, received_ms)
            return True

        return self._database.write(work)

    def watermark(self, device: str, boot: str) -> int | None:
        """Highest durable record number of a boot."""

        def work(connection: Connection) -> int | None:
            if connection.execute(select(devices.c.name).where(devices.c.name == device)).first() is None:
                return None
            return _watermark(connection, device, boot) or 0

        return self._database.read(work)

    def commit_batch(self, marks: Sequence[Watermark], file: LakeFile) -> None:
        """Advance watermarks and enter the file, together."""

        def work(connection: Connection) -> None:
            # One order for everybody, so that two collectors never wait for each other in a circle.
            for mark in sorted(marks, key=lambda item: (item.device, item.boot)):
                _advance(connection, mark)
            connection.execute(insert(lake_files).values(_file_values(file)))

        self._database.write(work)

    def lake_files(self) -> Sequence[LakeFile]:
        """The whole catalogue."""
        table = lake_files

        def work(connection: Connection) -> Sequence[LakeFile]:
            return [
                LakeFile(row.path, row.rows, row.size, row.received_ms_min, row.received_ms_max)
                for row in connection.execute(select(table).order_by(table.c.id))
            ]

        return self._database.read(work)

    def report_rows(self) -> Iterator[JsonObject]:
        """The newest reports, read a page at a time: a fleet's reports together may not fit in memory."""
        after = ""
        while page := self._report_page(after):
            for row in page:
                yield _report_row(row)
            after = page[-1].name

    def _report_page(self, after: str) -> Sequence[Any]:
        table = devices
        query = select(table.c.name, table.c.report, table.c.report_received_ms).where(table.c.name > after)
        query = query.where(table.c.report.is_not(None)).order_by(table.c.name).limit(_REPORTS_A_PAGE)
        return self._database.read(lambda connection: list(connection.execute(query)))

    def replace_files(self, old: Sequence[str], new: Sequence[LakeFile]) -> None:
        """Exchange catalogue rows."""

        def work(connection: Connection) -> None:
            for path in sorted(old):
                gone = connection.execute(delete(lake_files).where(lake_files.c.path == path))
                if gone.rowcount != 1:
                    raise EdgeError("cloud.conflict", f"the lake has no file {path!r} any more")
            for file in new:
                connection.execute(insert(lake_files).values(_file_values(file)))

        self._database.write(work)


def _report_row(row: Any) -> JsonObject:
    report = json.loads(row.report)
    copied = ("device", "boot", "number", "sent_ms", "platform", "agent_version", "director_version", "bytes_fetched")
    return {key: report[key] for key in copied} | {"received_ms": row.report_received_ms, "body": row.report}


def _file_values(file: LakeFile) -> dict[str, Any]:
    return {
        "path": file.path,
        "rows": file.rows,
        "size": file.size,
        "received_ms_min": file.received_ms_min,
        "received_ms_max": file.received_ms_max,
    }


def _is_newer(connection: Connection, report: Report, stored: Any) -> bool:
    """Whether a report is the newest: of the newest boot with a higher number, or of a boot that never reported."""
    if stored.report_boot == report.boot:
        return bool(report.number > stored.report_number)
    table = device_boots
    is_it = (table.c.device == report.device) & (table.c.boot == report.boot)
    known = connection.execute(select(table.c.reported_order).where(is_it)).first()
    if known is not None and known.reported_order is not None:
        return False
    newest = select(func.max(table.c.reported_order)).where(table.c.device == report.device)
    order = (connection.execute(newest).scalar_one_or_none() or 0) + 1
    if known is None:
        values = {"device": report.device, "boot": report.boot, "reported_order": order, "watermark": 0}
        connection.execute(insert(table).values(values))
    else:
        connection.execute(update(table).where(is_it).values(reported_order=order))
    old = (table.c.device == report.device) & (table.c.reported_order <= order - _BOOTS_KEPT_MAX)
    connection.execute(delete(table).where(old))
    return True


def _write_modules(connection: Connection, report: Report) -> None:
    connection.execute(delete(device_modules).where(device_modules.c.device == report.device))
    rows = [
        {
            "device": report.device,
            "module": name,
            "model": module.model,
            "number": module.version,
            "manifest": str(module.live),
        }
        for name, module in report.modules.items()
        if module.live is not None
    ]
    if rows:
        connection.execute(insert(device_modules), rows)


def _write_progress(connection: Connection, report: Report, received_ms: int) -> None:
    table = deployment_devices
    query = select(table.c.deployment, table.c.module, table.c.manifest).where(
        table.c.device == report.device,
        table.c.manifest.is_not(None),
        table.c.is_current.is_(True) | table.c.standing.not_in([standing.value for standing in TERMINAL]),
    )
    for row in connection.execute(query.order_by(table.c.deployment)).all():
        progress = progress_of(report, row.module, row.deployment, row.manifest)
        if progress is None:
            continue
        connection.execute(
            update(table)
            .where(table.c.deployment == row.deployment, table.c.device == report.device)
            .where(table.c.manifest == row.manifest)  # an operator may have changed it since it was read
            .values(
                standing=progress.standing.value,
                phase=str(progress.phase),
                outcome=None if progress.outcome is None else progress.outcome.value,
                error_code=progress.error_code,
                error_detail=progress.error_detail,
                reported_ms=received_ms,
            )
        )


def _watermark(connection: Connection, device: str, boot: str, is_locked: bool = False) -> int | None:
    table = device_boots
    query = select(table.c.watermark).where(table.c.device == device, table.c.boot == boot)
    return connection.execute(query.with_for_update() if is_locked else query).scalar_one_or_none()


def _advance(connection: Connection, mark: Watermark) -> None:
    table = device_boots
    if mark.last <= mark.previous:
        raise EdgeError("internal.bug", f"the watermark of {mark.device} would not rise")
    if connection.execute(select(devices.c.name).where(devices.c.name == mark.device)).first() is None:
        raise EdgeError("cloud.conflict", f"there is no device {mark.device} any more")
    stored = _watermark(connection, mark.device, mark.boot, is_locked=True)
    if (stored or 0) != mark.previous:
        raise EdgeError(
            "cloud.conflict", f"{mark.device}: another collector was faster ({stored}, not {mark.previous})"
        )
    if stored is None:
        # Two first writers: the second one's insert fails on the key, which is a conflict.
        connection.execute(insert(table).values(device=mark.device, boot=mark.boot, watermark=mark.last))
    else:
        is_it = (table.c.device == mark.device) & (table.c.boot == mark.boot)
        connection.execute(update(table).where(is_it).values(watermark=mark.last))
