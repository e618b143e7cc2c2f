"""`python -m tests.crash`: every fault at every point, and a table of what came of it.

Exit code 0 when every device recovered, 1 when one did not.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.crash import faults
from tests.crash.calls import Point
from tests.crash.device import Answer, BrokenError, CrashDevice
from tests.crash.filesystem import CannotMountError, SmallDisk, small_disk
from tests.crash.powercut import (
    cut_everywhere,
    record_two_runs,
    require_faithful,
    start_on,
    states,
    ways_to_end,
)
from tests.crash.sweep import Bench, Tally, bench, sample, sweep, table

KINDS = ("kill", *faults.ERRORS, "power", "killed-power", "power-ext4", "full-ext4", "dead-ext4")
_SECOND_RUNS = 8
_DRAWS = 4
_STARTED = 40


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    asked = _arguments(argv)
    started = time.monotonic()
    tallies: list[Tally] = []
    folder = Path(tempfile.mkdtemp(prefix="lmc-", dir=asked.folder))
    try:
        with bench(folder) as found:
            found.record()
            _say(f"an update makes {len(found.calls)} calls below its data directory; {len(found.points)} may be hit")
            for kind in asked.kinds:
                try:
                    tally = run_kind(found, kind, sample(found.points, asked.sample), asked.jobs)
                except CannotMountError as error:
                    tally = Tally(kind, note=f"skipped: {error}")
                _say(table([tally]))
                tallies.append(tally)
    finally:
        broken = sum(len(tally.broken) for tally in tallies)
        if not broken:
            shutil.rmtree(folder, ignore_errors=True)
    _say(f"\n{table(tallies)}\n{time.monotonic() - started:.0f} s in all; broken: {broken}")
    if broken:
        _say(f"what is left of the broken devices is in {folder}")
    return 1 if broken else 0


def run_kind(found: Bench, kind: str, points: Sequence[Point], jobs: int) -> Tally:
    """Let one kind of fault strike at all these points.

    Args:
        found: The bench, with its recorded update.
        kind: One of `KINDS`.
        points: Where; for `power` and `killed-power` their number matters alone.
        jobs: Devices at a time.

    Raises:
        CannotMountError: The fault needs a file system that cannot be mounted here.
    """
    if kind in ("power", "killed-power"):
        return _power(found, kind, len(points))
    if not kind.endswith("-ext4"):
        devices = [CrashDevice(found.folder / f"{number}") for number in range(jobs)]
        return sweep(found, kind, points, _plain(found, kind), devices, _say)
    with ExitStack() as stack:
        disks: dict[Path, SmallDisk] = {}
        devices = []
        for number in range(jobs):
            disk = stack.enter_context(small_disk(found.folder, f"ext4-{number}", kind == "full-ext4"))
            disks[disk.place / "data"] = disk
            devices.append(CrashDevice(found.folder / f"on-ext4-{number}", disk.place / "data"))
        note = "" if all(disk.kind == "ext4" for disk in disks.values()) else "on tmpfs"
        strike = {"power-ext4": faults.cut_power_at, "full-ext4": faults.fill_at, "dead-ext4": faults.die_at}[kind]
        tally = sweep(
            found, kind, points, lambda device, point: strike(found, disks[device.data], device, point), devices, _say
        )
        tally.note = note
        return tally


def _plain(found: Bench, kind: str) -> Callable[[CrashDevice, Point], Answer | None]:
    if kind == "kill":
        return lambda device, point: faults.kill_at(found, device, point)
    return lambda device, point: faults.fail_at(found, device, point, kind)


def _power(found: Bench, kind: str, started: int) -> Tally:
    """Power cuts at every prefix of the recorded update, or of runs that came after a kill."""
    require_faithful(found.base, found.calls, found.folder / "record" / "data")
    if kind == "power":
        cases, tried = states(found.base, [], found.calls, _DRAWS)
    else:
        cases, tried = [], 0
        for call, number in ways_to_end(found.calls, min(started, _SECOND_RUNS)):
            device = CrashDevice(found.folder / "second")
            first, second = record_two_runs(found, device, call, number)
            more, count = states(found.base, first, second, _DRAWS // 2)
            cases += more
            tried += count
    tally = cut_everywhere(found, kind, cases, tried)
    device = CrashDevice(found.folder / "0")
    chosen = sample(range(len(cases)), min(started, _STARTED))
    for index in chosen:
        try:
            start_on(found, device, cases[index])
        except (BrokenError, AssertionError) as error:
            tally.broken.append(f"{kind} {cases[index].what}: the whole agent: {error}")
    tally.note += f"; whole agents started on {len(chosen)}"
    for text in tally.broken:
        _say(text)
    return tally


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="faults (default: all)")
    parser.add_argument("--sample", type=int, default=1_000_000, help="only so many points, spread evenly")
    parser.add_argument("--jobs", type=int, default=2, help="devices at a time (default: 2)")
    parser.add_argument("--folder", default=None, help="where to work; a short path")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
