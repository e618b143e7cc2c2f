"""What the collector keeps: reports, watermarks, and the catalogue of the lake's files (`FleetStore`)."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Connection, delete, insert, select, update

from cloud_registry.adapters.device_keys import is_signed
from cloud_registry.adapters.sql.database import Database
from cloud_registry.adapters.sql.tables import (
    deployment_devices,
    device_boots,
    device_keys,
    device_modules,
    devices,
    lake_files,
)
from cloud_registry.core.progress import TERMINAL, Standing, progress_of
from cloud_registry.core.reports import REPLAYED, open_report, require_newer
from cloud_registry.ports import EnvelopeVerifier, LakeFile, ReportMessage, ReportVerdict, Watermark
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.limits import DETAIL_CHARS_MAX
from edge_contract.phases import Outcome
from edge_contract.twin import Report, ReportedModule

_BOOTS_KEPT_MAX: Final = 1_000
_REPORTS_A_PAGE: Final = 200


class SqlFleet:
    """Implements `FleetStore`."""

    def __init__(self, database: Database, is_signed: EnvelopeVerifier = is_signed) -> None:
        """Use a migrated database.

        Args:
            database: The database.
            is_signed: Checks the signatures of reports.
        """
        self._database = database
        self._is_signed = is_signed

    def take_reports(self, device: str, messages: Sequence[ReportMessage]) -> Sequence[ReportVerdict]:
        """Verify reports, and take the newest."""

        def work(connection: Connection) -> Sequence[ReportVerdict]:
            query = select(devices.c.revoked_ms, devices.c.report_boot, devices.c.report_number)
            known = connection.execute(query.where(devices.c.name == device).with_for_update()).first()
            if known is None:
                return [ReportVerdict("cloud.not-found", f"there is no device {device!r}")] * len(messages)
            keys = {
                row.keyid: row.pem
                for row in connection.execute(select(device_keys).where(device_keys.c.device == device))
            }
            newest = None if known.report_boot is None else (known.report_boot, known.report_number)
            verdicts: list[ReportVerdict] = []
            taken: tuple[int, Report] | None = None
            for place, message in enumerate(messages):
                try:
                    if known.revoked_ms is not None:
                        raise EdgeError("cloud.device-revoked", f"the identity of {device} was revoked")
                    report = open_report(message.content, device, keys, self._is_signed)
                    newest = require_newer(report, newest)
                    taken = (place, report)
                    verdicts.append(ReportVerdict())
                except EdgeError as error:
                    verdicts.append(ReportVerdict(error.code, error.detail))
            if taken is not None:
                place, report = taken
                verdicts[place] = ReportVerdict(is_applied=True)
                _apply(connection, report, messages[place].received_ms, known.report_boot)
            _note_refusals(connection, device, messages, verdicts)
            return verdicts

        return self._database.write(work)

    def watermark(self, device: str, boot: str) -> int | None:
        """Highest durable record number of a boot."""

        def work(connection: Connection) -> int | None:
            query = select(devices.c.name).where(devices.c.name == device, devices.c.revoked_ms.is_(None))
            if connection.execute(query).first() is None:
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
    # Reports of agents before this version say nothing of deltas.
    saved = {"bytes_saved": report.get("bytes_saved", 0)}
    return {key: report[key] for key in copied} | saved | {"received_ms": row.report_received_ms, "body": row.report}


def _file_values(file: LakeFile) -> dict[str, Any]:
    return {
        "path": file.path,
        "rows": file.rows,
        "size": file.size,
        "received_ms_min": file.received_ms_min,
        "received_ms_max": file.received_ms_max,
    }


def _apply(connection: Connection, report: Report, received_ms: int, boot_before: str | None) -> None:
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
    if report.boot != boot_before:
        _forget_boots(connection, report.device, report.boot)
    _write_modules(connection, report)
    _write_progress(connection, report, received_ms)


def _forget_boots(connection: Connection, device: str, boot: str) -> None:
    """Drop the watermarks of boots so long before this one that nobody can have records of them any more."""
    table = device_boots
    before = select(table.c.boot).where(table.c.device == device, table.c.boot <= boot)
    newest = before.order_by(table.c.boot.desc())
    last_kept = connection.execute(newest.offset(_BOOTS_KEPT_MAX - 1).limit(1)).scalar_one_or_none()
    if last_kept is not None:
        connection.execute(delete(table).where(table.c.device == device, table.c.boot < last_kept))


def _note_refusals(
    connection: Connection, device: str, messages: Sequence[ReportMessage], verdicts: Sequence[ReportVerdict]
) -> None:
    refused = [
        (message, verdict)
        for message, verdict in zip(messages, verdicts, strict=True)
        if verdict.code is not None and not (message.is_copy and verdict.code == REPLAYED)
    ]
    if not refused:
        return
    message, verdict = refused[-1]
    values = {
        "refusals": devices.c.refusals + len(refused),
        "refusal_code": verdict.code,
        # What a stranger wrote may be in it, and some databases cannot store the character NUL.
        "refusal_detail": verdict.detail.replace("\0", "?")[:DETAIL_CHARS_MAX],
        "refusal_ms": message.received_ms,
    }
    connection.execute(update(devices).where(devices.c.name == device).values(values))


def _write_modules(connection: Connection, report: Report) -> None:
    connection.execute(delete(device_modules).where(device_modules.c.device == report.device))
    rows = [
        {
            "device": report.device,
            "module": name,
            "model": module.model if module.live is not None else "",
            "number": module.version if module.live is not None else 0,
            "manifest": _text(module.live),
            "fallback": _text(module.fallback),
            "confirmed": _confirmed(module),
        }
        for name, module in report.modules.items()
    ]
    if rows:
        connection.execute(insert(device_modules), rows)


def _text(digest: Digest | None) -> str | None:
    return None if digest is None else str(digest)


def _confirmed(module: ReportedModule) -> str | None:
    latest = module.deployment
    return str(latest.manifest) if latest is not None and latest.outcome is Outcome.CONFIRMED else None


def _write_progress(connection: Connection, report: Report, received_ms: int) -> None:
    table = deployment_devices
    columns = (table.c.deployment, table.c.module, table.c.manifest, table.c.standing, table.c.golden)
    query = select(*columns).where(
        table.c.device == report.device,
        table.c.manifest.is_not(None),
        table.c.is_current.is_(True) | table.c.standing.not_in([standing.value for standing in TERMINAL]),
    )
    for row in connection.execute(query.order_by(table.c.deployment)).all():
        before = Standing(row.standing)
        progress = progress_of(report, row.module, row.deployment, row.manifest, before, row.golden)
        if progress is None:
            continue
        connection.execute(
            update(table)
            .where(table.c.deployment == row.deployment, table.c.device == report.device)
            .where(table.c.manifest == row.manifest)  # an operator may have changed it since it was read
            .values(
                standing=progress.standing.value,
                phase=None if progress.phase is None else str(progress.phase),
                outcome=None if progress.outcome is None else progress.outcome.value,
                error_code=progress.error_code,
                error_detail=progress.error_detail,
                golden=progress.golden,
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
