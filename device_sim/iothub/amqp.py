"""The hub's AMQP side: its Event-Hubs-compatible endpoint for telemetry, and messages from the cloud to devices.

Proton's engine does the protocol and asyncio the I/O, so that everything runs on the emulator's one loop. What a link
is about is in `device_sim.iothub.amqp_links`. Source: Azure Event Hubs documentation, "AMQP 1.0 in Azure Service Bus
and Event Hubs protocol guide"; measured against azure-eventhub 5.15.1 and azure-iot-hub 2.7.0.
"""

import asyncio
import contextlib
import logging
import ssl
import time
from typing import Any, Final

from proton import Collector, Connection, Delivery, Event, Link, ProtonException, Transport

from device_sim.iothub import amqp_sasl
from device_sim.iothub.amqp_frames import Filler
from device_sim.iothub.amqp_links import Links, LinkSink, Shared
from device_sim.iothub.service_limits import (
    AMQP_CONNECTIONS_MAX,
    AMQP_FRAME_BYTES,
    AMQP_IDLE_S,
    AMQP_OUT_BYTES_MAX,
    AMQP_POLL_S,
    AMQP_READ_BYTES,
    AMQP_START_S,
)

_LOG: Final = logging.getLogger(__name__)
_CLOSED: Final = (ConnectionError, asyncio.IncompleteReadError, amqp_sasl.SaslError, TimeoutError, OSError)


class AmqpServer:
    """Listens, and serves links. One asyncio loop."""

    def __init__(self, sink: LinkSink) -> None:
        """Serve what `sink` has."""
        self._sink = sink
        self._shared = Shared()
        self._server: asyncio.Server | None = None
        self._peers: set[_Peer] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._poll: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def readers(self) -> int:
        """How many links give events."""
        return len(self._shared.readers)

    async def start(self, host: str, port: int, tls: ssl.SSLContext) -> None:
        """Listen; `port` 0 takes a free one.

        Raises:
            OSError: the address is taken.
        """
        self._server = await asyncio.start_server(self._serve, host, port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self._poll = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Close everything; callable again."""
        if self._poll is not None:
            self._poll.cancel()
        if self._server is not None:
            self._server.close()
        for peer in list(self._peers):
            peer.abort()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=AMQP_START_S)

    async def _watch(self) -> None:
        """Give new events to those who wait for them; the log has no callback, because any thread may write it."""
        seen = -1
        while True:
            await asyncio.sleep(AMQP_POLL_S)
            total = self._sink.log.total
            for peer in list(self._peers):
                try:
                    peer.tick(has_news=total != seen)
                except Exception:  # noqa: BLE001 - the others are not to wait for ever because of one
                    _LOG.exception("an AMQP connection ends")
                    peer.abort()
            seen = total

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = _Peer(self._sink, self._shared, writer)
        self._peers.add(peer)
        if (task := asyncio.current_task()) is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            if len(self._peers) <= AMQP_CONNECTIONS_MAX:
                async with asyncio.timeout(AMQP_START_S):
                    await amqp_sasl.let_in(reader, writer)
                await peer.run(reader)
        except _CLOSED:
            pass  # a peer that goes away, or is none, is its own affair
        except ProtonException as error:
            _LOG.warning("an AMQP connection ends: %s", error)
        finally:
            peer.gone()
            writer.close()
            with contextlib.suppress(*_CLOSED):
                await writer.wait_closed()
            self._peers.discard(peer)


class _Peer:
    """One connection."""

    def __init__(self, sink: LinkSink, shared: Shared, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._filler = Filler()
        self._links = Links(sink, shared)
        self._collector = Collector()
        self._connection = Connection()
        self._connection.collect(self._collector)
        self._connection.container = "lighterman-iothub-emulator"
        self._transport = Transport(Transport.SERVER)
        self._transport.max_frame_size = AMQP_FRAME_BYTES
        self._transport.idle_timeout = AMQP_IDLE_S
        self._transport.bind(self._connection)
        self._is_running = False

    def abort(self) -> None:
        """End at once."""
        self._writer.transport.abort()

    def gone(self) -> None:
        """The connection is over."""
        self._is_running = False
        self._links.close_all()

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Serve until the peer ends."""
        self._is_running = True
        while not self._is_over():
            data = await reader.read(AMQP_READ_BYTES)
            if not data:
                return
            self._push(data)
            self._pump()
            await self._writer.drain()

    def tick(self, *, has_news: bool) -> None:
        """Some time went by."""
        if not self._is_running or self._writer.is_closing():
            return
        self._transport.tick(time.monotonic())
        self._links.drop_expired(self._connection)
        if has_news or self._writer.transport.get_write_buffer_size() == 0:
            self._pump()
        if self._is_over():
            self._writer.close()

    def _is_over(self) -> bool:
        return bool(self._transport.closed)

    def _push(self, data: bytes) -> None:
        while data:
            room = self._transport.capacity()
            if room <= 0:
                return
            self._transport.push(data[:room])
            data = data[room:]
            self._dispatch()

    def _pump(self) -> None:
        """Do what events ask for, then send what may be sent, until neither gives anything more."""
        while True:
            self._dispatch()
            self._flush()  # a request is acknowledged before it is answered: one client counts on that
            if self._writer.transport.get_write_buffer_size() < AMQP_OUT_BYTES_MAX:
                self._links.send_due()
            if not self._flush():
                return

    def _flush(self) -> bool:
        count = self._transport.pending()
        if count <= 0:
            if count < 0:
                self._writer.close()
            return False
        data = self._transport.peek(count) or b""
        self._writer.write(self._filler.feed(data))
        self._transport.pop(len(data))
        return True

    def _dispatch(self) -> None:
        while (event := self._collector.peek()) is not None:
            self._take(event)
            self._collector.pop()

    def _take(self, event: Any) -> None:
        kind = event.type
        if kind == Event.CONNECTION_REMOTE_OPEN:
            event.connection.open()
        elif kind == Event.SESSION_REMOTE_OPEN:
            event.session.open()
        elif kind == Event.LINK_REMOTE_OPEN:
            self._links.opened(event.link)
        elif kind == Event.DELIVERY:
            self._delivery(event.delivery, event.link)
        elif kind in (Event.LINK_REMOTE_CLOSE, Event.LINK_REMOTE_DETACH):
            self._links.closed(event.link)
            event.link.close()
        elif kind == Event.SESSION_REMOTE_CLOSE:
            event.session.close()
        elif kind == Event.CONNECTION_REMOTE_CLOSE:
            event.connection.close()

    def _delivery(self, delivery: Delivery, link: Link) -> None:
        if link.is_sender:
            if delivery.updated:
                delivery.settle()
        elif delivery.readable and not delivery.partial:
            self._links.received(delivery, link)
