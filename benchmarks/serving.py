"""What a prediction costs: our worker beside ONNX Runtime in the process, an echo server in C, and servers others use.

All servers are up at once and take turns in short bursts; the limit and the echo are measured again in every round, and
ratios are made within a round. Ours has everything switched on: metrics, every prediction collected, every check.
docs/benchmarks.md says how to read the figures.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks import _peers, engines
from benchmarks._bundles import IMAGE, TINY, Bundle, Subject, image_bundle, tiny_bundle
from benchmarks._native import Native
from benchmarks._ours import Ours
from benchmarks._process import cores, cpu_ms, free_port, memory_mb, tree
from benchmarks._verdicts import Figure, paired_ratio, summary

SUMMARY: Final = "a prediction over HTTP and over frames, beside the limit, an echo in C, FastAPI, MLServer and KServe"
OPTIONS: Final = {
    "rounds": "7",
    "burst_s": "0.5",
    "peers": "fastapi,fastapi-tuned,mlserver,kserve",
    "peers_dir": "",
    "starts": "5",
    "idle_s": "20",
    "engine_rounds": "5",
    "cores": "0",
}

QUICK: Final = {"rounds": "1", "burst_s": "0.2", "peers": "", "starts": "1", "idle_s": "2", "engine_rounds": "1"}
"""A smoke test: shows that it runs, measures nothing that could be trusted."""

_CONNECTIONS: Final = 8
_SAME_CORE_US: Final = 25.0
_ALONE_S: Final = 60.0
_IMAGE_WIDTH: Final = 1.75
"""Of the network that is given images: about 10 ms a run here."""
_Samples = dict[str, list[float]]


def run(options: Mapping[str, str]) -> dict[str, Any]:
    """Measure.

    Args:
        options: `rounds` of `burst_s` seconds for each server; `peers` by name, and `peers_dir`, where their
            environments are kept (a temporary folder when empty); `starts` of a worker; `idle_s` of watching an idle
            one; `engine_rounds` of loading; `cores` that client and servers share, 0 for all: with 1 no round trip
            wakes another core, which costs more than a tiny model and depends on the machine, not on the server.

    Returns:
        `figures` against what is promised, `p50_us`, `cpu_us` and `rate` by server, the spread of each over the rounds;
        `placement`, in how many rounds the echo ran on its client's core.
    """
    names = [name for name in options["peers"].split(",") if name]
    if count := int(options["cores"]):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])  # whatever is started takes after this process
    with tempfile.TemporaryDirectory(prefix="lighterman-serving-") as folder_name, ExitStack() as stack:
        folder = Path(folder_name)
        native = Native(folder)
        peers_dir = Path(options["peers_dir"] or folder / "peers").resolve()
        tiny, image = tiny_bundle(folder, 1), image_bundle(folder, 1, _IMAGE_WIDTH)
        starts = _starts(folder, native, tiny, int(options["starts"]))
        idle = _idle_permille(folder, tiny, float(options["idle_s"]))
        (folder / "run").mkdir()
        ours = stack.enter_context(Ours(folder / "run", folder / "compiled"))
        ours.do("ensure", "tiny", tiny)
        ours.do("ensure", "image", image)
        for module in ("tiny", "image"):
            _wait_alone(ours.worker(module))
        bench = _Bench(native, ours, folder, float(options["burst_s"]))
        bench.manifests = (tiny.manifest.hex, image.manifest.hex)
        stack.enter_context(bench.echoes())
        for name in names:
            peer = _peers.PEERS[name]
            python = _peers.install(peer, peers_dir)
            for module, bundle in (("tiny", tiny), ("image", image)):
                if module == "tiny" or name == "fastapi-tuned":
                    place = folder / f"{name}-{module}"
                    bench.peers[name, module] = stack.enter_context(_peers.running(peer, python, bundle.model, place))
        for _ in range(int(options["rounds"])):
            bench.round(tiny, image)
        resident = memory_mb(ours.worker("tiny"))
        bench.figures += [
            Figure("worker resident, tiny model", starts["rss_mb"], 75, 65, unit="MB"),
            Figure("worker start to first right answer, tiny model", starts["start_s"], 0.5, 0.3, unit="s"),
            Figure("idle CPU of a worker with a model loaded", idle, 5, 1, unit="thousandths of a core"),
            _reload(folder, image_bundle(folder, 1), int(options["engine_rounds"])),
        ]
        return bench.result() | {"starts": starts, "worker_under_load_mb": resident, "cores": cores()}


class _Bench:
    """The servers, and what each round found."""

    def __init__(self, native: Native, ours: Ours, folder: Path, burst_s: float) -> None:
        self._native, self._ours, self._folder, self._burst_s = native, ours, folder, burst_s
        self.manifests: tuple[str, ...] = ()
        self.peers: dict[tuple[str, str], tuple[int, str]] = {}
        self.figures: list[Figure] = []
        self._echo_port = 0
        self.p50: _Samples = {}
        self.cpu: _Samples = {}
        self.rate: _Samples = {}

    def echoes(self) -> ExitStack:
        """Echo servers for the bytes of both models."""
        stack = ExitStack()
        for name, subject in (("tiny", TINY), ("image", IMAGE)):
            out_bytes = 16 if name == "tiny" else 4_000
            stack.enter_context(
                self._native.echo(f"unix:{self._folder / f'{name}.echo'}", subject.array.nbytes, out_bytes)
            )
        self._echo_port = free_port()
        stack.enter_context(self._native.echo(f"tcp:{self._echo_port}", TINY.array.nbytes, 16))
        return stack

    def round(self, tiny: Bundle, image: Bundle) -> None:
        """One burst of everything."""
        self._limit("limit tiny", tiny, TINY)
        self._burst("echo tiny", "raw:16", f"unix:{self._folder / 'tiny.echo'}", TINY.array.tobytes(), 0)
        self._burst("echo tcp tiny", "raw:16", f"tcp:127.0.0.1:{self._echo_port}", TINY.array.tobytes(), 0)
        worker = self._ours.worker("tiny")
        unix, tcp = (self._ours.address("tiny", kind) for kind in ("unix", "tcp"))
        self._burst("ours frames tiny", "frame", unix, TINY.frame(), worker)
        self._python_client(unix)
        self._burst("ours http unix tiny", "http", unix, TINY.http(), worker)
        self._burst("ours http tcp tiny", "http", tcp, TINY.http(), worker)
        self._burst("ours json tcp tiny", "http", tcp, TINY.http(is_binary=False), worker)
        for (name, module), (pid, address) in self.peers.items():
            for form, make in _peers.PEERS[name].requests.items():
                subject = TINY if module == "tiny" else IMAGE
                self._burst(f"{name} {form} {module}", "http", address, make(subject), pid)
        self._burst("ours http tcp tiny x8", "http", tcp, TINY.http(), worker, _CONNECTIONS)
        self._burst("ours frames tiny x8", "frame", unix, TINY.frame(), worker, _CONNECTIONS)
        for name in ("fastapi", "fastapi-tuned"):
            if found := self.peers.get((name, "tiny")):
                request = _peers.PEERS[name].requests["json"](TINY)
                self._burst(f"{name} json tiny x8", "http", found[1], request, found[0], _CONNECTIONS)
        self._limit("limit image", image, IMAGE)
        worker = self._ours.worker("image")
        unix, tcp = (self._ours.address("image", kind) for kind in ("unix", "tcp"))
        self._burst("echo image", "raw:4000", f"unix:{self._folder / 'image.echo'}", IMAGE.array.tobytes(), 0)
        self._burst("ours http tcp image", "http", tcp, IMAGE.http(), worker, seconds=2 * self._burst_s)
        self._burst("ours frames image", "frame", unix, IMAGE.frame(), worker, seconds=2 * self._burst_s)

    def _limit(self, name: str, bundle: Bundle, subject: Subject) -> None:
        shape = ",".join(str(size) for size in subject.array.shape)
        command = [sys.executable, "-m", "benchmarks._limit", str(bundle.model), shape, str(self._burst_s)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        self._note(name, found["bound_p50_us"], found["cpu_us"], found["count"] / self._burst_s)
        self._note(f"{name}, session.run", found["p50_us"], found["cpu_us"], found["count"] / self._burst_s)

    def _burst(
        self, name: str, mode: str, address: str, request: bytes, pid: int, connections: int = 1, seconds: float = 0.0
    ) -> None:
        before = cpu_ms(pid) if pid else 0.0
        manifests = self.manifests if name.startswith("ours") else ()
        found = self._native.load(mode, address, request, connections, seconds or self._burst_s, manifests)
        cpu = cpu_ms(pid) - before if pid else 0.0
        wrong = sum(found[count] for count in ("failed", "closes", "resets", "refused", "unknown"))
        if wrong or not found["answers"]:
            raise RuntimeError(f"{name}: {found}")
        self._note(name, found["p50_us"], 1000 * cpu / found["answers"], found["answers"] / found["seconds"])

    def _python_client(self, unix: str) -> None:
        command = [sys.executable, "-m", "benchmarks._python_client", unix.removeprefix("unix:"), str(self._burst_s)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        self._note("ours InferenceClient tiny", found["p50_us"], 0.0, found["rate"])

    def _note(self, name: str, p50_us: float, cpu_us: float, rate: float) -> None:
        for samples, value in ((self.p50, p50_us), (self.cpu, cpu_us), (self.rate, rate)):
            samples.setdefault(name, []).append(value)

    def _over_floor(self, name: str) -> float | None:
        floor = [a + b for a, b in zip(self.p50["limit tiny"], self.p50["echo tiny"], strict=True)]
        return paired_ratio(self.p50[name], floor)

    def _tuned(self, samples: _Samples, ours: str, suffix: str, is_less_better: bool = False) -> str:
        """The same figure against FastAPI as somebody tunes it who knows how."""
        theirs = samples.get(f"fastapi-tuned json tiny{suffix}")
        if not theirs:
            return ""
        pair = (theirs, samples[ours]) if is_less_better else (samples[ours], theirs)
        return f"over a tuned one (async, uvloop, httptools): {paired_ratio(*pair):.1f}"

    def result(self) -> dict[str, Any]:
        """Everything that was found."""
        one, rounds = placement(self.p50["echo tiny"])["rounds_on_one_core"], len(self.p50["echo tiny"])
        where = f"echo on one core in {one} of {rounds} rounds" + ("" if one == rounds else ": no verdict to trust")
        figures = [
            Figure("tiny, own client over the unix socket (frames, Python and numpy): p50 over (limit + echo)",
                   self._over_floor("ours InferenceClient tiny"), 3.0, 2.2, note=where),
            Figure("tiny, own client's frames from a C program: the same ratio",
                   self._over_floor("ours frames tiny"), 3.0, 2.2, note=where),
            Figure("tiny, Open Inference Protocol binary over HTTP, unix socket: the same ratio",
                   self._over_floor("ours http unix tiny"), 6.0, 4.2, note=where),
            Figure("tiny, Open Inference Protocol binary over HTTP, TCP: the same ratio",
                   self._over_floor("ours http tcp tiny"), 6.0, 4.2, note=where),
        ]  # fmt: skip
        for name, must, aim in (("fastapi", 7.0, 10.0), ("mlserver", 10.0, 15.0), ("kserve", 12.0, 20.0)):
            theirs = self.p50.get(f"{name} json tiny")
            value = paired_ratio(theirs, self.p50["ours http tcp tiny"]) if theirs else None
            note = self._tuned(self.p50, "ours http tcp tiny", "", True) if name == "fastapi" else ""
            note = note if theirs else "was not among the peers of this run"
            figures.append(
                Figure(f"tiny, HTTP binary, times faster than {name} JSON", value, must, aim, True, "x", note)
            )
        value = paired_ratio(self.cpu["ours http tcp image"], self.cpu["limit image"])
        took = f"a run of the limit takes {median(self.cpu['limit image']) / 1000:.1f} ms"
        figures.append(Figure("602 KB image, HTTP binary: server CPU over the limit", value, 1.12, 1.06, note=took))
        base = self.rate.get("fastapi json tiny x8")
        for name, text, must, aim in (
            ("ours http tcp tiny x8", "HTTP binary", 4.0, 6.0),
            ("ours frames tiny x8", "frames (own client)", 10.0, 15.0),
        ):
            value = paired_ratio(self.rate[name], base) if base else None
            label, note = (
                f"throughput, 8 connections, tiny, over FastAPI JSON: {text}",
                self._tuned(self.rate, name, " x8"),
            )
            figures.append(Figure(label, value, must, aim, True, "x", note))
        return {
            "figures": [figure.to_json() for figure in (*figures, *self.figures)],
            "placement": placement(self.p50["echo tiny"]),
            "p50_us": {name: summary(values) for name, values in self.p50.items()},
            "cpu_us": {name: summary(values) for name, values in self.cpu.items() if any(values)},
            "rate": {name: summary(values) for name, values in self.rate.items()},
        }


def placement(echo_p50_us: Sequence[float]) -> dict[str, int]:
    """In how many rounds the echo's two ends shared a core, and in how many each had to wake another one."""
    same = sum(value < _SAME_CORE_US for value in echo_p50_us)
    return {"rounds_on_one_core": same, "rounds_on_two_cores": len(echo_p50_us) - same}


def _starts(folder: Path, native: Native, bundle: Bundle, count: int) -> dict[str, float]:
    """From the order to serve to the first right answer, with a fresh worker each time; and what it has resident."""
    seconds, resident = [], []
    for number in range(count):
        run_dir = folder / f"start-{number}"
        run_dir.mkdir()
        with Ours(run_dir) as ours:
            begun = time.perf_counter()
            ours.do("ensure", "tiny", bundle)
            address, manifests = ours.address("tiny", "tcp"), (bundle.manifest.hex,)
            found = native.load("http", address, TINY.http(), 1, 0.001, manifests)
            seconds.append(time.perf_counter() - begun)
            if not found["answers"] or found["unknown"]:
                raise RuntimeError(f"a fresh worker gave no right answer: {found}")
            native.load("http", address, TINY.http(), 1, 0.2)
            resident.append(memory_mb(ours.worker("tiny"))[0])
    return {"start_s": median(seconds), "rss_mb": median(resident)}


def _wait_alone(worker: int) -> None:
    """Until a worker has no process below it: it compiles its model in one, in the background."""
    deadline = time.monotonic() + _ALONE_S
    while len(tree(worker)) > 1 and time.monotonic() < deadline:
        time.sleep(0.1)


def _idle_permille(folder: Path, bundle: Bundle, seconds: float) -> float:
    """Processor time of a worker that nobody asks anything, thousandths of a core."""
    run_dir = folder / "idle"
    run_dir.mkdir()
    with Ours(run_dir) as ours:
        ours.do("ensure", "tiny", bundle)
        worker = ours.worker("tiny")
        _wait_alone(worker)
        time.sleep(2)  # what loading left to do
        before, begun = cpu_ms(worker), time.monotonic()
        time.sleep(seconds)
        return (cpu_ms(worker) - before) / (time.monotonic() - begun)


def _reload(folder: Path, image: Bundle, rounds: int) -> Figure:
    found = engines.compiled(image.slot, folder / "engine-compiled", rounds, "3")
    note = f"after a boot, every file read again: {found['reload_after_boot_over_first']}"
    return Figure("reload from the compiled form: CPU over first load", found["reload_over_first"], 0.4, 0.3, note=note)
