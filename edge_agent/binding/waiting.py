"""Which messages wait, which are dropped, and in which order the broker hears that they are done. No clock here."""

from collections import deque
from collections.abc import Callable

from edge_agent.binding.limits import WAITING_BYTES_MAX
from edge_agent.binding.messages import Message
from edge_contract.limits import WAITING_MAX


class Waiting:
    """The messages of one binding that wait for its model: bounded in number and bytes. One thread at a time.

    Messages of QoS 0 come as fast as somebody publishes, so their bound is the binding's own. Those of QoS 1 are held
    back by the broker until earlier ones are acknowledged. Brokers are not exact about that (mosquitto 2.0 sends a
    whole window for each acknowledgement), so more of them may wait here before any is dropped.
    """

    def __init__(
        self,
        count_max: int,
        overflow: str,
        bytes_max: int = WAITING_BYTES_MAX,
        confirmed_max: int = WAITING_MAX,
    ) -> None:
        """Wait in an empty line.

        Args:
            count_max: Most messages at the arrival of one of QoS 0.
            overflow: `oldest` or `newest`: which goes when there is one too many.
            bytes_max: Most bytes of all messages; one that is longer alone never waits.
            confirmed_max: Most messages at the arrival of one of QoS 1.
        """
        self.count_max = count_max
        self.overflow = overflow
        self._bytes_max = bytes_max
        self._confirmed_max = confirmed_max
        self._messages: deque[Message] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        """How many wait."""
        return len(self._messages)

    def offer(self, message: Message) -> list[Message]:
        """Let a message wait; gives those that are dropped for it, or the message itself.

        No message of QoS 1 is dropped for one of QoS 0.
        """
        dropped: list[Message] = []
        while not self._has_room(message):
            weakest = next((other for other in self._messages if other.qos <= message.qos), None)
            if self.overflow == "newest" or weakest is None:
                return [*dropped, message]
            self._messages.remove(weakest)
            self._bytes -= len(weakest.content)
            dropped.append(weakest)
        self._messages.append(message)
        self._bytes += len(message.content)
        return dropped

    def take(self) -> Message | None:
        """The oldest message, or none."""
        if not self._messages:
            return None
        message = self._messages.popleft()
        self._bytes -= len(message.content)
        return message

    def remove(self, is_meant: Callable[[Message], bool]) -> list[Message]:
        """Let those go that a function names; gives them."""
        gone = [message for message in self._messages if is_meant(message)]
        self._messages = deque(message for message in self._messages if not is_meant(message))
        self._bytes = sum(len(message.content) for message in self._messages)
        return gone

    def _has_room(self, message: Message) -> bool:
        count_max = max(self.count_max, self._confirmed_max) if message.qos else self.count_max
        return len(self._messages) < count_max and self._bytes + len(message.content) <= self._bytes_max


class Acknowledgements:
    """Which QoS 1 messages of one connection may be acknowledged now: in the order they came (MQTT-4.6.0-2)."""

    def __init__(self) -> None:
        """Begin with a connection that has brought nothing."""
        self._order: deque[int] = deque()  # numbers of messages
        self._packets: dict[int, int] = {}  # packet identifier by number
        self._open: dict[int, int] = {}  # answers that are missing, by number

    def arrived(self, number: int, packet: int, shares: int) -> list[int]:
        """A message came that so many bindings answer; gives packet identifiers to acknowledge, in order."""
        self._order.append(number)
        self._packets[number] = packet
        self._open[number] = shares
        return self._ready()

    def done(self, number: int) -> list[int]:
        """One binding is done with a message; one that is not known belongs to a connection that is over."""
        if number in self._open:
            self._open[number] -= 1
        return self._ready()

    def _ready(self) -> list[int]:
        ready = []
        while self._order and self._open[self._order[0]] <= 0:
            number = self._order.popleft()
            del self._open[number]
            ready.append(self._packets.pop(number))
        return ready
