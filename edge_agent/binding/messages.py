"""What comes from a broker and what goes to one."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One message that was received.

    Attributes:
        number: Of its arrival at this process, ascending.
        connection: Number of the connection that brought it.
        topic: Where it was published.
        content: Its bytes.
        qos: 0 or 1, as it was delivered.
        is_retained: Whether the broker kept it from before we subscribed.
        is_duplicate: Whether the broker says that it may have been delivered before.
        response_topic: Where its sender wants the answer (MQTT 5), empty for nowhere.
        correlation: What its sender wants back with the answer, or none.
        hops: Predictions that led to it.
        received_ns: Monotonic clock at its arrival.
    """

    number: int
    connection: int
    topic: str
    content: bytes
    qos: int = 0
    is_retained: bool = False
    is_duplicate: bool = False
    response_topic: str = ""
    correlation: bytes | None = None
    hops: int = 0
    received_ns: int = 0


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message to publish.

    Attributes:
        topic: Where to.
        content: Its bytes.
        qos: 0 or 1.
        is_retained: Whether the broker keeps it.
        content_type: Media type (MQTT 5).
        correlation: What the sender of the question wanted back (MQTT 5).
        facts: User properties (MQTT 5).
        origin: Key of the lane it is from.
        answers: Number of the message that is done when the broker has this one; 0 for none.
    """

    topic: str
    content: bytes
    qos: int
    is_retained: bool = False
    content_type: str = "application/json"
    correlation: bytes | None = None
    facts: tuple[tuple[str, str], ...] = ()
    origin: str = ""
    answers: int = 0
