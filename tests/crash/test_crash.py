"""A sample of `make crash`: the same faults at a few of the points, the same ones in every run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.__main__ import run_kind
from tests.crash.faults import ERRORS
from tests.crash.filesystem import CannotMountError
from tests.crash.powercut import cut_everywhere, require_faithful, states
from tests.crash.sweep import Bench, bench, sample
from tests.support.require import require_program

pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(300)]

JOBS = 2
KILLS = 6
DECODINGS = 6
FAILURES = 2
EXT4 = {"power-ext4": 3, "full-ext4": 2, "dead-ext4": 2}
STEP = 16  # of the prefixes of an update, before which power is cut


@pytest.fixture(scope="module")
def found() -> Iterator[Bench]:
    require_program("strace")
    folder = Path(tempfile.mkdtemp(prefix="lmc-"))  # short: there will be sockets in it
    try:
        with bench(folder) as made:
            made.record()
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_whole(found: Bench, kind: str, count: int) -> None:
    """Let a fault strike at some points; every device has to come through."""
    points = sample(found.points, count)
    tally = run_kind(found, kind, points, JOBS)
    assert tally.broken == []
    assert tally.missed == []
    assert (tally.tried, tally.old + tally.new) == (len(points), len(points))


def test_every_kind_of_change_is_among_the_points(found: Bench) -> None:
    assert len(found.points) > 200
    assert {point.call for point in found.points} >= {
        "openat", "write", "fsync", "rename", "link", "unlink", "unlinkat", "mkdir", "rmdir", "ftruncate", "pwrite64",
    }  # fmt: skip


def test_a_delta_is_decoded_with_checkpoints_among_the_points(found: Bench) -> None:
    places = [point.path for point in found.points]
    assert len([path for path in places if path.endswith(".made")]) > 10
    renames = [point.what for point in found.points if point.call == "rename"]
    assert len([what for what in renames if what.endswith(".delta")]) > 3


def test_a_decoding_that_is_killed_costs_no_more_than_a_restart(found: Bench) -> None:
    """The decoder itself where it writes, the agent where it remembers how far that came."""
    made = [point for point in found.points if ".made" in point.what or ".delta" in point.what]
    chosen = sample(made, DECODINGS)
    tally = run_kind(found, "kill", chosen, JOBS)
    assert (tally.broken, tally.missed, tally.tried) == ([], [], len(chosen))


def test_a_killed_agent_comes_back_with_the_old_model_or_the_new(found: Bench) -> None:
    require_whole(found, "kill", KILLS)


@pytest.mark.parametrize("error", ERRORS)
def test_a_call_that_fails_costs_no_more_than_a_restart(found: Bench, error: str) -> None:
    require_whole(found, error, FAILURES)


@pytest.mark.parametrize("kind", EXT4)
def test_a_real_file_system_fills_up_dies_and_loses_what_was_not_synced(found: Bench, kind: str) -> None:
    try:
        require_whole(found, kind, EXT4[kind])
    except CannotMountError as error:
        pytest.skip(str(error))


def test_power_cuts_leave_a_disk_to_start_from(found: Bench) -> None:
    require_faithful(found.base, found.calls, found.folder / "record" / "data")
    cases, tried = states(found.base, [], found.calls, 1, STEP)
    tally = cut_everywhere(found, "power", cases, tried)
    assert tally.broken == []
    assert tally.old > 0
    assert tally.new > 0


def test_an_agent_that_syncs_nothing_would_be_found_out(found: Bench) -> None:
    careless = [call for call in found.calls if call.name not in ("fsync", "fdatasync")]
    cases, tried = states(found.base, [], careless, 1, STEP)
    assert cut_everywhere(found, "power", cases, tried).broken
