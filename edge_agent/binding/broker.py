"""Keeps one module connected to the broker: connects again for ever, and nothing that was to be published is forgotten.

One thread owns the connection; other threads reach it through queues. What was published and not confirmed is published
again on the next connection; a message that was not acknowledged comes again from the broker.
"""

import contextlib
import itertools
import logging
import random
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Final

from edge_agent.binding.carrier import Listener, Subscription
from edge_agent.binding.connection import Connection
from edge_agent.binding.limits import (
    ANSWER_BYTES_MAX,
    CONNECT_MS_MAX,
    DRAIN_MS,
    RECONNECT_MS_FIRST,
    RECONNECT_MS_MAX,
    TICK_MS,
)
from edge_agent.binding.messages import Outgoing
from edge_agent.binding.work import BrokerAddress
from edge_contract.errors import EdgeError

_LOG: Final = logging.getLogger(__name__)


class Broker:
    """Implements `Carrier`: keeps one module connected. Any thread may send, subscribe and finish."""

    def __init__(self, address: BrokerAddress, identifier: str, listener: Listener, receive_max: int) -> None:
        """Describe the connection; `start` makes it.

        Args:
            address: Of the broker.
            identifier: MQTT client identifier; the broker's session belongs to it.
            listener: Hears what happens.
            receive_max: QoS 1 messages that a broker of MQTT 5 may send before we acknowledge one; a change counts from
                the next connection on.
        """
        self._address = address
        self._identifier = identifier
        self._listener = listener
        self.receive_max = receive_max
        self._is_v5 = address.protocol != "3.1.1"
        self._lock = threading.Lock()  # guards the queues and the wanted subscriptions
        self._outbox: deque[Outgoing] = deque()
        self._finished: deque[int] = deque()
        self._wanted: dict[str, Subscription] = {}
        self._early_cuts = 0
        self._settled: dict[str, Subscription] | None = None  # what the broker's session has for certain
        self._is_settled = False  # that the broker speaks 3.1.1 only
        self._is_stopping = threading.Event()
        self._is_forgetting = False
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)
        self._numbers = itertools.count(1)
        self._connections = 0
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{identifier}", daemon=True)
        self.is_online = False
        self.reconnects = 0
        self.denied: frozenset[str] = frozenset()  # filters that the broker does not let us subscribe to
        self.error = ""

    @property
    def protocol(self) -> str:
        """What is spoken, or tried first."""
        return "5" if self._is_v5 else "3.1.1"

    @property
    def answer_bytes_max(self) -> int:
        """See `Carrier.answer_bytes_max`."""
        return ANSWER_BYTES_MAX

    def start(self) -> None:
        """Begin to connect, for ever. Called once."""
        self._thread.start()

    def subscribe(self, wanted: Mapping[str, Subscription]) -> None:
        """Subscribe to these filters and no others."""
        with self._lock:
            self._wanted = dict(wanted)
        self._wake()

    def send(self, outgoing: Outgoing) -> None:
        """Publish as soon as there is a connection. How many may wait is the callers' affair."""
        with self._lock:
            self._outbox.append(outgoing)
        self._wake()

    def finish(self, number: int) -> None:
        """Say that one binding is done with a message without publishing anything."""
        with self._lock:
            self._finished.append(number)
        self._wake()

    def stop(self, is_forgetting: bool) -> None:
        """Publish what waits, as far as that goes at once, and disconnect.

        Args:
            is_forgetting: Whether the broker should drop the subscriptions, and keep no messages.
        """
        self._is_forgetting = is_forgetting
        self._is_stopping.set()
        self._wake()
        self._thread.join((CONNECT_MS_MAX + DRAIN_MS) / 1000)
        if self._thread.is_alive():
            _LOG.warning("%s: the connection to the broker did not end in time", self._identifier)
            return
        self._wake_read.close()
        self._wake_write.close()

    def _wake(self) -> None:
        # Full of earlier wishes, or closed: either way nothing is missed.
        with contextlib.suppress(OSError):
            self._wake_write.send(b"\0")

    # --- the broker's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        while not self._is_stopping.is_set():
            self._connections += 1
            connection = Connection(
                self._address, self._identifier, self._is_v5, self._connections, self.receive_max, self._numbers
            )
            connection.subscribed_before = self._settled
            try:
                connection.open(self._listener)
                self._serve(connection)
            except EdgeError as error:
                if failures == 0 or connection.is_up:
                    _LOG.warning("%s: %s", self._identifier, error)
                self.error = str(error)
                self._choose_protocol(connection, error)
            finally:
                connection.close()
                self.is_online = False
            self._take_back(connection)
            self._settled = connection.settled or self._settled
            failures = 1 if connection.is_up else failures + 1
            self._is_stopping.wait(self._wait_s(failures))

    def _choose_protocol(self, connection: Connection, error: EdgeError) -> None:
        """A broker without MQTT 5 says so, or ends the connection without a word: then each third try is 3.1.1."""
        if self._address.protocol != "auto" or connection.is_up:
            return
        if connection.is_too_new:
            self._is_v5, self._is_settled = False, True
        elif error.code == "network.cut" and not self._is_settled:
            self._early_cuts += 1
            self._is_v5 = self._early_cuts % 3 != 2

    def _wait_s(self, failures: int) -> float:
        full = min(RECONNECT_MS_MAX, RECONNECT_MS_FIRST << min(failures - 1, 20))
        return (full / 2 + random.uniform(0, full / 2)) / 1000

    def _take_back(self, connection: Connection) -> None:
        """What this connection published and the broker did not confirm goes first on the next one."""
        with self._lock:
            self._outbox.extendleft(reversed(connection.unconfirmed))
            self._finished.clear()

    def _serve(self, connection: Connection) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ)
            selector.register(connection.socket, selectors.EVENT_READ)
            while not self._is_stopping.is_set():
                self._turn(connection, selector)
                if connection.is_up and self.error:
                    self.error = ""
                    self.reconnects += connection.number > 1
                self.is_online = connection.is_ready
                self.denied = connection.denied
            self._leave(connection, selector)

    def _turn(self, connection: Connection, selector: selectors.BaseSelector) -> None:
        interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.wants_to_write else 0)
        selector.modify(connection.socket, interest)
        # TLS may hold bytes that the socket no longer shows.
        for key, _ in selector.select(0 if connection.has_pending else TICK_MS / 1000):
            if key.fileobj is self._wake_read:
                with contextlib.suppress(BlockingIOError):
                    while self._wake_read.recv(4096):
                        pass
        connection.turn()
        if not connection.is_up:
            return
        with self._lock:
            wanted, finished = dict(self._wanted), list(self._finished)
            self._finished.clear()
        connection.want(wanted)
        for number in finished:
            connection.finish(number)
        while connection.has_room:
            with self._lock:
                if not self._outbox:
                    break
                outgoing = self._outbox.popleft()
            connection.publish(outgoing)

    def _leave(self, connection: Connection, selector: selectors.BaseSelector) -> None:
        deadline = time.monotonic() + DRAIN_MS / 1000
        if connection.is_up and self._is_forgetting:
            connection.want({})
        while connection.is_up and time.monotonic() < deadline and (self._outbox or connection.unconfirmed):
            self._turn(connection, selector)
        connection.say_goodbye(self._is_forgetting)
