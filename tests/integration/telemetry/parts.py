"""Devices that keep to the acknowledgement protocol, and the registry's database and lake beside a broker."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from cloud_registry.adapters.sql.database import Database
from cloud_registry.adapters.sql.devices import SqlDevices
from cloud_registry.adapters.sql.enrolments import SqlEnrolments
from cloud_registry.adapters.sql.fleet import SqlFleet
from cloud_registry.assembly import SystemClock, open_database
from cloud_registry.config import MqttConfig, RegistryConfig
from cloud_registry.query import run_query
from edge_contract import topics
from edge_contract.errors import ContractError
from edge_contract.telemetry import Ack
from edge_contract.twin import Report
from tests.support.devicekey import TestKey
from tests.support.net import LOOPBACK
from tests.unit.cloud_telemetry.making import batch, report

BOOT = "00000000000000aa"
_REPEAT_S = 0.3
_YEAR_MS = 365 * 24 * 3_600 * 1_000


class Peer:
    """One MQTT connection that remembers what happened on it."""

    def __init__(
        self,
        port: int,
        client_id: str,
        *,
        tls: ssl.SSLContext | None = None,
        protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv311,
        wait_s: float = 10,
    ) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.granted: dict[int, list[bool]] = {}
        self.published: dict[int, str] = {}
        self.losses: list[str] = []
        self.filters: list[str] = []
        self.changed = threading.Condition()
        self._connected = threading.Event()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=protocol)
        if tls is not None:
            self.client.tls_set_context(tls)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.on_subscribe = self._on_subscribe
        self.client.on_publish = self._on_publish
        self.client.on_message = self._on_message
        self.client.connect(LOOPBACK, port, keepalive=20)
        self.client.loop_start()
        if not self._connected.wait(wait_s):
            self.close()
            raise AssertionError(f"{client_id} was not let in: {self.losses}")

    def subscribe(self, *filters: str, wait_s: float = 10) -> list[bool]:
        """Whether each filter was granted."""
        self.filters += filters
        _, packet = self.client.subscribe([(name, 1) for name in filters])
        assert packet is not None
        with self.changed:
            assert self.changed.wait_for(lambda: packet in self.granted, wait_s)
            return self.granted[packet]

    def publish(self, topic: str, content: bytes, wait_s: float = 10) -> str:
        """Publish at QoS 1 and wait for the broker's answer; its reason."""
        packet = self.client.publish(topic, content, qos=1).mid
        with self.changed:
            assert self.changed.wait_for(lambda: packet in self.published, wait_s)
            return self.published[packet]

    def wait_for(self, topic: str, wait_s: float = 10) -> bytes:
        """The content of the first message on a topic."""
        with self.changed:
            assert self.changed.wait_for(lambda: any(name == topic for name, _ in self.messages), wait_s)
            return next(content for name, content in self.messages if name == topic)

    def close(self) -> None:
        """Disconnect."""
        self.client.disconnect()
        self.client.loop_stop()

    def _note(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self.losses.append(str(reason))
        else:
            self._connected.set()
            if self.filters:
                self.client.subscribe([(name, 1) for name in self.filters])

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.losses.append(str(reason))
        self._note()

    def _on_subscribe(self, _client: Any, _data: Any, packet: int, reasons: Any, _properties: Any) -> None:
        self.granted[packet] = [not reason.is_failure for reason in reasons]
        self._note()

    def _on_publish(self, _client: Any, _data: Any, packet: int, reason: Any, _properties: Any) -> None:
        self.published[packet] = str(reason)
        self._note()

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        self.messages.append((message.topic, message.payload))
        self._note()


class Device:
    """A device: sends one batch at a time, repeats it until the collector acknowledges it."""

    def __init__(self, name: str, port: int, **options: Any) -> None:
        self.name = name
        self.peer = Peer(port, name, **options)
        self.acked = 0
        self.heard: list[tuple[str, bytes]] = []
        self.peer.client.on_message = self._on_message
        assert self.peer.subscribe(topics.ack(name)) == [True]

    def send(self, first: int, last: int) -> None:
        """Hand a batch to the broker; nobody has to take it."""
        self.peer.client.publish(topics.telemetry(self.name), batch(self.name, first, last, BOOT).to_bytes(), qos=1)

    def deliver(self, count: int, size: int, stop: threading.Event, wait_s: float = 60) -> None:
        """Get the records `1..count` acknowledged, `size` in a batch; gives up quietly when the time is up."""
        deadline = time.monotonic() + wait_s
        while self.acked < count and not stop.is_set() and time.monotonic() < deadline:
            last = min(count, self.acked + size)
            self.send(self.acked + 1, last)
            self._await(last, _REPEAT_S)

    def wait_acked(self, upto: int, wait_s: float = 20) -> None:
        """Wait for an acknowledgement."""
        assert self._await(upto, wait_s), f"acknowledged up to {self.acked}"

    def report(self, number: int, key: TestKey | None = None) -> Report:
        """Send a report, signed with the key that `Cloud.enrol` gives the device unless another one is given."""
        sent = report(self.name, number, BOOT)
        signed = (key or TestKey.of(self.name)).envelope(sent)
        self.peer.client.publish(topics.report(self.name), signed.to_bytes(), qos=1)
        return sent

    def close(self) -> None:
        """Disconnect."""
        self.peer.close()

    def _await(self, upto: int, wait_s: float) -> bool:
        with self.peer.changed:
            return self.peer.changed.wait_for(lambda: self.acked >= upto, wait_s)

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        if message.topic != topics.ack(self.name):
            self.heard.append((message.topic, message.payload))
            return
        with self.peer.changed, contextlib.suppress(ContractError):
            self.acked = max(self.acked, Ack.parse(message.payload).upto.get(BOOT, 0))
            self.peer.changed.notify_all()


@dataclass
class Cloud:
    """A registry's data folder and database."""

    config: RegistryConfig
    database: Database
    clock: SystemClock = field(default_factory=SystemClock)

    @property
    def fleet(self) -> SqlFleet:
        """What the collector keeps."""
        return SqlFleet(self.database)

    def enrol(self, *names: str) -> None:
        """Make devices known."""
        devices, enrolments = SqlDevices(self.database, self.clock), SqlEnrolments(self.database, self.clock)
        for name in names:
            token = devices.create_enrolment(name, {}, 600, "test").token
            enrolments.redeem(token, TestKey.of(name).public, "linux/amd64", "", self.clock.wall_ms() + _YEAR_MS)

    def report_of(self, device: str) -> dict[str, Any] | None:
        """The newest report, as an operator sees it."""
        return SqlDevices(self.database, self.clock).get(device).report

    def query(self, sql: str) -> list[list[Any]]:
        """Rows of a query over the lake."""
        return run_query(self.fleet, self.config.lake_dir, sql, 10_000).rows

    def counts(self) -> dict[str, tuple[int, int, int]]:
        """By device: rows, different numbers, highest number."""
        found = self.query("SELECT device, count(*), count(DISTINCT (boot, seq)), max(seq) FROM telemetry GROUP BY ALL")
        return {row[0]: (row[1], row[2], row[3]) for row in found}


@contextlib.contextmanager
def cloud(folder: Path, mqtt: MqttConfig, database_url: str = "") -> Iterator[Cloud]:
    """A fresh registry beside a broker."""
    config = RegistryConfig(data_dir=folder / "data", database_url=database_url, mqtt=mqtt).check()
    database = open_database(config)
    try:
        yield Cloud(config, database)
    finally:
        database.close()
