"""The collector put together: consumers, lake, tender. Runs inside the server or as a process of its own."""

import hashlib
import logging
import threading
from typing import Final

from cloud_registry.adapters.lake import ParquetLake
from cloud_registry.collect.consume import ReportConsumer, TelemetryConsumer
from cloud_registry.collect.core import FlushRules
from cloud_registry.collect.tend import LakeTender
from cloud_registry.config import RegistryConfig
from cloud_registry.limits import FLUSH_MS, FLUSH_MS_MAX
from cloud_registry.metrics import METRICS, RegistryMetrics
from cloud_registry.ports import Clock, FleetStore
from edge_contract.errors import EdgeError

_log: Final = logging.getLogger(__name__)


class Collector:
    """Everything between the broker and the lake. `start` once, `close` at the end; any thread."""

    def __init__(
        self,
        config: RegistryConfig,
        fleet: FleetStore,
        clock: Clock,
        *,
        flush_ms: int = FLUSH_MS,
        metrics: RegistryMetrics = METRICS,
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            config: Where broker and lake are.
            fleet: The database.
            clock: The time.
            flush_ms: How long a record waits for company before its file is written, `1..FLUSH_MS_MAX`.
            metrics: Counted in.

        Raises:
            EdgeError: `config.*`, `device.*`.
        """
        if not 1 <= flush_ms <= FLUSH_MS_MAX:
            raise EdgeError("config.invalid", f"flush_ms is {flush_ms}", f"Use 1 to {FLUSH_MS_MAX}.")
        session = _session_of(config)
        self._lake = ParquetLake(config.lake_dir, clock.wall_ms)
        try:
            rules = FlushRules(age_ms=flush_ms)
            self._telemetry = TelemetryConsumer(config.mqtt, fleet, self._lake, clock, metrics, session, rules)
            self._reports = ReportConsumer(config.mqtt, fleet, clock, metrics, session)
        except BaseException:
            self._lake.close()
            raise
        self._tender = LakeTender(fleet, self._lake, metrics)

    @property
    def is_ready(self) -> bool:
        """Whether telemetry and reports can come in."""
        return self._telemetry.is_ready and self._reports.is_ready

    def start(self) -> None:
        """Connect and begin."""
        self._tender.start()
        self._reports.start()
        self._telemetry.start()

    def close(self) -> None:
        """End; bounded. What was not stored was not acknowledged and comes again."""
        self._telemetry.close()
        self._reports.close()
        self._tender.close()
        self._lake.close()


def run_collector(
    config: RegistryConfig, fleet: FleetStore, clock: Clock, stop: threading.Event, *, flush_ms: int = FLUSH_MS
) -> None:
    """Collect until `stop` is set.

    Raises:
        EdgeError: as `Collector`.
    """
    collector = Collector(config, fleet, clock, flush_ms=flush_ms)
    try:
        collector.start()
        _log.info("collecting from %s:%d into %s", config.mqtt.host, config.mqtt.port, config.lake_dir)
        stop.wait()
    finally:
        collector.close()


def _session_of(config: RegistryConfig) -> str:
    """A name for the broker's session that is the same after a restart and differs between installations."""
    text = f"{config.data_dir.absolute()}|{config.database_url}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
