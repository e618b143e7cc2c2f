"""Messages from and to devices: their properties in a topic, the log of telemetry, the queue towards a device.

The log may be read from any thread; everything else belongs to the hub's.
"""

import base64
import threading
import zlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, unquote

from device_sim.iothub.limits import TELEMETRY_KEPT_MAX
from edge_contract.hub import HubAddress
from edge_contract.jsonio import JsonObject

PARTITIONS: Final = 4
_SYSTEM: Final = {
    "$.mid": "message-id",
    "$.cid": "correlation-id",
    "$.uid": "user-id",
    "$.ct": "content-type",
    "$.ce": "content-encoding",
    "$.to": "to",
    "$.exp": "absolute-expiry-time",
    "$.on": "output-name",
    "$.ifid": "interface-id",
    "$.sub": "dt-subject",
    "$.ctime": "creation-time",
}


@dataclass(frozen=True, slots=True)
class Event:
    """A message from a device, as the hub's Event-Hubs-compatible endpoint has it.

    Attributes:
        ordinal: Its place among all of the hub.
        partition: By the device's name.
        sequence: Its place in the partition, from 0.
        offset: Its byte in the partition.
        enqueued_ms: When the hub took it, milliseconds since 1970.
        source: Who sent it.
        body: Its bytes.
        properties: Those of the application.
        system: Those of the protocol by their AMQP names, such as `message-id` and `output-name`.
        authentication: How the sender proved who it is: `sas` or `x509`.
    """

    ordinal: int
    partition: int
    sequence: int
    offset: int
    enqueued_ms: int
    source: HubAddress
    body: bytes
    properties: Mapping[str, str]
    system: Mapping[str, str]
    authentication: str = "sas"


@dataclass(slots=True)
class CloudMessage:
    """A message to a device, or to a module's input, until it is acknowledged.

    Attributes:
        number: Names it in its queue.
        body: Its bytes.
        properties: Those of the application; none is a key alone in the topic.
        system: Those of the protocol by their short names in a topic, such as `$.mid`.
        expires_ms: Milliseconds since 1970.
        deliveries: How often it was given to the device.
        input: Name of the module's input; empty for a message to a device.
        feedback: `none`, `positive`, `negative` or `full`.
    """

    number: int
    body: bytes
    properties: dict[str, str | None]
    system: dict[str, str]
    expires_ms: int
    deliveries: int = 0
    input: str = ""
    feedback: str = "none"


@dataclass(slots=True)
class _Partition:
    events: deque[Event] = field(default_factory=deque)
    next_sequence: int = 0
    next_offset: int = 0


class TelemetryLog:
    """Events of a hub by partition, the oldest dropped beyond `TELEMETRY_KEPT_MAX` of them. Any thread."""

    def __init__(self, partitions: int = PARTITIONS) -> None:
        """An empty log."""
        self._partitions = [_Partition() for _ in range(partitions)]
        self._condition = threading.Condition()
        self._kept_max = max(1, TELEMETRY_KEPT_MAX // partitions)
        self.total = 0

    @property
    def partitions(self) -> int:
        """How many there are."""
        return len(self._partitions)

    def partition_of(self, device: str) -> int:
        """Where a device's events go; the same for all time."""
        return zlib.crc32(device.encode()) % len(self._partitions)

    def append(
        self,
        source: HubAddress,
        body: bytes,
        properties: Mapping[str, str],
        system: Mapping[str, str],
        now_ms: int,
        authentication: str = "sas",
    ) -> Event:
        """Add an event at the end of its device's partition."""
        number = self.partition_of(source.device)
        with self._condition:
            part = self._partitions[number]
            event = Event(
                self.total, number, part.next_sequence, part.next_offset, now_ms, source, body, dict(properties),
                dict(system), authentication,
            )  # fmt: skip
            self._keep(part, event)
        return event

    def restore(self, event: Event) -> None:
        """Put back an event of before a restart; in the order of their ordinals."""
        with self._condition:
            self._keep(self._partitions[event.partition], event)

    def _keep(self, part: _Partition, event: Event) -> None:
        part.events.append(event)
        part.next_sequence = event.sequence + 1
        part.next_offset = event.offset + len(event.body) + 64
        self.total = max(self.total, event.ordinal + 1)
        if len(part.events) > self._kept_max:
            part.events.popleft()
        self._condition.notify_all()

    def read(self, partition: int, sequence: int, count_max: int) -> list[Event]:
        """Events of a partition from a sequence number on."""
        with self._condition:
            events = self._partitions[partition].events
            if not events:
                return []
            skip = max(0, sequence - events[0].sequence)
            return [events[at] for at in range(skip, min(len(events), skip + count_max))]

    def since(self, ordinal: int, count_max: int) -> list[Event]:
        """Events of all partitions from an ordinal on, in their order."""
        with self._condition:
            found: list[Event] = []
            for part in self._partitions:
                for event in reversed(part.events):
                    if event.ordinal < ordinal:
                        break
                    found.append(event)
        return sorted(found, key=lambda event: event.ordinal)[:count_max]

    def bounds(self, partition: int) -> tuple[Event | None, Event | None, int]:
        """(first kept event, last event, sequence number of the next one) of a partition."""
        with self._condition:
            part = self._partitions[partition]
            first = part.events[0] if part.events else None
            last = part.events[-1] if part.events else None
            return first, last, part.next_sequence

    def wait_beyond(self, total: int, timeout_s: float) -> int:
        """Wait until the log has had more than `total` events; gives how many it had."""
        with self._condition:
            self._condition.wait_for(lambda: self.total > total, timeout_s)
            return self.total


def parse_bag(text: str) -> dict[str, str | None]:
    """Properties as a topic carries them: `a=b&c=&d`, URL-encoded; a key alone has no value."""
    result: dict[str, str | None] = {}
    for pair in filter(None, text.strip("/").removeprefix("?").split("&")):
        key, has_value, value = pair.partition("=")
        result[unquote(key)] = unquote(value) if has_value else None
    return result


def encode_bag(values: Mapping[str, str | None]) -> str:
    """The opposite of `parse_bag`."""
    parts = []
    for key, value in values.items():
        name = quote(key, safe="")
        parts.append(name if value is None else f"{name}={quote(value, safe='')}")
    return "&".join(parts)


def split_properties(bag: Mapping[str, str | None]) -> tuple[dict[str, str], dict[str, str]]:
    """(application's, system's by AMQP name) of a device's message."""
    own: dict[str, str] = {}
    system: dict[str, str] = {}
    for key, value in bag.items():
        if key in _SYSTEM:
            system[_SYSTEM[key]] = value or ""
        elif key != "$retain":
            own[key] = value or ""
    return own, system


def event_json(event: Event) -> JsonObject:
    """An event for people and tests; the body as text where it is UTF-8, else in base64."""
    shown: JsonObject = {
        "device": event.source.device,
        "module": event.source.module,
        "partition": event.partition,
        "sequence": event.sequence,
        "offset": event.offset,
        "enqueued_ms": event.enqueued_ms,
        "properties": dict(event.properties),
        "system": dict(event.system),
    }
    try:
        return shown | {"text": event.body.decode("utf-8")}
    except UnicodeDecodeError:
        return shown | {"base64": base64.b64encode(event.body).decode()}
