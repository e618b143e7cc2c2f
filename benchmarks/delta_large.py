"""Deltas where they hurt: a model of a gigabyte, ten releases one after another, decoding that is stopped on the way.

The weights are drawn, not trained: rows of different size, and updates as an optimiser makes them, with a part of low
rank. Every step is a process of its own, as on an author's machine and on a device.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks._verdicts import Figure
from benchmarks.delta.methods import REPOSITORY
from benchmarks.delta.processes import Cost
from benchmarks.delta.processes import run as run_process

SUMMARY: Final = "deltas of a large model, of a chain of releases, and decoding stopped at checkpoints: bytes, memory"
OPTIONS: Final = {"size_mb": "1074", "chain": "10", "chain_mb": "32", "stops": "all", "folder": ""}
QUICK: Final = {"size_mb": "16", "chain": "3", "chain_mb": "4", "stops": "2"}

_MB: Final = 1_000_000
_WIDTH: Final = 2_048
_UPDATE: Final = 0.006
_RANK: Final = 4
_LOW_RANK_SHARE: Final = 0.4
_PATHS: Final = {"PYTHONPATH": str(REPOSITORY)}


def run(options: Mapping[str, str]) -> dict[str, Any]:
    """Measure.

    Args:
        options: ``size_mb`` of the large model; ``chain`` releases of a model of ``chain_mb``; ``stops`` at evenly
            spread checkpoints of the large model, after each of which another process goes on, ``all`` for one at each;
            ``folder`` for files, which needs room for three models, a temporary one unless told.

    Returns:
        Figures, the large model's costs, the chain's deltas.

    Raises:
        ValueError: An output that is not the release.
        FailedError: A step that failed.
    """
    with tempfile.TemporaryDirectory(prefix="delta-large-", dir=options["folder"] or None) as text:
        folder = Path(text)
        floor = _ours("floor").peak_bytes
        large, figures = _large(folder, int(options["size_mb"]), options["stops"], floor)
        chain, more = _chain(folder, int(options["chain"]), int(options["chain_mb"]))
    return {"figures": [figure.to_json() for figure in (*figures, *more)], "large": large, "chain": chain}


def _large(folder: Path, size_mb: int, stops: str, floor: int) -> tuple[dict[str, Any], list[Figure]]:
    base, new, delta, output = (folder / name for name in ("base.safetensors", "new.safetensors", "delta", "output"))
    _made(base, size_mb, 0)
    _made(new, size_mb, 1)
    size, wanted = new.stat().st_size, _digest(new)
    encoding = _ours("encode", base, new, delta)
    new.unlink()
    decoding = _ours("decode", base, delta, output)
    _check(output, wanted, "the large model")
    output.unlink()
    checkpoints = int(json.loads(decoding.stdout)["checkpoints"])
    stopped = _stopped(folder, checkpoints - 1 if stops == "all" else int(stops), base, delta, output)
    _check(output, wanted, "the large model, decoded with stops")
    megabytes = size / _MB
    large = {
        "bytes": size,
        "delta_bytes": delta.stat().st_size,
        "share": round(delta.stat().st_size / size, 4),
        "encode_cpu_s": round(encoding.cpu_s, 1),
        "encode_wall_s": round(encoding.wall_s, 1),
        "encode_peak_mib": _mib(encoding.peak_bytes),
        "decode_cpu_s": round(decoding.cpu_s, 1),
        "decode_wall_s": round(decoding.wall_s, 1),
        "decode_peak_mib": _mib(decoding.peak_bytes),
        "floor_mib": _mib(floor),
        "checkpoints": checkpoints,
        "stops": len(stopped) - 1,
        "stops_decode_cpu_s": round(sum(cost.cpu_s for cost in stopped), 1),
    }
    for path in (base, delta, output):
        path.unlink()
    peak = max(cost.peak_bytes for cost in (decoding, *stopped))
    figures = [
        Figure("decode, peak memory above Python, numpy, zstandard", _mib(peak - floor), 16, 10, unit="MiB"),
        Figure("encode", encoding.cpu_s / megabytes, 1.0, 0.3, unit="CPU-s/MB"),
        Figure("decode, FP32", megabytes / decoding.cpu_s, 10, 30, is_more_better=True, unit="MB/s"),
    ]
    return large, figures


def _stopped(folder: Path, stops: int, base: Path, delta: Path, output: Path) -> list[Cost]:
    """Decode with as many stops; each part is a process that knows its checkpoint and the files alone."""
    total = json.loads(_ours("inspect", delta).stdout)["new_bytes"]
    state, costs = folder / "checkpoint", []
    for stop in range(1, stops + 2):
        until = total * stop // (stops + 1)
        costs.append(_ours("part", base, delta, output, state, until))
    return costs


def _chain(folder: Path, count: int, size_mb: int) -> tuple[list[dict[str, Any]], list[Figure]]:
    """Releases one after another: a device makes each from what it made before, and knows only the digests."""
    first, held = folder / "first.safetensors", folder / "held.safetensors"
    _made(first, size_mb, 0)
    _made(held, size_mb, 0)
    before, rows = folder / "before.safetensors", []
    _made(before, size_mb, 0)
    release, delta, output = (folder / name for name in ("release.safetensors", "delta", "output"))
    for number in range(1, count + 1):
        _made(release, size_mb, number)
        size, wanted = release.stat().st_size, _digest(release)
        _ours("encode", before, release, delta)
        _ours("decode", held, delta, output)
        _check(output, wanted, f"release {number}")
        rows.append({"release": number, "share": round(delta.stat().st_size / size, 4)})
        output.replace(held)
        release.replace(before)
    _ours("encode", first, before, delta)
    direct = delta.stat().st_size / before.stat().st_size
    _ours("decode", first, delta, output)
    _check(output, _digest(before), "the last release from the first")
    together = sum(row["share"] for row in rows)
    note = f"{count} deltas together {together:.3f} of the file; one from first to last {direct:.3f}"
    figure = Figure("largest delta of the chain / smallest", _spread(rows), 1.1, 1.03, unit="x", note=note)
    return rows, [figure]


def _spread(rows: list[dict[str, Any]]) -> float:
    shares = [row["share"] for row in rows]
    return float(max(shares) / min(shares))


def _ours(step: str, *words: object) -> Cost:
    command = [sys.executable, "-m", "benchmarks.delta.ours", step, *map(str, words)]
    return run_process(command, _PATHS)


def _made(path: Path, size_mb: int, release: int) -> None:
    run_process([sys.executable, "-m", "benchmarks.delta_large", str(path), str(size_mb), str(release)], _PATHS)


def _check(path: Path, wanted: str, what: str) -> None:
    if _digest(path) != wanted:
        raise ValueError(f"{what} was not decoded to what it is")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mib(count: int) -> float:
    return round(count / 2**20, 1)


def write_model(path: Path, size_mb: int, release: int) -> None:
    """A model of that size, FP32 safetensors; each release is an update of the one before it."""
    rows = max(1, size_mb * _MB // 4 // _WIDTH)
    tensors = [min(_WIDTH, rows - start) for start in range(0, rows, _WIDTH)]
    header, offset = {}, 0
    for index, count in enumerate(tensors):
        end = offset + count * _WIDTH * 4
        header[f"layer{index}.weight"] = {"dtype": "F32", "shape": [count, _WIDTH], "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for index, count in enumerate(tensors):
            file.write(_weights(index, count, release))


def _weights(index: int, count: int, release: int) -> bytes:
    """One tensor, as it is after so many updates."""
    import numpy as np

    numbers = np.random.default_rng([7, index])
    scale = np.exp(numbers.normal(0, 0.4, (count, 1))) / _WIDTH**0.5
    weights = (numbers.uniform(-1, 1, (count, _WIDTH)) * scale).astype(np.float32)
    for number in range(1, release + 1):
        numbers = np.random.default_rng([8, index, number])
        left, right = numbers.normal(size=(count, _RANK)), numbers.normal(size=(_RANK, _WIDTH))
        change = numbers.standard_normal((count, _WIDTH), np.float32) * (1 - _LOW_RANK_SHARE)
        change += (left @ right).astype(np.float32) * (_LOW_RANK_SHARE / _RANK**0.5)
        weights += change * (scale * _UPDATE).astype(np.float32)
    return bytes(weights.data)


if __name__ == "__main__":
    write_model(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
