"""Runs of the agent have identifiers that only ever go up, whatever the clock and the disk do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_agent.store import durable
from edge_agent.store.boots import next_boot

NOW_MS = 1_800_000_000_000
YEAR_MS = 365 * 86_400_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "boots.json"


def test_every_run_has_a_greater_identifier_however_the_clock_jumps(path: Path) -> None:
    clocks = [NOW_MS, NOW_MS, 0, NOW_MS + 5_000, NOW_MS - YEAR_MS, NOW_MS + YEAR_MS, NOW_MS, -5_000, 2**62, NOW_MS]
    boots = [next_boot(path, wall_ms) for wall_ms in clocks]
    assert boots == sorted(set(boots))
    assert all(len(boot) == 16 and int(boot, 16) >= 0 and boot == boot.lower() for boot in boots)


def test_it_begins_with_the_clock(path: Path) -> None:
    assert next_boot(path, NOW_MS)[:10] == f"{NOW_MS // 1000:010x}"


def test_without_its_file_it_still_goes_up_when_the_clock_is_right(path: Path) -> None:
    first = next_boot(path, NOW_MS)
    path.unlink()
    assert next_boot(path, NOW_MS + 1_000) > first


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema":"lighterman.boots/1","last":-1}', b"x" * 2000])
def test_a_damaged_file_is_as_good_as_none(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert next_boot(path, NOW_MS)[:10] == f"{NOW_MS // 1000:010x}"


def test_a_run_that_cannot_be_written_down_lies_between_its_neighbours(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for _ in range(20):
        first = next_boot(path, NOW_MS)
        with monkeypatch.context() as patched:
            patched.setattr(durable, "write_file", full)
            second = next_boot(path, NOW_MS)
        assert first < second < next_boot(path, NOW_MS)


def test_two_runs_of_devices_that_begin_together_differ(tmp_path: Path) -> None:
    boots = {next_boot(tmp_path / f"{number}.json", NOW_MS) for number in range(20)}
    assert len(boots) == 20
