"""Tools are measured as processes; an output that is not the new file is a failure; figures say what they are of."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import delta_large
from benchmarks._verdicts import Figure
from benchmarks.delta import figures, planes, running
from benchmarks.delta.measuring import Kept, Result, measure
from benchmarks.delta.methods import OURS, PEERS, Method
from benchmarks.delta.processes import FailedError, run
from benchmarks.delta.recipes import PAIRS

_BY_NAME = {method.name: method for method in PEERS}
_PAIR = PAIRS[0]


def _weights(path: Path, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]], extra: bytes = b"") -> Path:
    head = b'{"w":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}' % (values.size, values.nbytes)
    head += b',"__metadata__":{"note":"' + extra + b'"}}'
    path.write_bytes(len(head).to_bytes(8, "little") + head + values.tobytes())
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Weights and an update of them, with what floating point has at its edges."""
    numbers = np.random.default_rng(3)
    values = numbers.normal(size=4_000).astype(np.float32)
    values[:8] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42, -1e-42, 3.4e38]
    later = (values * (1 + numbers.normal(0, 1e-3, 4_000))).astype(np.float32)
    later[8:12] = [np.nan, -0.0, np.inf, 1e-45]
    return _weights(tmp_path / "base.safetensors", values), _weights(tmp_path / "new.safetensors", later, b"second")


@pytest.mark.parametrize("method", ["bitx", "fm-delta"])
def test_published_ideas_written_anew_give_the_file_back(method: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    base, new = files
    planes.encode(base, new, tmp_path / "delta", method)
    planes.decode(base, tmp_path / "delta", tmp_path / "output", method)
    assert (tmp_path / "output").read_bytes() == new.read_bytes()
    assert (tmp_path / "delta").stat().st_size < 0.8 * new.stat().st_size


@pytest.mark.parametrize("name", ["zstd -19", "xz -9e", "xdelta3 -9", "zstd --patch-from", "casync 64k"])
def test_each_program_of_debian_makes_the_file_again(name: str, files: tuple[Path, Path]) -> None:
    method = _BY_NAME[name]
    if not method.is_here:
        pytest.skip(f"{method.program} is not installed: scripts/install-bench-needs.sh installs it")
    found = measure(method, _PAIR, *files, sys.executable)
    assert not found.failure
    assert found.wire_bytes
    assert found.decode_peak_bytes > 0


def test_ours_is_measured_the_same_way(files: tuple[Path, Path]) -> None:
    found = measure(OURS, _PAIR, *files, sys.executable)
    assert found.inner is not None
    assert found.share is not None
    assert found.share < 0.7


def _copying(encode: str, decode: str) -> Method:
    return Method(
        "copying",
        "generic",
        lambda job: ["cp", str(getattr(job, encode)), str(job.delta)],
        lambda job: ["cp", str(getattr(job, decode)), str(job.output)],
    )


def test_an_output_that_is_another_file_is_a_failure(files: tuple[Path, Path]) -> None:
    assert measure(_copying("new", "delta"), _PAIR, *files, sys.executable).share == 1.0
    assert "not the new file" in measure(_copying("new", "base"), _PAIR, *files, sys.executable).failure


def test_a_program_that_fails_is_told_with_what_it_said() -> None:
    with pytest.raises(FailedError, match="3: gone"):
        run([sys.executable, "-c", "import sys; sys.stderr.write('gone'); sys.exit(3)"])


def test_memory_of_a_program_is_its_own() -> None:
    held = bytearray(128 * 2**20)
    held[:: 2**12] = b"x" * len(held[:: 2**12])
    small = run([sys.executable, "-S", "-c", "pass"]).peak_bytes
    large = run([sys.executable, "-S", "-c", "held = b'x' * (64 * 2**20)"]).peak_bytes
    assert small < 32 * 2**20
    assert large - small > 60 * 2**20
    assert len(held)


def test_results_are_kept_for_the_same_files_alone(files: tuple[Path, Path], tmp_path: Path) -> None:
    base, new = files
    kept, method = Kept(tmp_path / "kept"), _BY_NAME["zstd -19"]
    kept.put(method, _PAIR, base, new, Result(100, 50))
    kept.put(method, _PAIR, new, base, Result(100, failure="it fell over"))
    assert kept.get(method, _PAIR, base, new) == Result(100, 50)
    assert kept.get(method, _PAIR, new, base) is None
    base.write_bytes(b"another")
    assert kept.get(method, _PAIR, base, new) is None


def _results(ours: int, theirs: int) -> dict[str, dict[str, Result]]:
    found = {method.name: Result(1_000, theirs) for method in PEERS}
    return {pair.name: {**found, OURS.name: Result(1_000, ours)} for pair in PAIRS}


def _figure(made: list[Figure], start: str) -> Figure:
    return next(figure for figure in made if figure.name.startswith(start))


def test_a_figure_is_the_geometric_mean_over_the_pairs_of_its_kind() -> None:
    results = _results(200, 400)
    first = next(pair.name for pair in PAIRS if pair.kind == "a")
    results[first][OURS.name] = Result(1_000, 800)
    found = _figure(figures.sizes(results), "FP32")
    assert found.value == pytest.approx(0.5 * 4 ** (1 / 7))
    assert first in found.note


def test_the_best_tool_is_chosen_for_every_pair() -> None:
    results = _results(200, 400)
    for number, name in enumerate(results):
        results[name]["bsdiff4" if number % 2 else "xz -9e"] = Result(1_000, 250)
    assert _figure(figures.sizes(results), "FP32").value == pytest.approx(0.8)


def test_a_tool_that_failed_counts_for_no_pair() -> None:
    results = _results(200, 400)
    for found in results.values():
        found["bsdiff4"] = replace(found["bsdiff4"], wire_bytes=None, failure="it fell over")
    assert _figure(figures.sizes(results), "all fine-tunes / bsdiff4").verdict == "not measured"


def test_agreement_is_the_least_of_all_pairs() -> None:
    rows = [{"kappa": 1.0, "share": 0.04, "agreement": equal} for equal in (1.0, 0.99, 0.999)]
    rows.append({"kappa": 2.0, "share": 0.02, "agreement": 0.5})
    share, agreement = figures.snapped(rows, 1.0)
    assert share.value == pytest.approx(0.04)
    assert agreement.value == 0.99


def test_an_unknown_pair_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="no pair 'cnn_nothing'; there are: cnn_ft_adam_1e-5"):
        running.run({**running.OPTIONS, "pairs": "cnn_nothing"})


@pytest.mark.slow
def test_a_chain_of_releases_and_stopped_decoding_give_every_release() -> None:
    found = delta_large.run({**delta_large.OPTIONS, "size_mb": "9", "chain": "2", "chain_mb": "1"})
    assert found["large"]["checkpoints"] >= 2
    assert found["large"]["stops"] == found["large"]["checkpoints"] - 1
    assert [row["release"] for row in found["chain"]] == [1, 2]
