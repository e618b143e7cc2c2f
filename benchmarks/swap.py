"""What clients see while models are replaced, workers are killed and the agent is killed: nothing, or how much.

Clients are a C program with kept-alive connections that ask again as soon as they have their answer. Every answer has
to name a version that was ordered, and on one connection none may come after a newer one. Everything is switched on:
metrics, every prediction collected, every check, compiling. docs/benchmarks.md says how to read the figures.
"""

import os
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks._bundles import IMAGE, TINY, Bundle, image_bundle, tiny_bundle
from benchmarks._idle import IdleConnections
from benchmarks._native import Native, finish
from benchmarks._ours import Ours
from benchmarks._process import memory_mb, tree
from benchmarks._verdicts import Figure, summary

SUMMARY: Final = "what clients lose and wait for: a hundred swaps, a big model's swap, worker killed, agent killed"
OPTIONS: Final = {
    "swaps": "100",
    "silences": "9",
    "window_s": "2.5",
    "kills": "5",
    "agent_kills": "3",
    "connections": "8",
}
QUICK: Final = {"swaps": "2", "silences": "1", "window_s": "1.5", "kills": "1", "agent_kills": "1"}
"""A smoke test: shows that it runs, proves nothing."""

_LANES: Final = {"http": ("tcp", TINY.http()), "frame": ("unix", TINY.frame())}
_FOREVER_S: Final = 3600.0
_SETTLED_S: Final = 60.0
_IDLE: Final = 8
_LOOKS: Final = 5
_PACED: Final = 4
_PAUSE_US: Final = 30_000
_Found = dict[str, Any]


def run(options: Mapping[str, str]) -> dict[str, Any]:
    """Measure.

    Args:
        options: `swaps` for each lane; `silences`, swaps of the big model, each beside `window_s` seconds without one;
            `kills` of a worker; `agent_kills`; `connections` of the closed loop.

    Returns:
        `figures` against what is promised, and what each part found.
    """
    connections = int(options["connections"])
    with tempfile.TemporaryDirectory(prefix="lighterman-swap-") as name:
        folder = Path(name)
        native = Native(folder)
        swaps = {lane: _swaps(folder, native, lane, int(options["swaps"]), connections) for lane in _LANES}
        silence = _silences(folder, native, int(options["silences"]), float(options["window_s"]))
        kills = _worker_kills(folder, native, int(options["kills"]), connections)
        agents = {lane: _agent_kills(folder, native, lane, int(options["agent_kills"]), connections) for lane in _LANES}
    figures = [
        *_swap_figures(swaps),
        _silence_figure(silence),
        *_kill_figures(kills),
        Figure("agent killed: lost, reset, refused", sum(map(_losses, agents.values())), 0, 0),
        *_memory_figures(swaps),
    ]
    return {
        "figures": [figure.to_json() for figure in figures],
        "swaps": swaps,
        "silence": silence,
        "worker_killed": kills,
        "agent_killed": agents,
    }


def _losses(found: Mapping[str, Any]) -> int:
    return sum(int(found[name]) for name in ("failed", "closes", "resets", "refused"))


def _swap_figures(swaps: Mapping[str, _Found]) -> list[Figure]:
    names = {
        "lost": "failed",
        "closed": "closes",
        "reset": "resets",
        "refused": "refused",
        "old answer after new": "backwards",
    }
    count = " and ".join(f"{found['swaps']} ({lane})" for lane, found in swaps.items())
    note = f"{sum(found['answers'] for found in swaps.values())} answers"
    return [
        Figure(f"{count} swaps under load: {name}", sum(found[key] for found in swaps.values()), 0, 0, note=note)
        for name, key in {**names, "answers that name no version": "unknown"}.items()
    ]


def _memory_figures(swaps: Mapping[str, _Found]) -> list[Figure]:
    return [
        Figure(f"memory after {found['swaps']} swaps over after the first ({lane}, PSS of the tree)",
               found["pss_mb"][1] / found["pss_mb"][0], 1.05, 1.01)
        for lane, found in swaps.items()
    ]  # fmt: skip


def _silence_figure(silence: _Found) -> Figure:
    note = f"steady {silence['steady_ms']['median']} ms, with a swap {silence['swap_ms']['median']} ms (medians)"
    return Figure("longest silence in a swap beyond steady, MobileNet-sized", silence["beyond_ms"], 50, 20, unit="ms",
                  note=note)  # fmt: skip


def _kill_figures(kills: Sequence[_Found]) -> list[Figure]:
    cut = f"{sum(one['failed'] for one in kills)} answered 503, {sum(one['resets'] for one in kills)} cut in an answer"
    return [
        Figure("worker killed: refused connections", sum(one["refused"] for one in kills), 0, 0, note=cut),
        Figure("worker killed: silence", median(one["silence_us"] for one in kills) / 1e6, 1.0, 0.1, unit="s"),
        Figure("worker killed: idle kept-alive connections lost", sum(one["idle_lost"] for one in kills), 0, 0,
               note=f"of {_IDLE * len(kills)}"),
    ]  # fmt: skip


def _settle(ours: Ours) -> None:
    """Until the process has one worker: the old one has gone, and nothing is being compiled."""
    deadline = time.monotonic() + _SETTLED_S
    while len(tree(ours.process.pid)) != 2 and time.monotonic() < deadline:
        time.sleep(0.05)


def _steady_pss_mb(ours: Ours) -> float:
    """The least of a few looks: a child that is just being made counts pages twice."""
    looks = []
    for _ in range(_LOOKS):
        _settle(ours)
        looks.append(memory_mb(ours.process.pid)[1])
        time.sleep(0.1)
    return min(looks)


def _serving(folder: Path, name: str, bundle: Bundle, module: str) -> Ours:
    (folder / name).mkdir()
    ours = Ours(folder / name, folder / "compiled")
    ours.do("ensure", module, bundle)
    _settle(ours)
    return ours


def _swaps(folder: Path, native: Native, lane: str, count: int, connections: int) -> _Found:
    """A swap after another under a closed loop; memory after the first and after the last."""
    bundles = [tiny_bundle(folder, number) for number in range(1, count + 2)]
    kind, request = _LANES[lane]
    manifests = tuple(bundle.manifest.hex for bundle in bundles)
    pss, took, activated = [], [], []
    with _serving(folder, f"swaps-{lane}", bundles[0], "tiny") as ours:
        load = native.start_load(lane, ours.address("tiny", kind), request, connections, _FOREVER_S, manifests)
        try:
            for number, bundle in enumerate(bundles[1:], 1):
                begun = time.perf_counter()
                activated.append(ours.do("swap", "tiny", bundle)["activate_ms"])
                took.append((time.perf_counter() - begun) * 1000)
                if number in (1, count):
                    pss.append(_steady_pss_mb(ours))
        finally:
            found = finish(load)
    return found | {
        "swaps": count, "pss_mb": [pss[0], pss[-1]], "swap_ms": summary(took), "activate_ms": summary(activated)
    }  # fmt: skip


def _silences(folder: Path, native: Native, count: int, window_s: float) -> _Found:
    """The longest time without an answer from a big model: windows with a swap beside windows without one."""
    steady: list[float] = []
    swapped: list[float] = []
    with _serving(folder, "silences", image_bundle(folder, 1), "image") as ours:
        address = ours.address("image", "tcp")
        for number in range(2, count + 2):
            bundle = image_bundle(folder, number)
            for order in (None, bundle):
                _settle(ours)
                load = native.start_load("http", address, IMAGE.http(), _PACED, _FOREVER_S, pause_us=_PAUSE_US)
                until = time.monotonic() + window_s
                time.sleep(window_s / 4)
                if order is not None:
                    ours.do("swap", "image", order)
                time.sleep(max(0.0, until - time.monotonic()))
                found = finish(load)
                if _losses(found):
                    raise RuntimeError(f"a swap of the big model lost requests: {found}")
                (steady if order is None else swapped).append(found["silence_us"] / 1000)
    beyond = median(b - a for a, b in zip(steady, swapped, strict=True))
    return {"beyond_ms": beyond, "steady_ms": summary(steady), "swap_ms": summary(swapped)}


def _worker_kills(folder: Path, native: Native, count: int, connections: int) -> list[_Found]:
    """Kill -9 of the worker under a closed loop, beside connections that ask nothing just then."""
    bundle = tiny_bundle(folder, 1)
    kind, request = _LANES["http"]
    results = []
    with _serving(folder, "kills", bundle, "tiny") as ours:
        address = ours.address("tiny", kind)
        for _ in range(count):
            _settle(ours)
            with IdleConnections(address, request, _IDLE) as idle:
                load = native.start_load("http", address, request, connections, _FOREVER_S, (bundle.manifest.hex,))
                time.sleep(0.5)
                worker = ours.worker("tiny")
                os.kill(worker, signal.SIGKILL)
                _wait_for_another(ours, worker)
                time.sleep(0.5)
                results.append(finish(load) | {"idle_lost": idle.count_lost()})
    return results


def _wait_for_another(ours: Ours, worker: int) -> None:
    deadline = time.monotonic() + _SETTLED_S
    while time.monotonic() < deadline:
        found = ours.do("pid", "tiny")["pid"]
        if found is not None and found != worker:
            return
        time.sleep(0.05)
    raise RuntimeError("no worker came after the one that was killed")


def _agent_kills(folder: Path, native: Native, lane: str, count: int, connections: int) -> _Found:
    """Kill -9 of the agent under a closed loop; the next one adopts the worker and swaps it."""
    bundles = [tiny_bundle(folder, number) for number in range(1, count + 2)]
    kind, request = _LANES[lane]
    manifests = tuple(bundle.manifest.hex for bundle in bundles)
    ours = _serving(folder, f"agent-{lane}", bundles[0], "tiny")
    adopted = 0
    try:
        load = native.start_load(lane, ours.address("tiny", kind), request, connections, _FOREVER_S, manifests)
        try:
            for old, new in pairwise(bundles):
                worker = ours.worker("tiny")
                ours.kill()
                time.sleep(0.5)
                ours = Ours(folder / f"agent-{lane}", folder / "compiled", is_adopting=True)
                ours.do("ensure", "tiny", old)
                adopted += ours.worker("tiny") == worker
                ours.do("swap", "tiny", new)
        finally:
            found = finish(load)
    finally:
        ours.end()
    return found | {"kills": count, "adopted": adopted}
