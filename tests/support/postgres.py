"""A PostgreSQL cluster of one's own: made, run as an unprivileged user, and removed again."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.net import LOOPBACK, free_low_port, wait_until
from tests.support.processes import Child, start_process
from tests.support.require import require_postgres

_INITDB_TIMEOUT_S = 60.0
_START_ATTEMPTS_MAX = 5
_START_DEADLINE_S = 30.0
_STOP_DEADLINE_S = 20.0
_ADMIN = "lighterman"
_READY = "database system is ready to accept connections"


@contextlib.contextmanager
def postgres_cluster() -> Iterator[str]:
    """A running cluster; yields the SQLAlchemy URL (``postgresql+psycopg://...``) of its maintenance database.

    It listens on 127.0.0.1 and on a unix socket in its own folder, asks for a random password, and does not sync to the
    disk. The system's own PostgreSQL service plays no part. Skips the test where PostgreSQL is not installed.
    """
    programs = require_postgres()
    user = _unprivileged_user()
    # Not a folder of pytest's: those are closed to other users. The path of a socket must also stay short.
    directory = Path(tempfile.mkdtemp(prefix="lighterman-pg-"))
    try:
        password = secrets.token_hex(16)
        password_file = directory / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(password, encoding="ascii")
        if user is not None:
            entry = pwd.getpwnam(user)
            for path in (directory, password_file):
                os.chown(path, entry.pw_uid, entry.pw_gid)
        _initdb(programs, directory, password_file, user)
        child, port = _start(programs, directory, user)
        try:
            yield f"postgresql+psycopg://{_ADMIN}:{password}@{LOOPBACK}:{port}/postgres"
        finally:
            child.stop(stop_signal=signal.SIGINT, deadline_s=_STOP_DEADLINE_S)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def fresh_database(cluster_url: str) -> Iterator[str]:
    """A new, empty database in the cluster, dropped again at the end; yields its SQLAlchemy URL."""
    import psycopg

    name = f"test_{secrets.token_hex(6)}"
    maintenance = cluster_url.replace("postgresql+psycopg://", "postgresql://", 1)
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            yield cluster_url.rsplit("/", 1)[0] + "/" + name
        finally:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def _unprivileged_user() -> str | None:
    """Whom to become: PostgreSQL refuses to run as root. None when already somebody else."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise RuntimeError("neither a user postgres nor a user nobody exists to run PostgreSQL as")


def _identity(user: str | None) -> dict[str, Any]:
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def _initdb(programs: Path, directory: Path, password_file: Path, user: str | None) -> None:
    finished = subprocess.run(
        [
            programs / "initdb",
            f"--pgdata={directory / 'data'}",
            f"--username={_ADMIN}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ],
        check=False,
        capture_output=True,
        cwd=directory,
        timeout=_INITDB_TIMEOUT_S,
        **_identity(user),
    )
    if finished.returncode != 0:
        raise AssertionError(f"initdb failed: {finished.stderr.decode(errors='replace')[-2_000:]}")


def _start(programs: Path, directory: Path, user: str | None) -> tuple[Child, int]:
    log_path = directory / "postgres.log"
    group = None if user is None else pwd.getpwnam(user).pw_gid
    for _ in range(_START_ATTEMPTS_MAX):
        port = free_low_port()
        log_path.unlink(missing_ok=True)
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(port),
            "unix_socket_directories": str(directory),
            "fsync": "off",
            "full_page_writes": "off",
            "synchronous_commit": "off",
            "max_connections": "60",
            "shared_buffers": "32MB",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        child = start_process(
            [programs / "postgres", "-D", directory / "data", *options],
            log_path=log_path,
            cwd=directory,
            user=user,
            group=group,
        )
        try:
            wait_until(partial(_has_settled, child), _START_DEADLINE_S, what="PostgreSQL to be ready")
        except BaseException:
            child.stop(stop_signal=signal.SIGINT, deadline_s=_STOP_DEADLINE_S)
            raise
        if child.is_running:
            return child, port
        child.stop()
    raise AssertionError(f"PostgreSQL did not start; its log ends:\n{log_path.read_text()[-2_000:]}")


def _has_settled(child: Child) -> bool:
    return not child.is_running or _READY in child.output()
