"""The link over MQTT, on paho. MQTT 3.1.1 and plain topics, so that any broker does.

paho's own loop waits with `select()`, which fails in a process with more than 1,023 open files, and lets other
threads write to the socket. Here one thread owns paho, waits with `poll` and drives paho's documented calls for
foreign loops; other threads reach it through a bounded queue. A new paho client is made for each connection, so that
nothing old is sent again by it: reports are replaced by newer ones, and batches are repeated by whoever keeps the
spool.
"""

import contextlib
import logging
import random
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from edge_agent.limits import (
    CONNECT_MS_MAX,
    LINK_INFLIGHT_MAX,
    LINK_KEEPALIVE_S,
    LINK_OUTBOX_MAX,
    LINK_RETRY_MS_FIRST,
    LINK_RETRY_MS_MAX,
    LINK_STOP_MS_MAX,
    LINK_TICK_MS,
)
from edge_agent.transport import tls_context
from edge_contract import topics
from edge_contract.errors import ContractError, EdgeError
from edge_contract.telemetry import Ack
from edge_contract.twin import Nudge

_LOG: Final = logging.getLogger(__name__)
_QOS: Final = 1
_NOT_AUTHORIZED: Final = ("Bad user name or password", "Not authorized", "Banned")


@dataclass(frozen=True, slots=True)
class MqttTls:
    """How to protect the connection.

    Attributes:
        ca: Certificates to trust; the system's when none.
        certificate: This device's certificate chain, or none for a broker that asks for no certificate.
        key: Its private key.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class MqttAddress:
    """Which broker, and as whom.

    Attributes:
        host: Host name or address; with TLS the name that the broker's certificate has to bear.
        port: TCP port.
        tls: None for plain TCP.
        username: Empty for none.
        password: Empty for none.
    """

    host: str
    port: int
    tls: MqttTls | None = None
    username: str = ""
    password: str = ""


class MqttLink:
    """Implements `ports.Link`. Any thread may send; callbacks run on the link's own thread."""

    def __init__(
        self,
        address: MqttAddress,
        device: str,
        *,
        is_persistent: bool = False,
        retry_ms_first: int = LINK_RETRY_MS_FIRST,
        retry_ms_max: int = LINK_RETRY_MS_MAX,
    ) -> None:
        """Describe the link; `start` connects it.

        Args:
            address: The broker.
            device: Name of this device; its MQTT client identifier and the third level of its topics.
            is_persistent: Let the broker keep nudges and acknowledgements while the device is away. Nothing depends
                on it: metadata is polled, and batches are repeated.
            retry_ms_first: Wait after the first failure to connect.
            retry_ms_max: Upper bound of the waits, which double.
        """
        self._address = address
        self._device = device
        self._is_persistent = is_persistent
        self._retry_ms = (retry_ms_first, retry_ms_max)
        self._lock = threading.Lock()
        self._outbox: deque[tuple[str, bytes]] = deque()
        self._is_online = False
        self._is_stopping = threading.Event()
        self._is_outdated = threading.Event()
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)
        self._thread: threading.Thread | None = None
        self._error: EdgeError | None = None

    @property
    def error(self) -> EdgeError | None:
        """Why the link is down, or none while it is up."""
        return self._error

    def start(
        self,
        on_nudge: Callable[[int], None],
        on_ack: Callable[[Ack], None],
        on_online: Callable[[bool], None],
    ) -> None:
        """See `ports.Link.start`. Called once."""
        self._on_nudge, self._on_ack, self._on_online = on_nudge, on_ack, on_online
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()

    def send_report(self, report: bytes) -> bool:
        """See `ports.Link.send_report`. Of several reports that wait, only the newest is sent."""
        return self._send(topics.report(self._device), report, is_newest_enough=True)

    def send_batch(self, batch: bytes) -> bool:
        """See `ports.Link.send_batch`."""
        return self._send(topics.telemetry(self._device), batch, is_newest_enough=False)

    def reconnect(self) -> None:
        """End the connection in order and make another one, which reads the files of key and certificate anew."""
        self._is_outdated.set()
        self._wake()

    def stop(self) -> None:
        """See `ports.Link.stop`. What waits is given to the broker first, as far as that takes no time."""
        self._is_stopping.set()
        self._wake()
        if self._thread is not None:
            self._thread.join(LINK_STOP_MS_MAX / 1000)
            if self._thread.is_alive():
                _LOG.warning("the link's thread did not end within %d ms", LINK_STOP_MS_MAX)
                return
        self._wake_read.close()
        self._wake_write.close()

    def _send(self, topic: str, message: bytes, is_newest_enough: bool) -> bool:
        with self._lock:
            if not self._is_online:
                return False
            if is_newest_enough:
                self._outbox = deque(item for item in self._outbox if item[0] != topic)
            if len(self._outbox) >= LINK_OUTBOX_MAX:
                return False
            self._outbox.append((topic, message))
        self._wake()
        return True

    def _wake(self) -> None:
        # Full of earlier wishes, or closed: either way nothing is missed.
        with contextlib.suppress(OSError):
            self._wake_write.send(b"\0")

    # --- the link's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        attempt = 0  # connections in a row that never carried anything
        while not self._is_stopping.is_set():
            self._is_outdated.clear()
            connection = _Connection(self._address, self._device, self._is_persistent, self._received)
            try:
                connection.open()
                self._serve(connection)
            except EdgeError as error:
                # Without the traceback, which would keep the dead connection alive.
                self._error = EdgeError(error.code, error.detail, error.hint)
                if attempt == 0 or connection.is_subscribed:
                    _LOG.warning("the link to %s is down: %s", connection.name, error)
            finally:
                connection.close()
                self._set_online(False)
            attempt = 1 if connection.is_subscribed else attempt + 1
            self._is_stopping.wait(self._wait_s(attempt))

    def _wait_s(self, attempt: int) -> float:
        """Half of the capped exponential and a drawn other half, so that a fleet does not come back in step."""
        first, most = self._retry_ms
        full = min(most, first << min(attempt - 1, 20))
        return (full / 2 + random.uniform(0, full / 2)) / 1000

    def _serve(self, connection: "_Connection") -> None:
        """Carry messages until the connection ends or the link is stopped."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ)
            selector.register(connection.socket, selectors.EVENT_READ)
            while not self._is_stopping.is_set() and not self._is_outdated.is_set():
                interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.wants_to_write else 0)
                selector.modify(connection.socket, interest)
                # TLS may hold bytes that the socket no longer shows.
                ready = selector.select(0 if connection.has_pending else LINK_TICK_MS / 1000)
                for key, _ in ready:
                    if key.fileobj is self._wake_read:
                        self._drain()
                connection.turn()
                if connection.is_subscribed and not self._is_online:
                    self._error = None
                    self._set_online(True)
                self._publish(connection)
            self._publish(connection)
            connection.say_goodbye()

    def _publish(self, connection: "_Connection") -> None:
        while connection.has_room:
            with self._lock:
                if not self._outbox:
                    return
                topic, message = self._outbox.popleft()
            connection.publish(topic, message)

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake_read.recv(4096):
                pass

    def _set_online(self, is_online: bool) -> None:
        with self._lock:
            has_changed = self._is_online != is_online
            self._is_online = is_online
            if not is_online:
                self._outbox.clear()
        if has_changed:
            self._on_online(is_online)

    def _received(self, topic: str, message: bytes) -> None:
        """A message of the broker's: a hint that anybody may have sent, so what cannot be read is passed over."""
        try:
            if topic == topics.nudge(self._device):
                self._on_nudge(Nudge.parse(message).director_version)
            elif topic == topics.ack(self._device):
                self._on_ack(Ack.parse(message))
        except ContractError as error:
            _LOG.warning("a message on %s cannot be read: %s", topic[:200], error)


class _Connection:
    """One connection to the broker, driven by the link's thread alone."""

    def __init__(
        self, address: MqttAddress, device: str, is_persistent: bool, on_message: Callable[[str, bytes], None]
    ) -> None:
        self._address = address
        self._topics = [(topics.nudge(device), _QOS), (topics.ack(device), _QOS)]
        self._on_message = on_message
        self._opened = False
        self._refusal = ""
        self._lost = ""
        self._inflight = 0
        self.is_subscribed = False
        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2, device, clean_session=not is_persistent, protocol=paho.MQTTv311
        )
        client.connect_timeout = CONNECT_MS_MAX / 1000
        client.max_inflight_messages_set(LINK_INFLIGHT_MAX)
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_disconnect = self._disconnected
        client.on_publish = self._published
        client.on_message = self._arrived

    @property
    def name(self) -> str:
        return f"the broker {self._address.host}:{self._address.port}"

    @property
    def socket(self) -> Any:
        return self._client.socket()

    @property
    def wants_to_write(self) -> bool:
        return self._client.want_write()

    @property
    def has_room(self) -> bool:
        return self._inflight < LINK_INFLIGHT_MAX

    @property
    def has_pending(self) -> bool:
        inner = self._client.socket()
        return isinstance(inner, ssl.SSLSocket) and inner.pending() > 0

    def open(self) -> None:
        """Connect TCP and TLS, and send CONNECT.

        Raises:
            EdgeError: `network.unreachable`, `network.timeout`, `network.cut`, `config.file-missing`,
                `config.key-invalid`.
        """
        address = self._address
        if address.tls is not None:
            self._client.tls_set_context(_context(address.tls))
        if address.username:
            self._client.username_pw_set(address.username, address.password or None)
        try:
            self._client.connect(address.host, address.port, LINK_KEEPALIVE_S)
        except ssl.SSLCertVerificationError as error:
            hint = "The broker's certificate has to name its host and come from the authority known at enrolment."
            raise EdgeError("network.unreachable", f"{self.name}: {error.verify_message}", hint) from error
        except TimeoutError as error:
            raise EdgeError("network.timeout", f"{self.name}: no connection within {CONNECT_MS_MAX} ms") from error
        except (OSError, ValueError) as error:
            raise EdgeError("network.unreachable", f"{self.name}: {error}") from error
        if self._client.socket() is None:
            # The broker ended it before CONNECT was out, as it does with a certificate that it refuses.
            raise EdgeError("network.cut", f"{self.name} ends the connection at once", "Is the certificate still good?")
        self._opened = True
        self._deadline = time.monotonic() + CONNECT_MS_MAX / 1000

    def turn(self) -> None:
        """Read, write and look at timers once; never blocks.

        Raises:
            EdgeError: `network.cut`, `network.refused`, `network.timeout`: the connection is over.
        """
        steps = (self._client.loop_read, self._client.loop_write, self._client.loop_misc)
        for step in steps:
            if step() != MQTTErrorCode.MQTT_ERR_SUCCESS or self._client.socket() is None:
                raise self._end()
        if not self.is_subscribed and time.monotonic() > self._deadline:
            raise EdgeError("network.timeout", f"{self.name} did not answer within {CONNECT_MS_MAX} ms")

    def publish(self, topic: str, message: bytes) -> None:
        if self._client.publish(topic, message, _QOS).rc == MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._inflight += 1

    def say_goodbye(self) -> None:
        """Disconnect in order, as far as the socket takes it at once."""
        self._client.loop_write()
        self._client.disconnect()
        self._client.loop_write()

    def close(self) -> None:
        inner = self._client.socket()
        if self._opened and inner is not None:
            self._client.on_disconnect = None
            inner.close()

    def _end(self) -> EdgeError:
        if self._refusal in _NOT_AUTHORIZED:
            hint = "Has the device been removed, or its certificate expired? Enrol it again."
            return EdgeError("network.refused", f"{self.name} refuses this device: {self._refusal}", hint)
        return EdgeError("network.cut", f"{self.name}: {self._refusal or self._lost or 'the connection ended'}")

    def _connected(self, client: paho.Client, _: Any, __: Any, reason: ReasonCode, ___: Any) -> None:
        if reason.is_failure:
            self._refusal = str(reason)
            return
        client.subscribe(self._topics)

    def _subscribed(self, _: Any, __: Any, ___: Any, reasons: list[ReasonCode], ____: Any) -> None:
        # Without nudges metadata is still polled; without acknowledgements the spool only fills. Reports matter more.
        for (topic, _qos), reason in zip(self._topics, reasons, strict=False):
            if reason.is_failure:
                _LOG.warning("%s does not let this device subscribe to %s: %s", self.name, topic, reason)
        self.is_subscribed = True

    def _disconnected(self, _: Any, __: Any, ___: Any, reason: ReasonCode, ____: Any) -> None:
        self._lost = str(reason)

    def _published(self, *_: Any) -> None:
        self._inflight -= 1

    def _arrived(self, _: Any, __: Any, message: paho.MQTTMessage) -> None:
        self._on_message(message.topic, bytes(message.payload))


class _ClosingSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails; paho forgets it then."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _context(tls: MqttTls) -> ssl.SSLContext:
    context = tls_context(tls.ca)
    context.sslsocket_class = _ClosingSocket
    if tls.certificate is not None:
        try:
            context.load_cert_chain(str(tls.certificate), None if tls.key is None else str(tls.key))
        except (OSError, ssl.SSLError) as error:
            detail = f"the device's certificate {tls.certificate} or its key cannot be used: {error}"
            raise EdgeError("config.key-invalid", detail, "Enrol the device again.") from error
    return context
