"""What it costs to prove what answers, and what clients see of a swap: workers that overlap, or stop first, then start.

Clients run in a process of their own and keep their connections; an error is counted and would be a finding. Attesting
goes on without a pause here, which no device does: it shows the most that clients can feel of it.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks._dense import MEMBER, width_of
from edge_agent.serving.supervisor import WorkerSupervisor
from edge_contract.digest import Digest

SUMMARY: Final = "milliseconds to attest a model, and what clients wait for in a swap: overlapping, and stop first"
OPTIONS: Final = {"sizes_mb": "0.02,40", "clients": "8", "think_ms": "10", "rounds": "9", "watch_s": "5"}
_MB: Final = 1_000_000
_MODULE: Final = "line"
_ATTESTATIONS: Final = 100

Bundle = tuple[Digest, Path]


def run(options: Mapping[str, str]) -> dict[str, Any]:
    """Measure every size.

    Args:
        options: `sizes_mb` of the models, comma-separated; `clients` that each wait `think_ms` between two requests;
            `rounds` of each kind of swap; `watch_s` seconds of requests with and without attesting.

    Returns:
        For each size: quantiles of attesting and of requests, and of both kinds of swap.
    """
    return {"sizes": [_measure(float(text), options) for text in options["sizes_mb"].split(",")]}


class _Clients:
    """A process with clients, started and ended by the one who uses it."""

    def __init__(self, path: Path, width: int, options: Mapping[str, str]) -> None:
        arguments = [str(path), MEMBER, str(width), options["clients"], options["think_ms"]]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._clients", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def end(self) -> dict[str, Any]:
        """End them; what they saw."""
        seen, _ = self._process.communicate()
        document: dict[str, Any] = json.loads(seen)
        return document


def _measure(size_mb: float, options: Mapping[str, str]) -> dict[str, Any]:
    size = int(size_mb * _MB)
    with tempfile.TemporaryDirectory(prefix="activation-") as text:
        folder = Path(text)
        (folder / "run").mkdir()
        argv = [sys.executable, "-m", "benchmarks._dense", str(folder / "slots"), str(size), "2"]
        made = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
        bundles = [(Digest(digest), Path(slot)) for digest, slot in made]
        server = WorkerSupervisor(folder / "run", lambda *_: None, lambda *_: None)
        try:
            server.ensure(_MODULE, *bundles[0])
            server.set_sampling(_MODULE, 0.0)
            return {
                "model_mb": size_mb,
                "worker_own_mb": round(server.memory_bytes(_MODULE) / _MB, 1),
                **_attesting(server, width_of(size), options),
                **_swaps(server, bundles, width_of(size), options),
            }
        finally:
            server.close()


def _attesting(server: WorkerSupervisor, width: int, options: Mapping[str, str]) -> dict[str, Any]:
    path, watch_s = server.addresses(_MODULE)[0], float(options["watch_s"])
    alone = [_timed(lambda: server.attest(_MODULE)) for _ in range(_ATTESTATIONS)]
    clients = _Clients(path, width, options)
    time.sleep(watch_s)
    undisturbed = clients.end()
    clients = _Clients(path, width, options)
    beside, end = [], time.monotonic() + watch_s
    while time.monotonic() < end:
        beside.append(_timed(lambda: server.attest(_MODULE)))
    disturbed = clients.end()
    return {
        "attest_ms": _quantiles(alone),
        "attest_beside_requests_ms": _quantiles(beside),
        "request_ms": _quantiles([took for _begin, took in undisturbed["requests"]]),
        "request_beside_attesting_ms": _quantiles([took for _begin, took in disturbed["requests"]]),
        "attest_errors": len(undisturbed["errors"]) + len(disturbed["errors"]),
    }


def _swaps(server: WorkerSupervisor, bundles: list[Bundle], width: int, options: Mapping[str, str]) -> dict[str, Any]:
    """Both kinds of swap in turn, so that a machine that grows busy slows both."""
    found: dict[str, dict[str, list[float]]] = {}
    errors = 0
    for number in range(2 * int(options["rounds"])):
        kind, (manifest, slot) = ("overlap", "stop_first")[number % 2], bundles[(number + 1) % 2]
        clients = _Clients(server.addresses(_MODULE)[0], width, options)
        time.sleep(0.3)
        begun = time.monotonic()
        if kind == "stop_first":
            server.pause(_MODULE)
        server.prove(_MODULE, manifest, slot)
        proved = time.monotonic()
        gap_ms = server.activate(_MODULE, manifest)
        ended = time.monotonic()
        server.set_sampling(_MODULE, 0.0)
        time.sleep(0.3)
        seen = clients.end()
        errors += len(seen["errors"])
        figures = found.setdefault(kind, {})
        figures.setdefault("gap_ms", []).append(gap_ms)
        figures.setdefault("until_proved_ms", []).append((proved - begun) * 1000)
        figures.setdefault("activate_ms", []).append((ended - proved) * 1000)
        during = [took for begin, took in seen["requests"] if begin < ended * 1000 and begin + took > begun * 1000]
        figures.setdefault("longest_request_ms", []).append(max(during))
    medians = {
        kind: {name: round(statistics.median(values), 1) for name, values in figures.items()}
        for kind, figures in found.items()
    }
    return {**medians, "swap_errors": errors}


def _timed(call: Callable[[], object]) -> float:
    begun = time.monotonic()
    call()
    return (time.monotonic() - begun) * 1000


def _quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "count": len(ordered),
        "p50": round(ordered[len(ordered) // 2], 2),
        "p99": round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], 2),
        "max": round(ordered[-1], 2),
    }
