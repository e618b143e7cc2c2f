"""A stand-in for Azure IoT Hub's device SDK, and the hub behind it, scripted by the test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


class CredentialError(Exception):
    """Named as the SDK names it."""


class ServiceError(Exception):
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
        refusals: How often the link said that its credentials were refused.
        answers: (request, status, answer) of direct methods.
        patches: Of reported properties that the hub has.
        rejections: Exceptions that the next writes to the twin raise.
        on_patch: Called once, while the next patch is written.
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
    refusals: int = 0
    answers: list[tuple[Any, int, dict[str, Any]]] = field(default_factory=list)
    patches: list[dict[str, Any]] = field(default_factory=list)
    rejections: list[Exception] = field(default_factory=list)
    on_patch: Callable[[], object] = lambda: None

    def client(self) -> FakeClient:
        """See `Sdk.client`."""
        self.clients.append(FakeClient(self))
        return self.clients[-1]

    def message(self, kind: str, content: bytes) -> tuple[str, bytes]:
        """See `Sdk.message`."""
        return kind, content

    def output(self, content: bytes, properties: Mapping[str, str], content_type: str) -> tuple[str, bytes]:
        """See `Sdk.output`."""
        return f"{content_type} {dict(properties)}", content

    def response(self, request: Any, status: int, answer: dict[str, Any]) -> tuple[Any, int, dict[str, Any]]:
        """See `Sdk.response`."""
        return request, status, answer

    def refused(self) -> None:
        """See `Sdk.refused`."""
        self.refusals += 1

    def call(self, name: str, arguments: Any = None) -> tuple[int, dict[str, Any]]:
        """Call a direct method; gives status and answer."""
        request = SimpleNamespace(name=name, payload=arguments)
        self.clients[-1].on_method_request_received(request)
        return next((status, answer) for asked, status, answer in self.answers if asked is request)

    def input(self, name: str, content: bytes, **properties: str) -> None:
        """A message for an input of the module."""
        self.clients[-1].on_message_received(
            SimpleNamespace(
                input_name=name, data=content, custom_properties=properties, content_type="application/json"
            )
        )

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
    on_method_request_received: Callable[[Any], None]

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

    def send_message_to_output(self, message: tuple[str, bytes], output: str) -> None:
        """Keep a message for an output."""
        kind, content = message
        self.send_message((f"{output} {kind}", content))

    def send_method_response(self, response: tuple[Any, int, dict[str, Any]]) -> None:
        """Keep an answer."""
        self._hub.answers.append(response)

    def patch_twin_reported_properties(self, patch: dict[str, Any]) -> None:
        """Keep a patch, or reject it as the script says."""
        if self._hub.rejections:
            raise self._hub.rejections.pop(0)
        self._hub.patches.append(patch)
        then, self._hub.on_patch = self._hub.on_patch, lambda: None
        then()

    def shutdown(self) -> None:
        """Final."""
        self.connected = False
        self.is_shut_down = True
