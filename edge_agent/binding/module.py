"""One module's bindings: a connection to the broker, a lane a binding, and which message goes to which."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_agent.binding.broker import Broker
from edge_agent.binding.connection import Subscription
from edge_agent.binding.lane import Lane
from edge_agent.binding.limits import DRAIN_MS
from edge_agent.binding.messages import Message, Outgoing
from edge_agent.binding.work import BrokerAddress
from edge_contract.bindings import Binding, topic_matches
from edge_contract.digest import Digest
from edge_contract.jsonio import JsonObject

_LOG = logging.getLogger(__name__)


class Module:
    """Keeps one module's topics and its models together. Belongs to the process's thread; `report` to any."""

    def __init__(
        self, name: str, path: Path, device: str, address: BrokerAddress, seen: Callable[[str, Digest], None]
    ) -> None:
        """Describe it; the first `bind` connects it.

        Args:
            name: Of the module.
            path: Of its unix socket.
            device: Name of the device.
            address: Of the broker.
            seen: Hears which bundle answered, when it is another one than before.
        """
        self._name = name
        self._path = path
        self._identifier = f"lighterman-{device}-{name}"
        self._address = address
        self._seen = seen
        self._lanes: dict[str, Lane] = {}  # replaced whole, so that other threads see one consistent set
        self._broker: Broker | None = None

    def bind(self, bindings: Sequence[Binding], manifest: Digest) -> None:
        """Let these bindings of a bundle run and no others. What waits for one that stays goes on waiting."""
        before, lanes = self._lanes, dict[str, Lane]()
        # All messages in flight may be for one binding, and none of them should have to be dropped.
        receive_max = min(binding.waiting_max for binding in bindings)
        is_new = self._broker is None
        if self._broker is None:
            self._broker = Broker(self._address, self._identifier, self, receive_max)
        self._broker.receive_max = receive_max
        for binding in bindings:
            lane = before.get(binding.name)
            if lane is not None and lane.binding.input_topic == binding.input_topic:
                lane.change(binding, manifest)  # a message is for whatever is bound to its topic when its turn comes
            else:
                lane = Lane(
                    binding, manifest, self._name, self._path, self._broker.send, self._broker.finish, self._look
                )
                lane.start()
            lanes[binding.name] = lane
        self._lanes = lanes
        self._broker.subscribe(_subscriptions(bindings))
        if is_new:
            # Not before: a session that the broker kept brings messages with the first bytes.
            self._broker.start()
        for name, lane in before.items():
            if lanes.get(name) is not lane:
                lane.stop(is_dropping=True)

    def stop(self, is_forgetting: bool) -> None:
        """End.

        Args:
            is_forgetting: Whether the module has no bindings any more, so that the broker need keep nothing for it.
        """
        lanes = list(self._lanes.values())
        for lane in lanes:
            lane.stop(is_dropping=False)
        for lane in lanes:
            lane.join(DRAIN_MS / 1000)
        if self._broker is not None:
            self._broker.stop(is_forgetting)

    def report(self) -> JsonObject:
        """How it stands: connection, and counts by binding."""
        broker = self._broker
        return {
            "online": broker is not None and broker.is_online,
            "protocol": "" if broker is None else broker.protocol,
            "reconnects": 0 if broker is None else broker.reconnects,
            "error": "" if broker is None else broker.error,
            "denied": [] if broker is None else sorted(broker.denied),
            "bindings": {
                name: {
                    "member": lane.binding.member,
                    "input_topic": lane.binding.input_topic,
                    "output_topic": lane.binding.output_topic,
                    "error_topic": lane.binding.error_topic,
                    "waiting": lane.waiting,
                    "counts": lane.counters.to_json(),
                }
                for name, lane in self._lanes.items()
            },
        }

    def _look(self, manifest: Digest) -> None:
        self._seen(self._name, manifest)

    # --- the broker's thread (`Listener`)

    def arrived(self, message: Message) -> int:
        """A message came: it waits in every lane whose topics it fits."""
        return sum(
            lane.offer(message)
            for lane in self._lanes.values()
            if topic_matches(lane.binding.input_topic, message.topic)
        )

    def confirmed(self, outgoing: Outgoing, is_refused: bool) -> None:
        """The broker has an answer."""
        for lane in self._lanes.values():
            if lane.key == outgoing.origin:
                lane.confirmed(outgoing, is_refused)

    def connected(self, connection: int, is_session_kept: bool) -> None:
        """A connection is up."""
        _LOG.info("%s: connected to the broker%s", self._name, ", which kept our session" if is_session_kept else "")
        if is_session_kept:
            for lane in self._lanes.values():
                lane.forget(connection)


def _subscriptions(bindings: Sequence[Binding]) -> dict[str, Subscription]:
    """One subscription a filter, with the most that any binding of it wants."""
    wanted: dict[str, Subscription] = {}
    for binding in bindings:
        had = wanted.get(binding.input_topic, Subscription(0, False))
        wanted[binding.input_topic] = Subscription(
            max(had.qos, binding.input_qos), had.take_retained or binding.take_retained
        )
    return wanted
