"""The journal: one small file with the agent's record, beside the good copy before it (ADR 0003)."""

import contextlib
import hashlib
import logging
import os
import secrets
from pathlib import Path
from typing import Final

from edge_agent.limits import JOURNAL_BYTES_MAX
from edge_agent.store import durable
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import Fields, JsonObject, dump, parse_object

SCHEMA: Final = "lighterman.journal/1"
_CODE: Final = "internal.record-invalid"
_LOG: Final = logging.getLogger(__name__)


class FileJournal:
    """Implements `ports.Journal` with `path` and `path` + `.prev`. Used by one thread.

    Every save first gives the current file a second name as the previous copy, then replaces it as a whole. Each file
    carries the digest of its record, so that a damaged sector is noticed; then the previous copy serves.
    """

    def __init__(self, path: Path) -> None:
        """Name the file; its folder is made on the first save.

        Args:
            path: For example `<data>/journal.json`.
        """
        self._path = path
        self._previous = path.with_name(path.name + ".prev")

    def load(self) -> JsonObject | None:
        """See `ports.Journal.load`."""
        problems: list[str] = []
        for path in (self._path, self._previous):
            try:
                data = durable.read_file(path, JOURNAL_BYTES_MAX)
                if data is not None:
                    record = _read(data, path)
                    if problems:
                        _LOG.warning("the journal %s is damaged; its previous copy serves: %s", self._path, problems[0])
                    return record
            except OSError as error:
                problems.append(f"{path}: {error.strerror}")
            except ContractError as error:
                problems.append(f"{path}: {error.detail}")
        if problems:
            raise EdgeError(
                _CODE,
                f"no copy of the journal can be read: {'; '.join(problems)}",
                "Move the file away to let the device start empty; the cloud's assignments bring its models back.",
            )
        return None

    def save(self, record: JsonObject) -> None:
        """See `ports.Journal.save`.

        Raises:
            EdgeError: `device.disk-full`, `device.disk-error`; then the journal is as it was. `internal.bug` for a
                record over `JOURNAL_BYTES_MAX`.
        """
        body = dump(record)
        data = b"".join(
            (b'{"record":', body, b',"schema":"', SCHEMA.encode(), b'","sha256":"', _sha256(body).encode(), b'"}')
        )
        if len(data) > JOURNAL_BYTES_MAX:
            raise EdgeError(
                "internal.bug", f"the record has {len(data)} bytes, at most {JOURNAL_BYTES_MAX} are allowed"
            )
        with durable.disk_errors(f"writing {self._path}"):
            durable.make_folder(self._path.parent)
            self._keep_previous()
            durable.write_file(self._path, data)

    def _keep_previous(self) -> None:
        """Give the current file the previous copy's name too, if it is good; it keeps its own meanwhile."""
        try:
            current = durable.read_file(self._path, JOURNAL_BYTES_MAX)
            if current is None:
                return
            _read(current, self._path)
        except (OSError, ContractError):
            return  # a damaged file must not take the place of the good copy
        temporary = self._path.parent / f"{durable.TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        try:
            os.link(self._path, temporary)
        except OSError:
            # A file system without hard links: a copy does as well.
            durable.write_file(self._previous, current)
            return
        try:
            temporary.replace(self._previous)
        finally:
            # rename() of two names of one file does nothing and leaves both.
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


def _read(data: bytes, path: Path) -> JsonObject:
    fields = Fields(parse_object(data, f"journal {path}", JOURNAL_BYTES_MAX), f"journal {path}", _CODE)
    fields.schema(SCHEMA)
    record = fields.take("record")
    if not isinstance(record, dict):
        raise ContractError(_CODE, f"journal {path}: there is no record in it")
    if fields.text("sha256", chars_max=64) != _sha256(dump(record)):
        raise ContractError(_CODE, f"journal {path}: the record does not have its digest")
    return record


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
