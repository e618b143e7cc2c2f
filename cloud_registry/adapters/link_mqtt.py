"""The cloud's connections to the broker (MQTT 3.1.1, paho): one thread each, kept up by itself, bounded both ways.

Version 3.1.1 because every broker speaks it and nothing here needs more. The thread polls its socket itself: paho's own
loop uses select(), which fails in a process with more than 1023 open files. Every connection gets a new paho object, so
nothing of an old connection, above all no packet identifier, survives into the next.
"""

import logging
import random
import secrets
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cloud_registry.config import MqttConfig
from cloud_registry.limits import (
    LINK_DEADLINE_MS,
    LINK_INFLIGHT_MAX,
    LINK_KEEPALIVE_S,
    LINK_OUT_MAX,
    LINK_RETRY_MS,
    LINK_RETRY_MS_MAX,
    NUDGES_WAITING_MAX,
    STOP_TIMEOUT_S,
)
from edge_contract import topics
from edge_contract.errors import EdgeError
from edge_contract.telemetry import Ack
from edge_contract.twin import Nudge

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

_log: Final = logging.getLogger(__name__)
_TICK_MS: Final = 1_000


@dataclass(frozen=True, slots=True)
class LinkToken:
    """Names one delivery on one connection.

    Attributes:
        connection: Number of the connection, from 1.
        packet: MQTT packet identifier.
    """

    connection: int
    packet: int


@dataclass(frozen=True, slots=True)
class LinkMessage:
    """A message as it came.

    Attributes:
        token: To be given to `acknowledge` when its work is done; none for QoS 0, which asks for nothing. Only who made
            it knows what it is.
        topic: Its topic, empty if that is not UTF-8.
        content: Its bytes.
    """

    token: Hashable | None
    topic: str
    content: bytes


@dataclass(frozen=True, slots=True)
class LinkHandlers:
    """What the link calls, in its own thread; they return at once and raise nothing.

    Attributes:
        on_message: Takes a message, or returns false when there is no room: then nothing more is taken, and as soon as
            everything taken before is released, the connection is made anew, so that the broker sends the rest again.
        on_lost: A connection ended; tokens of it are void.
    """

    on_message: Callable[[LinkMessage], bool] = lambda message: True  # noqa: ARG005
    on_lost: Callable[[], None] = lambda: None


class _LinkLostError(Exception):
    """The connection is of no use any more."""


class MqttLink:
    """A connection that is there whenever the broker is. `start` it once; all methods from any thread."""

    def __init__(
        self,
        config: MqttConfig,
        purpose: str,
        *,
        subscriptions: Sequence[str] = (),
        handlers: LinkHandlers | None = None,
        session: str = "",
        out_max: int = LINK_OUT_MAX,
    ) -> None:
        """Prepare; no connection yet.

        Args:
            config: Where and how; `host` is not empty.
            purpose: For logs, thread name and client identifier, for example `telemetry`.
            subscriptions: Topic filters, at QoS 1.
            handlers: What to call.
            session: Name under which the broker keeps unacknowledged messages while this process is away; empty for a
                connection that leaves nothing behind.
            out_max: Messages waiting to be sent; the oldest is dropped beyond.

        Raises:
            EdgeError: `config.*` for certificates or files that cannot be used, `config.dependency-missing`.
        """
        if not config.host or not config.port:
            raise EdgeError("config.invalid", "no broker is configured", "Set mqtt.host and mqtt.port.")
        self._config = config
        self._purpose = purpose
        self._subscriptions = tuple(subscriptions)
        self._handlers = handlers or LinkHandlers()
        self._client_id = f"lighterman-{purpose}-{session or secrets.token_hex(6)}"
        self._is_clean = not session
        self._tls = _tls_context(config)
        self._password = _password(config)
        self._paho = _import_paho()
        self._out: deque[tuple[str, bytes]] = deque(maxlen=out_max)
        self._releases: deque[LinkToken] = deque()
        self._connection = 0
        self._inflight = 0
        self._is_ready = threading.Event()
        self._is_stopping = threading.Event()
        self._trouble = ""
        self._is_full = False
        self._unreleased = 0
        self._awaited: set[int] = set()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{purpose}", daemon=True)

    @property
    def is_ready(self) -> bool:
        """Whether the broker has accepted the connection and granted every subscription."""
        return self._is_ready.is_set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until `is_ready`; whether it is."""
        return self._is_ready.wait(timeout_s)

    def close(self) -> None:
        """Send what can be sent at once, disconnect, end the thread; bounded."""
        self._is_stopping.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT_S)
        self._wake_read.close()
        self._wake_write.close()

    def publish(self, topic: str, content: bytes) -> None:
        """Hand a message over for sending at QoS 1, now or after the next connection is made; never blocks."""
        self._out.append((topic, content))
        self._wake()

    def send_ack(self, device: str, ack: Ack) -> None:
        """Tell a device what of its telemetry is durable."""
        self.publish(topics.ack(device), ack.to_bytes())

    def acknowledge(self, token: Hashable) -> None:
        """Release a delivery to the broker; nothing happens if its connection is gone."""
        if isinstance(token, LinkToken):
            self._releases.append(token)
            self._wake()

    # --- The thread ---

    def _wake(self) -> None:
        with suppress(OSError):
            self._wake_write.send(b"!")

    def _run(self) -> None:
        delay_ms = LINK_RETRY_MS
        while not self._is_stopping.is_set():
            began = time.monotonic()
            self._live_once()
            if (time.monotonic() - began) * 1000 > LINK_RETRY_MS_MAX:
                delay_ms = LINK_RETRY_MS
            if not self._is_stopping.is_set():
                # A fleet of collectors must not come back in step.
                self._is_stopping.wait(delay_ms * random.uniform(0.5, 1.0) / 1000)
                delay_ms = min(2 * delay_ms, LINK_RETRY_MS_MAX)

    def _live_once(self) -> None:
        """One connection from beginning to end."""
        self._connection += 1
        self._inflight = 0
        self._awaited = set()
        self._trouble = ""
        self._is_full = False
        self._unreleased = 0
        self._releases.clear()
        client = self._make_client()
        try:
            client.connect(self._config.host, self._config.port, keepalive=LINK_KEEPALIVE_S)
            self._pump(client)
        except (OSError, ssl.SSLError, _LinkLostError) as error:
            self._say(str(error) or type(error).__name__)
        finally:
            self._is_ready.clear()
            with suppress(OSError, ValueError):
                client.disconnect()
            self._handlers.on_lost()

    def _say(self, trouble: str) -> None:
        where = f"{self._config.host}:{self._config.port}"
        _log.warning("the %s link to the broker at %s is down: %s", self._purpose, where, trouble)

    def _make_client(self) -> "Client":
        paho = self._paho
        client: Client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=self._is_clean,
            protocol=paho.MQTTv311,
            manual_ack=True,
        )
        if self._config.username:
            client.username_pw_set(self._config.username, self._password)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        client.max_inflight_messages_set(LINK_INFLIGHT_MAX)
        client.connect_timeout = LINK_DEADLINE_MS / 1000
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        return client

    def _pump(self, client: "Client") -> None:
        """Move bytes until the connection ends; raises `_LinkLostError` unless this link is being closed."""
        deadline = time.monotonic() + LINK_DEADLINE_MS / 1000
        while True:
            self._send(client)
            if self._is_stopping.is_set():
                client.loop_write()
                return
            sock = client.socket()
            if self._trouble or sock is None:
                raise _LinkLostError(self._trouble or "the broker closed the connection")
            if self._is_full and not self._unreleased:
                raise _LinkLostError("more came than could be stored; asking for the rest again")
            if not self._is_ready.is_set() and time.monotonic() > deadline:
                raise _LinkLostError(f"no answer within {LINK_DEADLINE_MS} ms")
            # TLS may hold bytes that the socket no longer shows.
            has_more = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
            is_readable, is_writable = self._poll(sock.fileno(), client.want_write(), 0 if has_more else _TICK_MS)
            if is_readable or has_more:
                client.loop_read()
            if is_writable:
                client.loop_write()
            client.loop_misc()

    def _poll(self, descriptor: int, wants_write: bool, timeout_ms: int) -> tuple[bool, bool]:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN | (select.POLLOUT if wants_write else 0))
        poll.register(self._wake_read.fileno(), select.POLLIN)
        found = dict(poll.poll(timeout_ms))
        if self._wake_read.fileno() in found:
            with suppress(BlockingIOError):
                while self._wake_read.recv(4_096):
                    pass
        events = found.get(descriptor, 0)
        return bool(events & ~select.POLLOUT), bool(events & select.POLLOUT)

    def _send(self, client: "Client") -> None:
        while self._releases:
            token = self._releases.popleft()
            if token.connection == self._connection:
                client.ack(token.packet, 1)
                self._unreleased -= 1
        while self._is_ready.is_set() and self._out and self._inflight < LINK_INFLIGHT_MAX:
            topic, content = self._out.popleft()
            self._inflight += 1
            client.publish(topic, content, qos=1)

    # --- paho's callbacks, all in the thread ---

    def _on_connect(self, client: "Client", _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._trouble = f"the broker refused the connection: {reason}"
        elif not self._subscriptions:
            self._be_ready()
        else:
            _, packet = client.subscribe([(name, 1) for name in self._subscriptions])
            if packet is not None:
                self._awaited.add(packet)

    def _on_subscribe(self, _client: "Client", _data: Any, packet: int, reasons: Any, _properties: Any) -> None:
        self._awaited.discard(packet)
        refused = [name for name, reason in zip(self._subscriptions, reasons, strict=False) if reason.is_failure]
        if refused:
            self._trouble = f"the broker refused the subscription to {', '.join(refused)}"
        elif not self._awaited:
            self._be_ready()

    def _be_ready(self) -> None:
        self._is_ready.set()
        _log.info("the %s link to the broker is up", self._purpose)

    def _on_message(self, _client: "Client", _data: Any, message: "MQTTMessage") -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        token = LinkToken(self._connection, message.mid) if message.qos else None
        # Once one was refused so are those behind it: what is released has no gaps, as MQTT demands.
        if self._is_full or not self._handlers.on_message(LinkMessage(token, topic, bytes(message.payload))):
            self._is_full = True
        elif token is not None:
            self._unreleased += 1

    def _on_publish(self, _client: "Client", _data: Any, _packet: int, _reason: Any, _properties: Any) -> None:
        self._inflight -= 1


class MqttNudger:
    """The `Nudger` port. Nudges wait for the broker, the oldest go first when there are too many."""

    def __init__(self, config: MqttConfig) -> None:
        """Connect in the background.

        Raises:
            EdgeError: as `MqttLink`.
        """
        self._link = MqttLink(config, "nudges", out_max=NUDGES_WAITING_MAX)
        self._link.start()

    @property
    def is_ready(self) -> bool:
        """Whether the broker can be reached."""
        return self._link.is_ready

    def nudge(self, device: str, director_version: int) -> None:
        """See `Nudger.nudge`."""
        self._link.publish(topics.nudge(device), Nudge(director_version).to_bytes())

    def close(self) -> None:
        """See `Nudger.close`."""
        self._link.close()


def _import_paho() -> Any:
    try:
        from paho.mqtt import client
    except ImportError:
        raise EdgeError(
            "config.dependency-missing", "paho-mqtt is not installed", "Install lighterman[cloud]."
        ) from None
    return client


def _tls_context(config: MqttConfig) -> ssl.SSLContext | None:
    if config.tls_ca is None and config.tls_cert is None:
        return None
    try:
        context = ssl.create_default_context(cafile=None if config.tls_ca is None else str(config.tls_ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if config.tls_cert is not None and config.tls_key is not None:
            context.load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise EdgeError(
            "config.key-invalid", f"the certificates for the broker cannot be used: {error}", "Check mqtt.tls_*."
        ) from None
    return context


def _password(config: MqttConfig) -> str | None:
    if config.password_file is None:
        return None
    try:
        return config.password_file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeError):
        raise EdgeError("config.file-missing", f"mqtt.password_file {config.password_file} cannot be read") from None
