"""A client that speaks MQTT 3.1.1 by hand, to see what the SDK hides and to say what it never says."""

from __future__ import annotations

import socket
import ssl
import struct
from types import TracebackType

from device_sim.iothub import sas
from device_sim.iothub.running import Emulator, client_context

WAIT_S = 20.0
PORT = 8883


class RawClient:
    """One TLS connection."""

    def __init__(self, hub: Emulator) -> None:
        context = client_context(hub.ca_file)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        plain = socket.create_connection((hub.host, PORT), timeout=WAIT_S)
        self._socket = context.wrap_socket(plain, server_hostname=hub.host)
        self._hub = hub

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def connect(
        self, client: str, password: str, *, is_clean: bool = True, will: tuple[str, bytes] | None = None
    ) -> int:
        """CONNECT as the SDK does; gives the code of CONNACK."""
        user = f"{self._hub.name}/{client}/?api-version=2019-10-01&DeviceClientType=raw"
        flags = 0xC0 | is_clean << 1 | (0x0C if will else 0)
        body = _text("MQTT") + bytes((4, flags)) + struct.pack(">H", 60) + _text(client)
        if will:
            body += _text(will[0]) + _text(will[1].decode())
        self.send(0x10, body + _text(user) + _text(password))
        kind, content = self.receive()
        assert kind == 0x20
        return content[1]

    def connect_device(self, name: str, *, is_clean: bool = True, will: tuple[str, bytes] | None = None) -> int:
        """CONNECT as a registered device with a token of its key."""
        return self.connect(name, self.token(name), is_clean=is_clean, will=will)

    def token(self, name: str, expires_s: int = 4_000_000_000) -> str:
        """A token of a device's key."""
        return sas.make(self._hub.key(name), f"{self._hub.name}/devices/{name}", expires_s)

    def publish(self, topic: str, content: bytes, *, packet: int = 1, qos: int = 1, is_retained: bool = False) -> None:
        """PUBLISH."""
        body = _text(topic) + (struct.pack(">H", packet) if qos else b"") + content
        self.send(0x30 | qos << 1 | is_retained, body)

    def subscribe(self, topic: str, qos: int = 1) -> int:
        """SUBSCRIBE; gives the code of SUBACK."""
        self.send(0x82, struct.pack(">H", 9) + _text(topic) + bytes((qos,)))
        kind, content = self.receive()
        assert kind == 0x90
        return content[2]

    def send(self, head: int, body: bytes) -> None:
        """Any packet."""
        length, value = bytearray(), len(body)
        while True:
            value, byte = value >> 7, value & 0x7F
            length.append(byte | 0x80 if value else byte)
            if not value:
                break
        self._socket.sendall(bytes((head,)) + bytes(length) + body)

    def receive(self) -> tuple[int, bytes]:
        """(first byte, body) of the next packet; (0, b"") when the hub closed the connection."""
        try:
            head = self._socket.recv(1)
            if not head:
                return 0, b""
            length, place = 0, 0
            while True:
                byte = self._exactly(1)[0]
                length |= (byte & 0x7F) << place
                place += 7
                if not byte & 0x80:
                    return head[0], self._exactly(length)
        except (ConnectionError, ssl.SSLError):
            return 0, b""

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._socket.recv(count - len(data))
            if not more:
                raise ConnectionError("the connection ended within a packet")
            data += more
        return data


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">H", len(data)) + data
