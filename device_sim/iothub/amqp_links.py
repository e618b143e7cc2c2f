"""The links of one AMQP connection: tokens, answers about the endpoint, events out, messages to devices in. One thread.

Addresses, as clients write them: `$cbs` for tokens, `$management` for questions, `HUB/ConsumerGroups/G/Partitions/N` as
a source of events, `messages/devicebound` as a target of messages to devices.
"""

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from proton import Condition, Connection, Delivery, Endpoint, Link, Message, int32, symbol, timestamp

from device_sim.iothub import policies
from device_sim.iothub.amqp_events import event_message
from device_sim.iothub.identities import HubError
from device_sim.iothub.messages import TelemetryLog
from device_sim.iothub.policies import SERVICE
from device_sim.iothub.service_limits import (
    AMQP_MESSAGE_BYTES_MAX,
    AMQP_SENT_MAX,
    ANSWERS_MAX,
    LINK_CREDIT,
    LINKS_MAX,
    READERS_MAX,
    TOKENS_MAX,
)
from edge_contract.hub import HubAddress

CBS: Final = "$cbs"
MANAGEMENT: Final = "$management"
DEVICEBOUND: Final = "messages/devicebound"
DEFAULT_GROUP: Final = "$Default"

_SOURCE: Final = re.compile(r"(?P<hub>[^/]+)/ConsumerGroups/(?P<group>[^/]+)/Partitions/(?P<partition>\d{1,3})", re.I)
_SELECTOR: Final = re.compile(
    r"amqp\.annotation\.x-opt-(?P<what>offset|sequence-number|enqueued-time)\s*(?P<sign>>=?)\s*'(?P<value>[^']*)'"
)
_TO: Final = re.compile(r"/devices/(?P<device>[^/]+)/messages/devicebound", re.I)
_EPOCH: Final = symbol("com.microsoft:epoch")
_NOT_FOUND: Final = "amqp:not-found"
_UNAUTHORIZED: Final = "amqp:unauthorized-access"


class LinkSink(Protocol):
    """What links are for."""

    log: TelemetryLog
    name: str
    """Of the endpoint."""
    hosts: tuple[str, ...]
    """Names by which clients may know this server."""
    groups: tuple[str, ...]
    started_ms: int

    @property
    def policies(self) -> Mapping[str, str]:
        """Keys in base64 by name."""
        ...

    def now_ms(self) -> int:
        """The time, milliseconds since 1970."""
        ...

    def send_c2d(self, address: HubAddress, body: bytes, own: Mapping[str, str], system: Mapping[str, str]) -> None:
        """Take a message for a device, durably; raises HubError."""
        ...


@dataclass(slots=True)
class _Reader:
    """A link that gives events of one partition."""

    link: Any
    group: str
    partition: int
    next_sequence: int
    epoch: int | None


@dataclass(slots=True)
class Shared:
    """Readers of all connections, for the rules about how many there may be."""

    readers: list[_Reader] = field(default_factory=list)


class Links:
    """Links of one connection."""

    def __init__(self, sink: LinkSink, shared: Shared) -> None:
        """Begin without any."""
        self._sink = sink
        self._shared = shared
        self._tokens: dict[str, int] = {}
        self._answers: dict[str, Any] = {}
        self._readers: list[_Reader] = []
        # A client may ask before it gives credit for the answer.
        self._said: deque[tuple[str, Message]] = deque(maxlen=ANSWERS_MAX)
        self._number = 0
        self._count = 0

    # --- links come and go

    def opened(self, link: Link) -> None:
        """A client attaches a link."""
        self._count += 1
        if self._count > LINKS_MAX:
            self._refuse(link, "amqp:resource-limit-exceeded", f"more than {LINKS_MAX} links")
            return
        address = _path(link.remote_source.address if link.is_sender else link.remote_target.address)
        if address == CBS or (address == MANAGEMENT and self._is_let_in()):
            if link.is_sender:
                self._answers[address] = link
            self._accept(link)
        elif not self._is_let_in():
            self._refuse(link, _UNAUTHORIZED, f"no token with the right {SERVICE} was put for {address!r}")
        elif link.is_sender:
            self._open_reader(link, address)
        elif address == DEVICEBOUND:
            self._accept(link)
        else:
            self._refuse(link, _NOT_FOUND, f"the messaging entity {address!r} could not be found")

    def closed(self, link: Link) -> None:
        """A client detaches a link."""
        for reader in [reader for reader in self._readers if reader.link is link or reader.link == link]:
            self._drop(reader)

    def close_all(self) -> None:
        """The connection is over."""
        for reader in list(self._readers):
            self._drop(reader)

    def drop_expired(self, connection: Connection) -> None:
        """Close what was opened with a token that has expired."""
        if not self._tokens or self._is_let_in():
            return
        self._tokens.clear()
        if connection.state & Endpoint.LOCAL_ACTIVE:
            for reader in list(self._readers):
                self._refuse(reader.link, _UNAUTHORIZED, "the token expired")
                self._drop(reader)

    def _is_let_in(self) -> bool:
        return any(expires_s * 1000 > self._sink.now_ms() for expires_s in self._tokens.values())

    def _accept(self, link: Link) -> None:
        link.source.copy(link.remote_source)
        link.target.copy(link.remote_target)
        link.max_message_size = AMQP_MESSAGE_BYTES_MAX
        link.open()
        if link.is_receiver:
            link.flow(LINK_CREDIT)

    def _refuse(self, link: Link, condition: str, description: str) -> None:
        if link.state & Endpoint.LOCAL_UNINIT:
            link.open()  # a link is answered before it is closed, with a reason
        link.condition = Condition(condition, description)
        link.close()

    # --- events out

    def _open_reader(self, link: Link, address: str) -> None:
        found = _SOURCE.fullmatch(address)
        log = self._sink.log
        is_known = found is not None and found["hub"].casefold() == self._sink.name.casefold()
        if found is None or not is_known or int(found["partition"]) >= log.partitions:
            self._refuse(link, _NOT_FOUND, f"the messaging entity {address!r} could not be found")
            return
        group = next((name for name in self._sink.groups if name.casefold() == found["group"].casefold()), None)
        if group is None:
            self._refuse(link, _NOT_FOUND, f"there is no consumer group {found['group']!r}")
            return
        partition = int(found["partition"])
        start = self._start(partition, _selector(link))
        if start is None:
            self._refuse(link, "amqp:invalid-field", "the filter is none that is known")
            return
        epoch = _epoch(link)
        others = [r for r in self._shared.readers if r.group == group and r.partition == partition]
        highest = max((r.epoch for r in others if r.epoch is not None), default=None)
        if highest is not None and (epoch is None or epoch < highest):
            self._refuse(link, "amqp:link:stolen", f"a reader of epoch {highest} has partition {partition}")
            return
        if epoch is not None:
            for other in others:
                self._steal(other, epoch)
        elif len(others) >= READERS_MAX:
            self._refuse(link, "com.microsoft:entity-limit", f"{READERS_MAX} readers of this partition are there")
            return
        self._accept(link)
        reader = _Reader(link, group, partition, start, epoch)
        self._readers.append(reader)
        self._shared.readers.append(reader)

    def _steal(self, other: _Reader, epoch: int) -> None:
        self._shared.readers.remove(other)
        self._refuse(other.link, "amqp:link:stolen", f"a reader of epoch {epoch} took the partition")

    def _drop(self, reader: _Reader) -> None:
        if reader in self._readers:
            self._readers.remove(reader)
        if reader in self._shared.readers:
            self._shared.readers.remove(reader)

    def _start(self, partition: int, selector: str) -> int | None:
        """The first sequence number to give, or none for a filter that is not understood."""
        first, _last, end = self._sink.log.bounds(partition)
        if not selector:
            return 0
        found = _SELECTOR.fullmatch(selector.strip())
        if found is None:
            return None
        value = found["value"]
        if value == "@latest":
            return end
        if not value.removeprefix("-").isdecimal() or first is None:
            return (0 if value == "-1" else end) if value.removeprefix("-").isdecimal() else None
        bound = int(value) + (found["sign"] == ">")
        for event in self._sink.log.read(partition, first.sequence, end - first.sequence):
            at = {"offset": event.offset, "sequence-number": event.sequence}.get(found["what"], event.enqueued_ms)
            if at >= bound:
                return event.sequence
        return end

    def send_due(self) -> None:
        """Give answers and events to the links that have credit for them."""
        for item in list(self._said):
            address, answer = item
            link = self._answers.get(address)
            if link is not None and link.state & Endpoint.LOCAL_ACTIVE and link.credit > 0:
                self._send(link, answer)
                self._said.remove(item)
        for reader in list(self._readers):
            if not (reader.link.state & Endpoint.LOCAL_ACTIVE and reader.link.state & Endpoint.REMOTE_ACTIVE):
                self._drop(reader)
                continue
            count = min(AMQP_SENT_MAX, reader.link.credit)
            for event in self._sink.log.read(reader.partition, reader.next_sequence, count) if count > 0 else ():
                self._send(reader.link, event_message(event))
                reader.next_sequence = event.sequence + 1

    def _send(self, link: Any, message: Message) -> None:
        self._number += 1
        delivery = link.delivery(f"{self._number}")
        link.stream(message.encode())
        link.advance()
        if link.remote_snd_settle_mode == Link.SND_SETTLED:
            delivery.settle()

    # --- messages in

    def received(self, delivery: Delivery, link: Link) -> None:
        """A client sent a message.

        Raises:
            ProtonException: it is none.
        """
        message = Message()
        message.decode(link.recv(delivery.pending) or b"")
        link.advance()
        address = _path(link.target.address)
        if address != CBS and not self._is_let_in():
            delivery.local.condition = Condition(_UNAUTHORIZED, "the token expired")
            delivery.update(Delivery.REJECTED)
            outcome: tuple[int, str] | None = None
        elif address == CBS:
            outcome = self._put_token(message)
        elif address == MANAGEMENT:
            outcome = self._answer_question(message)
        else:
            self._take_c2d(delivery, message)
            outcome = None
        if outcome is not None:
            self._answer(address, message, *outcome, None)
            delivery.update(Delivery.ACCEPTED)
        elif address == MANAGEMENT and self._is_let_in():
            delivery.update(Delivery.ACCEPTED)
        delivery.settle()
        link.flow(1)

    def _put_token(self, message: Message) -> tuple[int, str]:
        asked = _properties(message)
        if asked.get("operation") != "put-token" or not isinstance(message.body, str):
            return 400, "expected put-token with a token as the body"
        hosts = self._sink.hosts
        resources = [*hosts, *(f"{host}/{self._sink.name}" for host in hosts)]
        rights, expires_s = policies.judge(self._sink.policies, message.body, resources, self._sink.now_ms())
        if SERVICE not in rights:
            return 401, f"the token is not one for this hub that gives {SERVICE}"
        if len(self._tokens) >= TOKENS_MAX:
            self._tokens.pop(next(iter(self._tokens)))
        self._tokens[str(asked.get("name", ""))[:512]] = expires_s
        return 200, "OK"

    def _answer_question(self, message: Message) -> tuple[int, str] | None:
        asked = _properties(message)
        sink = self._sink
        if asked.get("operation") != "READ" or str(asked.get("name", "")).casefold() != sink.name.casefold():
            return 404, f"the messaging entity {str(asked.get('name'))[:100]!r} could not be found"
        if asked.get("type") == "com.microsoft:eventhub":
            ids = [str(number) for number in range(sink.log.partitions)]
            body: dict[str, Any] = {
                "name": sink.name,
                "type": "com.microsoft:eventhub",
                "created_at": timestamp(sink.started_ms),
                "partition_count": len(ids),
                "partition_ids": ids,
            }
        else:
            number = str(asked.get("partition", ""))
            if asked.get("type") != "com.microsoft:partition" or not number.isdecimal():
                return 400, "expected com.microsoft:eventhub or com.microsoft:partition"
            if int(number) >= sink.log.partitions:
                return 404, f"there is no partition {number[:10]}"
            body = self._partition(int(number))
        self._answer(MANAGEMENT, message, 200, "OK", body)
        return None

    def _partition(self, number: int) -> dict[str, Any]:
        first, last, end = self._sink.log.bounds(number)
        return {
            "name": self._sink.name,
            "type": "com.microsoft:partition",
            "partition": str(number),
            "begin_sequence_number": first.sequence if first else end,
            "last_enqueued_sequence_number": end - 1,
            "last_enqueued_offset": str(last.offset) if last else "-1",
            "last_enqueued_time_utc": timestamp(last.enqueued_ms if last else 0),
            "is_partition_empty": last is None,
        }

    def _answer(self, address: str, asked: Message, status: int, description: str, body: Any) -> None:
        is_cbs = address == CBS
        answer = Message(body=body, correlation_id=asked.id)
        said: Any = {
            "status-code" if is_cbs else "statusCode": int32(status),  # one client takes no wider number
            "status-description" if is_cbs else "statusDescription": description,
            # Clients of both spellings ask management.
            **({} if is_cbs else {"status-code": int32(status), "status-description": description}),
        }
        answer.properties = said
        self._said.append((address, answer))

    def _take_c2d(self, delivery: Delivery, message: Message) -> None:
        found = _TO.fullmatch(str(message.address or ""))
        body = message.body
        content = bytes(body) if isinstance(body, (bytes, bytearray, memoryview)) else str(body or "").encode()
        system = {
            key: str(value)
            for key, value in {
                "message-id": message.id,
                "correlation-id": message.correlation_id,
                "content-type": message.content_type,
                "content-encoding": message.content_encoding,
            }.items()
            if value and str(value) != "None"  # which Proton makes of symbols that are not there
        }
        if message.expiry_time:
            expires = datetime.fromtimestamp(float(message.expiry_time), UTC)
            system["absolute-expiry-time"] = expires.isoformat()
        own = {str(key): "" if value is None else str(value) for key, value in _properties(message).items()}
        try:
            if found is None:
                raise HubError(400, "ArgumentInvalid", "the property 'to' names no device")
            self._sink.send_c2d(HubAddress(found["device"]), content, own, system)
        except HubError as error:
            condition = _NOT_FOUND if error.status == 404 else "amqp:not-allowed"
            delivery.local.condition = Condition(condition, error.detail)
            delivery.update(Delivery.REJECTED)
        else:
            delivery.update(Delivery.ACCEPTED)


def _path(address: str | None) -> str:
    """An address without the host that some clients write before it."""
    text = address or ""
    return urlsplit(text).path.strip("/") if "://" in text else text.strip("/")


def _properties(message: Message) -> dict[str, Any]:
    """Application properties; a message may have none."""
    given: Any = message.properties
    return given or {}


def _selector(link: Link) -> str:
    """The text of the filter on a source; empty without one."""
    data = link.remote_source.filter
    data.rewind()
    if data.next() is None:
        return ""
    value = data.get_object()
    for item in value.values() if isinstance(value, dict) else ():
        text = getattr(item, "value", item)
        return text.decode() if isinstance(text, bytes) else str(text)
    return ""


def _epoch(link: Link) -> int | None:
    value = (link.remote_properties or {}).get(_EPOCH)
    return int(value) if isinstance(value, int) else None
