"""Releases deliveries in the order they came, whatever order their work ended in (MQTT 3.1.1 §4.6)."""

from collections import deque

from cloud_registry.collect.inputs import ReleaseMessage, Token


class Delivery:
    """One message that waits for its work. Made by `ReleaseOrder.add`."""

    __slots__ = ("is_done", "token")

    def __init__(self, token: Token | None) -> None:
        """A delivery that is not done."""
        self.token = token
        self.is_done = False


class ReleaseOrder:
    """Deliveries of one connection, oldest first. Pure; one thread."""

    def __init__(self) -> None:
        """Start with none."""
        self._waiting: deque[Delivery] = deque()

    def __len__(self) -> int:
        """How many deliveries the broker still waits for."""
        return len(self._waiting)

    def add(self, token: Token | None) -> Delivery:
        """Take a delivery in; without a token nobody waits for it."""
        delivery = Delivery(token)
        if token is not None:
            self._waiting.append(delivery)
        return delivery

    def ready(self) -> list[ReleaseMessage]:
        """Releases for every done delivery that no unfinished one precedes; each is given once."""
        result = []
        while self._waiting and self._waiting[0].is_done:
            result.append(ReleaseMessage(self._waiting.popleft().token))
        return result

    def forget(self) -> None:
        """The connection ended: nobody waits any more."""
        self._waiting.clear()
