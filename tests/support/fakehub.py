"""A stand-in for Azure IoT Hub's device SDK, and the hub behind it, scripted by the test."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


class CredentialError(Exception):
    """Named as the SDK names it."""


class ConnectionFailedError(Exception):
    """Named as the SDK names it."""


@dataclass
class FakeHub:
    """Implements `edge_agent.link.iothub.Sdk`; what is in `script` happens to the next connects.

    Attributes:
        sent: (kind, content) the hub has.
        twin: What `get_twin` gives.
        script: Exceptions that the next connects raise, first one first.
        is_away: Every connect fails.
        twins_lost: So many requests for the twin wait until `release`.
        is_mute: Sends wait until `release`, or for ever.
    """

    sent: list[tuple[str, bytes]] = field(default_factory=list)
    twin: Any = field(default_factory=lambda: {"desired": {"$version": 1}, "reported": {"$version": 1}})
    script: list[Exception] = field(default_factory=list)
    is_away: bool = False
    is_mute: bool = False
    twins_lost: int = 0
    release: threading.Event = field(default_factory=threading.Event)
    clients: list[FakeClient] = field(default_factory=list)

    def client(self) -> FakeClient:
        """See `Sdk.client`."""
        self.clients.append(FakeClient(self))
        return self.clients[-1]

    def message(self, kind: str, content: bytes) -> tuple[str, bytes]:
        """See `Sdk.message`."""
        return kind, content

    def patch(self, desired: Any) -> None:
        """Desired properties change while the device is connected."""
        self.clients[-1].on_twin_desired_properties_patch_received(desired)

    def tell(self, content: Any, **properties: str) -> None:
        """A cloud-to-device message."""
        self.clients[-1].on_message_received(SimpleNamespace(data=content, custom_properties=properties))

    def drop(self) -> None:
        """End the connection."""
        self.clients[-1].connected = False
        self.clients[-1].on_connection_state_change()


class FakeClient:
    """The part of `IoTHubDeviceClient` that the link uses."""

    on_connection_state_change: Callable[[], None]
    on_background_exception: Callable[[Exception], None]
    on_message_received: Callable[[Any], None]
    on_twin_desired_properties_patch_received: Callable[[Any], None]

    def __init__(self, hub: FakeHub) -> None:
        self._hub = hub
        self.connected = False
        self.is_shut_down = False

    def connect(self) -> None:
        """Connect, or do what the script says."""
        if self._hub.script:
            raise self._hub.script.pop(0)
        if self._hub.is_away:
            raise ConnectionFailedError
        self.connected = True

    def get_twin(self) -> Any:
        """The document as it is now."""
        if self._hub.twins_lost > 0:
            self._hub.twins_lost -= 1
            self._hub.release.wait(20)
        return self._hub.twin

    def send_message(self, message: tuple[str, bytes]) -> None:
        """Keep a message; blocks while the hub is mute."""
        if self._hub.is_mute:
            self._hub.release.wait(20)
            raise ConnectionFailedError
        self._hub.sent.append(message)

    def shutdown(self) -> None:
        """Final."""
        self.connected = False
        self.is_shut_down = True
