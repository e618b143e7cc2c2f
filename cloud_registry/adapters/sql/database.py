"""Connections, transactions, retries and migrations on SQLite and PostgreSQL.

SQLite: WAL, synchronous FULL (what was acknowledged survives a power cut), and BEGIN IMMEDIATE for every transaction
that writes, so that none fails halfway because another wrote first. PostgreSQL: read committed with row locks, and one
advisory lock where a decision depends on rows that may not be there yet (`lock_assignments`).
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from cloud_registry.limits import BUSY_TIMEOUT_MS, DATABASE_ATTEMPTS_MAX
from edge_contract.errors import EdgeError

T = TypeVar("T")

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_WRITE_OPTION: Final = "lighterman_write"
_ASSIGNMENT_LOCK: Final = 0x4C4D4E01
_MIGRATION_LOCK: Final = 0x4C4D4E02
_RETRIED_STATES: Final = frozenset({"40001", "40P01", "55P03"})  # serialisation failure, deadlock, lock not available
_BACKOFF_S: Final = 0.02
_POOL_SIZE: Final = 8
_POOL_OVERFLOW_MAX: Final = 40


class Database:
    """One database. Any thread may use it; a transaction belongs to the thread that runs it and is never nested."""

    def __init__(self, url: str) -> None:
        """Prepare connections; none is opened yet. Makes the folder of an SQLite file, closed to other users.

        Args:
            url: `sqlite:///<absolute path>` or `postgresql+psycopg://…`.

        Raises:
            EdgeError: `config.invalid`, `device.disk-error`.
        """
        try:
            parsed = make_url(url)
            self.is_sqlite = parsed.get_backend_name() == "sqlite"
            if self.is_sqlite and parsed.database:
                _make_folder(Path(parsed.database).parent)
            options: dict[str, Any] = {"pool_size": _POOL_SIZE, "max_overflow": _POOL_OVERFLOW_MAX}
            if self.is_sqlite:
                options["connect_args"] = {"check_same_thread": False, "timeout": BUSY_TIMEOUT_MS / 1000}
            else:
                options["pool_pre_ping"] = True
            self._engine = create_engine(url, **options)
        except (ArgumentError, ImportError) as error:
            raise EdgeError("config.invalid", f"the database URL cannot be used: {error}") from None
        # Writers queue up here in order; SQLite's own waiting is a lottery among pollers.
        self._writer = threading.Lock() if self.is_sqlite else None
        if self.is_sqlite:
            _prepare_sqlite(self._engine)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that changes nothing; it may be run again after a passing failure."""
        return self._run(work, is_write=False)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction; durable on return. It may be run again after a deadlock or a busy database.

        Raises:
            EdgeError: What `work` raises (nothing is changed then); `cloud.unavailable`, `device.disk-full`.
        """
        return self._run(work, is_write=True)

    def lock_assignments(self, connection: Connection) -> None:
        """Let one transaction at a time change what devices are assigned; until its end."""
        self._lock(connection, _ASSIGNMENT_LOCK)

    def migrate(self) -> str:
        """Bring the schema up to date; several processes may try at once. Returns the schema's version.

        Raises:
            EdgeError: `cloud.unavailable`; `config.invalid` for a database of a newer version of this program.
        """
        from alembic import command
        from alembic.config import Config
        from alembic.runtime.migration import MigrationContext
        from alembic.script import ScriptDirectory
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        head = ScriptDirectory.from_config(config).get_current_head() or ""

        def upgrade(connection: Connection) -> str:
            self._lock(connection, _MIGRATION_LOCK)
            config.attributes["connection"] = connection
            if MigrationContext.configure(connection).get_current_revision() != head:
                command.upgrade(config, "head")
            return head

        try:
            return self.write(upgrade)
        except CommandError as error:
            hint = "Use the version of cloud-registry that wrote this database, or a newer one."
            raise EdgeError("config.invalid", f"the database cannot be migrated: {error}", hint) from None

    def ping(self) -> None:
        """Require that the database answers.

        Raises:
            EdgeError: `cloud.unavailable`.
        """
        self.read(lambda connection: connection.execute(text("SELECT 1")).scalar_one())

    def _lock(self, connection: Connection, number: int) -> None:
        if not self.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})

    def _run(self, work: Callable[[Connection], T], is_write: bool) -> T:
        for attempt in range(1, DATABASE_ATTEMPTS_MAX + 1):
            try:
                with self._transaction(is_write) as connection:
                    return work(connection)
            except DBAPIError as error:
                if attempt == DATABASE_ATTEMPTS_MAX or not _is_passing(error):
                    raise _translated(error) from error
            except SQLAlchemyError as error:
                raise _translated(error) from error
            time.sleep(_BACKOFF_S * 2**attempt)
        raise EdgeError("internal.bug", "a transaction ended without a result")

    @contextmanager
    def _transaction(self, is_write: bool) -> Iterator[Connection]:
        if self._writer is not None and is_write and not self._writer.acquire(timeout=BUSY_TIMEOUT_MS / 1000):
            raise EdgeError("cloud.unavailable", "the database is busy", "Try again.")
        try:
            with self._engine.connect() as plain:
                connection = plain.execution_options(**{_WRITE_OPTION: is_write})
                with connection.begin():
                    yield connection
        finally:
            if self._writer is not None and is_write:
                self._writer.release()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EdgeError("device.disk-error", f"cannot make the folder {folder}: {error.strerror}") from None


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver begins no transactions of its own; on_begin does
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            f"busy_timeout={BUSY_TIMEOUT_MS}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        is_write = connection.get_execution_options().get(_WRITE_OPTION, True)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")


def _is_passing(error: DBAPIError) -> bool:
    if getattr(error.orig, "sqlstate", None) in _RETRIED_STATES:
        return True
    return "database is locked" in str(error.orig)


def _translated(error: SQLAlchemyError) -> EdgeError:
    reason = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
    if "disk is full" in reason:
        return EdgeError("device.disk-full", "the database's disk is full", "Free space on the registry's machine.")
    if isinstance(error, DBAPIError) and "IntegrityError" in type(error).__name__:
        return EdgeError("cloud.conflict", "the change does not fit what is stored; it may have changed meanwhile")
    return EdgeError("cloud.unavailable", f"the database failed: {reason}", "See the registry's log; try again later.")
