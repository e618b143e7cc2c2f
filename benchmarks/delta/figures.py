"""The figures: our deltas beside the other tools', as geometric means over pairs of a kind. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import geometric_mean

from benchmarks._verdicts import Figure
from benchmarks.delta.measuring import Result
from benchmarks.delta.methods import OURS, PEERS
from benchmarks.delta.recipes import PAIRS, Pair

Results = Mapping[str, Mapping[str, Result]]
"""By name of the pair, then of the method."""

_GENERIC = tuple(method.name for method in PEERS if method.family in ("whole", "generic"))
_TENSORS = tuple(method.name for method in PEERS if method.family == "tensors")
_ALL_TUNED = "adgh"
_FLOOR = "memory of Python, numpy and zstandard"


def best(results: Mapping[str, Result], names: Iterable[str]) -> int | None:
    """Fewest bytes among these methods; none when none of them did it."""
    sizes = [found.wire_bytes for name in names if (found := results.get(name)) and found.wire_bytes is not None]
    return min(sizes, default=None)


def _ours(results: Mapping[str, Result]) -> Result | None:
    found = results.get(OURS.name)
    return found if found and found.wire_bytes is not None else None


def _pairs(kinds: str, results: Results) -> list[Pair]:
    return [pair for pair in PAIRS if pair.kind in kinds and pair.name in results]


class _Against:
    """Ours as a ratio to something of every pair of some kinds."""

    def __init__(self, results: Results, kinds: str, theirs: Callable[[Mapping[str, Result]], int | None]) -> None:
        self.ratios: dict[str, float] = {}
        self._wanted = sum(pair.kind in kinds for pair in PAIRS)
        for pair in _pairs(kinds, results):
            ours, other = _ours(results[pair.name]), theirs(results[pair.name])
            if ours and ours.wire_bytes is not None and other is not None:
                self.ratios[pair.name] = ours.wire_bytes / other

    def figure(self, name: str, must: float, aim: float) -> Figure:
        if not self.ratios:
            return Figure(name, None, must, aim, unit="x", note="no pair was measured")
        worst = max(self.ratios, key=lambda pair: self.ratios[pair])
        note = f"{len(self.ratios)} of {self._wanted} pairs; largest {self.ratios[worst]:.3f}, {worst}"
        return Figure(name, geometric_mean(self.ratios.values()), must, aim, unit="x", note=note)

    def largest(self, name: str, must: float, aim: float) -> Figure:
        if not self.ratios:
            return Figure(name, None, must, aim, unit="x", note="no pair was measured")
        worst = max(self.ratios, key=lambda pair: self.ratios[pair])
        return Figure(name, self.ratios[worst], must, aim, unit="x", note=f"{len(self.ratios)} pairs; {worst}")


def sizes(results: Results) -> list[Figure]:
    """What is smaller than what."""

    def generic(of: Mapping[str, Result]) -> int | None:
        return best(of, _GENERIC)

    def tensors(of: Mapping[str, Result]) -> int | None:
        return best(of, _TENSORS)

    def one(name: str) -> Callable[[Mapping[str, Result]], int | None]:
        return lambda of: best(of, (name,))

    figures = [
        _Against(results, "a", generic).figure("FP32 fine-tunes / best generic tool of each pair", 0.62, 0.57),
        _Against(results, "h", generic).figure("FP16, BF16 fine-tunes / best generic tool", 0.45, 0.42),
        _Against(results, "d", generic).figure("INT8 fine-tunes / best generic tool", 0.44, 0.40),
        _Against(results, "g", generic).figure("merged LoRA / best generic tool", 0.06, 0.045),
        _Against(results, _ALL_TUNED, one("xdelta3 -9")).figure("all fine-tunes / xdelta3", 0.36, 0.32),
        _Against(results, _ALL_TUNED, one("bsdiff4")).figure("all fine-tunes / bsdiff4", 0.44, 0.39),
        _Against(results, _ALL_TUNED, one("zstd --patch-from")).figure(
            "all fine-tunes / zstd --patch-from", 0.39, 0.35
        ),
        _Against(results, _ALL_TUNED, tensors).figure("all fine-tunes / best published tensor delta", 0.70, 0.63),
        _Against(results, _ALL_TUNED, one("hdiffpatch")).figure("all fine-tunes / hdiffpatch", 0.44, 0.39),
        _Against(results, _ALL_TUNED, one("casync 64k")).figure("all fine-tunes / casync 64k", 0.35, 0.31),
        _Against(results, _ALL_TUNED, one("zstd -19")).figure("all fine-tunes / whole file by zstd -19", 0.35, 0.31),
        _Against(results, _ALL_TUNED, one("BitX-like")).figure("all fine-tunes / BitX-like", 0.62, 0.56),
        _Against(results, _ALL_TUNED, one("FM-Delta-like")).figure("all fine-tunes / FM-Delta-like", 0.69, 0.62),
        _Against(results, "c", generic).figure("head only / best generic tool", 1.0, 0.9),
        _Against(results, "k", one("zstd --patch-from")).figure("opaque file / zstd --patch-from", 1.03, 1.0),
    ]
    every = "".join(dict.fromkeys(pair.kind for pair in PAIRS if pair.kind != "e"))
    figures.append(_Against(results, every, one("zstd --patch-from")).largest("largest / zstd --patch-from", 1.03, 1.0))
    figures.append(_Against(results, every, one("zstd -19")).largest("largest / whole file by zstd -19", 1.0, 1.0))
    return [*figures, _metadata(results)]


def _metadata(results: Results) -> Figure:
    name = "change of metadata alone"
    made = [_ours(results[pair.name]) for pair in _pairs("e", results)]
    found = [each.wire_bytes for each in made if each and each.wire_bytes is not None]
    return Figure(name, float(max(found)) if found else None, 400, 200, unit="bytes")


def speeds(results: Results, floor_bytes: int) -> list[Figure]:
    """What encoding and decoding cost; memory above the floor."""
    figures = [
        _decoding(results, "decode, FP32", "ag", 10, 30),
        _decoding(results, "decode, INT8", "d", 5, 15),
    ]
    made = {pair.name: each for pair in PAIRS if pair.name in results and (each := _ours(results[pair.name]))}
    costs = {name: each.encode_cpu_s / (each.new_bytes / 1e6) for name, each in made.items()}
    peaks = {name: (each.decode_peak_bytes - floor_bytes) / 2**20 for name, each in made.items()}
    if not made:
        return figures
    slowest, largest = max(costs, key=lambda name: costs[name]), max(peaks, key=lambda name: peaks[name])
    note = f"with the start of Python; largest {costs[slowest]:.2f}, {slowest}"
    figures.append(Figure("encode", geometric_mean(costs.values()), 1.0, 0.3, unit="CPU-s/MB", note=note))
    note = f"above {floor_bytes / 2**20:.1f} MiB, {_FLOOR}; {largest}"
    figures.append(Figure("decode, peak memory of any pair", peaks[largest], 16, 10, unit="MiB", note=note))
    return figures


def _decoding(results: Results, name: str, kinds: str, must: float, aim: float) -> Figure:
    rates, started = {}, []
    for pair in _pairs(kinds, results):
        ours = _ours(results[pair.name])
        if ours and ours.inner:
            rates[pair.name] = ours.new_bytes / 1e6 / ours.inner["decode"]["cpu_s"]
            started.append(ours.new_bytes / 1e6 / ours.decode_cpu_s)
    if not rates:
        return Figure(name, None, must, aim, is_more_better=True, unit="MB/s", note="no pair was measured")
    slowest = min(rates, key=lambda pair: rates[pair])
    note = f"slowest {rates[slowest]:.1f}, {slowest}; {geometric_mean(started):.1f} with the start of Python"
    return Figure(name, geometric_mean(rates.values()), must, aim, is_more_better=True, unit="MB/s", note=note)


def snapped(rows: Sequence[Mapping[str, object]], kappa: float) -> list[Figure]:
    """Snapped releases at one kappa."""
    chosen = [row for row in rows if row["kappa"] == kappa]
    at = f"snapped, kappa {kappa:g}"
    if not chosen:
        return [Figure(f"{at}: share of the file", None, 0.07, 0.05, note="no pair was snapped")]
    shares = [float(str(row["share"])) for row in chosen]
    equal = [float(str(row["agreement"])) for row in chosen]
    note = f"{len(chosen)} pairs; largest {max(shares):.4f}"
    least = f"mean of {len(chosen)} pairs {sum(equal) / len(equal):.5f}; the figure is the least"
    return [
        Figure(f"{at}: share of the file", geometric_mean(shares), 0.07, 0.05, note=note),
        Figure(f"{at}: arg-max agreement", min(equal), 0.995, 0.998, is_more_better=True, note=least),
    ]
