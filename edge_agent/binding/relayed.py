"""The binding process's side of the relay: each module's carrier, over the one socket to the agent."""

import contextlib
import itertools
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from edge_agent.binding.answers import read_hops
from edge_agent.binding.carrier import INPUTS, Listener, Subscription, output_name
from edge_agent.binding.limits import CORRELATION_BYTES_MAX, DRAIN_MS, RELAY_ANSWER_BYTES_MAX
from edge_agent.binding.messages import Message, Outgoing
from edge_agent.binding.relay_wire import CORRELATION_FACT, frame, read_frame
from edge_contract.bindings import topic_matches
from edge_contract.errors import EdgeError
from edge_contract.jsonio import Fields, JsonObject
from edge_contract.limits import TEXT_CHARS_MAX

_LOG: Final = logging.getLogger(__name__)


class Relay:
    """The process's end of the relay. Any thread may use it; messages arrive on its own."""

    def __init__(self, ours: socket.socket, ended: Callable[[], None]) -> None:
        """Begin to read.

        Args:
            ours: The socket to the agent.
            ended: Called, on a thread of its own, when the agent's side has ended.
        """
        self._socket = ours
        self._ended = ended
        self._turn = threading.Condition()  # guards what follows
        self._frames: deque[bytes] = deque()
        self._carriers: dict[str, RelayCarrier] = {}
        self._open: dict[int, int] = {}  # answers that are missing, by number of the input
        self._arriving = 0
        self._unconfirmed: dict[int, tuple[RelayCarrier, Outgoing]] = {}
        self._numbers = itertools.count(1)
        self._is_over = False
        self._writer = threading.Thread(target=self._write, name="relay-write", daemon=True)
        self._writer.start()
        threading.Thread(target=self._read, name="relay-read", daemon=True).start()

    def carrier(self, module: str, listener: Listener, receive_max: int) -> "RelayCarrier":
        """The carrier of one module's messages."""
        return RelayCarrier(self, module, listener, receive_max)

    @property
    def is_online(self) -> bool:
        """Whether the agent is there."""
        return not self._is_over

    # --- for carriers

    def bind(self, carrier: "RelayCarrier") -> None:
        """A carrier has other filters than before."""
        with self._turn:
            if carrier.filters:
                self._carriers[carrier.module] = carrier
            else:
                self._carriers.pop(carrier.module, None)
            filters = {pattern for other in self._carriers.values() for pattern in other.filters}
            self._say({"kind": "bound", "filters": sorted(filters)})

    def send(self, carrier: "RelayCarrier", outgoing: Outgoing) -> None:
        """Hand an answer to the agent."""
        # A longer text would be refused by the agent's end, and with it this process, again and again.
        properties = {key: text[:TEXT_CHARS_MAX] for key, text in dict(outgoing.facts).items()}
        if outgoing.correlation is not None:
            properties[CORRELATION_FACT] = outgoing.correlation[:CORRELATION_BYTES_MAX].decode("utf-8", "replace")
        with self._turn:
            number = next(self._numbers)
            self._unconfirmed[number] = (carrier, outgoing)
            head: JsonObject = {"kind": "output", "number": number, "name": output_name(outgoing.topic)}
            head |= {"properties": properties, "content_type": outgoing.content_type, "qos": outgoing.qos}
            self._say(head, outgoing.content)

    def finish(self, number: int) -> None:
        """One binding is done with an input."""
        with self._turn:
            if number in self._open:
                self._open[number] -= 1
                self._look(number)

    def wait_confirmed(self, carrier: "RelayCarrier", timeout_ms: int) -> None:
        """Wait until the agent has handed over everything that a carrier sent."""
        with self._turn:
            self._turn.wait_for(
                lambda: self._is_over or all(of is not carrier for of, _ in self._unconfirmed.values()),
                timeout_ms / 1000,
            )

    def _look(self, number: int) -> None:
        if number != self._arriving and self._open.get(number, 1) <= 0:
            del self._open[number]
            self._say({"kind": "done", "number": number})

    def _say(self, head: JsonObject, content: bytes = b"") -> None:
        self._frames.append(frame(head, content))
        self._turn.notify_all()

    # --- its own threads

    def _write(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._frames or self._is_over)
                if self._is_over:
                    return
                data = self._frames.popleft()
            try:
                self._socket.sendall(data)
            except OSError:
                return  # the reader sees the end

    def _read(self) -> None:
        try:
            while (got := read_frame(self._socket)) is not None:
                fields, content = got
                if fields.text("kind") == "input":
                    self._arrived(fields, content)
                else:
                    self._confirmed(fields)
                fields.close()
        except OSError as error:
            _LOG.info("the relay ended: %s", error)
        except EdgeError as error:
            _LOG.error("the agent sends what cannot be read: %s", error)
        with self._turn:
            self._is_over = True
            self._turn.notify_all()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._writer.join()
        self._socket.close()
        self._ended()

    def _arrived(self, fields: Fields, content: bytes) -> None:
        number, name = fields.integer("number"), fields.text("name")
        correlation = fields.take("correlation")
        message = Message(
            number=number,
            connection=1,
            topic=INPUTS + name,
            content=content,
            qos=1,  # the agent keeps it until it is done with, and gives it to the next process
            is_duplicate=fields.flag("again"),
            correlation=None if correlation is None else str(correlation).encode()[: CORRELATION_BYTES_MAX + 1],
            hops=read_hops(fields.text("hops")),
            received_ns=time.monotonic_ns(),
        )
        with self._turn:
            meant = [
                carrier
                for carrier in self._carriers.values()
                if any(topic_matches(pattern, message.topic) for pattern in carrier.filters)
            ]
            if not meant:
                self._say({"kind": "unbound", "number": number})
                return
            # A lane may be done with it before the next one has heard of it.
            self._arriving, self._open[number] = number, 0
        shares = sum(carrier.listener.arrived(message) for carrier in meant)
        with self._turn:
            self._arriving = 0
            self._open[number] += shares
            self._look(number)

    def _confirmed(self, fields: Fields) -> None:
        number, is_refused = fields.integer("number"), fields.flag("refused")
        with self._turn:
            sent = self._unconfirmed.pop(number, None)
            self._turn.notify_all()
        if sent is None:
            raise EdgeError("internal.bug", f"the agent confirms the answer {number}, which was not sent")
        carrier, outgoing = sent
        carrier.listener.confirmed(outgoing, is_refused)
        if outgoing.answers:
            self.finish(outgoing.answers)


class RelayCarrier:
    """Implements `Carrier` for one module."""

    def __init__(self, relay: Relay, module: str, listener: Listener, receive_max: int) -> None:
        """Be ready; nothing comes before the first `subscribe`. The agent heeds no `receive_max`."""
        self._relay = relay
        self.module = module
        self.listener = listener
        self.receive_max = receive_max
        self.filters: frozenset[str] = frozenset()
        self.reconnects = 0
        self.denied: frozenset[str] = frozenset()
        self.error = ""
        self.is_online = True

    @property
    def protocol(self) -> str:
        """See `Carrier.protocol`."""
        return "IoT Edge"

    @property
    def answer_bytes_max(self) -> int:
        """See `Carrier.answer_bytes_max`."""
        return RELAY_ANSWER_BYTES_MAX

    def start(self) -> None:
        """See `Carrier.start`."""

    def subscribe(self, wanted: Mapping[str, Subscription]) -> None:
        """See `Carrier.subscribe`."""
        self.filters = frozenset(wanted)
        self._relay.bind(self)

    def send(self, outgoing: Outgoing) -> None:
        """See `Carrier.send`."""
        self._relay.send(self, outgoing)

    def finish(self, number: int) -> None:
        """See `Carrier.finish`."""
        self._relay.finish(number)

    def stop(self, is_forgetting: bool) -> None:
        """See `Carrier.stop`."""
        self.subscribe({})
        self._relay.wait_confirmed(self, 0 if is_forgetting else DRAIN_MS)
