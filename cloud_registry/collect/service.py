"""The collector put together: consumers, lake, tender. Runs inside the server or as a process of its own."""

import hashlib
import logging
import threading
from collections.abc import Iterator
from typing import Final

from cloud_registry.adapters.feed_eventhub import Checkpoints, EventHubFeed
from cloud_registry.adapters.lake import ParquetLake
from cloud_registry.adapters.link_mqtt import LinkHandlers
from cloud_registry.collect.consume import (
    REPORTS,
    TELEMETRY,
    MakeFeed,
    ReportConsumer,
    TelemetryConsumer,
    mqtt_feed,
)
from cloud_registry.collect.core import FlushRules
from cloud_registry.collect.hub_reports import TwinReports
from cloud_registry.collect.tend import LakeTender
from cloud_registry.config import RegistryConfig
from cloud_registry.hub import HubParts
from cloud_registry.limits import FLUSH_MS, FLUSH_MS_MAX
from cloud_registry.metrics import METRICS, RegistryMetrics
from cloud_registry.ports import Clock, FleetStore
from edge_contract import topics
from edge_contract.errors import EdgeError
from edge_contract.hub import KIND_BATCH, KIND_REPORT

_log: Final = logging.getLogger(__name__)


class Collector:
    """Everything between the broker and the lake. `start` once, `close` at the end; any thread."""

    def __init__(
        self,
        config: RegistryConfig,
        fleet: FleetStore,
        clock: Clock,
        hub: HubParts | None = None,
        *,
        flush_ms: int = FLUSH_MS,
        metrics: RegistryMetrics = METRICS,
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            config: Where broker and lake are.
            fleet: The database.
            clock: The time.
            hub: An IoT hub to collect from, beside the broker or in its place; none for no hub.
            flush_ms: How long a record waits for company before its file is written, `1..FLUSH_MS_MAX`.
            metrics: Counted in.

        Raises:
            EdgeError: `config.*`, `device.*`.
        """
        if not 1 <= flush_ms <= FLUSH_MS_MAX:
            raise EdgeError("config.invalid", f"flush_ms is {flush_ms}", f"Use 1 to {FLUSH_MS_MAX}.")
        self._lakes = [ParquetLake(config.lake_dir, clock.wall_ms)]
        self._parts: list[TelemetryConsumer | ReportConsumer] = []
        self._twins: TwinReports | None = None
        try:
            rules = FlushRules(age_ms=flush_ms)
            for kind, telemetry, reports in self._sources(config, hub):
                if self._parts:  # a lake is written by one thread
                    self._lakes.append(ParquetLake(config.lake_dir, clock.wall_ms))
                lake = self._lakes[-1]
                made = TelemetryConsumer(telemetry, fleet, lake, clock, metrics, rules, f"{kind}telemetry")
                self._parts += [ReportConsumer(reports, fleet, clock, metrics, f"{kind}report"), made]
            if hub is not None and config.iothub.twins_s:
                every_s = config.iothub.twins_s
                self._twins = TwinReports(hub.make_service(), hub.directory, fleet, clock, metrics, every_s)
        except BaseException:
            self._close_lakes()
            raise
        self._tender = LakeTender(fleet, self._lakes[0], metrics)

    @staticmethod
    def _sources(config: RegistryConfig, hub: HubParts | None) -> Iterator[tuple[str, MakeFeed, MakeFeed]]:
        """(prefix of names, batches, reports) of each source. Without any, the missing broker is what is told."""
        if config.mqtt.host or hub is None:
            session = _session_of(config)
            yield (
                "",
                mqtt_feed(config.mqtt, TELEMETRY, topics.ALL_TELEMETRY, session),
                mqtt_feed(config.mqtt, REPORTS, topics.ALL_REPORTS, session),
            )
        if hub is not None:
            yield "hub-", _hub_feed(config, hub, KIND_BATCH), _hub_feed(config, hub, KIND_REPORT)

    @property
    def is_ready(self) -> bool:
        """Whether telemetry and reports can come in."""
        return all(part.is_ready for part in self._parts)

    def start(self) -> None:
        """Connect and begin."""
        self._tender.start()
        for part in self._parts:
            part.start()
        if self._twins is not None:
            self._twins.start()

    def close(self) -> None:
        """End; bounded. What was not stored was not acknowledged and comes again."""
        for part in reversed(self._parts):
            part.close()
        if self._twins is not None:
            self._twins.close()
        self._tender.close()
        self._close_lakes()

    def _close_lakes(self) -> None:
        for lake in self._lakes:
            lake.close()


def _hub_feed(config: RegistryConfig, hub: HubParts, kind: str) -> MakeFeed:
    """Messages of one kind from an IoT hub."""

    def make(handlers: LinkHandlers) -> EventHubFeed:
        name = f"{config.iothub.consumer_group}/{kind}"
        return EventHubFeed(config.iothub, kind, hub.directory, Checkpoints(hub.table, name), hub.writer, handlers)

    return make


def run_collector(
    config: RegistryConfig,
    fleet: FleetStore,
    clock: Clock,
    stop: threading.Event,
    hub: HubParts | None = None,
    *,
    flush_ms: int = FLUSH_MS,
) -> None:
    """Collect until `stop` is set.

    Raises:
        EdgeError: as `Collector`.
    """
    collector = Collector(config, fleet, clock, hub, flush_ms=flush_ms)
    try:
        collector.start()
        source = "an IoT hub" if not config.mqtt.host else f"{config.mqtt.host}:{config.mqtt.port}"
        _log.info("collecting from %s into %s", source, config.lake_dir)
        stop.wait()
    finally:
        collector.close()


def _session_of(config: RegistryConfig) -> str:
    """A name for the broker's session that is the same after a restart and differs between installations."""
    text = f"{config.data_dir.absolute()}|{config.database_url}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
