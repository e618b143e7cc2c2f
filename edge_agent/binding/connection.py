"""One MQTT connection, on paho: 5, or 3.1.1 where the broker speaks no other. The only file here that imports paho.

paho's own loop waits with `select()` and sends again by itself what an earlier connection did not confirm. Here one
thread owns the client and drives its documented calls for foreign loops; a new client is made for each connection.
"""

import itertools
import logging
import ssl
import time
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_agent.binding.answers import HOPS_FACT, read_hops
from edge_agent.binding.carrier import Listener, Subscription
from edge_agent.binding.limits import (
    CONNECT_MS_MAX,
    INFLIGHT_MAX,
    KEEPALIVE_S,
    PACKET_BYTES_MAX,
    SESSION_S,
)
from edge_agent.binding.messages import Message, Outgoing
from edge_agent.binding.waiting import Acknowledgements
from edge_agent.binding.work import BrokerAddress
from edge_agent.transport import tls_context
from edge_contract.errors import EdgeError

_LOG: Final = logging.getLogger(__name__)
_NEVER_SENT_AGAIN: Final = 2  # MQTT 5, retain handling: no retained messages at subscribing
_SENT_WHEN_NEW: Final = 1
_UNSUPPORTED: Final = "Unsupported protocol version"
_TEXT_UTF8: Final = 1


class Connection:
    """One connection, driven by the thread of its `Broker` alone.

    Attributes:
        number: Of this connection, from 1.
        is_up: Whether the broker has accepted it.
        is_too_new: Whether the broker refused MQTT 5.
        denied: Filters that it does not let us subscribe to.
        subscribed_before: What a session that the broker kept has for certain; set before `open`.
    """

    def __init__(
        self,
        address: BrokerAddress,
        identifier: str,
        is_v5: bool,
        number: int,
        receive_max: int,
        numbers: "itertools.count[int]",
    ) -> None:
        """Describe it; `open` makes it.

        Args:
            address: Of the broker.
            identifier: MQTT client identifier.
            is_v5: Whether to speak MQTT 5.
            number: Of this connection.
            receive_max: See `Broker`.
            numbers: Numbers messages, over all connections.
        """
        self.number = number
        self.is_up = False
        self.is_too_new = False
        self._address = address
        self._is_v5 = is_v5
        self._receive_max = receive_max
        self._numbers = numbers
        self._refusal = ""
        self._lost = ""
        self.subscribed_before: dict[str, Subscription] | None = None
        self._subscribed: dict[str, Subscription] | None = None
        self._subscribing: dict[int, list[str]] = {}
        self.denied: frozenset[str] = frozenset()
        self._unconfirmed: dict[int, Outgoing] = {}
        self._acknowledgements = Acknowledgements()
        self._listener: Listener
        options: dict[str, Any] = {"protocol": paho.MQTTv5} if is_v5 else {"clean_session": False}
        options |= {"manual_ack": True, "reconnect_on_failure": False}
        self._client = client = paho.Client(CallbackAPIVersion.VERSION2, identifier, **options)
        client.connect_timeout = CONNECT_MS_MAX / 1000
        # paho would hold messages back and send them again by itself; both is done here.
        client.max_inflight_messages_set(INFLIGHT_MAX)
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_subscribe = self._answered
        client.on_publish = self._published
        client.on_message = self._arrived

    @property
    def _name(self) -> str:
        return f"the broker {self._address.host}:{self._address.port}"

    @property
    def socket(self) -> Any:
        """To wait on."""
        return self._client.socket()

    @property
    def wants_to_write(self) -> bool:
        """Whether bytes wait for the socket."""
        return self._client.want_write()

    @property
    def has_room(self) -> bool:
        """Whether another message may be published now."""
        return len(self._unconfirmed) < INFLIGHT_MAX

    @property
    def has_pending(self) -> bool:
        """Whether TLS holds bytes that the socket does not show."""
        inner = self._client.socket()
        return isinstance(inner, ssl.SSLSocket) and inner.pending() > 0

    @property
    def unconfirmed(self) -> list[Outgoing]:
        """What was published and not confirmed, oldest first."""
        return list(self._unconfirmed.values())

    @property
    def is_ready(self) -> bool:
        """Whether messages come: connected, and every subscription answered."""
        return self.is_up and self._subscribed is not None and not self._subscribing

    @property
    def settled(self) -> dict[str, Subscription] | None:
        """The subscriptions that the broker has confirmed; none while some are open."""
        return None if self._subscribing else self._subscribed

    def open(self, listener: Listener) -> None:
        """Connect TCP and TLS, and send CONNECT.

        Raises:
            EdgeError: `network.*`, `config.*`.
        """
        self._listener = listener
        address = self._address
        if address.is_tls:
            self._client.tls_set_context(_context(address))
        if address.username:
            self._client.username_pw_set(address.username, address.password or None)
        options: dict[str, Any] = {}
        if self._is_v5:
            properties = _properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = SESSION_S
            properties.ReceiveMaximum = self._receive_max
            properties.MaximumPacketSize = PACKET_BYTES_MAX
            options = {"clean_start": False, "properties": properties}
        try:
            self._client.connect(address.host, address.port, KEEPALIVE_S, **options)
        except ssl.SSLCertVerificationError as error:
            raise EdgeError("network.unreachable", f"{self._name}: {error.verify_message}") from error
        except TimeoutError as error:
            raise EdgeError("network.timeout", f"{self._name}: no connection within {CONNECT_MS_MAX} ms") from error
        except (OSError, ValueError) as error:
            raise EdgeError("network.unreachable", f"{self._name}: {error}") from error
        if self._client.socket() is None:
            raise EdgeError("network.cut", f"{self._name} ends the connection at once")
        self._deadline = time.monotonic() + CONNECT_MS_MAX / 1000

    def turn(self) -> None:
        """Read, write and look at timers once; never blocks.

        Raises:
            EdgeError: `network.cut`, `network.refused`, `network.timeout`: the connection is over.
        """
        for step in (self._client.loop_read, self._client.loop_write, self._client.loop_misc):
            if step() != MQTTErrorCode.MQTT_ERR_SUCCESS or self._client.socket() is None:
                if self._refusal:
                    raise EdgeError("network.refused", f"{self._name} refuses the binding: {self._refusal}")
                raise EdgeError("network.cut", f"{self._name}: {self._lost or 'the connection ended'}")
        if not self.is_up and time.monotonic() > self._deadline:
            raise EdgeError("network.timeout", f"{self._name} did not answer within {CONNECT_MS_MAX} ms")

    def want(self, wanted: dict[str, Subscription]) -> None:
        """Subscribe to these filters and no others."""
        if self._subscribed == wanted:
            return
        had = self._subscribed or {}
        if gone := [pattern for pattern in had if pattern not in wanted]:
            self._client.unsubscribe(gone)
            self.denied -= frozenset(gone)
        fresh = {pattern: how for pattern, how in wanted.items() if had.get(pattern) != how}
        if fresh:
            asked: Any = [
                (pattern, SubscribeOptions(how.qos, retainHandling=_retain_handling(how)) if self._is_v5 else how.qos)
                for pattern, how in fresh.items()
            ]
            _, packet = self._client.subscribe(asked)
            if packet is not None:
                self._subscribing[packet] = list(fresh)
        self._subscribed = wanted

    def publish(self, outgoing: Outgoing) -> None:
        """Publish a message; the listener hears when the broker has it."""
        properties = _publish_properties(outgoing) if self._is_v5 else None
        info = self._client.publish(outgoing.topic, outgoing.content, outgoing.qos, outgoing.is_retained, properties)
        if outgoing.qos:
            self._unconfirmed[info.mid] = outgoing
        else:
            self._confirm(outgoing, False)

    def finish(self, number: int) -> None:
        """Acknowledge what may be, now that one binding is done with a message."""
        self._acknowledge(self._acknowledgements.done(number))

    def say_goodbye(self, is_forgetting: bool) -> None:
        """Disconnect in order, as far as the socket takes it at once."""
        self._client.on_disconnect = None
        properties = None
        if self._is_v5 and is_forgetting:
            properties = _properties(PacketTypes.DISCONNECT)
            properties.SessionExpiryInterval = 0
        self._client.loop_write()
        self._client.disconnect(properties=properties)
        self._client.loop_write()

    def close(self) -> None:
        """Let go of the socket."""
        inner = self._client.socket()
        if inner is not None:
            self._client.on_disconnect = None
            inner.close()

    # --- paho's callbacks

    def _connected(self, _: Any, __: Any, flags: paho.ConnectFlags, reason: ReasonCode, ___: Any) -> None:
        if reason.is_failure:
            self._refusal = str(reason)
            self.is_too_new = self._is_v5 and self._refusal == _UNSUPPORTED
            return
        self.is_up = True
        if flags.session_present:
            self._subscribed = self.subscribed_before
        self._listener.connected(self.number, flags.session_present)

    def _disconnected(self, _: Any, __: Any, ___: Any, reason: ReasonCode, ____: Any) -> None:
        self._lost = str(reason)

    def _answered(self, _: Any, __: Any, packet: int, reasons: list[ReasonCode], ____: Any) -> None:
        for pattern, reason in zip(self._subscribing.pop(packet, []), reasons, strict=False):
            self.denied -= {pattern}
            if reason.is_failure:
                self.denied |= {pattern}
                _LOG.warning("%s does not let us subscribe to %s: %s", self._name, pattern, reason)

    def _published(self, _: Any, __: Any, packet: int, reason: ReasonCode, ___: Any) -> None:
        if (outgoing := self._unconfirmed.pop(packet, None)) is not None:
            self._confirm(outgoing, reason.is_failure)

    def _confirm(self, outgoing: Outgoing, is_refused: bool) -> None:
        if is_refused:
            _LOG.warning("%s does not take a message on %s", self._name, outgoing.topic)
        self._listener.confirmed(outgoing, is_refused)
        if outgoing.answers:
            self.finish(outgoing.answers)

    def _arrived(self, _: Any, __: Any, received: paho.MQTTMessage) -> None:
        number = next(self._numbers)
        try:
            message = _message(received, number, self.number)
        except UnicodeDecodeError:
            shares = 0  # a topic that is not text is nobody's
        else:
            shares = self._listener.arrived(message)
        if received.qos:
            self._acknowledge(self._acknowledgements.arrived(number, received.mid, shares))

    def _acknowledge(self, packets: list[int]) -> None:
        for packet in packets:
            self._client.ack(packet, 1)


def _properties(kind: int) -> Any:
    return Properties(kind)  # type: ignore[no-untyped-call]  # paho says nothing of its types here


def _retain_handling(how: Subscription) -> int:
    return _SENT_WHEN_NEW if how.take_retained else _NEVER_SENT_AGAIN


def _message(received: paho.MQTTMessage, number: int, connection: int) -> Message:
    properties: Any = received.properties
    facts = dict(getattr(properties, "UserProperty", ()))
    return Message(
        number=number,
        connection=connection,
        topic=received.topic,
        content=bytes(received.payload),
        qos=received.qos,
        is_retained=bool(received.retain),
        is_duplicate=bool(received.dup),
        response_topic=str(getattr(properties, "ResponseTopic", "")),
        correlation=getattr(properties, "CorrelationData", None),
        hops=read_hops(facts.get(HOPS_FACT, "0")),
        received_ns=time.monotonic_ns(),
    )


def _publish_properties(outgoing: Outgoing) -> Any:
    properties = _properties(PacketTypes.PUBLISH)
    properties.ContentType = outgoing.content_type
    if outgoing.content_type == "application/json":
        properties.PayloadFormatIndicator = _TEXT_UTF8
    if outgoing.correlation is not None:
        properties.CorrelationData = outgoing.correlation
    properties.UserProperty = list(outgoing.facts)
    return properties


class _ClosingSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails; paho forgets it then."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _context(address: BrokerAddress) -> ssl.SSLContext:
    context = tls_context(address.ca)
    context.sslsocket_class = _ClosingSocket
    if address.certificate is not None:
        try:
            context.load_cert_chain(str(address.certificate), None if address.key is None else str(address.key))
        except (OSError, ssl.SSLError) as error:
            detail = f"the certificate {address.certificate} or its key cannot be used: {error}"
            raise EdgeError("config.key-invalid", detail) from error
    return context
