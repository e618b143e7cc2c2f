"""Figures are judged by their bounds, ratios are made within a round, and the table shows all of it."""

from __future__ import annotations

import math

import pytest
from click.testing import CliRunner

import benchmarks.swap
from benchmarks.__main__ import find, main
from benchmarks._verdicts import Figure, paired_ratio, summary, table
from benchmarks.serving import placement


@pytest.mark.parametrize(
    ("value", "is_more_better", "expected"),
    [
        (2.2, False, "aim"),
        (2.3, False, "must"),
        (3.0, False, "must"),
        (3.1, False, "missed"),
        (None, False, "not measured"),
        (3.0, True, "aim"),
        (2.9, True, "aim"),
        (2.1, True, "missed"),
        (None, True, "not measured"),
    ],
)
def test_a_figure_is_judged_by_its_bounds(value: float | None, is_more_better: bool, expected: str) -> None:
    must, aim = (2.2, 2.9) if is_more_better else (3.0, 2.2)
    assert Figure("x", value, must, aim, is_more_better).verdict == expected


def test_nothing_lost_is_the_only_good_count() -> None:
    assert Figure("lost", 0, 0, 0).verdict == "aim"
    assert Figure("lost", 1, 0, 0).verdict == "missed"


def test_a_round_in_which_all_was_slow_changes_no_ratio() -> None:
    ratio = paired_ratio([20.0, 2000.0, 22.0], [10.0, 1000.0, 11.0])
    assert ratio is not None
    assert math.isclose(ratio, 2.0)


def test_rounds_that_measured_nothing_give_no_ratio() -> None:
    assert paired_ratio([], []) is None
    assert paired_ratio([1.0], [0.0]) is None


def test_the_spread_of_the_rounds_is_told() -> None:
    assert summary([3.0, 1.0, 2.0]) == {"min": 1.0, "median": 2.0, "max": 3.0}
    assert summary([]) == {}


def test_rounds_are_told_apart_by_where_the_two_ends_of_the_echo_ran() -> None:
    assert placement([7.8, 8.9, 41.0]) == {"rounds_on_one_core": 2, "rounds_on_two_cores": 1}


def test_the_table_has_a_line_for_every_figure_and_counts_verdicts() -> None:
    figures = [
        Figure("fast", 2.0, 3.0, 2.2),
        Figure("slow", 9.123456, 3.0, 2.2, unit="ms"),
        Figure("absent", None, 1, 1),
    ]
    lines = table([figure.to_json() for figure in figures])
    assert len(lines) == 1 + len(figures) + 1
    assert lines[0].split() == ["figure", "value", "must", "aim", "unit", "verdict", "note"]
    assert lines[2].split() == ["slow", "9.123", "3", "2.2", "ms", "missed"]
    assert lines[3].split()[:2] == ["absent", "-"]
    assert lines[-1] == "3 figures: 1 aim, 1 missed, 1 not measured"


@pytest.mark.parametrize("name", ["serving", "swap"])
def test_a_smoke_test_sets_only_options_that_there_are(name: str) -> None:
    benchmark = find(name)
    assert benchmark is not None
    assert benchmark.quick
    assert set(benchmark.quick) <= set(benchmark.options)


def test_quick_runs_with_the_options_of_the_smoke_test(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}

    def run(options: dict[str, str]) -> dict[str, object]:
        seen.update(options)
        return {"figures": [Figure("lost", 0, 0, 0).to_json()]}

    monkeypatch.setattr(benchmarks.swap, "run", run)
    result = CliRunner().invoke(main, ["swap", "--quick", "-o", "swaps=3"], catch_exceptions=False)
    assert seen == {**benchmarks.swap.OPTIONS, **benchmarks.swap.QUICK, "swaps": "3"}
    assert "1 figures: 1 aim" in result.output
