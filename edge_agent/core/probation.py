"""When a freshly activated model is good enough to commit: one-sided tests on what its worker counted. Pure.

Each measure is a number of bad events among a number of trials, and a share of bad ones that is permitted. A model is
unhealthy in a measure when a model that is just within the permitted share would show so many bad events, or more, with
a probability of at most the level of the test: the exact binomial test, one-sided, because being better than permitted
is no fault (Clopper and Pearson 1934). Looks before the end of the window share `LEVEL_EARLY` between them, the i-th
getting `1 / (i (i + 1))` of it, so that looking often does not condemn by chance (alpha spending). See ADR 30.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edge_contract.phases import Verdict

LEVEL_EARLY: Final = 0.01
"""Probability with which a model that is just good enough is given up before its window is over, all looks together."""
LEVEL_FINAL: Final = 0.1
"""The same at the end of the window. Generous: going back costs little, keeping a bad model costs much."""
COMPARED_MIN: Final = 20
"""Requests that the predecessor, and the model itself, must have answered before latencies or outputs are compared."""
TAIL_COMPARED_MIN: Final = 200
"""The same for the 99th percentile, which has too few requests behind it otherwise."""

_FRACTION_STEPS_MAX: Final = 10_000
_TINY: Final = 1e-300
_CLOSE: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the predecessor was like.

    Attributes:
        requests: Answered by it; 0 when nothing is known of it.
        p50_us: Median latency, microseconds.
        p99_us: 99th percentile.
    """

    requests: int = 0
    p50_us: int = 0
    p99_us: int = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is permitted; see `edge_contract.runtime.Probation`."""

    failure_ratio_max: float = 0.05
    nonfinite_ratio_max: float = 0.01
    latency_ratio_max: float = 0.0
    drift_max: float = 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """Counters of the worker since it went live; see `edge_agent.ports.Health`."""

    is_alive: bool
    requests: int = 0
    failures: int = 0
    nonfinite: int = 0
    latencies: Sequence[tuple[int, int]] = ()
    drift: float = 0.0


def judge(seen: Seen, bounds: Bounds, before: Baseline, is_window_over: bool, looks: int) -> tuple[Verdict, str] | None:
    """Conclude from a worker's counters.

    Args:
        seen: The counters.
        bounds: What is permitted.
        before: The predecessor.
        is_window_over: Whether the probation window has passed.
        looks: How often it was looked at before, from 0.

    Returns:
        The verdict and its reason for people, or none while it is open. A dead worker is unhealthy at once; a model
        that nobody asked anything is healthy at the end of its window.
    """
    if not seen.is_alive:
        return Verdict.UNHEALTHY, "the worker is gone"
    level = LEVEL_FINAL if is_window_over else LEVEL_EARLY / ((looks + 1) * (looks + 2))
    for bad, trials, permitted, reason in _measures(seen, bounds, before):
        if trials > 0 and bad > 0 and binomial_tail(bad, trials, permitted) <= level:
            return Verdict.UNHEALTHY, reason
    is_compared = seen.requests >= COMPARED_MIN
    if is_window_over and bounds.drift_max > 0 and is_compared and seen.drift > bounds.drift_max:
        return (
            Verdict.UNHEALTHY,
            f"outputs drifted {seen.drift:.2f} deviations from golden, {bounds.drift_max:g} allowed",
        )
    return (Verdict.HEALTHY, "") if is_window_over else None


def _measures(seen: Seen, bounds: Bounds, before: Baseline) -> list[tuple[int, int, float, str]]:
    """(bad events, trials, permitted share, reason) of every measure."""
    answered = seen.requests
    found = [
        (seen.failures, answered, bounds.failure_ratio_max, f"{seen.failures} of {answered} requests failed"),
        (
            seen.nonfinite,
            answered,
            bounds.nonfinite_ratio_max,
            f"{seen.nonfinite} of {answered} answers were not finite for finite inputs",
        ),
    ]
    if bounds.latency_ratio_max > 0:
        for share, name, value_us, least in (
            (0.5, "the median", before.p50_us, COMPARED_MIN),
            (0.01, "the 99th percentile", before.p99_us, TAIL_COMPARED_MIN),
        ):
            count = sum(number for _bound, number in seen.latencies)
            if min(before.requests, count) < least or value_us <= 0:
                continue
            limit_us = value_us * bounds.latency_ratio_max
            slow = slower_than(seen.latencies, limit_us)
            reason = (
                f"{slow} of {count} requests took longer than {limit_us:.0f} us, {bounds.latency_ratio_max:g} times "
                f"{name} of the model before"
            )
            found.append((slow, count, share, reason))
    return found


def slower_than(latencies: Sequence[tuple[int, int]], limit_us: float) -> int:
    """How many requests certainly took longer: those in buckets that begin at or above the limit."""
    return sum(number for lower_us, number in latencies if lower_us >= limit_us)


def quantile_us(latencies: Sequence[tuple[int, int]], share: float) -> int:
    """Least latency of the bucket in which the quantile lies; 0 of an empty histogram.

    Args:
        latencies: (least latency of a bucket in microseconds, count), ascending.
        share: `0..1`.
    """
    total = sum(number for _bound, number in latencies)
    reached = 0
    for lower_us, number in latencies:
        reached += number
        if reached >= share * total:
            return lower_us
    return 0


def baseline(latencies: Sequence[tuple[int, int]]) -> Baseline:
    """What a histogram says of a predecessor."""
    total = sum(number for _bound, number in latencies)
    return Baseline(total, quantile_us(latencies, 0.5), quantile_us(latencies, 0.99))


def binomial_tail(bad: int, trials: int, share: float) -> float:
    """Probability of `bad` or more among so many independent trials, each bad with probability `share`.

    It is the regularised incomplete beta function I_share(bad, trials - bad + 1), computed by its continued fraction
    (Abramowitz and Stegun 26.5.8, modified Lentz's method).

    Args:
        bad: `0..trials`.
        trials: From 0.
        share: `0..1`.
    """
    if bad <= 0 or share >= 1:
        return 1.0
    if share <= 0 or bad > trials:
        return 0.0
    a, b = float(bad), float(trials - bad + 1)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(share) + b * math.log1p(-share)
    )
    if share < (a + 1) / (a + b + 2):
        return min(1.0, front * _fraction(a, b, share) / a)
    return max(0.0, 1 - front * _fraction(b, a, 1 - share) / b)


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    result = d
    for step in range(1, _FRACTION_STEPS_MAX):
        twice = 2 * step
        for factor in (
            step * (b - step) * x / ((a + twice - 1) * (a + twice)),
            -(a + step) * (a + b + step) * x / ((a + twice) * (a + twice + 1)),
        ):
            d = 1 / _away_from_zero(1 + factor * d)
            c = _away_from_zero(1 + factor / c)
            result *= c * d
        if abs(c * d - 1) < _CLOSE:
            break
    return result


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
