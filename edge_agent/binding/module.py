"""One module's bindings: what carries its messages, a lane a binding, and which message goes to which."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_agent.binding.carrier import Carrier, Listener, Subscription, is_relayed
from edge_agent.binding.lane import Lane
from edge_agent.binding.limits import DRAIN_MS
from edge_agent.binding.messages import Message, Outgoing
from edge_contract.bindings import Binding, topic_matches
from edge_contract.digest import Digest
from edge_contract.jsonio import JsonObject

_LOG = logging.getLogger(__name__)

Connect = Callable[[bool, str, Listener, int], Carrier]
"""Makes a module's carrier: whether it is the hub of IoT Edge (or an MQTT broker), the module's name, who listens, and
the messages that may be underway."""


class Module:
    """Keeps one module's topics and its models together. Belongs to the process's thread; `report` to any."""

    def __init__(
        self, name: str, path: Path, connect: Connect, is_edge: bool, seen: Callable[[str, Digest], None]
    ) -> None:
        """Describe it; the first `bind` connects it.

        Args:
            name: Of the module.
            path: Of its unix socket.
            connect: Makes the carriers of its messages, one a kind.
            is_edge: Whether topics of inputs and outputs are those of an IoT Edge module.
            seen: Hears which bundle answered, when it is another one than before.
        """
        self._name = name
        self._path = path
        self._connect = connect
        self._is_edge = is_edge
        self._seen = seen
        self._lanes: dict[str, Lane] = {}  # replaced whole, so that other threads see one consistent set
        self._carriers: dict[bool, Carrier] = {}  # by whether it is the hub of IoT Edge; replaced whole

    def bind(self, bindings: Sequence[Binding], manifest: Digest) -> None:
        """Let these bindings of a bundle run and no others. What waits for one that stays goes on waiting."""
        before, lanes = self._lanes, dict[str, Lane]()
        # All messages in flight may be for one binding, and none of them should have to be dropped.
        receive_max = min(binding.waiting_max for binding in bindings)
        had, carriers = self._carriers, dict(self._carriers)
        for binding in bindings:
            kind = self._is_relayed(binding)
            if kind not in carriers:
                carriers[kind] = self._connect(kind, self._name, self, receive_max)
            carrier = carriers[kind]
            lane = before.get(binding.name)
            # The carrier is part of a lane; a message is for whatever is bound to its topic when its turn comes.
            if (
                lane is not None
                and lane.binding.input_topic == binding.input_topic
                and self._is_relayed(lane.binding) == kind
            ):
                lane.change(binding, manifest)
            else:
                places = (self._name, self._path, carrier.send, carrier.finish, self._look)
                lane = Lane(binding, manifest, *places, carrier.answer_bytes_max)
                lane.start()
            lanes[binding.name] = lane
        self._lanes, self._carriers = lanes, carriers
        for kind, carrier in carriers.items():
            carrier.receive_max = receive_max
            carrier.subscribe(_subscriptions([item for item in bindings if self._is_relayed(item) == kind]))
            if kind not in had:
                # Not before: a session that the broker kept brings messages with the first bytes.
                carrier.start()
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
            lane.stop(is_dropping=is_forgetting)
        for lane in lanes:
            lane.join(DRAIN_MS / 1000)
        for carrier in self._carriers.values():
            carrier.stop(is_forgetting)

    def report(self) -> JsonObject:
        """How it stands: connection, and counts by binding."""
        carriers = list(self._carriers.values())
        return {
            "online": bool(carriers) and all(carrier.is_online for carrier in carriers),
            "protocol": " and ".join(carrier.protocol for carrier in carriers),
            "reconnects": sum(carrier.reconnects for carrier in carriers),
            "error": "; ".join(carrier.error for carrier in carriers if carrier.error),
            "denied": sorted(pattern for carrier in carriers for pattern in carrier.denied),
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

    def _is_relayed(self, binding: Binding) -> bool:
        return self._is_edge and is_relayed(binding)

    def _look(self, manifest: Digest) -> None:
        self._seen(self._name, manifest)

    # --- the carriers' threads (`Listener`)

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
