"""Faults at one call after the other of an update, each on a fresh copy of a prepared device."""

from __future__ import annotations

import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.crash.calls import Call, Point, points_of, read_calls
from tests.crash.cloud import Cloud, Shipment, serving
from tests.crash.device import Answer, BrokenError, CrashDevice
from tests.support.net import wait_until

_T = TypeVar("_T")
SETTLE_S = 6.0
_TELL_EVERY = 50
_ATTEMPTS_MAX = 3  # to hit a point that a run passed by


@dataclass
class Tally:
    """What came of one kind of fault.

    Attributes:
        kind: Name of the fault.
        tried: Points at which it struck.
        old: Of these, those after which the old model answered first.
        new: The same of the new one.
        missed: Points that no run came by any more.
        broken: What went wrong, by point.
        seconds: How long it took.
        note: More about it, at the end of its line.
    """

    kind: str
    tried: int = 0
    old: int = 0
    new: int = 0
    missed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0
    note: str = ""

    def row(self) -> str:
        """One line of the table."""
        figures = (self.tried, self.old, self.new, len(self.missed), len(self.broken))
        return (
            f"{self.kind:<26}"
            + "".join(f"{figure:>9}" for figure in figures)
            + f"{self.seconds:>9.0f}  {self.note}".rstrip()
        )


HEAD = f"{'fault':<26}" + "".join(f"{name:>9}" for name in ("points", "old", "new", "missed", "broken", "seconds"))


@dataclass
class Bench:
    """A cloud that assigns the newest of three versions, and a device's disk on which the second one lives.

    Attributes:
        folder: For everything.
        base: The prepared data directory: version 2 lives, version 1 is the fallback.
        full: Where the update to version 3 was recorded whole.
        first: Version 1, which the update makes superfluous.
        old: Version 2.
        new: Version 3.
        calls: What the recorded update did to the disk.
    """

    folder: Path
    base: Path
    first: Shipment
    old: Shipment
    new: Shipment
    calls: list[Call] = field(default_factory=list)

    def device(self, name: str, data: Path | None = None) -> CrashDevice:
        """A device with the prepared disk."""
        device = CrashDevice(self.folder / name, data)
        device.fill(self.base)
        return device

    def is_either(self, answer: Answer) -> bool:
        """Whether the old or the new model gave it; which of both, `is_new` tells."""
        known = {(str(item.manifest), item.version) for item in (self.old, self.new)}
        return (answer.manifest, answer.version) in known

    def record(self) -> None:
        """Record an update without faults, and see that it leaves what it should."""
        device = self.device("record")
        device.start_traced()
        try:
            device.wait(lambda: device.is_confirmed(self.new), "update")
            wait_until(lambda: is_tidied(self, device), SETTLE_S, what="the garbage to be collected")
        finally:
            device.stop()
        device.require_tidy(self.old, self.new)
        self.calls = read_calls(device.trace, device.data)

    @property
    def points(self) -> list[Point]:
        """Every moment of the recorded update at which a fault may strike."""
        return points_of(self.calls)


@contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    """Prepare everything; the cloud serves for the length of the block."""
    cloud = Cloud(folder)
    first, old, new = (cloud.publish(version) for version in (1, 2, 3))
    with serving(cloud) as server:
        device = CrashDevice(folder / "base")
        cloud.assign(first)
        device.enrol(server.url)
        for shipment in (first, old):
            cloud.assign(shipment)
            device.start()
            try:
                device.wait(lambda wanted=shipment: device.is_confirmed(wanted), "update")  # type: ignore[misc]
            finally:
                device.stop()
        device.require_tidy(first, old)
        new = cloud.with_delta(new, base=old.version)
        cloud.assign(new)
        yield Bench(folder, device.data, first, old, new)


def is_tidied(found: Bench, device: CrashDevice) -> bool:
    """Whether the garbage of the update is collected."""
    return device.blobs() == {digest.hex for item in (found.old, found.new) for digest in item.blobs}


def sweep(
    found: Bench,
    kind: str,
    points: Sequence[Point],
    strike: Callable[[CrashDevice, Point], Answer | None],
    devices: Sequence[CrashDevice],
    say: Callable[[str], None] = lambda _: None,
) -> Tally:
    """Let a fault strike at every point.

    Args:
        found: The bench.
        kind: Name of the fault.
        points: Where it strikes.
        strike: Lets it strike once.
        devices: As many as are to run at a time.
        say: Told of every point that is broken or missed, and now and then how far it is.
    """
    tally = Tally(kind)
    lock = threading.Lock()
    idle: queue.SimpleQueue[CrashDevice] = queue.SimpleQueue()
    for device in devices:
        idle.put(device)
    started = time.monotonic()

    def one(point: Point) -> None:
        device = idle.get()
        try:
            answer = None
            for _ in range(_ATTEMPTS_MAX):
                answer = strike(device, point)
                if answer is not None:
                    break
        except (BrokenError, AssertionError) as error:
            with lock:
                tally.tried += 1
                tally.broken.append(f"{kind} at {point}: {error}")
                say(tally.broken[-1])
            _keep(found.folder / "broken" / f"{len(tally.broken)}-{kind}", device)
            return
        finally:
            device.kill()
            idle.put(device)
        with lock:
            done = tally.tried + len(tally.missed) + 1
            if done % _TELL_EVERY == 0:
                say(f"{kind}: {done} of {len(points)} points, {time.monotonic() - started:.0f} s")
            if answer is None:
                tally.missed.append(point.what)
                say(f"{kind}: no run came to {point}")
                return
            tally.tried += 1
            tally.old += answer.version == found.old.version
            tally.new += answer.version == found.new.version

    with ThreadPoolExecutor(len(devices)) as pool:
        list(pool.map(one, points))
    tally.seconds = time.monotonic() - started
    return tally


def sample(points: Sequence[_T], count: int) -> list[_T]:
    """Some of the points, spread evenly, the first and the last among them; the same ones for the same points."""
    if count >= len(points):
        return list(points)
    return [points[round(index * (len(points) - 1) / max(count - 1, 1))] for index in range(count)]


def table(tallies: Iterable[Tally]) -> str:
    """What came of all of them."""
    return "\n".join([HEAD, *(tally.row() for tally in tallies)])


def _keep(folder: Path, device: CrashDevice) -> None:
    """Keep what is left of a device that broke."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(device.folder, folder, ignore=shutil.ignore_patterns("r"), symlinks=True)
