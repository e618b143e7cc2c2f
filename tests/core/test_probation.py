"""Probation: the exact one-sided test, against plain sums, and the verdicts it leads to."""

from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.probation import (
    LEVEL_EARLY,
    LEVEL_FINAL,
    Baseline,
    Bounds,
    Seen,
    baseline,
    binomial_tail,
    judge,
    quantile_us,
    slower_than,
)

NOTHING = Baseline()


@given(trials=st.integers(1, 300), data=st.data(), share=st.floats(0.001, 0.999))
def test_the_tail_is_what_adding_it_up_gives(trials: int, data: st.DataObject, share: float) -> None:
    bad = data.draw(st.integers(0, trials))
    sum_of_all = sum(comb(trials, n) * share**n * (1 - share) ** (trials - n) for n in range(bad, trials + 1))
    assert binomial_tail(bad, trials, share) == pytest.approx(sum_of_all, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("bad", "trials", "share", "tail"), [(0, 5, 0.1, 1), (3, 5, 0.0, 0), (1, 5, 1.0, 1)])
def test_the_tail_at_its_ends(bad: int, trials: int, share: float, tail: float) -> None:
    assert binomial_tail(bad, trials, share) == tail


def test_the_tail_of_very_many_trials_stays_a_probability() -> None:
    assert binomial_tail(50_000, 1_000_000, 0.05) == pytest.approx(0.5, abs=0.01)
    assert binomial_tail(60_000, 1_000_000, 0.05) < 1e-12
    assert binomial_tail(40_000, 1_000_000, 0.05) > 1 - 1e-12


@pytest.mark.parametrize(
    ("seen", "over", "verdict"),
    [
        (Seen(True), False, None),
        (Seen(True), True, "healthy"),
        (Seen(False), False, "unhealthy"),
        (Seen(True, 100, 5), True, "healthy"),  # just what is permitted
        (Seen(True, 100, 9), True, "unhealthy"),  # P = 0.06
        (Seen(True, 100, 8), True, "healthy"),  # P = 0.13
        (Seen(True, 100, 9), False, None),
        (Seen(True, 40, 10), False, "unhealthy"),
        (Seen(True, 2, 1), True, "unhealthy"),
        (Seen(True, 3, 3), False, "unhealthy"),  # nobody waits for the end of a window to see this
        (Seen(True, 100, 0, nonfinite=5), True, "unhealthy"),
        (Seen(True, 100, 0, nonfinite=1), True, "healthy"),
    ],
)
def test_failures_and_answers_that_are_not_finite(seen: Seen, over: bool, verdict: str | None) -> None:
    found = judge(seen, Bounds(), NOTHING, is_window_over=over, looks=0)
    assert (found and found[0]) == verdict


def test_looking_often_does_not_condemn_by_chance() -> None:
    """All looks before the end spend one level between them."""
    spent = sum(LEVEL_EARLY / ((look + 1) * (look + 2)) for look in range(100_000))
    assert spent <= LEVEL_EARLY
    odd = Seen(True, 20, 5)  # P = 0.0026
    assert judge(odd, Bounds(), NOTHING, is_window_over=False, looks=0) is not None
    assert judge(odd, Bounds(), NOTHING, is_window_over=False, looks=5) is None


def test_a_model_that_is_just_good_enough_is_seldom_given_up() -> None:
    """The chance of it is the level of the test, for every number of requests."""
    for requests in range(1, 200):
        wrongly = sum(
            comb(requests, failures) * 0.05**failures * 0.95 ** (requests - failures)
            for failures in range(requests + 1)
            if judge(Seen(True, requests, failures), Bounds(), NOTHING, is_window_over=True, looks=0) != ("healthy", "")
        )
        assert wrongly <= LEVEL_FINAL + 1e-12


LATENCIES = ((100, 900), (200, 90), (400, 9), (1_600, 1))


def test_the_predecessor_in_a_few_figures() -> None:
    assert baseline(LATENCIES) == Baseline(1_000, 100, 200)
    assert baseline(()) == NOTHING
    assert quantile_us(LATENCIES, 1.0) == 1_600
    assert slower_than(LATENCIES, 200) == 100
    assert slower_than(LATENCIES, 201) == 10


@pytest.mark.parametrize(
    ("own", "verdict"),
    [
        (((100, 1_000),), "healthy"),
        (((150, 1_000),), "healthy"),  # slower, but by less than permitted
        (((300, 1_000),), "unhealthy"),  # its median
        (((100, 950), (500, 50)), "unhealthy"),  # only its slowest twentieth
        (((100, 995), (500, 5)), "healthy"),
        (((300, 19),), "healthy"),  # too few to compare
    ],
)
def test_latencies_are_compared_with_the_predecessor(own: tuple[tuple[int, int], ...], verdict: str) -> None:
    seen = Seen(True, sum(count for _bound, count in own), latencies=own)
    found = judge(seen, Bounds(latency_ratio_max=2.0), baseline(LATENCIES), is_window_over=True, looks=0)
    assert found is not None
    assert found[0] == verdict
    assert judge(seen, Bounds(), baseline(LATENCIES), is_window_over=True, looks=0) == ("healthy", "")
    assert judge(seen, Bounds(latency_ratio_max=2.0), NOTHING, is_window_over=True, looks=0) == ("healthy", "")


def test_outputs_that_drifted_are_judged_at_the_end() -> None:
    seen = Seen(True, 50, drift=2.5)
    assert judge(seen, Bounds(drift_max=2.0), NOTHING, is_window_over=False, looks=0) is None
    found = judge(seen, Bounds(drift_max=2.0), NOTHING, is_window_over=True, looks=0)
    assert found is not None
    assert found[0] == "unhealthy"
    assert "drifted 2.50" in found[1]
    assert judge(seen, Bounds(), NOTHING, is_window_over=True, looks=0) == ("healthy", "")
