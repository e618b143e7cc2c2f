"""Messages on their way from a connection's thread to the thread that stores them: bounded in number and bytes."""

import threading
from collections import deque
from collections.abc import Callable

from cloud_registry.adapters.link_mqtt import LinkMessage
from cloud_registry.collect.inputs import LinkLost, MessageReceived
from cloud_registry.limits import QUEUE_BYTES_MAX, QUEUE_MESSAGES_MAX


class Intake:
    """A queue that refuses instead of blocking or growing. Any thread."""

    def __init__(self, wall_ms: Callable[[], int], content_bytes_max: int) -> None:
        """Start empty.

        Args:
            wall_ms: The time, milliseconds since 1970.
            content_bytes_max: Longer messages lose their content here, because they are refused whatever it is.
        """
        self._wall_ms = wall_ms
        self._content_bytes_max = content_bytes_max
        self._waiting: deque[MessageReceived | LinkLost] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._is_closed = False

    def offer(self, message: LinkMessage) -> bool:
        """Take a message, or return false when there is no room for it."""
        content = message.content
        if len(content) > self._content_bytes_max:
            content = content[: self._content_bytes_max + 1]
        with self._changed:
            if len(self._waiting) >= QUEUE_MESSAGES_MAX or self._bytes + len(content) > QUEUE_BYTES_MAX:
                return False
            self._waiting.append(MessageReceived(message.token, message.topic, content, self._wall_ms()))
            self._bytes += len(content)
            self._changed.notify()
            return True

    def lost(self) -> None:
        """Note, in its place among the messages, that the connection ended."""
        with self._changed:
            if not (self._waiting and isinstance(self._waiting[-1], LinkLost)):
                self._waiting.append(LinkLost())
                self._changed.notify()

    def take(self, count_max: int, timeout_s: float) -> list[MessageReceived | LinkLost]:
        """At most so many events in their order; waits for the first, empty when the time is up or this is closed."""
        with self._changed:
            if not self._waiting and not self._is_closed and timeout_s > 0:
                self._changed.wait(timeout_s)
            taken = [self._waiting.popleft() for _ in range(min(count_max, len(self._waiting)))]
            self._bytes -= sum(len(event.content) for event in taken if isinstance(event, MessageReceived))
            return taken

    def close(self) -> None:
        """Wake whoever waits."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
