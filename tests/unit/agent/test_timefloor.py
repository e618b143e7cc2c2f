"""What this device knows of the time without asking anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.limits import CLOCK_STEP_BACK_MS_MAX
from edge_agent.trust.timefloor import RELEASED_MS, TimeFloor
from edge_contract.errors import EdgeError

LATER = RELEASED_MS + 500 * 86_400_000


def test_nothing_is_before_the_release(tmp_path: Path) -> None:
    floor = TimeFloor(tmp_path / "time.json")
    floor.check(RELEASED_MS)
    for wall_ms in (0, RELEASED_MS - 1):
        with pytest.raises(EdgeError) as caught:
            floor.check(wall_ms)
        assert caught.value.code == "device.clock-untrusted"


def test_a_confirmed_time_raises_the_floor_for_good(tmp_path: Path) -> None:
    TimeFloor(tmp_path / "time.json").confirm(LATER)
    floor = TimeFloor(tmp_path / "time.json")
    assert floor.floor_ms == LATER - CLOCK_STEP_BACK_MS_MAX
    with pytest.raises(EdgeError):
        floor.check(LATER - CLOCK_STEP_BACK_MS_MAX - 1)


def test_a_clock_may_be_put_right_by_hours(tmp_path: Path) -> None:
    floor = TimeFloor(tmp_path / "time.json")
    floor.confirm(LATER)
    floor.check(LATER - 14 * 3_600_000)


def test_the_floor_never_falls_and_is_not_written_at_every_turn(tmp_path: Path) -> None:
    floor = TimeFloor(tmp_path / "time.json")
    floor.confirm(LATER)
    before = (tmp_path / "time.json").stat().st_mtime_ns
    floor.confirm(LATER - 3_600_000)
    floor.confirm(LATER + 60_000)
    assert (tmp_path / "time.json").stat().st_mtime_ns == before
    assert floor.floor_ms == LATER - CLOCK_STEP_BACK_MS_MAX
    floor.confirm(LATER + 7_200_000)
    assert floor.floor_ms == LATER + 7_200_000 - CLOCK_STEP_BACK_MS_MAX


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b'{"schema":"lighterman.timefloor/1","floor_ms":-5}'])
def test_a_damaged_file_leaves_the_release_as_the_floor(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "time.json").write_bytes(damage)
    assert TimeFloor(tmp_path / "time.json").floor_ms == RELEASED_MS
