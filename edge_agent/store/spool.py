"""The spool: telemetry that waits for the collector's acknowledgement, in SQLite, within a byte budget.

Records are numbered within a boot (one run of the agent). Numbers are never used twice: a power cut ends the boot,
and the next one counts anew under another identifier.
"""

import contextlib
import logging
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from edge_agent.limits import (
    SPOOL_BUSY_MS,
    SPOOL_BYTES_DEFAULT,
    SPOOL_BYTES_MIN,
    SPOOL_RECORD_OVERHEAD_BYTES,
)
from edge_agent.store import durable
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import JsonObject, dump, parse_object
from edge_contract.limits import BATCH_BYTES_MAX, BATCH_SAMPLES_MAX, KIB, SAMPLE_BYTES_MAX
from edge_contract.telemetry import Ack, Batch, Sample

_LOG: Final = logging.getLogger(__name__)
_ENVELOPE_BYTES: Final = 512  # of a batch, around its samples
_STORED_BYTES_MAX: Final = SAMPLE_BYTES_MAX + 4 * KIB  # a sample: its body and the fields around it
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PASSING: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)  # a full disk shows as either
_SETTINGS: Final = ("journal_mode = WAL", "synchronous = FULL", "journal_size_limit = 1048576", "cache_size = -512")
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS boots (
    id INTEGER PRIMARY KEY AUTOINCREMENT, boot TEXT NOT NULL UNIQUE, last INTEGER NOT NULL, dropped INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS records (
    boot_id INTEGER NOT NULL, seq INTEGER NOT NULL, sample BLOB NOT NULL, PRIMARY KEY (boot_id, seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS totals (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO totals VALUES ('dropped', 0);
PRAGMA user_version = 1;
"""


def new_boot() -> str:
    """An identifier for this run of the agent: 16 hexadecimal digits."""
    return secrets.token_hex(8)


class SqliteSpool:
    """Implements `ports.Spool`. Any thread; each call is one transaction, durable on return.

    Telemetry is not worth a device that does not start. A file that is not a database any more is set aside as
    `<path>.bad` and a new spool begins; while the disk is full every call tries to open the spool, and raises until it
    can. Hand records over in groups; every call costs a sync of the disk.
    """

    def __init__(self, path: Path, device: str, bytes_max: int = SPOOL_BYTES_DEFAULT, boot: str | None = None) -> None:
        """Open or make the spool and begin a boot.

        Args:
            path: The database file; its folder is made when missing.
            device: Name of this device, for batches.
            bytes_max: Budget for what waits, at least `SPOOL_BYTES_MIN`; the file may be about a third larger.
            boot: Identifier of this run; a new one when none. An identifier seen before goes on counting.

        Raises:
            EdgeError: `device.disk-error`; `device.disk-full` when not even the folder can be made.
        """
        self._path = path
        self._device = device
        self._bytes_max = max(bytes_max, SPOOL_BYTES_MIN)
        self._lock = threading.Lock()
        self._boot_id = self._records = self._bytes = 0
        self._is_open = False
        self.boot = boot or new_boot()
        with durable.disk_errors(f"making {path.parent}"):
            durable.make_folder(path.parent)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if _code(error) in _PASSING:
                _LOG.warning("%s", self._error(error))
            elif _code(error) not in _DAMAGED:
                raise self._error(error) from error
            else:
                self._set_aside(error)

    def append(self, records: Sequence[JsonObject]) -> None:
        """See `ports.Spool.append`.

        Records that are no samples, or are larger than `SAMPLE_BYTES_MAX`, can never be sent: they are dropped and
        counted.

        Raises:
            EdgeError: `device.disk-full`, `device.disk-error`; then none of the records is kept.
        """
        with self._transaction() as database:
            last, dropped = database.execute(
                "SELECT last, dropped FROM boots WHERE id = ?", (self._boot_id,)
            ).fetchone()
            rows: list[tuple[int, int, bytes]] = []
            refused = 0
            for record in records:
                sample = _encode(record, last + 1)
                if sample is None:
                    refused += 1
                    continue
                last += 1
                rows.append((self._boot_id, last, sample))
            database.executemany("INSERT INTO records VALUES (?, ?, ?)", rows)
            database.execute(
                "UPDATE boots SET last = ?, dropped = ? WHERE id = ?", (last, dropped + refused, self._boot_id)
            )
            database.execute("UPDATE totals SET value = value + ? WHERE name = 'dropped'", (refused,))
            added = sum(len(sample) + SPOOL_RECORD_OVERHEAD_BYTES for _, _, sample in rows)
            records_gone, bytes_gone = _make_room(database, self._bytes + added - self._bytes_max)
            self._records += len(rows) - records_gone
            self._bytes += added - bytes_gone
        if refused:
            _LOG.warning("%d records were dropped because they are no samples the cloud could read", refused)

    def next_batch(self) -> Batch | None:
        """See `ports.Spool.next_batch`. Asked again before the acknowledgement, it gives the same records."""
        while True:
            batch, unreadable = self._read_batch()
            if batch is not None or not unreadable:
                return batch

    def _read_batch(self) -> tuple[Batch | None, int]:
        """The oldest records as a batch, and how many had to be dropped because the disk spoiled them."""
        unreadable: list[tuple[int, int]] = []
        samples: list[Sample] = []
        with self._transaction() as database:
            head = database.execute(
                "SELECT id, boot, dropped FROM boots WHERE id = (SELECT min(boot_id) FROM records)"
            ).fetchone()
            if head is None:
                return None, 0
            boot_id, boot, dropped = head
            left = BATCH_BYTES_MAX - _ENVELOPE_BYTES
            rows = database.execute(
                "SELECT seq, sample FROM records WHERE boot_id = ? ORDER BY seq LIMIT ?", (boot_id, BATCH_SAMPLES_MAX)
            )
            for seq, data in rows:
                left -= len(data) + 1
                if left < 0:
                    break
                try:
                    samples.append(Sample.from_json(parse_object(data, "sample", _STORED_BYTES_MAX)))
                except ContractError:
                    # One spoiled record must not hold up all that follow.
                    unreadable.append((seq, len(data)))
            if unreadable:
                self._drop_unreadable(database, boot_id, unreadable)
        return Batch(self._device, boot, tuple(samples), dropped) if samples else None, len(unreadable)

    def _drop_unreadable(self, database: sqlite3.Connection, boot_id: int, unreadable: list[tuple[int, int]]) -> None:
        count = len(unreadable)
        database.executemany(
            "DELETE FROM records WHERE boot_id = ? AND seq = ?", [(boot_id, seq) for seq, _ in unreadable]
        )
        database.execute("UPDATE boots SET dropped = dropped + ? WHERE id = ?", (count, boot_id))
        database.execute("UPDATE totals SET value = value + ? WHERE name = 'dropped'", (count,))
        self._records -= count
        self._bytes -= sum(size + SPOOL_RECORD_OVERHEAD_BYTES for _, size in unreadable)
        _LOG.warning("%d records of the spool were dropped because the disk spoiled them", count)

    def acknowledge(self, ack: Ack) -> int:
        """See `ports.Spool.acknowledge`. Boots and numbers this spool does not know are passed over."""
        records_gone = bytes_gone = 0
        with self._transaction() as database:
            for boot, upto in ack.upto.items():
                where = (boot, min(upto, 2**63 - 1))
                count, size = database.execute(
                    "SELECT count(*), coalesce(sum(length(sample)), 0) FROM records "
                    "WHERE boot_id = (SELECT id FROM boots WHERE boot = ?) AND seq <= ?",
                    where,
                ).fetchone()
                database.execute(
                    "DELETE FROM records WHERE boot_id = (SELECT id FROM boots WHERE boot = ?) AND seq <= ?", where
                )
                records_gone += count
                bytes_gone += size + count * SPOOL_RECORD_OVERHEAD_BYTES
            database.execute(
                "DELETE FROM boots WHERE id <> ? AND NOT EXISTS (SELECT 1 FROM records WHERE boot_id = boots.id)",
                (self._boot_id,),
            )
            self._records -= records_gone
            self._bytes -= bytes_gone
        return records_gone

    def backlog(self) -> tuple[int, int, int]:
        """See `ports.Spool.backlog`."""
        with self._transaction() as database:
            (dropped,) = database.execute("SELECT value FROM totals WHERE name = 'dropped'").fetchone()
            return self._records, self._bytes, dropped

    def close(self) -> None:
        """Close the file; the spool is not used afterwards."""
        with self._lock:
            if self._is_open:
                self._database.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction under the lock; a damaged file is replaced by a new spool, and the caller told so."""
        with self._lock:
            if not self._is_open:
                self._open_late()
            counters = (self._records, self._bytes)
            try:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
                self._database.execute("COMMIT")
            except sqlite3.DatabaseError as error:
                self._undo()
                self._records, self._bytes = counters
                if _code(error) in _DAMAGED:
                    self._set_aside(error)
                raise self._error(error) from error
            except BaseException:
                self._undo()
                self._records, self._bytes = counters
                raise

    def _undo(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")

    def _open_late(self) -> None:
        """Open what could not be opened at the start; the errors are those of a transaction."""
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if _code(error) in _DAMAGED:
                self._set_aside(error)
            raise self._error(error) from error

    def _open(self) -> None:
        self._is_open = False
        self._database = sqlite3.connect(
            self._path, timeout=SPOOL_BUSY_MS / 1000, isolation_level=None, check_same_thread=False
        )
        try:
            database = self._database
            # FULL: the caller forgets a record once it is here, so it has to survive a power cut.
            for setting in _SETTINGS:
                database.execute(f"PRAGMA {setting}")
            database.executescript(_SCHEMA)
            database.execute("INSERT OR IGNORE INTO boots (boot, last, dropped) VALUES (?, 0, 0)", (self.boot,))
            (self._boot_id,) = database.execute("SELECT id FROM boots WHERE boot = ?", (self.boot,)).fetchone()
            totals = database.execute("SELECT count(*), coalesce(sum(length(sample)), 0) FROM records")
            self._records, size = totals.fetchone()
            self._bytes = size + self._records * SPOOL_RECORD_OVERHEAD_BYTES
            self._path.chmod(0o600)
        except BaseException:
            self._database.close()
            raise
        self._is_open = True

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        """Begin anew beside a damaged file."""
        _LOG.error("the spool %s is damaged (%s): it gets the suffix .bad and a new one begins", self._path, error)
        self._database.close()
        with durable.disk_errors(f"setting {self._path} aside"):
            for suffix in ("-wal", "-shm"):
                durable.remove_file(self._path.with_name(self._path.name + suffix))
            if self._path.exists():
                durable.rename(self._path, self._path.with_name(self._path.name + ".bad"))
        try:
            self._open()
        except sqlite3.DatabaseError as problem:
            raise self._error(problem) from problem

    def _error(self, error: sqlite3.DatabaseError) -> EdgeError:
        what = f"the spool {self._path}: {error}"
        if _code(error) == sqlite3.SQLITE_FULL:
            return EdgeError("device.disk-full", what, "Free some space on the device's data partition.")
        return EdgeError("device.disk-error", what, "Check the disk and the file's owner.")


def _code(error: sqlite3.DatabaseError) -> int:
    """SQLite's primary result code; errors that Python itself raises carry none."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def _encode(record: Any, seq: int) -> bytes | None:
    """The stored form of one record under its number, or none when it is no sample."""
    try:
        sample = Sample.from_json({**record, "seq": seq})
        data = dump(sample.to_json())
    except (ContractError, TypeError, ValueError, RecursionError):
        return None
    return data if len(data) <= _STORED_BYTES_MAX else None


def _make_room(database: sqlite3.Connection, bytes_over: int) -> tuple[int, int]:
    """Drop the oldest records until the budget holds; returns how many records and bytes went."""
    if bytes_over <= 0:
        return 0, 0
    bytes_gone = 0
    dropped: dict[int, tuple[int, int]] = {}  # by boot: records, highest number
    for boot_id, seq, size in database.execute(
        "SELECT boot_id, seq, length(sample) FROM records ORDER BY boot_id, seq"
    ):
        if bytes_gone >= bytes_over:
            break
        bytes_gone += size + SPOOL_RECORD_OVERHEAD_BYTES
        dropped[boot_id] = (dropped.get(boot_id, (0, 0))[0] + 1, seq)
    records_gone = sum(count for count, _ in dropped.values())
    for boot_id, (count, seq) in dropped.items():
        database.execute("DELETE FROM records WHERE boot_id = ? AND seq <= ?", (boot_id, seq))
        database.execute("UPDATE boots SET dropped = dropped + ? WHERE id = ?", (count, boot_id))
    database.execute("UPDATE totals SET value = value + ? WHERE name = 'dropped'", (records_gone,))
    return records_gone, bytes_gone
