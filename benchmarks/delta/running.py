"""`python -m benchmarks delta`: makes the pairs, runs every tool over them and ours beside it, prints the figures."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.delta import figures
from benchmarks.delta.environment import LOCK, python_of
from benchmarks.delta.measuring import Kept, Result, files_of, measure
from benchmarks.delta.methods import OURS, PEERS, REPOSITORY, Method
from benchmarks.delta.processes import FailedError
from benchmarks.delta.processes import run as run_process
from benchmarks.delta.recipes import PAIRS, Pair

SUMMARY: Final = "deltas between releases of models beside xdelta3, bsdiff4, zstd, hdiffpatch, casync, ZipNN, z4ai"
OPTIONS: Final = {
    "folder": str(REPOSITORY / "benchmarks" / "results" / "delta"),
    "environment": str(REPOSITORY / ".venv-delta"),
    "pairs": "",
    "methods": "",
    "kappas": "0.25,0.5,1,2",
    "kept": "no",
    "details": "no",
}
QUICK: Final = {"pairs": "ae_daily_adam_3e-5,cnn_meta_only", "methods": "zstd -19,zstd --patch-from", "kappas": ""}
_SNAPPED: Final = ("cnn_ft_adam_1e-5", "cnn_ft_adam_1e-4", "cnn_ft_sgd_1e-3", "vit_ft_adam_2e-5")
_FIGURE_KAPPA: Final = 1.0
"""Coarser grids are measured, and judged by nobody."""
_PATHS: Final = {"PYTHONPATH": str(REPOSITORY)}


def run(options: Mapping[str, str]) -> dict[str, Any]:
    """Measure.

    Args:
        options: ``folder`` for pairs and results; ``environment`` for the benchmark's own Python; ``pairs`` and
            ``methods`` (names with commas between them; empty for all; ours always runs); ``kappas`` of snapped
            releases; ``kept=yes`` to take other tools' results of earlier runs over the same files; ``details=yes``
            for time and memory of every method at every pair.

    Returns:
        Figures, a row for every pair with each method's share of the file, snapped releases, what failed.

    Raises:
        ValueError: A pair or a method that is not there.
        RuntimeError: The environment or the pairs cannot be made.
    """
    pairs = _chosen("pair", options["pairs"], {pair.name: pair for pair in PAIRS})
    methods = _chosen("method", options["methods"], {method.name: method for method in PEERS})
    folder = Path(options["folder"]).absolute()
    python = str(python_of(Path(options["environment"]).absolute()))
    make_pairs(python, folder / "pairs", [pair.name for pair in pairs])
    kept = Kept(folder / "kept")
    if options["kept"] != "yes":
        kept.forget()
    results, failures = _measure_all(pairs, methods, folder / "pairs", python, kept)
    floor_bytes = run_process([sys.executable, "-m", "benchmarks.delta.ours", "floor"], _PATHS).peak_bytes
    kappas = [float(word) for word in options["kappas"].split(",") if word]
    rows = [row for pair in pairs if pair.name in _SNAPPED for row in _snap(pair, folder / "pairs", python, kappas)]
    table = figures.sizes(results) + figures.speeds(results, floor_bytes)
    for kappa in sorted(each for each in kappas if each <= _FIGURE_KAPPA):
        table += figures.snapped(rows, kappa)
    made = {
        "figures": [figure.to_json() for figure in table],
        "pairs": [_row(pair, results[pair.name]) for pair in pairs],
        "snapped": rows,
        "ours": [_costs(pair, results[pair.name]) for pair in pairs],
        "methods": _by_method(results),
        "tools": versions(methods),
        "failures": failures,
    }
    return {**made, "details": _details(results)} if options["details"] == "yes" else made


def _chosen(what: str, told: str, known: Mapping[str, Any]) -> list[Any]:
    names = [name for name in told.split(",") if name] or list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"there is no {what} {unknown[0]!r}; there are: {', '.join(known)}")
    return [known[name] for name in names]


def make_pairs(python: str, folder: Path, names: Sequence[str]) -> None:
    """Make what is not there yet, in the benchmark's own environment.

    Raises:
        RuntimeError: They cannot be made.
    """
    try:
        run_process([python, "-W", "ignore", "-m", "benchmarks.delta.pairs", str(folder), *names], _PATHS)
    except FailedError as error:
        raise RuntimeError(f"the pairs cannot be made: {error}") from error


def _measure_all(
    pairs: Sequence[Pair], methods: Sequence[Method], folder: Path, python: str, kept: Kept
) -> tuple[dict[str, dict[str, Result]], dict[str, str]]:
    results: dict[str, dict[str, Result]] = {}
    failures: dict[str, str] = {}
    for pair in pairs:
        base, new = files_of(pair, folder)
        results[pair.name] = {}
        for method in (*methods, OURS):
            if not method.is_here:
                failures[method.name] = f"{method.program} is not installed: scripts/install-bench-needs.sh installs it"
                continue
            found = kept.get(method, pair, base, new) if method is not OURS else None
            if found is None:
                found = measure(method, pair, base, new, python)
                kept.put(method, pair, base, new, found)
            results[pair.name][method.name] = found
            if found.failure:
                failures[f"{method.name}, {pair.name}"] = found.failure
    return results, failures


def _row(pair: Pair, found: Mapping[str, Result]) -> dict[str, Any]:
    size = next(iter(found.values())).new_bytes
    shares = {name: None if each.share is None else round(each.share, 6) for name, each in found.items()}
    return {"pair": pair.name, "kind": pair.kind, "bytes": size, **shares, "ours, bytes": found[OURS.name].wire_bytes}


def _costs(pair: Pair, found: Mapping[str, Result]) -> dict[str, Any]:
    """What our two programs took at a pair, with the start of Python."""
    ours = found[OURS.name]
    row: dict[str, Any] = {"pair": pair.name, "kind": pair.kind, **_cost(ours)}
    if ours.inner:
        row["decode alone, MB/s"] = round(ours.new_bytes / 1e6 / ours.inner["decode"]["cpu_s"], 1)
        row["peak declared, MiB"] = round(ours.inner["decode"]["peak_bytes"] / 2**20, 1)
    return row


def _cost(found: Result) -> dict[str, float]:
    return {
        "encode, CPU-s": round(found.encode_cpu_s, 2),
        "encode, peak MiB": round(found.encode_peak_bytes / 2**20, 1),
        "decode, CPU-s": round(found.decode_cpu_s, 2),
        "decode, peak MiB": round(found.decode_peak_bytes / 2**20, 1),
    }


def _by_method(results: Mapping[str, Mapping[str, Result]]) -> list[dict[str, Any]]:
    """What each method took for all pairs that it did."""
    rows = []
    for name in dict.fromkeys(name for found in results.values() for name in found):
        done = [found[name] for found in results.values() if name in found and not found[name].failure]
        megabytes = sum(each.new_bytes for each in done) / 1e6
        if done:
            row = {
                "method": name,
                "pairs": len(done),
                "encode, CPU-s/MB": round(sum(each.encode_cpu_s for each in done) / megabytes, 3),
                "decode, CPU-s/MB": round(sum(each.decode_cpu_s for each in done) / megabytes, 3),
                "encode, largest peak MiB": round(max(each.encode_peak_bytes for each in done) / 2**20, 1),
                "decode, largest peak MiB": round(max(each.decode_peak_bytes for each in done) / 2**20, 1),
            }
            rows.append(row)
    return rows


def _details(results: Mapping[str, Mapping[str, Result]]) -> list[dict[str, Any]]:
    return [
        {"pair": pair, "method": method, "bytes": each.wire_bytes, **_cost(each)}
        for pair, found in results.items()
        for method, each in found.items()
    ]


def _snap(pair: Pair, folder: Path, python: str, kappas: Sequence[float]) -> list[dict[str, Any]]:
    base, new = files_of(pair, folder)
    rows = []
    for kappa in kappas:
        with tempfile.TemporaryDirectory(prefix="snap-") as made:
            path = Path(made) / f"snapped{pair.suffix}"
            ours = [sys.executable, "-m", "benchmarks.delta.ours"]
            run_process([*ours, "snap", str(base), str(new), str(path), f"{kappa:g}"], _PATHS)
            result = measure(OURS, pair, base, path, python)
            if result.failure or result.share is None:
                raise RuntimeError(f"no delta of {pair.name} snapped: {result.failure}")
            judged = run_process(
                [python, "-m", "benchmarks.delta.agreement", str(base), str(new), str(path)], _PATHS
            ).stdout
        rows.append({"pair": pair.name, "kappa": kappa, "share": round(result.share, 6), **json.loads(judged)})
    return rows


def versions(methods: Sequence[Method]) -> dict[str, str]:
    """What was compared: versions of Debian's programs, and of the Python packages in the lock."""
    found = {}
    for program in sorted({method.program for method in methods if method.program and method.is_here}):
        argument = "-V" if program == "xdelta3" else "--version"
        said = subprocess.run([program, argument], capture_output=True, text=True, timeout=10, check=False)
        found[program] = ((said.stdout + said.stderr).strip().splitlines() or ["unknown"])[0]
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        name, sign, rest = line.partition("==")
        if sign and name in ("bsdiff4", "detools", "zipnn", "z4ai", "torch", "onnxruntime"):
            found[name] = rest.split()[0]
    return found
