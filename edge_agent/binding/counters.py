"""What one binding counts, and all of it as JSON and as Prometheus text."""

import threading
from collections.abc import Iterable, Sequence
from typing import Final

from edge_contract.jsonio import JsonObject

OUTCOMES: Final = ("answered", "invalid", "failed", "dropped", "passed_over", "unpublished")
"""How a message ended: with a prediction; refused for what it is; not answered by the model; dropped because too many
waited; retained and not wanted; answered, but the broker did not take the answer."""


class Counters:
    """Of one binding, from the start of the process. Any thread."""

    def __init__(self) -> None:
        """Start at zero."""
        self._lock = threading.Lock()
        self._outcomes = dict.fromkeys(OUTCOMES, 0)
        self.duplicates = 0
        self.retries = 0
        self._latency_us = 0
        self._timed = 0

    def count(self, outcome: str, latency_us: int | None = None) -> None:
        """Count how a message ended.

        Args:
            outcome: One of `OUTCOMES`.
            latency_us: From its arrival to its prediction, where it got one.
        """
        with self._lock:
            self._outcomes[outcome] += 1
            if latency_us is not None:
                self._latency_us += latency_us
                self._timed += 1

    def to_json(self) -> JsonObject:
        """The counts by name."""
        with self._lock:
            return {
                **self._outcomes,
                "duplicates": self.duplicates,
                "retries": self.retries,
                "latency_us_mean": self._latency_us // self._timed if self._timed else 0,
                "latency_us_sum": self._latency_us,
                "latency_count": self._timed,
            }


def prometheus_text(modules: JsonObject) -> bytes:
    """All modules as Prometheus text exposition.

    Args:
        modules: By name, as `Module.report` gives them.
    """
    rows: list[tuple[str, str, str, list[str]]] = []
    bindings = [
        (f'module="{_escape(module)}",binding="{_escape(name)}"', about)
        for module, report in modules.items()
        for name, about in report["bindings"].items()
    ]

    def series(name: str, kind: str, text: str, lines: Iterable[str]) -> None:
        rows.append((name, kind, text, list(lines)))

    messages = "lighterman_binding_messages_total"
    series(
        messages,
        "counter",
        "Messages by how they ended.",
        (
            f'{messages}{{{labels},outcome="{outcome}"}} {about["counts"][outcome]}'
            for labels, about in bindings
            for outcome in OUTCOMES
        ),
    )
    for key, name, text in (
        ("duplicates", "lighterman_binding_duplicates_total", "Messages that the broker delivered again."),
        ("retries", "lighterman_binding_retries_total", "Requests that were made again."),
    ):
        series(name, "counter", text, (f"{name}{{{labels}}} {about['counts'][key]}" for labels, about in bindings))
    latency = "lighterman_binding_latency_seconds"
    series(
        latency,
        "summary",
        "From a message's arrival to its prediction.",
        (
            line
            for labels, about in bindings
            for line in (
                f"{latency}_sum{{{labels}}} {about['counts']['latency_us_sum'] / 1e6:.6f}",
                f"{latency}_count{{{labels}}} {about['counts']['latency_count']}",
            )
        ),
    )
    waiting = "lighterman_binding_waiting"
    series(
        waiting,
        "gauge",
        "Messages that wait for their model.",
        (f"{waiting}{{{labels}}} {about['waiting']}" for labels, about in bindings),
    )
    for key, name, kind, text in (
        ("online", "lighterman_binding_online", "gauge", "Whether the module is connected to the broker."),
        ("reconnects", "lighterman_binding_reconnects_total", "counter", "Connections after the first."),
    ):
        series(
            name, kind, text, (f'{name}{{module="{_escape(m)}"}} {int(report[key])}' for m, report in modules.items())
        )
    return _exposition(rows)


def _exposition(rows: Sequence[tuple[str, str, str, list[str]]]) -> bytes:
    lines: list[str] = []
    for name, kind, text, samples in rows:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *samples]
    return ("\n".join(lines) + "\n").encode("utf-8")


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
