"""What the AMQP side of an emulated hub is about: its log of telemetry, and messages to devices. On the hub's loop."""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Final

from device_sim.iothub.hub import Hub
from edge_contract.hub import HubAddress

EVENT_HUB: Final = "lighterman-events"
"""The Event-Hubs-compatible name, which is the entity path of a connection string."""

GROUPS: Final[tuple[str, ...]] = ("$Default", "lighterman", "test")
"""Consumer groups; what each has read is its reader's own affair."""

_SYSTEM: Final = {
    "message-id": "$.mid",
    "correlation-id": "$.cid",
    "content-type": "$.ct",
    "content-encoding": "$.ce",
}
_FEEDBACKS: Final = ("none", "positive", "negative", "full")


class HubSink:
    """See `amqp_links.LinkSink`."""

    def __init__(self, hub: Hub, hosts: Collection[str], commit: Callable[[], None]) -> None:
        """Give what a hub has, to clients that know it by these names; `commit` makes durable what was written."""
        self._hub = hub
        self._commit = commit
        self.log = hub.telemetry
        self.name = EVENT_HUB
        self.hosts = tuple({hub.name, *hosts})
        self.groups = GROUPS
        self.started_ms = hub.now_ms()

    @property
    def policies(self) -> Mapping[str, str]:
        """Keys in base64 by name."""
        return self._hub.policies

    def now_ms(self) -> int:
        """The time, milliseconds since 1970."""
        return self._hub.now_ms()

    def send_c2d(self, address: HubAddress, body: bytes, own: Mapping[str, str], system: Mapping[str, str]) -> None:
        """Take a message for a device, durably; raises HubError."""
        short = {_SYSTEM[name]: value for name, value in system.items() if name in _SYSTEM}
        expires = system.get("absolute-expiry-time")
        expires_ms = int(datetime.fromisoformat(expires).timestamp() * 1000) if expires else 0
        feedback = own.get("iothub-ack", "none")
        properties: dict[str, str | None] = {key: value for key, value in own.items() if key != "iothub-ack"}
        wanted = feedback if feedback in _FEEDBACKS else "none"
        self._hub.send(address, body, properties, short, expires_ms=expires_ms, feedback=wanted)
        self._commit()


def connection_string(host: str, keys: Mapping[str, str], policy: str = "service") -> str:
    """What azure-eventhub takes; the address to dial is another option of it, because it knows one port alone."""
    return f"Endpoint=sb://{host}/;SharedAccessKeyName={policy};SharedAccessKey={keys[policy]};EntityPath={EVENT_HUB}"
