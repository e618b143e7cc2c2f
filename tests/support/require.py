"""What a test needs from the machine: found, or the test is skipped with the reason.

With ``LIGHTERMAN_REQUIRE_SYSTEM=1`` (the continuous integration run) a missing program fails the test instead, so that
a machine without brokers and databases cannot pass for one that has them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

REPOSITORY_ROOT = Path(__file__).resolve().parents[2]
"""The checkout these tests belong to."""

REQUIRE_VARIABLE = "LIGHTERMAN_REQUIRE_SYSTEM"
SCHEMAS_VARIABLE = "LIGHTERMAN_SCHEMAS"

# Debian keeps daemons where an ordinary user's PATH does not look.
_DAEMON_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_POSTGRES_HOMES = Path("/usr/lib/postgresql")
_INSTALL_HINT = "run scripts/install-test-needs.sh"


def is_system_required() -> bool:
    """Whether a missing system package is a failure on this machine."""
    return os.environ.get(REQUIRE_VARIABLE, "") not in ("", "0")


def _missing(reason: str) -> NoReturn:
    if is_system_required():
        pytest.fail(f"{reason} ({REQUIRE_VARIABLE} is set, so this is a failure)", pytrace=False)
    pytest.skip(reason)


def require_program(name: str) -> str:
    """The absolute path of an installed program; skips (or fails) the test where there is none."""
    search_path = os.pathsep.join((os.environ.get("PATH", ""), *_DAEMON_FOLDERS))
    found = shutil.which(name, path=search_path)
    if found is None:
        _missing(f"the program {name!r} is not installed: {_INSTALL_HINT}")
    return str(Path(found).absolute())


def require_postgres() -> Path:
    """The folder with the newest installed ``initdb`` and ``postgres``; skips (or fails) where there is none."""
    homes = [home for home in _POSTGRES_HOMES.glob("*") if home.name.isdigit()]
    for home in sorted(homes, key=lambda path: int(path.name), reverse=True):
        if all((home / "bin" / program).is_file() for program in ("initdb", "postgres")):
            return home / "bin"
    found = shutil.which("initdb")
    if found is not None and Path(found).with_name("postgres").is_file():
        return Path(found).parent
    _missing(f"PostgreSQL is not installed: {_INSTALL_HINT}")


def require_root(reason: str) -> None:
    """Skip the test unless it runs as root. Never a failure: a developer's machine is not expected to allow it.

    Args:
        reason: What root is needed for, as the end of a sentence ("mounting a small file system").
    """
    if os.geteuid() != 0:
        pytest.skip(f"needs root for {reason}")


def require_shared_schema(relpath: str) -> Path:
    """The path of a third party's published schema kept outside this repository; skips where it is absent.

    The folder is ``$LIGHTERMAN_SCHEMAS``, or ``shared/data`` beside the checkout. Absence never fails a run: these
    schemas are other people's documents and are not redistributed here.

    Args:
        relpath: A path below that folder, such as ``schemas/oci/image-manifest.json``.
    """
    configured = os.environ.get(SCHEMAS_VARIABLE)
    folder = Path(configured) if configured else REPOSITORY_ROOT.parent / "shared" / "data"
    path = folder / relpath
    if not path.exists():
        pytest.skip(f"the schema {relpath} is not on this machine: set {SCHEMAS_VARIABLE} to the folder that holds it")
    return path
