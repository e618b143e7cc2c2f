"""Microsoft's device SDK as these tests use it: one place that knows its names."""

from __future__ import annotations

import contextlib
import gc
import queue
from collections.abc import Iterator
from typing import Any

from azure.iot.device import (
    X509,
    IoTHubDeviceClient,
    IoTHubModuleClient,
    Message,
    MethodResponse,
    ProvisioningDeviceClient,
)

WAIT_S = 20.0


class Client:
    """A client of the SDK that keeps what it hears in queues."""

    def __init__(self, sdk: Any) -> None:
        self.sdk = sdk
        self.patches: queue.Queue[Any] = queue.Queue()
        self.messages: queue.Queue[Any] = queue.Queue()
        self.states: queue.Queue[bool] = queue.Queue()
        self.calls: queue.Queue[Any] = queue.Queue()
        self.sdk.on_connection_state_change = lambda: self.states.put(self.sdk.connected)

    def hear_patches(self) -> None:
        """Enable the handler of desired properties."""
        self.sdk.on_twin_desired_properties_patch_received = self.patches.put

    def hear_messages(self) -> None:
        """Enable the handler of messages to the device, or to the module's inputs."""
        self.sdk.on_message_received = self.messages.put

    def answer_methods(self, status: int = 200) -> None:
        """Answer every method with what it was asked."""

        def answer(request: Any) -> None:
            self.calls.put(request)
            response = MethodResponse.create_from_method_request(request, status, {"echo": request.payload})
            self.sdk.send_method_response(response)

        self.sdk.on_method_request_received = answer

    def heard(self, box: queue.Queue[Any]) -> Any:
        """The next item of one of the queues."""
        return box.get(timeout=WAIT_S)

    def until_state(self, connected: bool) -> None:
        """Wait until the SDK tells that it is connected, or is not."""
        while self.states.get(timeout=WAIT_S) is not connected:
            pass


@contextlib.contextmanager
def device(connection_string: str, ca_pem: str, **options: Any) -> Iterator[Client]:
    """A device by its connection string; shut down at the end."""
    sdk = IoTHubDeviceClient.create_from_connection_string(
        connection_string, server_verification_cert=ca_pem, **options
    )
    with closing(sdk) as client:
        yield client


@contextlib.contextmanager
def module(connection_string: str, ca_pem: str, **options: Any) -> Iterator[Client]:
    """A module by its connection string; shut down at the end."""
    sdk = IoTHubModuleClient.create_from_connection_string(
        connection_string, server_verification_cert=ca_pem, **options
    )
    with closing(sdk) as client:
        yield client


@contextlib.contextmanager
def closing(sdk: Any) -> Iterator[Client]:
    """Any client; shut down at the end."""
    try:
        yield Client(sdk)
    finally:
        sdk.shutdown()
        # The SDK leaves some sockets to the garbage collector: they go here, not in whichever test comes next.
        del sdk
        gc.collect()


def message(text: str, **properties: str) -> Message:
    """A message with application properties."""
    made = Message(text)  # type: ignore[no-untyped-call]
    made.custom_properties.update(properties)
    return made


__all__ = [
    "WAIT_S",
    "X509",
    "Client",
    "IoTHubDeviceClient",
    "IoTHubModuleClient",
    "Message",
    "ProvisioningDeviceClient",
    "closing",
    "device",
    "message",
    "module",
]
