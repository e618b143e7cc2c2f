"""The form in which a hub's state is kept between two runs of the emulator: JSON documents by kind and name. Pure."""

import base64
from collections import deque
from typing import Any

from device_sim.iothub.hub import Hub, address_of
from device_sim.iothub.identities import Identity
from device_sim.iothub.messages import CloudMessage
from device_sim.iothub.queues import Queue
from device_sim.iothub.twins import Section, Twin
from edge_contract.jsonio import JsonObject


def to_store(hub: Hub, kind: str, name: str) -> JsonObject | None:
    """What the store writes for a mark in `changed`; none when it is to be taken out."""
    if kind.startswith("document/"):
        return hub.documents.get((kind.removeprefix("document/"), name))
    address = address_of(name)
    if kind == "identity":
        identity = hub.identities.get(address)
        return identity.to_store() if identity else None
    if kind == "twin":
        twin = hub.twins.get(address)
        return _stored_twin(twin) if twin else None
    if kind == "session":
        topics = hub.subscriptions.get(address)
        return {"topics": sorted(topics)} if topics else None
    queue = hub.queues.get(address)
    return _stored_queue(queue) if queue else None


def restore(hub: Hub, kind: str, name: str, stored: JsonObject) -> None:
    """Take back what `to_store` gave, before anything else happens."""
    if kind.startswith("document/"):
        hub.documents[(kind.removeprefix("document/"), name)] = stored
        return
    address = address_of(name)
    if kind == "identity":
        hub.identities[address] = Identity.from_store(address, stored)
    elif kind == "twin":
        hub.twins[address] = _twin_from(stored)
    elif kind == "session":
        hub.subscriptions[address] = set(stored["topics"])
    elif kind == "queue":
        hub.queues[address] = _queue_from(stored)


def _stored_twin(twin: Twin) -> JsonObject:
    def section(part: Section) -> JsonObject:
        return {"values": part.values, "version": part.version, "metadata": part.metadata}

    return {
        "desired": section(twin.desired),
        "reported": section(twin.reported),
        "tags": twin.tags,
        "version": twin.version,
        "configurations": twin.configurations,
    }


def _twin_from(stored: JsonObject) -> Twin:
    desired, reported = Section(**stored["desired"]), Section(**stored["reported"])
    return Twin(desired, reported, stored["tags"], stored["version"], stored["configurations"])


def _stored_queue(queue: Queue) -> JsonObject:
    def message(item: CloudMessage) -> JsonObject:
        return {
            "number": item.number,
            "body": base64.b64encode(item.body).decode(),
            "properties": item.properties,
            "system": item.system,
            "expires_ms": item.expires_ms,
            "deliveries": item.deliveries,
            "input": item.input,
            "feedback": item.feedback,
        }

    return {"next_number": queue.next_number, "messages": [message(item) for item in queue.messages]}


def _queue_from(stored: JsonObject) -> Queue:
    def message(item: dict[str, Any]) -> CloudMessage:
        return CloudMessage(**{**item, "body": base64.b64decode(item["body"])})

    return Queue(deque(message(item) for item in stored["messages"]), stored["next_number"])
