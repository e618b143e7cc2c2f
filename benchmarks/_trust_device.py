"""The device's half of the `trust` benchmark: the agent's verifier against repositories of growing size.

Full verifications are those of the agent: its child process, from start to end, so the interpreter and the libraries
are in the figures; `imports` is a process that does no more than that. python-tuf's own client, in a process that
reads the image repository alone, stands beside them.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks._trust_world import DEVICE, World, served
from edge_agent.trust.metastore import MetadataStore
from edge_agent.trust.receipt import Receipt
from edge_agent.trust.source import IMAGE_PREFIX, HttpMetadataSource, director_prefix
from edge_agent.trust.timefloor import TimeFloor, Times
from edge_agent.trust.uptane import UptaneVerifier

_MB: Final = 1_000_000
_CHILD: Final = "import runpy; runpy.run_module('edge_agent.trust', run_name='__main__')"
_IMPORTS: Final = "import sys; sys.modules['pkcs11'] = None; import edge_agent.trust.child, edge_agent.trust.full"
_REFERENCE: Final = """
import sys
from tuf.ngclient import Updater
folder, url, root, target = sys.argv[1:]
updater = Updater(folder, url, bootstrap=open(root, "rb").read())
updater.refresh()
assert updater.get_targetinfo(target)
"""
# Not wait4's ru_maxrss: a new process inherits the peak of the one that started it, and this one holds the repository.
_PEAK: Final = """
import sys
sys.stdout.flush()
sys.stderr.write([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1])
"""


@dataclass(frozen=True, slots=True)
class _Cost:
    """What one process or call took: wall seconds, processor seconds, MB at its peak."""

    seconds: float
    cpu_s: float
    peak_mb: float | None = None
    output: bytes = b""


def measure(options: Mapping[str, str]) -> dict[str, Any]:
    """Measure every size.

    Args:
        options: `bundles`, numbers with commas between them, and `rounds`.

    Returns:
        Medians of wall and processor seconds and of peak memory (MB of 1,000,000 bytes), and what was downloaded.
    """
    rounds = int(options["rounds"])
    with tempfile.TemporaryDirectory(prefix="trust-") as text:
        imports = [_run(_IMPORTS) for _ in range(rounds)]
        result: dict[str, Any] = {"imports": _medians(imports)}
        for bundles in map(int, options["bundles"].split(",")):
            result[str(bundles)] = _size(Path(text) / str(bundles), bundles, rounds)
        return result


def _size(folder: Path, bundles: int, rounds: int) -> dict[str, Any]:
    started = time.perf_counter()
    world = World(bundles)
    made_s = time.perf_counter() - started
    result: dict[str, Any] = {
        "repository_mb": round(sum(map(len, world.files.values())) / _MB, 3),
        "made_and_signed_s": round(made_s, 3),
    }
    with served(world) as url:
        places = [_enrolled(folder / f"device-{number}", world) for number in range(rounds)]
        result["first"] = _full(world, url, places)
        result["restart"] = _full(world, url, places)
        result["nothing_new"] = _nothing_new(world, url, places[0], rounds)
        world.publish(bundles)
        world.assign(bundles)
        result["one_more_bundle"] = _full(world, url, places)
        result["python_tuf_first"] = _reference(world, url, folder, rounds)
    return result


def _enrolled(folder: Path, world: World) -> Path:
    for name, prefix in (("director", director_prefix(DEVICE)), ("image", IMAGE_PREFIX)):
        MetadataStore(folder / name).seed(world.root(prefix))
    return folder


def _full(world: World, url: str, places: Sequence[Path]) -> dict[str, Any]:
    """One full verification on each device, in the child process that the agent starts."""

    def verify(number: int) -> _Cost:
        times = Times(time.time_ns() // 1_000_000).to_json()
        work = {"folder": str(places[number]), "device": DEVICE, "url": url, "ca": None, "token": "", "times": times}
        cost = _run(_CHILD, given=json.dumps(work).encode())
        if not Receipt.from_json(json.loads(cost.output)).desired.assignments:
            raise RuntimeError(f"nothing was verified: {cost.output!r}")
        return cost

    return _counted(world, len(places), verify)


def _nothing_new(world: World, url: str, folder: Path, rounds: int) -> dict[str, Any]:
    """A refresh in the control process, after the one that verified everything."""
    director, image = HttpMetadataSource(url, director_prefix(DEVICE)), HttpMetadataSource(url, IMAGE_PREFIX)
    verifier = UptaneVerifier(folder, DEVICE, director, image, dict, TimeFloor(folder / "time.json"))
    now_ms = time.time_ns() // 1_000_000
    verifier.refresh(now_ms)

    def refresh(_: int) -> _Cost:
        started, cpu = time.perf_counter(), time.thread_time()
        verifier.refresh(now_ms)
        return _Cost(time.perf_counter() - started, time.thread_time() - cpu)

    result = _counted(world, rounds, refresh)
    for source in (director, image):
        source.close()
    return result


def _reference(world: World, url: str, folder: Path, rounds: int) -> dict[str, Any]:
    root = folder / "root.json"
    root.write_bytes(world.root(IMAGE_PREFIX))

    def refresh(number: int) -> _Cost:
        place = folder / f"reference-{number}"
        place.mkdir()
        return _run(_REFERENCE, str(place), f"{url}{IMAGE_PREFIX}/", str(root), world.target)

    return _counted(world, rounds, refresh)


def _counted(world: World, rounds: int, once: Callable[[int], _Cost]) -> dict[str, Any]:
    world.forget()
    found = [once(number) for number in range(rounds)]
    return _medians(found) | {
        "requests": world.requests // rounds,
        "body_bytes": world.body_bytes // rounds,
        "wire_bytes": world.wire_bytes // rounds,
    }


def _medians(found: Sequence[_Cost]) -> dict[str, float]:
    result = {
        "seconds": round(statistics.median(cost.seconds for cost in found), 4),
        "cpu_s": round(statistics.median(cost.cpu_s for cost in found), 4),
    }
    peaks = [cost.peak_mb for cost in found if cost.peak_mb is not None]
    return result | ({"peak_mb": round(statistics.median(peaks), 1)} if peaks else {})


def _run(code: str, *arguments: str, given: bytes = b"") -> _Cost:
    """Run a program to its end; what it took and what it printed."""
    command = (sys.executable, "-P", "-c", code + _PEAK, *arguments)
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        source.write(given)
        source.seek(0)
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=source, stdout=output, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        said = errors.read().decode()
        if process.returncode:
            raise RuntimeError(f"a measured process ended with {process.returncode}: {said}")
        peak_mb = int(said.split()[-1]) * 1024 / _MB
        return _Cost(seconds, usage.ru_utime + usage.ru_stime, peak_mb, output.read())
