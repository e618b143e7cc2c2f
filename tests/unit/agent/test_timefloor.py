"""What this device knows of the time without asking anybody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_agent.limits import CLOCK_SKEW_MS_MAX, CLOCK_STEP_BACK_MS_MAX
from edge_agent.trust.timefloor import RELEASED_MS, SignedTime, TimeFloor, Times
from edge_contract.errors import ContractError

HOUR_MS = 3_600_000
LATER = RELEASED_MS + 500 * 86_400_000
DIRECTOR = ("director",)


class Site:
    """A floor, the file it is in, and a stopwatch that a test holds."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "time.json"
        self.running_ms = 0
        self.start()

    def start(self) -> None:
        self.floor = TimeFloor(self.path, monotonic_ms=lambda: self.running_ms)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def said(wall_ms: int, keys: str = "keys") -> dict[str, SignedTime]:
    return {"director": SignedTime(wall_ms, keys)}


def test_nothing_is_before_the_release(site: Site) -> None:
    assert site.floor.times(RELEASED_MS) == Times(RELEASED_MS)
    for wall_ms in (0, -(2**62), RELEASED_MS - 1):
        assert site.floor.times(wall_ms) == Times(RELEASED_MS)
    assert not site.floor.is_trusted(0, DIRECTOR)
    assert site.floor.is_trusted(RELEASED_MS, DIRECTOR)


def test_a_clock_in_front_of_the_floor_is_used_as_it_is(site: Site) -> None:
    site.floor.learn(0, said(LATER))
    assert site.floor.times(LATER + 1).of("director", "keys") == LATER + 1
    assert site.floor.is_trusted(LATER + 1, DIRECTOR)


def test_a_clock_behind_takes_the_newest_signed_time_instead_and_is_called_untrusted(site: Site) -> None:
    site.floor.learn(0, said(LATER))
    assert site.floor.times(0).of("director", "keys") == LATER
    assert site.floor.floor_ms == LATER
    assert not site.floor.is_trusted(LATER - CLOCK_SKEW_MS_MAX - 1, DIRECTOR)
    assert site.floor.is_trusted(LATER - CLOCK_SKEW_MS_MAX, DIRECTOR), "seconds of difference say nothing"


def test_the_floor_outlives_a_restart_and_never_falls(site: Site) -> None:
    site.floor.learn(LATER, said(LATER))
    site.floor.learn(0, said(LATER - 5 * HOUR_MS))
    site.start()
    assert site.floor.times(0) == Times(LATER - CLOCK_STEP_BACK_MS_MAX, said(LATER))


def test_a_clock_that_agreed_raises_the_floor_to_a_day_before(site: Site) -> None:
    site.floor.learn(LATER, {})
    assert site.floor.floor_ms == LATER - CLOCK_STEP_BACK_MS_MAX
    assert site.floor.is_trusted(LATER - 14 * HOUR_MS, DIRECTOR), "a wrong time zone may be put right"
    assert not site.floor.is_trusted(LATER - 25 * HOUR_MS, DIRECTOR)


def test_a_clock_behind_the_floor_teaches_nothing(site: Site) -> None:
    site.floor.learn(LATER - HOUR_MS, said(LATER))
    assert site.floor.times(0).wall_ms == RELEASED_MS


def test_the_time_that_a_process_runs_counts(site: Site) -> None:
    site.floor.learn(0, said(LATER))
    site.running_ms += 30 * HOUR_MS
    assert site.floor.times(0) == Times(RELEASED_MS + 30 * HOUR_MS, said(LATER + 30 * HOUR_MS))
    site.floor.learn(0, said(LATER))
    site.start()
    assert site.floor.floor_ms == LATER + 30 * HOUR_MS, "and is kept"


def test_what_one_repository_signed_does_not_count_for_the_other(site: Site) -> None:
    site.floor.learn(0, said(LATER))
    times = site.floor.times(0)
    assert times.of("image", "keys") == RELEASED_MS
    assert times.of("director", "keys") == LATER


def test_what_rotated_keys_signed_is_forgotten(site: Site) -> None:
    site.floor.learn(0, said(LATER, "stolen"))
    assert site.floor.times(0).of("director", "new") == RELEASED_MS
    site.floor.learn(0, said(LATER - 9 * HOUR_MS, "new"))
    assert site.floor.times(0).of("director", "new") == LATER - 9 * HOUR_MS
    site.start()
    assert site.floor.floor_ms == LATER - 9 * HOUR_MS


def test_the_file_is_not_written_at_every_turn(site: Site) -> None:
    site.floor.learn(LATER, said(LATER))
    before = site.path.stat()
    for minutes in range(0, 60, 10):
        site.floor.learn(LATER + minutes * 60_000, said(LATER + minutes * 60_000))
    assert site.path.stat().st_ino == before.st_ino
    site.floor.learn(LATER + HOUR_MS, said(LATER + HOUR_MS))
    assert site.path.stat().st_ino != before.st_ino


def test_a_disk_that_cannot_write_leaves_the_floor_raised_and_tries_again(site: Site) -> None:
    site.path.mkdir()
    for _ in range(2):
        with pytest.raises(Exception, match="writing") as caught:
            site.floor.learn(0, said(LATER))
        assert getattr(caught.value, "code", "") == "device.disk-error"
    assert site.floor.floor_ms == LATER
    site.path.rmdir()
    site.floor.learn(0, said(LATER))
    site.start()
    assert site.floor.floor_ms == LATER


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b'{"schema":"lighterman.timefloor/1","floor_ms":-5}'])
def test_a_damaged_file_leaves_the_release_as_the_floor(site: Site, damage: bytes) -> None:
    site.path.write_bytes(damage)
    site.start()
    assert site.floor.floor_ms == RELEASED_MS


def test_no_damaged_digit_can_drive_the_time_up(site: Site) -> None:
    site.floor.learn(LATER, said(LATER))
    genuine = site.path.read_bytes()
    for place, digit in enumerate(genuine):
        if chr(digit).isdigit():
            site.path.write_bytes(genuine[:place] + (b"9" if digit != ord("9") else b"8") + genuine[place + 1 :])
            site.start()
            assert site.floor.floor_ms == RELEASED_MS


def test_times_pass_between_processes_unchanged() -> None:
    for times in (Times(LATER), Times(LATER, said(LATER))):
        assert Times.from_json(json.loads(json.dumps(times.to_json()))) == times
    for broken in ({}, {"wall_ms": "x"}, {"wall_ms": 1, "signed": {"director": {}}}):
        with pytest.raises(ContractError):
            Times.from_json(broken)
