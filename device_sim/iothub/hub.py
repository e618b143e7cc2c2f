"""The emulated hub: identities, sessions, twins and messages, and what each packet of a client does to them. Pure.

Nothing here waits or does I/O: a call changes state and gives effects, which the shells carry out (`mqtt`, `rest`).
Names of what changed gather in `changed`, so that a shell can make them durable before it acknowledges. One thread.

Source: Azure IoT Hub documentation, "Communicate with an IoT hub using the MQTT protocol"; measured against
azure-iot-device 2.15.0rc1.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import unquote

from device_sim.iothub import codec, sas
from device_sim.iothub.identities import Certificate, Identity, Message, Session, read_bag, touched
from device_sim.iothub.limits import (
    C2D_BYTES_MAX,
    C2D_DELIVERIES_MAX,
    C2D_TTL_MS,
    C2D_TTL_MS_MAX,
    C2D_WAITING_MAX,
    D2C_BYTES_MAX,
    INPUTS_WAITING_MAX,
    METHOD_BYTES_MAX,
    PACKET_BYTES_MAX,
    TELEMETRY_KEPT_MAX,
    UNACKED_MAX,
)
from device_sim.iothub.routes import UPSTREAM, Routes
from device_sim.iothub.twins import TwinError, clean
from edge_contract.errors import ContractError, EdgeError
from edge_contract.hub import HubAddress
from edge_contract.jsonio import JsonObject, dump, parse_object

C2D: Final = "c2d"
INPUTS: Final = "inputs"
METHODS: Final = "methods"
TWIN: Final = "twin"
DESIRED: Final = "desired"
QUEUED: Final = (C2D, INPUTS)

_PLAIN_TOPICS: Final = {
    "$iothub/methods/POST/#": METHODS,
    "$iothub/twin/res/#": TWIN,
    "$iothub/twin/PATCH/properties/desired/#": DESIRED,
}
HUB_MODULE: Final = "$edgeHub"


@dataclass(frozen=True, slots=True)
class Deliver:
    """A message for a client that is connected; `number` is that of a queued one, which it has to acknowledge."""

    address: HubAddress
    topic: str
    content: bytes
    qos: int = 0
    number: int = 0


@dataclass(frozen=True, slots=True)
class Hang:
    """A client's connection is to be closed."""

    address: HubAddress
    reason: str


@dataclass(frozen=True, slots=True)
class MethodAnswered:
    """A device answered a direct method."""

    address: HubAddress
    request: str
    status: int
    content: bytes


Effect = Deliver | Hang | MethodAnswered


class HubError(Exception):
    """Something that the service API refuses; `status` is its HTTP status, `code` the service's own number."""

    def __init__(self, status: int, code: int, reason: str) -> None:
        """Say why."""
        super().__init__(reason)
        self.status, self.code, self.reason = status, code, reason


class Hub:
    """All state of one hub."""

    def __init__(self, host: str) -> None:
        """Begin with nobody.

        Args:
            host: The hub's name, as tokens and user names have it.
        """
        self.host = host
        self.identities: dict[HubAddress, Identity] = {}
        self.sessions: dict[HubAddress, Session] = {}
        self.online: set[HubAddress] = set()
        self.telemetry: deque[Message] = deque(maxlen=TELEMETRY_KEPT_MAX)
        self.reported: deque[tuple[HubAddress, JsonObject]] = deque(maxlen=TELEMETRY_KEPT_MAX)
        self.changed: set[str] = set()
        self._numbers = 0
        self._telemetry_number = 0

    # --- who

    def identity(self, address: HubAddress) -> Identity:
        """An identity.

        Raises:
            HubError: 404.
        """
        found = self.identities.get(address)
        if found is None:
            raise HubError(404, 404010 if address.module else 404001, f"{address} is not registered")
        return found

    def put(self, identity: Identity) -> None:
        """Make an identity known, or other than it was."""
        self.identities[identity.address] = identity
        self._touch(identity.address)

    def remove(self, address: HubAddress) -> list[Effect]:
        """Forget an identity, with its modules and sessions."""
        gone = [
            other
            for other in self.identities
            if other == address or (not address.module and other.device == address.device)
        ]
        effects: list[Effect] = []
        for other in gone:
            del self.identities[other]
            self.sessions.pop(other, None)
            self._touch(other)
            if other in self.online:
                effects.append(Hang(other, "the identity was removed"))
        return effects

    def modules(self, device: str) -> list[Identity]:
        """The modules of a device by name."""
        found = [item for address, item in self.identities.items() if address.device == device and address.module]
        return sorted(found, key=lambda item: item.address.module)

    def authenticate(
        self, connect: codec.Connect, certificate: Certificate | None, now_ms: int
    ) -> tuple[int, HubAddress]:
        """Judge who connects.

        Returns:
            (CONNACK code, whom it is; meaningless where it is refused).
        """
        nobody = HubAddress("")
        try:
            address = HubAddress.parse(connect.client)
        except ContractError:
            # The names of the runtime's own modules begin with a character that no other name has.
            name, _, module = connect.client.partition("/")
            if module not in ("$edgeHub", "$edgeAgent"):
                return codec.REFUSED_IDENTIFIER, nobody
            address = HubAddress(name, module)
        host, _, rest = connect.username.partition("/")
        name, _, query = rest.partition("/?")
        if (
            host.lower() != self.host.lower()
            or unquote(name.removesuffix("/")) != connect.client
            or "api-version=" not in query
        ):
            return codec.REFUSED_UNAUTHORIZED, nobody
        identity = self.identities.get(address)
        device = self.identities.get(HubAddress(address.device))
        if identity is None or device is None or not device.is_enabled:
            return codec.REFUSED_UNAUTHORIZED, nobody
        token = sas.parse(connect.password)
        if token is not None:
            is_good = identity.accepts_token(token, self.host, now_ms)
        else:
            is_good = certificate is not None and not connect.password and identity.accepts_certificate(certificate)
        return (codec.ACCEPTED if is_good else codec.REFUSED_UNAUTHORIZED), address

    # --- connections

    def connected(self, address: HubAddress, *, is_clean: bool, now_ms: int) -> bool:
        """A client is in; gives whether the hub remembered a session of it."""
        identity = self.identities[address]
        identity.is_connected = True
        touched(identity, now_ms)
        self.online.add(address)
        had = address in self.sessions and not is_clean
        if not had:
            old = self.sessions.get(address)
            # Subscriptions end with a clean session; what the service sent to the device waits all the same.
            self.sessions[address] = Session(queue=old.queue if old else deque())
            self._touch(address)
        self.sessions[address].sent.clear()
        return had

    def disconnected(self, address: HubAddress, now_ms: int) -> None:
        """A client is gone."""
        self.online.discard(address)
        if (identity := self.identities.get(address)) is not None:
            identity.is_connected = False
            touched(identity, now_ms)
        if (session := self.sessions.get(address)) is not None:
            session.sent.clear()

    def subscribe(self, address: HubAddress, name: str, qos: int) -> int:
        """A wish for a topic; gives the QoS that is granted, or `codec.FAILURE`."""
        kind = _PLAIN_TOPICS.get(name)
        if name == f"devices/{address.device}/messages/devicebound/#" and not address.module:
            kind = C2D
        elif address.module and name == f"devices/{address.device}/modules/{address.module}/inputs/#":
            kind = INPUTS
        if kind is None:
            return codec.FAILURE
        self.sessions[address].topics.add(kind)
        self._touch(address)
        return min(qos, 1)

    def unsubscribe(self, address: HubAddress, name: str) -> None:
        """The end of such a wish."""
        for kind in (*_PLAIN_TOPICS.values(), *QUEUED):
            if (
                _PLAIN_TOPICS.get(name) == kind
                or (kind == C2D and "/devicebound/" in name)
                or (kind == INPUTS and name.endswith("/inputs/#"))
            ):
                self.sessions[address].topics.discard(kind)
        self._touch(address)

    def due(self, address: HubAddress, now_ms: int) -> list[Effect]:
        """What waits for a client and may be sent now."""
        session = self.sessions.get(address)
        if session is None or address not in self.online:
            return []
        kind = INPUTS if address.module else C2D
        if kind not in session.topics:
            return []
        kept = deque(item for item in session.queue if not item.expires_ms or item.expires_ms > now_ms)
        if len(kept) != len(session.queue):
            session.queue = kept
            self._touch(address)
        under_way = set(session.sent.values())
        effects: list[Effect] = []
        for message in list(session.queue):
            if len(under_way) + len(effects) >= UNACKED_MAX:
                break
            if message.number not in under_way:
                effects.append(Deliver(address, self._topic(address, message), message.content, 1, message.number))
        return effects

    def under_way(self, address: HubAddress, packet: int, number: int) -> bool:
        """Note that a queued message goes out as this packet; false for one tried too often, which is given up."""
        session = self.sessions[address]
        tries = session.deliveries[number] = session.deliveries.get(number, 0) + 1
        if tries > C2D_DELIVERIES_MAX and not address.module:
            self._forget(address, number)
            return False
        session.sent[packet] = number
        return True

    def acknowledged(self, address: HubAddress, packet: int) -> None:
        """A client has what was sent as this packet."""
        session = self.sessions.get(address)
        if session is not None and (number := session.sent.pop(packet, None)) is not None:
            self._forget(address, number)

    # --- messages of clients

    def published(self, address: HubAddress, message: codec.Publish, now_ms: int) -> list[Effect]:
        """Take a message of a client; what cannot be taken closes its connection."""
        if message.qos > 1:
            return [Hang(address, "a message of QoS 2")]
        topic = message.topic
        touched(self.identities[address], now_ms)
        prefix = f"devices/{address.device}/modules/{address.module}" if address.module else f"devices/{address.device}"
        if topic.startswith(f"{prefix}/messages/events"):
            return self._event(address, message, topic.removeprefix(f"{prefix}/messages/events").strip("/"), now_ms)
        if topic.startswith("$iothub/methods/res/"):
            return self._method_answer(address, message)
        if topic.startswith("$iothub/twin/"):
            return self._twin(address, message, now_ms)
        return [Hang(address, f"a message to {topic[:80]!r}, where this client may send nothing")]

    def _event(self, address: HubAddress, message: codec.Publish, bag: str, now_ms: int) -> list[Effect]:
        if len(message.content) > D2C_BYTES_MAX:
            return [Hang(address, f"a message of {len(message.content)} bytes")]
        system, own = read_bag(bag)
        if message.is_retained:
            own["mqtt-retain"] = "true"
        event = Message(message.content, system, own, 0, 0, now_ms, address)
        sinks: tuple[str | tuple[str, str], ...] = (UPSTREAM,)
        hub = self.identities.get(HubAddress(address.device, HUB_MODULE))
        if address.module and hub is not None:
            routes = Routes.read(hub.twin.desired.values.get("routes"))
            sinks = routes.sinks(address.module, system.get("on", ""))
        effects: list[Effect] = []
        for sink in sinks:
            if sink == UPSTREAM:
                self._telemetry_number += 1
                self.telemetry.append(replace(event, number=self._telemetry_number))
                self.changed.add("telemetry")
            else:
                effects += self.send_input(HubAddress(address.device, sink[0]), sink[1], event, now_ms)
        return effects

    def will(self, address: HubAddress, topic: str, content: bytes, now_ms: int) -> None:
        """A client's last words, which become telemetry where they were meant for it."""
        before = len(self.telemetry)
        self.published(address, codec.Publish(topic, content), now_ms)
        if len(self.telemetry) > before:
            last = self.telemetry.pop()
            self.telemetry.append(replace(last, system={**last.system, "iothub-MessageType": "Will"}))

    def _method_answer(self, address: HubAddress, message: codec.Publish) -> list[Effect]:
        status, _, query = message.topic.removeprefix("$iothub/methods/res/").partition("/?$rid=")
        if not status.lstrip("-").isdecimal() or len(message.content) > METHOD_BYTES_MAX:
            return [Hang(address, "an answer to a method that cannot be read")]
        return [MethodAnswered(address, query, int(status), message.content)]

    def _twin(self, address: HubAddress, message: codec.Publish, now_ms: int) -> list[Effect]:
        operation, _, request = message.topic.removeprefix("$iothub/twin/").partition("/?$rid=")
        if TWIN not in self.sessions[address].topics:
            return []  # nobody would hear the answer
        twin = self.identities[address].twin
        if operation == "GET":
            return [self.answer_twin(address, 200, request, content=dump(twin.device_document()))]
        if operation != "PATCH/properties/reported":
            return [Hang(address, f"a message to {message.topic[:80]!r}, where this client may send nothing")]
        try:
            patch = parse_object(message.content, "reported properties", PACKET_BYTES_MAX)
            version = twin.patch_reported(patch, now_ms)
        except ContractError:
            return [self.answer_twin(address, 400, request)]
        except TwinError as error:
            return [self.answer_twin(address, error.status, request)]
        self.reported.append((address, clean(patch)))
        self._touch(address)
        return [self.answer_twin(address, 204, request, f"&$version={version}")]

    def answer_twin(
        self, address: HubAddress, status: int, request: str, more: str = "", content: bytes = b""
    ) -> Deliver:
        """An answer to a question about a twin."""
        return Deliver(address, f"$iothub/twin/res/{status}/?$rid={request}{more}", content)

    # --- what the service does

    def change_desired(self, address: HubAddress, values: JsonObject, now_ms: int, *, is_patch: bool) -> list[Effect]:
        """Write desired properties and tell the client, if it is there and asked to be told.

        Raises:
            HubError: 404, 400, 413.
        """
        twin = self.identity(address).twin
        try:
            told = twin.patch_desired(values, now_ms) if is_patch else twin.replace_desired(values, now_ms)
        except TwinError as error:
            raise HubError(error.status, error.status * 1000 + 4, error.reason) from None
        self._touch(address)
        session = self.sessions.get(address)
        if address not in self.online or session is None or DESIRED not in session.topics:
            return []
        topic = f"$iothub/twin/PATCH/properties/desired/?$version={told['$version']}"
        return [Deliver(address, topic, dump(told))]

    def change_tags(self, address: HubAddress, tags: JsonObject, *, is_patch: bool) -> None:
        """Write tags.

        Raises:
            HubError: 404, 400, 413.
        """
        try:
            self.identity(address).twin.set_tags(tags, is_patch=is_patch)
        except TwinError as error:
            raise HubError(error.status, error.status * 1000 + 4, error.reason) from None
        self._touch(address)

    def send_c2d(self, address: HubAddress, message: Message, now_ms: int) -> list[Effect]:
        """Take a message for a device; it waits until the device acknowledges it or it expires.

        Raises:
            HubError: 404, 400 for a module or too long a message, 403 when too many wait.
        """
        if address.module:
            raise HubError(400, 400004, "messages go to devices, not to modules")
        identity = self.identity(address)
        if len(message.content) > C2D_BYTES_MAX:
            raise HubError(413, 413001, f"a message of {len(message.content)} bytes, at most {C2D_BYTES_MAX}")
        session = self.sessions.setdefault(address, Session())
        if len(session.queue) >= C2D_WAITING_MAX:
            raise HubError(403, 403002, f"{C2D_WAITING_MAX} messages wait for this device already")
        expires = min(message.expires_ms or now_ms + C2D_TTL_MS, now_ms + C2D_TTL_MS_MAX)
        system = {"to": f"/devices/{address.device}/messages/devicebound", **message.system}
        identity.c2d_sent += 1
        self._enqueue(address, replace(message, system=system, expires_ms=expires, enqueued_ms=now_ms))
        return self.due(address, now_ms)

    def send_input(self, address: HubAddress, name: str, message: Message, now_ms: int) -> list[Effect]:
        """Take a message for a module's input.

        Raises:
            HubError: 404; 403 when too many wait.
        """
        self.identity(address)
        session = self.sessions.setdefault(address, Session())
        if len(session.queue) >= INPUTS_WAITING_MAX:
            raise HubError(403, 403002, f"{INPUTS_WAITING_MAX} messages wait for this module already")
        system = {key: text for key, text in message.system.items() if key != "on"}
        if message.sender is not None:
            system |= {"cdid": message.sender.device, "cmid": message.sender.module}
        self._enqueue(address, replace(message, system={**system, "to": name}, enqueued_ms=now_ms))
        return self.due(address, now_ms)

    def call(self, address: HubAddress, method: str, request: str, content: bytes) -> Deliver:
        """A direct method for a client that is there and takes methods.

        Raises:
            HubError: 404 for an unknown or absent client; 413.
        """
        self.identity(address)
        session = self.sessions.get(address)
        if address not in self.online or session is None or METHODS not in session.topics:
            raise HubError(404, 404103, f"{address} is not connected, or takes no methods")
        if len(content) > METHOD_BYTES_MAX:
            raise HubError(413, 413001, f"arguments of {len(content)} bytes, at most {METHOD_BYTES_MAX}")
        return Deliver(address, f"$iothub/methods/POST/{method}/?$rid={request}", content)

    # --- the emulator's file

    def dump(self, name: str) -> Any:
        """What is to be kept under a name of `changed`; none where it is gone."""
        if name == "telemetry":
            return [self._telemetry_number, [message.to_json() for message in self.telemetry]]
        address = _address(name)
        identity = self.identities.get(address)
        if identity is None:
            return None
        session = self.sessions.get(address)
        return [identity.to_json(), None if session is None else session.to_json()]

    def load(self, name: str, value: Any) -> None:
        """Take back what `dump` gave."""
        if name == "telemetry":
            self._telemetry_number = value[0]
            self.telemetry.extend(Message.from_json(item) for item in value[1])
            return
        identity = Identity.from_json(value[0])
        self.identities[identity.address] = identity
        if value[1] is not None:
            session = self.sessions[identity.address] = Session.from_json(value[1])
            self._numbers = max(self._numbers, *(item.number for item in session.queue), 0)

    # --- small helpers

    def _touch(self, address: HubAddress) -> None:
        self.changed.add(f"identity {address}")

    def _enqueue(self, address: HubAddress, message: Message) -> None:
        self._numbers += 1
        self.sessions[address].queue.append(replace(message, number=self._numbers))
        self._touch(address)

    def _forget(self, address: HubAddress, number: int) -> None:
        session = self.sessions[address]
        session.queue = deque(item for item in session.queue if item.number != number)
        session.deliveries.pop(number, None)
        self._touch(address)

    def _topic(self, address: HubAddress, message: Message) -> str:
        if not address.module:
            return f"devices/{address.device}/messages/devicebound/{message.bag()}"
        name = message.system.get("to", "")
        plain = replace(message, system={key: text for key, text in message.system.items() if key != "to"})
        return f"devices/{address.device}/modules/{address.module}/inputs/{name}/{plain.bag()}"


def _address(name: str) -> HubAddress:
    device, _, module = name.removeprefix("identity ").partition("/")
    return HubAddress(device, module)


def require_named(value: object) -> HubAddress:
    """An address from outside.

    Raises:
        HubError: 400.
    """
    try:
        return HubAddress.parse(str(value))
    except EdgeError as error:
        raise HubError(400, 400004, error.detail) from None


Randoms = Callable[[int], bytes]
