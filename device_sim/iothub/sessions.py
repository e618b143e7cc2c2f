"""What a connected client may say and hear: the hub's dialect of MQTT, and the provisioning service's.

A session belongs to one connection and lives on the emulator's loop. It writes through `Wire` and never blocks.
Source: Azure IoT Hub documentation, "Communicate with an IoT hub using the MQTT protocol".
"""

from collections.abc import Callable
from typing import Final, Protocol

from device_sim.iothub import codec, troubles
from device_sim.iothub.dps import RESULTS_TOPIC, Answer, Applicant, Provisioning
from device_sim.iothub.hub import Hub
from device_sim.iothub.identities import HubError
from device_sim.iothub.limits import PACKET_BYTES_MAX, SUBSCRIPTIONS_MAX, UNACKED_MAX
from device_sim.iothub.messages import CloudMessage, encode_bag, parse_bag, split_properties
from device_sim.iothub.methods import Methods
from device_sim.iothub.routes import UPSTREAM, Routes
from edge_contract.errors import ContractError
from edge_contract.hub import HubAddress
from edge_contract.jsonio import JsonObject, dump, parse_object

_TWIN_RESULTS: Final = "$iothub/twin/res/#"
_DESIRED: Final = "$iothub/twin/PATCH/properties/desired/#"
_METHODS: Final = "$iothub/methods/POST/#"
_GET: Final = "$iothub/twin/GET/"
_REPORTED: Final = "$iothub/twin/PATCH/properties/reported/"
_METHOD_RESULT: Final = "$iothub/methods/res/"
_EDGE_HUB: Final = "$edgeHub"


class ClosedError(Exception):
    """The connection is to be closed; the text says why."""


class Wire(Protocol):
    """One connection."""

    def publish(self, topic: str, content: bytes, packet: int = 0, *, is_repeated: bool = False) -> None:
        """Send a message, with QoS 1 where `packet` is not 0."""
        ...

    def later(self, delay_ms: int, work: Callable[[], None]) -> None:
        """Do something after a while, if the connection is still there."""
        ...

    def close(self, reason: str) -> None:
        """End the connection at once."""
        ...


class Session(Protocol):
    """What a connection needs of either kind of session."""

    operation: str

    def subscribe(self, topic: str) -> bool:
        """Whether the client may; it is subscribed then."""
        ...

    def unsubscribe(self, topic: str) -> None:
        """Forget a subscription."""
        ...

    def operation_of(self, topic: str) -> str:
        """Which of `troubles.OPERATIONS` a message is.

        Raises:
            ClosedError: a message to where this client may send nothing.
        """
        ...

    def take(self, message: codec.Publish, status: int = 0) -> Callable[[], None] | None:
        """Carry out a message; with `status`, refuse it with that. Gives what is to happen after its PUBACK.

        Raises:
            ClosedError: the hub closes the connection on such a message.
        """
        ...

    def acknowledged(self, packet: int) -> None:
        """The client has a message."""
        ...

    def ready(self) -> None:
        """Send what waits."""
        ...

    def ended(self) -> None:
        """The connection is gone."""
        ...


class HubSession:
    """A device or a module that is connected to the hub."""

    operation = troubles.CONNECT

    def __init__(
        self,
        wire: Wire,
        hub: Hub,
        methods: Methods,
        faults: troubles.Faults,
        address: HubAddress,
        authentication: str,
    ) -> None:
        self._wire, self._hub, self._methods, self._faults = wire, hub, methods, faults
        self.address = self._address = address
        self._authentication = authentication
        self._sent: dict[int, int] = {}  # numbers of messages by packet
        self._passed: set[int] = set()  # numbers of messages that this connection has had, or never gets
        self._packet = 0
        where = f"devices/{address.device}"
        if address.module:
            where += f"/modules/{address.module}"
        self._events = f"{where}/messages/events"
        self._queue_filter = f"{where}/inputs/#" if address.module else f"{where}/messages/devicebound/#"
        self._filters = {_TWIN_RESULTS, _DESIRED, _METHODS, self._queue_filter}

    @property
    def _topics(self) -> set[str]:
        return self._hub.subscriptions.get(self._address, set())

    def subscribe(self, topic: str) -> bool:
        """See `Session`."""
        if topic not in self._filters or len(self._topics) >= SUBSCRIPTIONS_MAX:
            return False
        self._hub.subscribe(self._address, topic)
        return True

    def unsubscribe(self, topic: str) -> None:
        """See `Session`."""
        self._hub.unsubscribe(self._address, topic)

    def operation_of(self, topic: str) -> str:
        """See `Session`."""
        if topic.startswith(self._events) and topic[len(self._events) :][:1] in ("", "/"):
            return troubles.D2C
        for prefix, operation in ((_GET, troubles.TWIN_GET), (_REPORTED, troubles.REPORTED)):
            if topic.startswith(prefix):
                return operation
        if topic.startswith(_METHOD_RESULT):
            return troubles.METHOD
        raise ClosedError(f"a message to {topic[:80]!r}, where this client may send nothing")

    def take(self, message: codec.Publish, status: int = 0) -> Callable[[], None] | None:
        """See `Session`."""
        operation = self.operation_of(message.topic)
        if operation == troubles.D2C:
            if status:
                raise ClosedError("telemetry was refused")
            self._event(message)
            return None
        if operation == troubles.METHOD:
            self._method_result(message)
            return None
        request = parse_bag(message.topic.partition("?")[2]).get("$rid") or ""
        if status:
            return lambda: self._twin_answer(status, request)
        if operation == troubles.TWIN_GET:
            document = self._hub.twin(self._address).device_document()
            return lambda: self._twin_answer(200, request, content=dump(document))
        try:
            patch = parse_object(message.content, "reported properties", PACKET_BYTES_MAX)
            version = self._hub.write_reported(self._address, patch)
        except ContractError:
            return lambda: self._twin_answer(400, request)
        except HubError as error:
            refused = error.status
            return lambda: self._twin_answer(refused, request)
        return lambda: self._twin_answer(204, request, f"&$version={version}")

    def _twin_answer(self, status: int, request: str, more: str = "", content: bytes = b"") -> None:
        if _TWIN_RESULTS in self._topics:
            self._wire.publish(f"$iothub/twin/res/{status}/?$rid={request}{more}", content)

    def _event(self, message: codec.Publish, *, is_will: bool = False) -> None:
        bag = parse_bag(message.topic[len(self._events) :])
        properties, system = split_properties(bag)
        if message.is_retained:
            properties["mqtt-retain"] = "true"
        if is_will:
            system["iothub-message-type"] = "Will"
        try:
            for sink in self._sinks(system.get("output-name", "")):
                if isinstance(sink, str):
                    self._hub.take(self._address, message.content, properties, system, self._authentication)
                else:
                    self._forward(sink, message.content, bag)
        except HubError as error:
            raise ClosedError(error.detail) from None

    def _sinks(self, output: str) -> tuple[str | tuple[str, str], ...]:
        address = self._address
        edge_hub = self._hub.twins.get(HubAddress(address.device, _EDGE_HUB)) if address.module else None
        if edge_hub is None:
            return (UPSTREAM,)
        return Routes.read(edge_hub.desired.values.get("routes")).sinks(address.module, output)

    def _forward(self, sink: tuple[str, str], content: bytes, bag: dict[str, str | None]) -> None:
        module, name = sink
        own = {key: value for key, value in bag.items() if not key.startswith("$.")}
        system = {key: value or "" for key, value in bag.items() if key.startswith("$.") and key != "$.on"}
        system |= {"$.cdid": self._address.device, "$.cmid": self._address.module}
        target = HubAddress(self._address.device, module)
        if target in self._hub.identities:
            self._hub.send(target, content, own, system, input_name=name)

    def _method_result(self, message: codec.Publish) -> None:
        status, _, query = message.topic.removeprefix(_METHOD_RESULT).partition("/")
        if not status.lstrip("-").isdecimal() or len(status) > 9:
            raise ClosedError("an answer to a method without a status")
        request = parse_bag(query).get("$rid") or ""
        self._methods.answered(self._address, request, int(status), message.content)

    def will(self, topic: str, content: bytes) -> None:
        """The connection ended without a farewell; its last words become telemetry where they were meant for it."""
        if topic.startswith(self._events) and self._address in self._hub.identities:
            self._event(codec.Publish(topic, content), is_will=True)

    # What the hub says

    def ready(self) -> None:
        """See `Session`."""
        self.wake()

    def wake(self) -> None:
        """See `hub.DeviceLink`."""
        if self._queue_filter not in self._topics:
            return
        operation = troubles.INPUT if self._address.module else troubles.C2D
        for message in self._hub.pending(self._address):
            if len(self._sent) >= UNACKED_MAX:
                return
            if message.number in self._passed:
                continue
            self._passed.add(message.number)
            fault = self._faults.take(operation, str(self._address))
            if fault is None:
                self._deliver(message)
            elif fault.kind == troubles.DROP:
                self._wire.close("a fault")
                return
            elif fault.kind in (troubles.DELAY, troubles.THROTTLE):
                self._wire.later(fault.delay_ms, lambda message=message: self._deliver(message))  # type: ignore[misc]

    def _deliver(self, message: CloudMessage) -> None:
        self._packet = self._packet % 0xFFFF + 1
        while self._packet in self._sent:
            self._packet = self._packet % 0xFFFF + 1
        self._sent[self._packet] = message.number
        prefix = self._queue_filter.removesuffix("#")
        system: dict[str, str | None] = {**message.system}
        if message.input:
            prefix += f"{message.input}/"
        else:
            system = {"$.to": f"/{prefix.removesuffix('/')}", **system}
            if message.feedback != "none":
                system["iothub-ack"] = message.feedback
        topic = prefix + encode_bag(system | message.properties)
        is_repeated = message.deliveries > 0
        self._hub.delivered(self._address, message)
        self._wire.publish(topic, message.body, self._packet, is_repeated=is_repeated)

    def acknowledged(self, packet: int) -> None:
        """See `Session`."""
        number = self._sent.pop(packet, None)
        if number is not None:
            self._hub.complete(self._address, number)
            self._passed.discard(number)
            self.wake()

    def desired(self, patch: JsonObject) -> None:
        """See `hub.DeviceLink`."""
        if _DESIRED not in self._topics:
            return
        topic, content = f"{_DESIRED.removesuffix('#')}?$version={patch['$version']}", dump(patch)
        fault = self._faults.take(troubles.DESIRED, str(self._address))
        if fault is None or fault.kind not in (troubles.LOSE, troubles.DROP, troubles.DELAY, troubles.THROTTLE):
            self._wire.publish(topic, content)
        elif fault.kind == troubles.DROP:
            self._wire.close("a fault")
        elif fault.kind != troubles.LOSE:
            self._wire.later(fault.delay_ms, lambda: self._wire.publish(topic, content))

    def method(self, request: str, name: str, payload: bytes) -> bool:
        """See `hub.DeviceLink`.

        Raises:
            HubError: a fault refuses it.
        """
        if _METHODS not in self._topics:
            return False
        topic = f"$iothub/methods/POST/{name}/?$rid={request}"
        fault = self._faults.take(troubles.METHOD, str(self._address))
        if fault is None or fault.kind == troubles.LOSE_PUBACK:
            self._wire.publish(topic, payload)
        elif fault.kind == troubles.REFUSE:
            raise HubError(fault.code or 500, "ServerError", "a fault")
        elif fault.kind == troubles.THROTTLE:
            raise HubError(429, "ThrottlingException", "a fault", 429001)
        elif fault.kind == troubles.DROP:
            self._wire.close("a fault")
        elif fault.kind == troubles.DELAY:
            self._wire.later(fault.delay_ms, lambda: self._wire.publish(topic, payload))
        return True

    def close(self, reason: str) -> None:
        """See `hub.DeviceLink`."""
        self._wire.close(reason)

    def ended(self) -> None:
        """See `Session`."""
        self._hub.gone(self._address, self)


class DpsSession:
    """A device that registers itself. Nothing of it is kept."""

    operation = troubles.DPS

    def __init__(self, wire: Wire, service: Provisioning, applicant: Applicant) -> None:
        """Begin unsubscribed."""
        self._wire, self._service, self._applicant = wire, service, applicant
        self._is_subscribed = False

    def subscribe(self, topic: str) -> bool:
        """See `Session`."""
        self._is_subscribed = self._is_subscribed or topic == RESULTS_TOPIC
        return topic == RESULTS_TOPIC

    def unsubscribe(self, topic: str) -> None:
        """See `Session`."""
        self._is_subscribed = self._is_subscribed and topic != RESULTS_TOPIC

    def operation_of(self, topic: str) -> str:
        """See `Session`."""
        if not topic.startswith("$dps/registrations/"):
            raise ClosedError(f"a message to {topic[:80]!r}, where this client may send nothing")
        return troubles.DPS

    def take(self, message: codec.Publish, status: int = 0) -> Callable[[], None] | None:
        """See `Session`."""
        self.operation_of(message.topic)
        if status:
            request = parse_bag(message.topic.partition("?")[2]).get("$rid") or ""
            answer = Answer(status, {"errorCode": status * 1000, "message": "a fault"}, 1 if status == 429 else 0)
        else:
            found = self._service.published(self._applicant, message.topic, message.content)
            if found is None:
                raise ClosedError(f"a message to {message.topic[:80]!r}, where this client may send nothing")
            request, answer = found
        return lambda: self._answer(request, answer)

    def _answer(self, request: str, answer: Answer) -> None:
        if self._is_subscribed:
            self._wire.publish(answer.topic(request), dump(answer.document))

    def acknowledged(self, packet: int) -> None:
        """Nothing that this service says wants an acknowledgement."""

    def ready(self) -> None:
        """Nothing waits."""

    def ended(self) -> None:
        """Nothing is kept."""
