"""The one folder that a service writes to, and what services that were killed have left."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.web.folder import PREFIX, private_folder
from edge_contract.errors import EdgeError
from tests.support.require import REPOSITORY_ROOT

_KILLED = """
import os, sys
from pathlib import Path
from edge_agent.web.folder import private_folder
with private_folder(Path(sys.argv[1])) as folder:
    (folder / "slots").mkdir()
    (folder / "slots" / "model").write_bytes(b"x")
    os.kill(os.getpid(), 9)
"""


def test_it_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    with private_folder(tmp_path) as folder:
        assert folder.parent == tmp_path
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "deep" / "deeper").mkdir(parents=True)
        (folder / "deep" / "deeper" / "file").write_bytes(b"x")
        (folder / "deep" / "deeper" / "file").chmod(0o444)
    assert not list(tmp_path.iterdir())


def test_it_is_gone_after_a_failure_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), private_folder(tmp_path):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_what_a_killed_service_left_goes_and_what_a_living_one_uses_stays(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path)], cwd=REPOSITORY_ROOT, check=False, timeout=60
    )
    assert finished.returncode == -9
    (left,) = tmp_path.glob(f"{PREFIX}*")
    assert (left / "slots" / "model").is_file()
    stranger = tmp_path / f"{PREFIX}of-somebody"
    stranger.mkdir()
    with private_folder(tmp_path) as living, private_folder(tmp_path) as folder:
        assert not left.exists()
        assert living.is_dir()
        assert folder.is_dir()
        assert stranger.is_dir(), "a folder without a lock is none of ours"


def test_a_link_with_such_a_name_leads_nowhere(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "lock").write_bytes(b"")
    place = tmp_path / "place"
    place.mkdir()
    (place / f"{PREFIX}link").symlink_to(precious)
    with private_folder(place):
        pass
    assert (precious / "lock").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="--work-dir") as caught, private_folder(tmp_path / "missing"):
        pass
    assert caught.value.code == "device.disk-error"


def test_the_systems_folder_is_taken_when_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with private_folder(None) as folder:
        assert folder.parent == tmp_path
    assert os.listdir(tmp_path) == []
