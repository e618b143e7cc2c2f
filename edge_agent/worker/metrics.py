"""Counters of a worker, for the agent and as Prometheus text (exposition format 0.0.4). Counting: any thread."""

import threading
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Final

from edge_agent.worker.limits import LATENCIES_KEPT

PROMETHEUS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OUTCOMES: Final = ("ok", "failed", "invalid", "overloaded", "cancelled")
_BOUNDS_US: Final = (
    50,
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    1_000_000,
    5_000_000,
)


class Latencies:
    """A histogram, and the last `LATENCIES_KEPT` values for quantiles."""

    def __init__(self) -> None:
        """Start empty."""
        self._buckets = [0] * (len(_BOUNDS_US) + 1)
        self._sum_us = 0
        self._count = 0
        self._recent = array("Q", bytes(8 * LATENCIES_KEPT))

    def add(self, us: int) -> None:
        """Count one latency in microseconds."""
        self._buckets[bisect_left(_BOUNDS_US, us)] += 1
        self._recent[self._count % LATENCIES_KEPT] = us
        self._sum_us += us
        self._count += 1

    def quantile_us(self, share: float) -> int:
        """The value below which this share (`0..1`) of the last ones lies; 0 when there are none."""
        values = sorted(self._recent[: min(self._count, LATENCIES_KEPT)])
        return values[min(len(values) - 1, int(share * len(values)))] if values else 0

    def lines(self, name: str, labels: str) -> Iterable[str]:
        """The histogram's lines; `labels` without braces."""
        total = 0
        for bound, count in zip(_BOUNDS_US, self._buckets, strict=False):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound / 1e6:g}"}} {total}'
        yield f'{name}_bucket{{{labels},le="+Inf"}} {self._count}'
        yield f"{name}_sum{{{labels}}} {self._sum_us / 1e6:.15g}"
        yield f"{name}_count{{{labels}}} {self._count}"


class Metrics:
    """What a worker counts."""

    def __init__(self, members: Iterable[str]) -> None:
        """Start at zero for these models."""
        self._counts = {member: dict.fromkeys(OUTCOMES, 0) for member in members}
        self._latencies = {member: Latencies() for member in self._counts}
        self._all = Latencies()
        self._lock = threading.Lock()

    def count(self, member: str, outcome: str, latency_us: int) -> None:
        """Count one inference request.

        Args:
            member: Name of the model.
            outcome: One of `OUTCOMES`; `invalid`, `overloaded` and `cancelled` (its client went away) are no
                fault of the model.
            latency_us: From the request's last byte to its answer.
        """
        with self._lock:
            self._counts[member][outcome] += 1
            if outcome in ("ok", "failed"):
                self._latencies[member].add(latency_us)
                self._all.add(latency_us)

    @property
    def failures(self) -> int:
        """Requests that failed through the model's fault."""
        return sum(counts["failed"] for counts in self._counts.values())

    @property
    def requests(self) -> int:
        """Requests answered by the model, well or badly."""
        return self.failures + sum(counts["ok"] for counts in self._counts.values())

    def quantile_us(self, share: float) -> int:
        """See `Latencies.quantile_us`; all models together."""
        return self._all.quantile_us(share)

    def text(self, about: Mapping[str, str], gauges: Mapping[str, tuple[str, str, float]]) -> bytes:
        """All of it as Prometheus text.

        Args:
            about: Labels of every series.
            gauges: Further series by name: (type, help, value).
        """
        common = ",".join(f'{name}="{_escape(value)}"' for name, value in about.items())
        lines = [
            "# HELP lighterman_inference_requests_total Inference requests by outcome.",
            "# TYPE lighterman_inference_requests_total counter",
        ]
        for member, counts in self._counts.items():
            for outcome, count in counts.items():
                labels = f'{common},member="{_escape(member)}",outcome="{outcome}"'
                lines.append(f"lighterman_inference_requests_total{{{labels}}} {count}")
        name = "lighterman_inference_duration_seconds"
        lines += [f"# HELP {name} From a request's last byte to its answer.", f"# TYPE {name} histogram"]
        for member, latencies in self._latencies.items():
            lines += latencies.lines(name, f'{common},member="{_escape(member)}"')
        for name, (kind, text, value) in gauges.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name}{{{common}}} {value:.15g}"]
        return ("\n".join(lines) + "\n").encode("utf-8")


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
