"""The MQTT endpoint: TLS connections, one task each, that decode packets and hand them to a session.

Everything runs on the emulator's event loop. A message is acknowledged only after `Server.commit` made it durable.
"""

import asyncio
import contextlib
import logging
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from device_sim.iothub import access, codec, troubles
from device_sim.iothub.dps import Provisioning
from device_sim.iothub.hub import Hub
from device_sim.iothub.limits import (
    CLIENTS_MAX,
    CONNECT_S_MAX,
    KEEPALIVE_FACTOR,
    KEEPALIVE_S_MAX,
    OUT_BYTES_MAX,
    STORM_CONNECTS,
    STORM_MS,
)
from device_sim.iothub.methods import Methods
from device_sim.iothub.sessions import ClosedError, DpsSession, HubSession, Session
from device_sim.iothub.tls import PeerCertificate

_LOG: Final = logging.getLogger(__name__)
_READ_BYTES: Final = 64 * 1024
_SHAPE_S: Final = 0.02
_STORM_S: Final = 1.0
_THROTTLE_MS: Final = 1_000
_TOO_MANY: Final = 429
_STORMERS_MAX: Final = 10_000


@dataclass(slots=True)
class Counts:
    """What happened since the emulator started."""

    connects: int = 0
    refused: int = 0
    closed_by_hub: int = 0
    storms: int = 0
    received: int = 0
    sent: int = 0
    by_operation: dict[str, int] = field(default_factory=dict)


class Server:
    """The endpoint of one hub and its provisioning service.

    Attributes:
        hub: The hub.
        methods: Methods that are under way.
        dps: The provisioning service.
        faults: What goes wrong on purpose.
        rates: What it takes a second.
        commit: Makes everything durable that happened.
        counts: What happened.
    """

    def __init__(
        self,
        hub: Hub,
        methods: Methods,
        dps: Provisioning,
        faults: troubles.Faults,
        rates: troubles.Rates,
        commit: Callable[[], None],
    ) -> None:
        """Nothing listens yet."""
        self.hub, self.methods, self.dps, self.faults, self.rates = hub, methods, dps, faults, rates
        self.commit = commit
        self.counts = Counts()
        self._connections: set[Connection] = set()
        self._recent: dict[str, deque[int]] = {}
        self._listener: asyncio.Server | None = None

    async def start(self, host: str, port: int, context: ssl.SSLContext) -> int:
        """Listen; gives the port.

        Raises:
            OSError: the address is in use.
        """
        self._listener = await asyncio.start_server(self._serve, host, port, ssl=context, backlog=1024)
        bound: int = self._listener.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Close the listener and every connection."""
        if self._listener is not None:
            self._listener.close()
        for connection in tuple(self._connections):
            connection.close("the emulator ends")
        tasks = [connection.task for connection in self._connections if connection.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=CONNECT_S_MAX)

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, reader, writer)
        if len(self._connections) >= CLIENTS_MAX:
            connection.close("too many connections")
            return
        self._connections.add(connection)
        connection.task = asyncio.current_task()
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    def is_storm(self, client: str) -> bool:
        """Count a connect; whether this client connects too often."""
        now = self.hub.now_ms()
        if client not in self._recent and len(self._recent) >= _STORMERS_MAX:
            del self._recent[next(iter(self._recent))]
        recent = self._recent.setdefault(client, deque(maxlen=STORM_CONNECTS))
        is_storm = len(recent) == STORM_CONNECTS and now - recent[0] < STORM_MS
        recent.append(now)
        if is_storm:
            self.counts.storms += 1
            _LOG.warning("%s connected %d times within %d s", client, STORM_CONNECTS + 1, STORM_MS // 1000)
        return is_storm


class Connection:
    """One client's connection; the `Wire` of its session."""

    def __init__(self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Nothing was said yet."""
        self.task: asyncio.Task[None] | None = None
        self._server, self._reader, self._writer = server, reader, writer
        self._decoder = codec.Decoder()
        self._packets: deque[codec.Packet] = deque()
        self._session: Session | None = None
        self._client = ""
        self._keepalive_s: float | None = CONNECT_S_MAX
        self._will: tuple[str, bytes] | None = None
        self._is_closed = False
        self._timers: set[asyncio.TimerHandle] = set()

    async def run(self) -> None:
        """Serve until one side ends it."""
        try:
            connect = await self._next()
            if not isinstance(connect, codec.Connect):
                raise codec.ProtocolError("the first packet is no CONNECT")
            await self._connect(connect)
            while (packet := await self._next()) is not None:
                if isinstance(packet, codec.Disconnect):
                    self._will = None
                    break
                await self._packet(packet)
        except (codec.ProtocolError, ClosedError) as error:
            self._server.counts.closed_by_hub += 1
            _LOG.info("%s: closed: %s", self._client or "somebody", error)
        except TimeoutError:
            _LOG.info("%s: nothing heard in time", self._client or "somebody")
        except (OSError, EOFError, asyncio.CancelledError):
            _LOG.debug("%s: the connection broke", self._client)
        finally:
            self._end()

    async def _next(self) -> codec.Packet | None:
        while not self._packets:
            if self._is_closed:
                return None
            async with asyncio.timeout(self._keepalive_s):
                data = await self._reader.read(_READ_BYTES)
            if not data:
                return None
            self._packets.extend(self._decoder.feed(data))
        return None if self._is_closed else self._packets.popleft()

    def _end(self) -> None:
        for timer in self._timers:
            timer.cancel()
        session, self._session = self._session, None
        if isinstance(session, HubSession) and self._will is not None:
            with contextlib.suppress(ClosedError):
                session.will(*self._will)
        if session is not None:
            session.ended()
            self._server.commit()
        self.close("done")

    # CONNECT

    async def _connect(self, connect: codec.Connect) -> None:
        self._client = connect.client[:256]
        server = self._server
        is_dps = "/registrations/" in connect.username
        operation = troubles.DPS if is_dps else troubles.CONNECT
        server.counts.connects += 1
        if server.is_storm(self._client):
            await asyncio.sleep(_STORM_S)
        await self._connect_fault(self._take_fault(troubles.CONNECT))
        if not is_dps and not server.rates.take(operation, server.hub.now_ms()):
            self._refuse(codec.REFUSED_UNAVAILABLE, "too many connects a second")
        code, session, expires_s, why = self._judge(connect, is_dps=is_dps)
        if session is None:
            self._refuse(code, why)
            return
        has_session = False
        if isinstance(session, HubSession):
            has_session = server.hub.connect(session.address, session, is_clean=connect.is_clean)
            self._will = connect.will
        self._session = session
        keepalive = min(connect.keepalive_s or KEEPALIVE_S_MAX, KEEPALIVE_S_MAX)
        self._keepalive_s = keepalive * KEEPALIVE_FACTOR
        if expires_s:
            left_ms = expires_s * 1000 - server.hub.now_ms()
            self.later(left_ms, lambda: self.close("the token has expired"))
        server.commit()
        self._write(codec.connack(codec.ACCEPTED, has_session))
        session.ready()

    async def _connect_fault(self, fault: troubles.Fault | None) -> None:
        if fault is None:
            return
        if fault.kind == troubles.REFUSE:
            self._refuse(fault.code or codec.REFUSED_UNAUTHORIZED, "a fault")
        elif fault.kind == troubles.THROTTLE:
            self._refuse(codec.REFUSED_UNAVAILABLE, "a fault")
        elif fault.kind == troubles.DELAY:
            await asyncio.sleep(fault.delay_ms / 1000)
        else:
            raise ClosedError("a fault")

    def _judge(self, connect: codec.Connect, *, is_dps: bool) -> tuple[int, Session | None, int, str]:
        server, peer = self._server, self._peer()
        if is_dps:
            code, applicant, why = server.dps.judge(connect, peer)
            session = DpsSession(self, server.dps, applicant) if applicant else None
            return code, session, 0, why
        verdict = access.judge(server.hub, connect, peer)
        if verdict.code != codec.ACCEPTED:
            return verdict.code, None, 0, verdict.why
        hub_session = HubSession(
            self, server.hub, server.methods, server.faults, verdict.address, verdict.authentication
        )
        return verdict.code, hub_session, verdict.expires_s, ""

    def _peer(self) -> PeerCertificate | None:
        tls = self._writer.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True) if tls is not None else None
        return PeerCertificate.read(der) if der else None

    def _refuse(self, code: int, why: str) -> None:
        self._server.counts.refused += 1
        self._write(codec.connack(code))
        self._writer.close()
        raise ClosedError(f"refused with {code}: {why}")

    # Packets of a session

    async def _packet(self, packet: codec.Packet) -> None:
        session = self._session
        if session is None or isinstance(packet, codec.Connect):
            raise codec.ProtocolError("a second CONNECT")
        if isinstance(packet, codec.Publish):
            await self._publish(session, packet)
        elif isinstance(packet, codec.Puback):
            session.acknowledged(packet.packet)
            self._server.commit()
        elif isinstance(packet, codec.Subscribe):
            await self._subscribe(session, packet)
        elif isinstance(packet, codec.Unsubscribe):
            for topic in packet.filters:
                session.unsubscribe(topic)
            self._server.commit()
            self._write(codec.unsuback(packet.packet))
        elif isinstance(packet, codec.Ping):
            self._write(codec.pingresp())

    async def _subscribe(self, session: Session, packet: codec.Subscribe) -> None:
        fault = self._take_fault(troubles.SUBSCRIBE)
        if fault is not None:
            if fault.kind in (troubles.LOSE, troubles.LOSE_PUBACK):
                return
            if fault.kind == troubles.DROP:
                raise ClosedError("a fault")
            if fault.kind != troubles.REFUSE:
                await asyncio.sleep(fault.delay_ms / 1000)
        is_refused = fault is not None and fault.kind == troubles.REFUSE
        codes = [
            min(qos, 1) if not is_refused and session.subscribe(topic) else codec.FAILURE
            for topic, qos in packet.filters
        ]
        self._server.commit()
        self._write(codec.suback(packet.packet, tuple(codes)))
        session.ready()

    async def _publish(self, session: Session, message: codec.Publish) -> None:
        if message.qos > 1:
            raise ClosedError("a message of QoS 2")
        server = self._server
        operation = session.operation_of(message.topic)
        server.counts.received += 1
        server.counts.by_operation[operation] = server.counts.by_operation.get(operation, 0) + 1
        # Faults and rates of methods are those of the question, not of this answer.
        is_answer = operation == troubles.METHOD
        fault, status = None if is_answer else self._take_fault(operation), 0
        if fault is not None:
            if fault.kind == troubles.DROP:
                raise ClosedError("a fault")
            if fault.kind == troubles.LOSE:
                return
            if fault.kind == troubles.REFUSE:
                status = fault.code or 500
            elif fault.kind == troubles.THROTTLE and operation != troubles.D2C:
                status = _TOO_MANY
            elif fault.kind in (troubles.DELAY, troubles.THROTTLE):
                await asyncio.sleep((fault.delay_ms or _THROTTLE_MS) / 1000)
        if operation == troubles.D2C:
            # Telemetry beyond the rate is slowed down; everything else is refused.
            while not server.rates.take(operation, server.hub.now_ms()):  # noqa: ASYNC110 - time fills the bucket
                await asyncio.sleep(_SHAPE_S)
        elif not status and not is_answer and not server.rates.take(operation, server.hub.now_ms()):
            status = _TOO_MANY
        if self._session is None or self._is_closed:
            return
        after = session.take(message, status)
        server.commit()
        if message.qos and not (fault is not None and fault.kind == troubles.LOSE_PUBACK):
            self._write(codec.puback(message.packet))
        if after is not None:
            after()

    def _take_fault(self, operation: str) -> troubles.Fault | None:
        return self._server.faults.take(operation, self._client)

    # The wire of a session

    def publish(self, topic: str, content: bytes, packet: int = 0, *, is_repeated: bool = False) -> None:
        """See `sessions.Wire`."""
        self._server.counts.sent += 1
        self._write(codec.publish(codec.Publish(topic, content, 1 if packet else 0, packet, is_repeated)))

    def later(self, delay_ms: int, work: Callable[[], None]) -> None:
        """See `sessions.Wire`."""

        def run() -> None:
            self._timers.discard(timer)
            work()

        timer = asyncio.get_running_loop().call_later(max(0, delay_ms) / 1000, run)
        self._timers.add(timer)

    def close(self, reason: str) -> None:
        """See `sessions.Wire`."""
        if self._is_closed:
            return
        self._is_closed = True
        _LOG.debug("%s: %s", self._client, reason)
        if reason == "done":
            self._writer.close()
        else:
            self._writer.transport.abort()

    def _write(self, data: bytes) -> None:
        if self._is_closed or self._writer.is_closing():
            return
        self._writer.write(data)
        if self._writer.transport.get_write_buffer_size() > OUT_BYTES_MAX:
            self.close("it does not read")
