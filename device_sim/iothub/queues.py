"""Queues of messages towards devices and towards inputs of modules, until they are acknowledged. Pure.

Source: Azure IoT Hub documentation, "Send cloud-to-device messages from IoT Hub".
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from device_sim.iothub.limits import C2D_DELIVERIES_MAX
from device_sim.iothub.messages import CloudMessage
from edge_contract.hub import HubAddress


@dataclass(slots=True)
class Queue:
    """Messages towards one address, in order; `next_number` names the next one."""

    messages: deque[CloudMessage] = field(default_factory=deque)
    next_number: int = 1


class Queues:
    """The queues of a hub, by address.

    Attributes:
        now_ms: Milliseconds since 1970.
        queues: By address.
        changed: (kind, name) of what was written since the store last looked.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        """Nothing waits."""
        self.now_ms = now_ms
        self.queues: dict[HubAddress, Queue] = {}
        self.changed: set[tuple[str, str]] = set()

    def note(self, kind: str, address: HubAddress) -> None:
        """Something of an address was written. Whoever changes a twin or an identity directly calls this."""
        self.changed.add((kind, str(address)))

    def waiting(self, address: HubAddress) -> int:
        """How many messages wait for a device."""
        queue = self.queues.get(address)
        return len(queue.messages) if queue else 0

    def pending(self, address: HubAddress) -> list[CloudMessage]:
        """Messages that wait, in order; those whose time is over, or that were given too often, are gone."""
        self._expire(address)
        queue = self.queues.get(address)
        return list(queue.messages) if queue else []

    def delivered(self, address: HubAddress, message: CloudMessage) -> None:
        """A message was given to the device; it waits for its acknowledgement."""
        message.deliveries += 1
        self.note("queue", address)

    def complete(self, address: HubAddress, number: int) -> bool:
        """The device acknowledged a message; false when it was gone already."""
        queue = self.queues.get(address)
        found = next((item for item in queue.messages if item.number == number), None) if queue else None
        if queue is None or found is None:
            return False
        queue.messages.remove(found)
        self.note("queue", address)
        return True

    def purge(self, address: HubAddress) -> int:
        """Drop all messages to a device; gives how many there were."""
        count = self.waiting(address)
        self.queues.pop(address, None)
        self.note("queue", address)
        return count

    def _expire(self, address: HubAddress) -> None:
        queue, now = self.queues.get(address), self.now_ms()
        if queue is None:
            return
        kept = [item for item in queue.messages if item.expires_ms > now and item.deliveries < C2D_DELIVERIES_MAX]
        if len(kept) != len(queue.messages):
            queue.messages = deque(kept)
            self.note("queue", address)
