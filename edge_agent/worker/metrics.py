"""Counters of a worker, for the agent and as Prometheus text (exposition format 0.0.4). Counting: any thread."""

import threading
from collections.abc import Iterable, Mapping
from typing import Final

PROMETHEUS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OUTCOMES: Final = ("ok", "failed", "invalid", "overloaded", "cancelled")

_STEP_BITS: Final = 3
_STEPS: Final = 1 << _STEP_BITS
"""Buckets between a power of two and the next."""
_EXPONENT_MAX: Final = 27
"""Latencies beyond 2^27 us (134 s, more than a request may take) share the last bucket."""
_BUCKETS: Final = (_EXPONENT_MAX - _STEP_BITS + 1) * _STEPS + 1
_TOP: Final = _BUCKETS - 1
_SHOWN_EXPONENTS: Final = range(5, _EXPONENT_MAX)
"""Powers of two that bound the buckets of the Prometheus histogram: 32 us to 67 s."""


def _bucket(us: int) -> int:
    """The bucket of a latency; bucket `b` holds those above `_upper_us(b - 1)`, up to `_upper_us(b)`."""
    place = us - 1
    if place < 2 * _STEPS:
        return place if place > 0 else 0
    shift = place.bit_length() - _STEP_BITS - 1
    return min((shift << _STEP_BITS) + (place >> shift), _TOP)


def _upper_us(bucket: int) -> int:
    """The largest latency in a bucket."""
    if bucket < 2 * _STEPS:
        return bucket + 1
    shift = (bucket >> _STEP_BITS) - 1
    return ((bucket & _STEPS - 1) + _STEPS + 1) << shift


class Latencies:
    """A histogram with fixed logarithmic bounds, eight buckets an octave.

    Whole microseconds up to 16, then buckets whose upper bound is at most an eighth above the lower one: what is read
    from a bucket by its lower bound is never too large and at most an eighth too small.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._buckets = [0] * _BUCKETS
        self._sum_us = 0
        self.count = 0

    def add(self, us: int) -> None:
        """Count one latency in microseconds."""
        self._buckets[_bucket(us)] += 1
        self._sum_us += us
        self.count += 1

    def to_pairs(self) -> list[tuple[int, int]]:
        """(least latency of the bucket in microseconds, how many lie in it), ascending, without the empty ones."""
        return [
            (_upper_us(bucket - 1) + 1 if bucket else 0, count) for bucket, count in enumerate(self._buckets) if count
        ]

    def add_all(self, other: "Latencies") -> None:
        """Count everything that another one has."""
        self._buckets = [mine + theirs for mine, theirs in zip(self._buckets, other._buckets, strict=True)]
        self._sum_us += other._sum_us
        self.count += other.count

    def lines(self, name: str, labels: str) -> Iterable[str]:
        """The lines of a Prometheus histogram whose bounds are powers of two; `labels` without braces."""
        total, bucket = 0, 0
        for exponent in _SHOWN_EXPONENTS:
            end = _bucket(1 << exponent) + 1
            total += sum(self._buckets[bucket:end])
            bucket = end
            yield f'{name}_bucket{{{labels},le="{(1 << exponent) / 1e6:g}"}} {total}'
        yield f'{name}_bucket{{{labels},le="+Inf"}} {self.count}'
        yield f"{name}_sum{{{labels}}} {self._sum_us / 1e6:.15g}"
        yield f"{name}_count{{{labels}}} {self.count}"


class Metrics:
    """What a worker counts."""

    def __init__(self, members: Iterable[str]) -> None:
        """Start at zero for these models."""
        self._counts = {member: dict.fromkeys(OUTCOMES, 0) for member in members}
        self._latencies = {member: Latencies() for member in self._counts}
        self._nonfinite = dict.fromkeys(self._counts, 0)
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

    def count_nonfinite(self, member: str) -> None:
        """Count an answer with NaN or infinity although every input was finite."""
        with self._lock:
            self._nonfinite[member] += 1

    @property
    def failures(self) -> int:
        """Requests that failed through the model's fault."""
        return sum(counts["failed"] for counts in self._counts.values())

    @property
    def requests(self) -> int:
        """Requests answered by the model, well or badly."""
        return self.failures + sum(counts["ok"] for counts in self._counts.values())

    @property
    def nonfinite(self) -> int:
        """See `count_nonfinite`; all models together."""
        return sum(self._nonfinite.values())

    def latencies(self) -> Latencies:
        """The latencies of all models together, a copy."""
        together = Latencies()
        with self._lock:
            for latencies in self._latencies.values():
                together.add_all(latencies)
        return together

    def text(self, about: Mapping[str, str], more: Mapping[str, tuple[str, str, Mapping[str, float]]]) -> bytes:
        """All of it as Prometheus text.

        Args:
            about: Labels of every series.
            more: Further series by name: (type, help, value by model; the empty name for a value of the worker).
        """
        lines = [
            "# HELP lighterman_inference_requests_total Inference requests by outcome.",
            "# TYPE lighterman_inference_requests_total counter",
        ]
        common = dict(about)
        with self._lock:
            for member, counts in self._counts.items():
                for outcome, count in counts.items():
                    labels = _labels({**common, "member": member, "outcome": outcome})
                    lines.append(f"lighterman_inference_requests_total{{{labels}}} {count}")
            name = "lighterman_inference_duration_seconds"
            lines += [f"# HELP {name} From a request's last byte to its answer.", f"# TYPE {name} histogram"]
            for member, latencies in self._latencies.items():
                lines += latencies.lines(name, _labels({**common, "member": member}))
            nonfinite = {member: float(count) for member, count in self._nonfinite.items()}
        answers = "Answers with NaN or infinity although every input was finite."
        series = {"lighterman_inference_nonfinite_total": ("counter", answers, nonfinite), **more}
        for name, (kind, text, values) in series.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            for member, value in values.items():
                labels = _labels({**common, "member": member} if member else common)
                lines.append(f"{name}{{{labels}}} {value:.15g}")
        return ("\n".join(lines) + "\n").encode("utf-8")


def _labels(values: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{_escape(value)}"' for name, value in values.items())


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
