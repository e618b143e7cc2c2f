"""What carries messages between the outside and a module's lanes: an MQTT broker, or the hub of Azure IoT Edge."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from edge_agent.binding.messages import Message, Outgoing
from edge_contract.bindings import Binding

INPUTS: Final = "inputs/"
"""First level of the topics that stand for inputs of an IoT Edge module."""
OUTPUTS: Final = "outputs/"
"""First level of those that stand for its outputs."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """How one filter is subscribed to.

    Attributes:
        qos: Most that is asked for.
        take_retained: Whether messages from before are wanted.
    """

    qos: int
    take_retained: bool


class Listener(Protocol):
    """Hears what happens; every method runs on the carrier's thread and must not wait."""

    def arrived(self, message: Message) -> int:
        """A message came; gives how many bindings will say that they are done with it."""
        ...

    def confirmed(self, outgoing: Outgoing, is_refused: bool) -> None:
        """The other side has a message, or will not have it."""
        ...

    def connected(self, connection: int, is_session_kept: bool) -> None:
        """A connection is up; with a kept session, what was not acknowledged comes again on it."""
        ...


class Carrier(Protocol):
    """Carries one module's messages. Any thread may send, subscribe and finish.

    Attributes:
        receive_max: Messages that may be underway to us before we acknowledge one, where the other side heeds it.
        is_online: Whether messages come.
        reconnects: Connections after the first.
        denied: Filters that are refused to us.
        error: Why messages do not come, or empty.
    """

    receive_max: int
    is_online: bool
    reconnects: int
    denied: frozenset[str]
    error: str

    @property
    def protocol(self) -> str:
        """What is spoken, or tried first."""
        ...

    @property
    def answer_bytes_max(self) -> int:
        """Longest content that can be carried out."""
        ...

    def start(self) -> None:
        """Begin. Called once, after the first `subscribe`."""
        ...

    def subscribe(self, wanted: Mapping[str, Subscription]) -> None:
        """Have messages of these filters and no others."""
        ...

    def send(self, outgoing: Outgoing) -> None:
        """Carry a message out as soon as that goes. How many may wait is the callers' affair."""
        ...

    def finish(self, number: int) -> None:
        """Say that one binding is done with a message without sending anything."""
        ...

    def stop(self, is_forgetting: bool) -> None:
        """End in order, bounded; `is_forgetting` when nothing needs to be kept for us."""
        ...


def is_relayed(binding: Binding) -> bool:
    """Whether a binding, its names filled in, reads inputs of an IoT Edge module and answers on its outputs."""
    answers = (binding.output_topic, binding.error_topic)
    return binding.input_topic.startswith(INPUTS) and all(topic.startswith(OUTPUTS) for topic in answers)


def output_name(topic: str) -> str:
    """The output that a topic below `OUTPUTS` stands for; levels are joined by `_`, for routes take none."""
    return topic.removeprefix(OUTPUTS).replace("/", "_")
