"""A simulated device's MQTT connection by aiomqtt: no thread, reconnecting with capped, jittered backoff."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import aiomqtt

from edge_contract import topics
from edge_contract.errors import ContractError
from edge_contract.telemetry import Ack
from edge_contract.twin import Nudge

OUTBOX_MAX: Final = 16
_RETRY_S_FIRST: Final = 0.5
_RETRY_S_MAX: Final = 30.0
_KEEPALIVE_S: Final = 60
_TIMEOUT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where the broker is and how it is trusted.

    Attributes:
        host: Host name or address.
        port: TCP port.
        tls: TLS settings with the device's certificate, or none for plain TCP.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None


class MqttLink:
    """Implements `device.AsyncLink`. The event loop's thread."""

    def __init__(self, device: str, broker: BrokerAddress, draw: random.Random) -> None:
        """Name the device and its broker; `run` connects. `draw` spreads a fleet's reconnections."""
        self._device = device
        self._broker = broker
        self._draw = draw
        self._outbox: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(OUTBOX_MAX)
        self._is_online = False

    def send_report(self, message: bytes) -> bool:
        """See `AsyncLink.send_report`."""
        return self._send(topics.report(self._device), message)

    def send_batch(self, message: bytes) -> bool:
        """See `AsyncLink.send_batch`."""
        return self._send(topics.telemetry(self._device), message)

    def _send(self, topic: str, message: bytes) -> bool:
        if not self._is_online:
            return False
        try:
            self._outbox.put_nowait((topic, message))
        except asyncio.QueueFull:
            return False
        return True

    async def run(
        self, on_nudge: Callable[[int], None], on_ack: Callable[[Ack], None], on_online: Callable[[bool], None]
    ) -> None:
        """See `AsyncLink.run`."""
        failures = 0
        while True:
            try:
                async with self._connect() as client:
                    await client.subscribe([(topics.nudge(self._device), 1), (topics.ack(self._device), 1)])
                    failures, self._is_online = 0, True
                    on_online(True)
                    await self._exchange(client, on_nudge, on_ack)
            except aiomqtt.MqttError:
                failures += 1
            finally:
                if self._is_online:
                    self._is_online = False
                    on_online(False)
                self._empty()
            longest = min(_RETRY_S_MAX, _RETRY_S_FIRST * 2 ** min(failures, 10))
            await asyncio.sleep(longest / 2 + self._draw.random() * longest / 2)

    def _connect(self) -> aiomqtt.Client:
        return aiomqtt.Client(
            self._broker.host,
            self._broker.port,
            identifier=self._device,
            protocol=aiomqtt.ProtocolVersion.V311,
            clean_session=True,
            keepalive=_KEEPALIVE_S,
            timeout=_TIMEOUT_S,
            tls_context=self._broker.tls,
            max_queued_outgoing_messages=OUTBOX_MAX,
        )

    async def _exchange(
        self, client: aiomqtt.Client, on_nudge: Callable[[int], None], on_ack: Callable[[Ack], None]
    ) -> None:
        async def send() -> None:
            while True:
                topic, message = await self._outbox.get()
                await client.publish(topic, message, qos=1)

        sender = asyncio.create_task(send())
        # A connection that breaks while sending ends the iteration over messages as well.
        try:
            async for message in client.messages:
                self._take(str(message.topic), message.payload, on_nudge, on_ack)
        finally:
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, aiomqtt.MqttError):
                await sender

    def _take(self, topic: str, data: object, on_nudge: Callable[[int], None], on_ack: Callable[[Ack], None]) -> None:
        if not isinstance(data, bytes | bytearray):
            return
        # A message we cannot read is a hint we do without.
        with contextlib.suppress(ContractError):
            if topic == topics.nudge(self._device):
                on_nudge(Nudge.parse(bytes(data)).director_version)
            elif topic == topics.ack(self._device):
                on_ack(Ack.parse(bytes(data)))

    def _empty(self) -> None:
        while not self._outbox.empty():
            self._outbox.get_nowait()
