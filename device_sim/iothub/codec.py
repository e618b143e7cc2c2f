"""MQTT 3.1.1 on the wire, the server's side of it: packets from bytes and bytes from packets, without I/O.

Source: MQTT Version 3.1.1, OASIS Standard; section numbers in the code are of that document. Why this is not a library:
docs/adr/0031-iot-hub-emulator.md.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from device_sim.iothub.limits import PACKET_BYTES_MAX, TOPIC_BYTES_MAX

CONNECT: Final = 1
PUBLISH: Final = 3
PUBACK: Final = 4
SUBSCRIBE: Final = 8
UNSUBSCRIBE: Final = 10
PINGREQ: Final = 12
DISCONNECT: Final = 14

ACCEPTED: Final = 0
REFUSED_VERSION: Final = 1
REFUSED_IDENTIFIER: Final = 2
REFUSED_UNAVAILABLE: Final = 3
REFUSED_CREDENTIALS: Final = 4
REFUSED_UNAUTHORIZED: Final = 5
FAILURE: Final = 0x80
"""Of one subscription."""


class ProtocolError(Exception):
    """The bytes are no MQTT 3.1.1 that a server may answer; the connection is to be closed."""


@dataclass(frozen=True, slots=True)
class Connect:
    """A client introduces itself (3.1). `will` is its topic and message, or none."""

    client: str
    is_clean: bool
    keepalive_s: int
    username: str
    password: str
    will: tuple[str, bytes] | None = None


@dataclass(frozen=True, slots=True)
class Publish:
    """A message (3.3); `packet` is 0 at QoS 0."""

    topic: str
    content: bytes
    qos: int = 0
    packet: int = 0
    is_repeated: bool = False
    is_retained: bool = False


@dataclass(frozen=True, slots=True)
class Puback:
    """A message of QoS 1 arrived (3.4)."""

    packet: int


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Wishes for topics (3.8), each with the most QoS that is wanted."""

    packet: int
    filters: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """The end of such wishes (3.10)."""

    packet: int
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ping:
    """The client is there (3.12)."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The client goes, and wants no will sent (3.14)."""


Packet = Connect | Publish | Puback | Subscribe | Unsubscribe | Ping | Disconnect


class Decoder:
    """Takes bytes as they come and gives packets as they are whole. One thread."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Packet]:
        """Add bytes; gives the packets that are complete now.

        Raises:
            ProtocolError: a packet is malformed, too long or none that a client sends.
        """
        self._data += data
        while (end := self._length()) is not None and len(self._data) >= end[0] + end[1]:
            start, length = end
            head, body = self._data[0], bytes(self._data[start : start + length])
            del self._data[: start + length]
            yield _packet(head, body)

    def _length(self) -> tuple[int, int] | None:
        """(length of the fixed header, remaining length) (2.2.3), or none while that is not there."""
        value = 0
        for place in range(4):
            if len(self._data) < place + 2:
                return None
            byte = self._data[place + 1]
            value |= (byte & 0x7F) << (7 * place)
            if not byte & 0x80:
                if value > PACKET_BYTES_MAX:
                    raise ProtocolError(f"a packet of {value} bytes")
                return place + 2, value
        raise ProtocolError("a length of more than four bytes")


class _Reader:
    """Fields of one packet's body in order."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def take(self, count: int) -> bytes:
        data = self._body[self._at : self._at + count]
        if len(data) != count:
            raise ProtocolError("a packet ends within a field")
        self._at += count
        return data

    def number(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def binary(self) -> bytes:
        return self.take(self.number())

    def text(self) -> str:
        data = self.binary()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            raise ProtocolError("a text that is not UTF-8") from None
        if "\0" in text:
            raise ProtocolError("a text with a zero character")
        return text

    def topic(self) -> str:
        text = self.text()
        if not text or len(text) > TOPIC_BYTES_MAX:
            raise ProtocolError("a topic that is empty or too long")
        return text

    def rest(self) -> bytes:
        data, self._at = self._body[self._at :], len(self._body)
        return data

    @property
    def has_more(self) -> bool:
        return self._at < len(self._body)


def _packet(head: int, body: bytes) -> Packet:
    kind, flags, reader = head >> 4, head & 0x0F, _Reader(body)
    if kind == PUBLISH:
        return _publish(flags, reader)
    if flags != (2 if kind in (SUBSCRIBE, UNSUBSCRIBE) else 0):
        raise ProtocolError(f"flags {flags} on a packet of kind {kind}")
    if kind == CONNECT:
        return _connect(reader)
    if kind == PUBACK:
        return Puback(reader.number())
    if kind == SUBSCRIBE:
        return _subscribe(reader)
    if kind == UNSUBSCRIBE:
        packet, names = reader.number(), []
        while reader.has_more:
            names.append(reader.topic())
        return Unsubscribe(packet, tuple(names))
    if kind == PINGREQ:
        return Ping()
    if kind == DISCONNECT:
        return Disconnect()
    raise ProtocolError(f"a packet of kind {kind}, which this server does not take")


def _connect(reader: _Reader) -> Connect:
    protocol, level = reader.text(), reader.take(1)[0]
    if (protocol, level) not in (("MQTT", 4), ("MQIsdp", 3)):
        raise ProtocolError(f"protocol {protocol[:20]!r} of level {level}")
    flags, keepalive = reader.take(1)[0], reader.number()
    if flags & 1:
        raise ProtocolError("the reserved flag of CONNECT is set")
    client = reader.text()
    will = (reader.topic(), reader.binary()) if flags & 0x04 else None
    username = reader.text() if flags & 0x80 else ""
    password = reader.binary().decode("utf-8", "replace") if flags & 0x40 else ""
    return Connect(client, bool(flags & 0x02), keepalive, username, password, will)


def _publish(flags: int, reader: _Reader) -> Publish:
    qos = flags >> 1 & 3
    if qos == 3:
        raise ProtocolError("QoS 3")
    topic = reader.topic()
    if "+" in topic or "#" in topic:
        raise ProtocolError("a message to a filter")
    packet = reader.number() if qos else 0
    if qos and not packet:
        raise ProtocolError("packet identifier 0")
    return Publish(topic, reader.rest(), qos, packet, bool(flags & 8), bool(flags & 1))


def _subscribe(reader: _Reader) -> Subscribe:
    packet, wishes = reader.number(), []
    while reader.has_more:
        wishes.append((reader.topic(), reader.take(1)[0]))
    if not wishes or any(qos > 2 for _name, qos in wishes):
        raise ProtocolError("a subscription without topics or with an unknown QoS")
    return Subscribe(packet, tuple(wishes))


def connack(code: int, has_session: bool = False) -> bytes:
    """The answer to CONNECT (3.2); `has_session` is false where `code` refuses."""
    return bytes((0x20, 2, int(has_session and code == ACCEPTED), code))


def puback(packet: int) -> bytes:
    """A message of QoS 1 is taken (3.4)."""
    return struct.pack(">BBH", 0x40, 2, packet)


def suback(packet: int, codes: tuple[int, ...]) -> bytes:
    """What each wish of a SUBSCRIBE got (3.9): a QoS or `FAILURE`."""
    return bytes((0x90,)) + _remaining(2 + len(codes)) + packet.to_bytes(2, "big") + bytes(codes)


def unsuback(packet: int) -> bytes:
    """An UNSUBSCRIBE was carried out (3.11)."""
    return struct.pack(">BBH", 0xB0, 2, packet)


def pingresp() -> bytes:
    """The server is there (3.13)."""
    return b"\xd0\x00"


def publish(message: Publish) -> bytes:
    """A message to a client (3.3)."""
    topic = message.topic.encode()
    body = len(topic).to_bytes(2, "big") + topic
    if message.qos:
        body += message.packet.to_bytes(2, "big")
    head = PUBLISH << 4 | message.is_repeated << 3 | message.qos << 1
    return bytes((head,)) + _remaining(len(body) + len(message.content)) + body + message.content


def _remaining(value: int) -> bytes:
    result = bytearray()
    while True:
        value, byte = value >> 7, value & 0x7F
        result.append(byte | 0x80 if value else byte)
        if not value:
            return bytes(result)
