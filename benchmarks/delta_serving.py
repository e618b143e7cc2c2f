"""What decoding a delta costs the live model: its throughput beside a decoder, and without one, in turn.

Clients are a C program with kept-alive connections that ask again as soon as they have their answer, so that the model
has something to do at every moment; the decoder is the agent's own child process, over and over. With `cores=1`
everything shares one core, which is the hardest case. docs/benchmarks.md says how to read the figures.
"""

import os
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from benchmarks._bundles import IMAGE, TINY, image_bundle, tiny_bundle
from benchmarks._native import Native
from benchmarks._ours import Ours
from benchmarks._verdicts import Figure, paired_ratio
from edge_agent.delta.process import ChildDecoding, Work
from edge_contract.delta import Delta
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from packager.delta.encode import encode
from packager.delta.formats import Tensor

SUMMARY: Final = "throughput of the live model while a delta is decoded beside it, against throughput without"
OPTIONS: Final = {"rounds": "7", "window_s": "4", "connections": "8", "cores": "2", "megabytes": "24"}
QUICK: Final = {"rounds": "1", "window_s": "1.5", "megabytes": "4"}
_MODELS: Final = {"tiny": (TINY, tiny_bundle), "image": (IMAGE, image_bundle)}
_ROWS: Final = 1_024


def run(options: Mapping[str, str]) -> dict[str, Any]:
    """Measure.

    Args:
        options: `rounds` of a window without and one with a decoder; `window_s` of each; `connections` of the closed
            loop; `cores` that all of it shares; `megabytes` of the file that the delta makes.

    Returns:
        `figures`: for each model the median over the rounds of the share of its throughput that is lost.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[: int(options["cores"])]))
    try:
        with tempfile.TemporaryDirectory(prefix="lighterman-beside-") as name:
            folder = Path(name)
            native, loop = Native(folder), _Decoder(folder, int(float(options["megabytes"]) * 1e6))
            found = {model: _rounds(folder, native, loop, model, options) for model in _MODELS}
    finally:
        os.sched_setaffinity(0, before)
    figures = [
        Figure(f"throughput lost beside a decoder, {model}", 1 - rounds["ratio"], 0.10, 0.05,
               note=f"{rounds['without_per_s']:.0f} answers/s without, {rounds['decoded_mb_per_s']:.1f} MB/s decoded")
        for model, rounds in found.items()
    ]  # fmt: skip
    return {"figures": [figure.to_json() for figure in figures], "cores": int(options["cores"]), "models": found}


class _Decoder:
    """Decodes one delta again and again, as the agent does, until it is told to stop."""

    def __init__(self, folder: Path, size: int) -> None:
        random = np.random.default_rng(3)
        base = (random.standard_normal((size // 4 // _ROWS, _ROWS)) * 0.05).astype(np.float32)
        new = (base + 1e-4 * random.standard_normal(base.shape)).astype(np.float32)
        self._base, self._delta, self._output = folder / "base", folder / "delta", folder / "output"
        made = folder / "new"
        self._base.write_bytes(base.tobytes())
        made.write_bytes(new.tobytes())
        tensors = [Tensor("w", "f32", base.shape, 0, base.nbytes)]
        encode(self._base, made, self._delta, base_tensors=tensors, new_tensors=tensors)
        data = self._delta.read_bytes()
        self._told = Delta(
            Digest.of(base.tobytes()), base.nbytes, Digest.of(new.tobytes()), new.nbytes, Digest.of(data), len(data), 0
        )
        self._is_stopped = threading.Event()
        self.bytes = 0

    def __enter__(self) -> "_Decoder":
        self._is_stopped.clear()
        self.bytes = 0
        self._thread = threading.Thread(target=self._run, name="decoder")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_stopped.is_set():
            with self._base.open("rb") as base, self._delta.open("rb") as delta, self._output.open("w+b") as output:
                work = Work(self._told, base.fileno(), delta.fileno(), output.fileno())
                try:
                    ChildDecoding()(work, self._count, self._is_stopped.is_set)
                except EdgeError as error:
                    if error.code != "network.cut":
                        raise
                self.bytes += os.fstat(output.fileno()).st_size

    def _count(self, _output_bytes: int, _verified_bytes: int, _state: bytes) -> None:
        """Nothing is kept here: the next window begins anew."""


def _rounds(folder: Path, native: Native, decoder: _Decoder, model: str, options: Mapping[str, str]) -> dict[str, Any]:
    subject, make = _MODELS[model]
    run_dir = folder / f"run-{model}"
    run_dir.mkdir()
    window_s, connections = float(options["window_s"]), int(options["connections"])
    without: list[float] = []
    beside: list[float] = []
    decoded = 0.0
    with Ours(run_dir) as ours:
        ours.do("swap", model, make(folder, 1))
        address = ours.address(model, "tcp")
        native.load("http", address, subject.http(), connections, window_s)  # the first window warms up
        for _ in range(int(options["rounds"])):
            without.append(_rate(native, address, subject.http(), connections, window_s))
            with decoder:
                started = time.monotonic()
                beside.append(_rate(native, address, subject.http(), connections, window_s))
            decoded += decoder.bytes / 1e6 / (time.monotonic() - started)
    ratio = paired_ratio(beside, without)
    return {
        "ratio": 1.0 if ratio is None else ratio,
        "without_per_s": median(without),
        "beside_per_s": median(beside),
        "decoded_mb_per_s": decoded / len(beside),
    }


def _rate(native: Native, address: str, request: bytes, connections: int, window_s: float) -> float:
    found = native.load("http", address, request, connections, window_s)
    return float(found["answers"]) / window_s
