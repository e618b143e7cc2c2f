"""What the registry tells Prometheus (text format 0.0.4). Names carry base units; labels are few and bounded."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    start_http_server,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from edge_contract.errors import EdgeError

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody asks for

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class RegistryMetrics:
    """All metrics of one process. Any thread."""

    def __init__(self) -> None:
        """Start at zero, apart from the library's global registry."""
        self._registry = registry = CollectorRegistry()
        self.messages = Counter(
            "lighterman_collector_messages",
            "Messages from devices, by kind (telemetry, report) and outcome (taken, dropped).",
            ["kind", "outcome"],
            registry=registry,
        )
        self.reports_refused = Counter(
            "lighterman_collector_reports_refused",
            "Reports that were not believed, by code: unsigned or forged, replayed, of an unknown or revoked device.",
            ["code"],
            registry=registry,
        )
        self.samples = Counter(
            "lighterman_collector_samples",
            "Samples, by outcome: stored, or duplicate of a stored one.",
            ["outcome"],
            registry=registry,
        )
        self.files = Counter("lighterman_collector_files", "Files that were entered into the lake.", registry=registry)
        self.conflicts = Counter(
            "lighterman_collector_conflicts", "Files given up because another collector was faster.", registry=registry
        )
        self.store_failures = Counter(
            "lighterman_collector_store_failures",
            "Times the disk or the database did not take telemetry or reports, by kind.",
            ["kind"],
            registry=registry,
        )
        self.flush_seconds = Histogram(
            "lighterman_collector_flush_seconds",
            "Time to write a file and commit it, without the waits after failures.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.is_link_up = Gauge(
            "lighterman_collector_link_up", "Whether the broker can be reached, by kind.", ["kind"], registry=registry
        )
        self.is_blocked = Gauge(
            "lighterman_collector_blocked", "Whether storing fails at the moment, by kind.", ["kind"], registry=registry
        )
        self.lake_bytes = Gauge("lighterman_lake_size_bytes", "Bytes of the catalogued files.", registry=registry)
        self.lake_files = Gauge("lighterman_lake_files", "Catalogued files.", registry=registry)
        self.swept_files = Counter(
            "lighterman_lake_swept_files", "Files without a catalogue entry that were removed.", registry=registry
        )
        self.deployment_devices = Gauge(
            "lighterman_deployment_devices",
            "Assignments in force, by how they stand: pending, in_progress, confirmed, reverted, refused, …",
            ["standing"],
            registry=registry,
        )
        self.queries = Counter(
            "lighterman_queries", "Queries, by outcome (answered, refused).", ["outcome"], registry=registry
        )
        self.query_seconds = Histogram(
            "lighterman_query_seconds", "Time of a query.", buckets=_SECONDS, registry=registry
        )
        self.requests = Counter(
            "lighterman_http_requests",
            "Answered requests, by method and class of status.",
            ["method", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "lighterman_http_request_seconds",
            "Time to the last byte of an answer.",
            buckets=_SECONDS,
            registry=registry,
        )

    @contextmanager
    def served(self, port: int, host: str = "127.0.0.1") -> Iterator[None]:
        """Answer scrapes over HTTP, for a process that has no server of its own.

        Raises:
            EdgeError: `config.invalid` if the port cannot be had.
        """
        try:
            server, thread = start_http_server(port, host, self._registry)
        except OSError as error:
            raise EdgeError("config.invalid", f"cannot show metrics on {host}:{port}: {error.strerror}") from None
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def render(self) -> tuple[bytes, str]:
        """The text for a scrape and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


METRICS: Final = RegistryMetrics()
"""Those of this process."""


def render() -> tuple[bytes, str]:
    """The text for a scrape of this process and its content type."""
    return METRICS.render()
