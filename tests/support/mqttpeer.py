"""The other end of a link, for tests: sees everything on a broker and plays the cloud."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tests.support.net import LOOPBACK

_DEADLINE_S = 20.0


class MqttPeer:
    """A client that subscribes to all of our topics and keeps what it hears."""

    def __init__(self, port: int, tls: Any = None) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self._changed = threading.Condition()
        self._is_ready = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, "peer", protocol=paho.MQTTv311)
        if tls is not None:
            self._client.tls_set_context(tls)
        self._client.on_connect = lambda client, *_: client.subscribe("lighterman/#", 1)
        self._client.on_disconnect = lambda *_: self._is_ready.clear()
        self._client.on_subscribe = lambda *_: self._is_ready.set()
        self._client.reconnect_delay_set(1, 1)
        self._client.on_message = self._keep
        self._client.connect(LOOPBACK, port)
        self._client.loop_start()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Block until it is connected (again) and hears everything."""
        assert self._is_ready.wait(_DEADLINE_S)

    def publish(self, topic: str, message: bytes, retain: bool = False) -> None:
        """Send a message and wait until the broker has it."""
        self._client.publish(topic, message, 1, retain).wait_for_publish(_DEADLINE_S)

    def flood(self, topic: str, messages: Iterable[bytes]) -> None:
        """Send messages as fast as the broker takes them, and wait until it has the last."""
        sent = [self._client.publish(topic, message, 1) for message in messages]
        for one in sent:
            one.wait_for_publish(_DEADLINE_S)

    def wait_for(self, predicate: Callable[[list[tuple[str, bytes]]], object]) -> None:
        """Block until what was heard makes the predicate true."""
        with self._changed:
            assert self._changed.wait_for(lambda: predicate(self.heard), _DEADLINE_S), self.heard[-3:]

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def _keep(self, _: Any, __: Any, message: paho.MQTTMessage) -> None:
        with self._changed:
            self.heard.append((message.topic, bytes(message.payload)))
            self._changed.notify_all()


@contextmanager
def mqtt_peer(port: int, tls: Any = None) -> Iterator[MqttPeer]:
    """A peer for the length of a `with` block."""
    peer = MqttPeer(port, tls)
    try:
        yield peer
    finally:
        peer.close()
