"""A device's message as the Event-Hubs-compatible endpoint gives it, with the properties that the hub adds. Pure.

Source: Azure IoT Hub documentation, "Read device-to-cloud messages from the built-in endpoint".
"""

from typing import Any, Final

from proton import Message, symbol, timestamp

from device_sim.iothub.messages import Event

_MESSAGE_PROPERTIES: Final = ("message-id", "correlation-id", "user-id", "content-type", "content-encoding", "to")


def event_message(event: Event) -> Message:
    """An event as the endpoint gives it, with the properties that the hub adds."""
    annotations: dict[Any, Any] = {
        symbol("x-opt-sequence-number"): event.sequence,
        symbol("x-opt-offset"): str(event.offset),
        symbol("x-opt-enqueued-time"): timestamp(event.enqueued_ms),
        symbol("iothub-connection-device-id"): event.source.device,
        symbol("iothub-connection-auth-method"): _method(event),
        symbol("iothub-enqueuedtime"): timestamp(event.enqueued_ms),
        symbol("iothub-message-source"): "Telemetry",
    }
    if event.source.module:
        annotations[symbol("iothub-connection-module-id")] = event.source.module
    names = {"interface-id": "iothub-interface-id", "dt-subject": "dt-subject", "output-name": "iothub-output-name"}
    for name, value in event.system.items():
        if name not in _MESSAGE_PROPERTIES:
            annotations[symbol(names.get(name, name))] = value
    message = Message(body=event.body, inferred=True)
    message.annotations = annotations
    own: Any = dict(event.properties)
    message.properties = own
    system = event.system
    if "message-id" in system:
        message.id = system["message-id"]
    if "correlation-id" in system:
        message.correlation_id = system["correlation-id"]
    if "user-id" in system:
        message.user_id = system["user-id"].encode()
    if "content-type" in system:
        message.content_type = symbol(system["content-type"])
    if "content-encoding" in system:
        message.content_encoding = symbol(system["content-encoding"])
    return message


def _method(event: Event) -> str:
    scope = "module" if event.source.module else "device"
    kind = "x509" if event.authentication == "x509" else "sas"
    return f'{{"scope":"{scope}","type":"{kind}","issuer":"iothub","acceptingIpFilterRule":null}}'
