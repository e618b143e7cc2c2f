"""The state of one hub: identities, twins, sessions, queues and telemetry, with the rules of the service.

No I/O, no clock and no randomness of its own. Everything happens on one thread, the emulator's event loop; only
`Hub.telemetry` may be read from others. What was written is noted in `Hub.changed`, for `store.py`.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from device_sim.iothub.identities import Authentication, HubError, Identity, checked_name
from device_sim.iothub.limits import (
    C2D_BYTES_MAX,
    C2D_TTL_MS,
    C2D_TTL_MS_MAX,
    C2D_WAITING_MAX,
    D2C_BYTES_MAX,
    DEVICES_MAX,
    DRAIN_MAX,
    INPUTS_WAITING_MAX,
    MODULES_MAX,
)
from device_sim.iothub.messages import CloudMessage, Event, TelemetryLog
from device_sim.iothub.queues import Queue, Queues
from device_sim.iothub.twins import Twin, TwinError
from edge_contract.hub import HubAddress
from edge_contract.jsonio import JsonObject

POLICIES: Final = ("iothubowner", "service", "device", "registryRead", "registryReadWrite")


class DeviceLink(Protocol):
    """A connected device or module. Called on the hub's thread; never blocks."""

    def desired(self, patch: JsonObject) -> None:
        """Desired properties changed; `$version` is in the patch."""
        ...

    def wake(self) -> None:
        """Messages may wait in its queue."""
        ...

    def method(self, request: str, name: str, payload: bytes) -> bool:
        """Ask for a method; false when it listens for none. Raises `HubError` where a fault refuses it."""
        ...

    def close(self, reason: str) -> None:
        """End the connection."""
        ...


@dataclass(frozen=True, slots=True)
class Reported:
    """A patch of reported properties, as the device sent it."""

    address: HubAddress
    patch: JsonObject
    version: int

    def to_json(self) -> JsonObject:
        """For the admin verb that drains them."""
        return {
            "device": self.address.device,
            "module": self.address.module,
            "patch": self.patch,
            "version": self.version,
        }


class Hub(Queues):
    """One hub.

    Attributes:
        name: Its host name, as in tokens and user names.
        policies: Keys in base64 by the name of the shared access policy.
        identities: Devices and modules by address.
        twins: Their twins.
        subscriptions: Topics by address; they outlive connections and restarts.
        queues: Messages to devices and to inputs of modules.
        telemetry: The log.
        links: Who is connected.
        documents: Documents by (kind, name) that other parts keep in the hub, such as configurations.
        changed: (kind, name) of what was written since the store last looked.
        reported: Patches of reported properties since they were last drained, oldest first.
        new_key: Makes a symmetric key in base64.
        now_ms: Milliseconds since 1970.
    """

    def __init__(self, name: str, now_ms: Callable[[], int], new_key: Callable[[], str]) -> None:
        """An empty hub with policies."""
        super().__init__(now_ms)
        self.name = name
        self.new_key = new_key
        self.policies = {policy: new_key() for policy in POLICIES}
        self.identities: dict[HubAddress, Identity] = {}
        self.twins: dict[HubAddress, Twin] = {}
        self.subscriptions: dict[HubAddress, set[str]] = {}
        self.telemetry = TelemetryLog()
        self.links: dict[HubAddress, DeviceLink] = {}
        self.documents: dict[tuple[str, str], JsonObject] = {}
        self.new_events: list[Event] = []
        self.reported: deque[Reported] = deque(maxlen=DRAIN_MAX)
        self.observers: list[Callable[[str, HubAddress], None]] = []
        self._drained = 0

    # Identities

    def identity(self, address: HubAddress) -> Identity:
        """Who is registered under an address.

        Raises:
            HubError: 404 `DeviceNotFound` or `ModuleNotFound`.
        """
        found = self.identities.get(address)
        if found is None:
            if address.module and HubAddress(address.device) in self.identities:
                raise HubError(404, "ModuleNotFound", f"module {address} is not registered", 404010)
            raise HubError(404, "DeviceNotFound", f"device {address.device} is not registered", 404001)
        return found

    def devices(self) -> list[Identity]:
        """All devices, by name."""
        found = [item for item in self.identities.values() if not item.address.module]
        return sorted(found, key=lambda item: item.address.device)

    def modules(self, device: str) -> list[Identity]:
        """The modules of a device, by name.

        Raises:
            HubError: 404.
        """
        self.identity(HubAddress(device))
        found = [item for item in self.identities.values() if item.address.device == device and item.address.module]
        return sorted(found, key=lambda item: item.address.module)

    def create(self, address: HubAddress, document: JsonObject | None = None) -> Identity:
        """Register a device or module from the REST API's form; missing keys are made.

        Raises:
            HubError: 400, 403 (too many), 404 (no device for a module), 409 (it exists).
        """
        given = document or {}
        checked_name(address.device, "deviceId")
        if address in self.identities:
            raise HubError(409, "DeviceAlreadyExists", f"{address} is registered already", 409001)
        if address.module:
            checked_name(address.module, "moduleId")
            if len(self.modules(address.device)) >= MODULES_MAX:
                raise HubError(403, "TooManyModulesOnDevice", f"a device has at most {MODULES_MAX} modules", 403004)
        elif len(self.identities) >= DEVICES_MAX:
            raise HubError(403, "TooManyDevices", f"this emulator holds at most {DEVICES_MAX} identities")
        identity = Identity(address, self._authentication(given), generation=f"{self.now_ms()}{len(self.identities)}")
        self._apply(identity, given)
        self.identities[address] = identity
        self.twins[address] = Twin()
        self.note("identity", address)
        self.note("twin", address)
        self.tell("created", address)
        self._make_edge(identity)
        return identity

    def update(self, address: HubAddress, document: JsonObject, etag: str = "*") -> Identity:
        """Write a registered identity anew. A device that is disabled is disconnected.

        Args:
            address: Whose.
            document: The REST API's form.
            etag: What the identity's tag must be, or `*`.

        Raises:
            HubError: 400, 404, 412.
        """
        identity = self.identity(address)
        require_etag(etag, identity.etag)
        authentication = self._authentication(document)
        identity.authentication = authentication
        self._apply(identity, document)
        identity.revision += 1
        self.note("identity", address)
        self._make_edge(identity)
        if not identity.is_enabled:
            self.disconnect(address, "disabled")
        self.tell("updated", address)
        return identity

    def delete(self, address: HubAddress, etag: str = "*") -> None:
        """Take out an identity, and the modules of a device, with all that belongs to them.

        Raises:
            HubError: 404, 412.
        """
        require_etag(etag, self.identity(address).etag)
        gone = [
            item for item in self.identities if item == address or (item.device, address.module) == (address.device, "")
        ]
        for item in gone:
            self.disconnect(item, "deleted")
            for table in (self.identities, self.twins, self.subscriptions, self.queues):
                table.pop(item, None)
            for kind in ("identity", "twin", "session", "queue"):
                self.note(kind, item)
            self.tell("deleted", item)

    def _authentication(self, document: JsonObject) -> Authentication:
        result = Authentication.from_json(document.get("authentication"))
        if result.kind == "sas":
            result.primary = result.primary or self.new_key()
            result.secondary = result.secondary or self.new_key()
        return result

    def _make_edge(self, identity: Identity) -> None:
        """A device that runs IoT Edge has the runtime's own modules."""
        for module in ("$edgeAgent", "$edgeHub") if identity.is_edge else ():
            address = HubAddress(identity.address.device, module)
            if address not in self.identities:
                self.create(address, {"managedBy": "IotEdge"})

    def _apply(self, identity: Identity, document: JsonObject) -> None:
        identity.is_enabled = document.get("status", "enabled") != "disabled"
        identity.status_reason = str(document.get("statusReason") or "")
        capabilities = document.get("capabilities")
        identity.is_edge = isinstance(capabilities, dict) and bool(capabilities.get("iotEdge"))
        identity.managed_by = str(document.get("managedBy") or "")

    # Twins

    def twin(self, address: HubAddress) -> Twin:
        """The twin of who is registered.

        Raises:
            HubError: 404.
        """
        self.identity(address)
        return self.twins[address]

    def write_twin(self, address: HubAddress, document: JsonObject, *, is_patch: bool, etag: str = "*") -> Twin:
        """Write tags and desired properties, as the service API does; whoever is connected hears of it.

        Args:
            address: Whose twin.
            document: `{"tags": …, "properties": {"desired": …}}`; each part may be missing.
            is_patch: Merge, else replace what is given.
            etag: What the twin's tag must be, or `*`.

        Raises:
            HubError: 400, 404, 412, 413.
        """
        twin = self.twin(address)
        require_etag(etag, twin.etag)
        tags = document.get("tags")
        properties = document.get("properties") or {}
        desired = properties.get("desired") if isinstance(properties, dict) else None
        for name, part in (("tags", tags), ("properties", properties), ("properties.desired", desired)):
            if part is not None and not isinstance(part, dict):
                raise HubError(400, "ArgumentInvalid", f"{name} is no object")
        told: JsonObject | None = None
        try:
            if desired is not None:
                change = twin.patch_desired if is_patch else twin.replace_desired
                told = change(desired, self.now_ms())
            if tags is not None:
                twin.set_tags(tags, is_patch=is_patch)
        except TwinError as error:
            raise HubError(error.status, "ArgumentInvalid", error.reason) from None
        finally:
            self.note("twin", address)
        if told is not None and (link := self.links.get(address)):
            link.desired(told)
        self.tell("twin", address)
        return twin

    def write_reported(self, address: HubAddress, patch: JsonObject) -> int:
        """Merge reported properties; gives their new version.

        Raises:
            HubError: 400, 404, 413.
        """
        try:
            version = self.twin(address).patch_reported(patch, self.now_ms())
        except TwinError as error:
            raise HubError(error.status, "ArgumentInvalid", error.reason) from None
        self.note("twin", address)
        self.reported.append(Reported(address, patch, version))
        self.tell("reported", address)
        return version

    def twin_document(self, address: HubAddress) -> JsonObject:
        """A twin as the service API and queries show it.

        Raises:
            HubError: 404.
        """
        identity, twin = self.identity(address), self.twin(address)
        shown: JsonObject = {"deviceId": address.device}
        if address.module:
            shown["moduleId"] = address.module
        shown |= {
            "etag": twin.etag,
            "deviceEtag": identity.etag,
            "status": "enabled" if identity.is_enabled else "disabled",
            "statusUpdateTime": "0001-01-01T00:00:00Z",
            "connectionState": "Connected" if identity.connected else "Disconnected",
            "lastActivityTime": identity.active_at or "0001-01-01T00:00:00Z",
            "cloudToDeviceMessageCount": self.waiting(address),
            "authenticationType": identity.authentication.kind,
            "x509Thumbprint": identity.authentication.to_json()["x509Thumbprint"],
            "modelId": "",
            "version": twin.version,
            "tags": twin.tags,
            "properties": {"desired": twin.desired.service_document(), "reported": twin.reported.service_document()},
            "configurations": twin.configurations,
        }
        if not address.module:
            shown["capabilities"] = {"iotEdge": identity.is_edge}
        return shown

    # Telemetry

    def take(
        self, source: HubAddress, body: bytes, properties: dict[str, str], system: dict[str, str], authentication: str
    ) -> Event:
        """Keep a message from a device.

        Raises:
            HubError: 404, 413 `MessageTooLarge`.
        """
        size = len(body) + sum(len(key) + len(value) for key, value in [*properties.items(), *system.items()])
        if size > D2C_BYTES_MAX:
            raise HubError(413, "MessageTooLarge", f"{size} bytes, at most {D2C_BYTES_MAX} are allowed", 413001)
        self.identity(source).touch(self.now_ms())
        event = self.telemetry.append(source, body, properties, system, self.now_ms(), authentication)
        self.new_events.append(event)
        self.tell("telemetry", source)
        return event

    def drain_telemetry(self, count_max: int = DRAIN_MAX) -> list[Event]:
        """Messages since the last drain; the log keeps them for other readers."""
        found = self.telemetry.since(self._drained, min(count_max, DRAIN_MAX))
        if found:
            self._drained = found[-1].ordinal + 1
        return found

    # Messages to devices and to inputs of modules

    def send(
        self,
        address: HubAddress,
        body: bytes,
        properties: dict[str, str | None] | None = None,
        system: dict[str, str] | None = None,
        *,
        input_name: str = "",
        expires_ms: int = 0,
        feedback: str = "none",
    ) -> CloudMessage:
        """Put a message in the queue towards a device, or towards an input of a module.

        Args:
            address: To whom.
            body: Its bytes.
            properties: Those of the application.
            system: Those of the protocol by short name, such as `$.mid`.
            input_name: Name of the input of a module.
            expires_ms: Milliseconds since 1970, or 0 for the service's own time to live.
            feedback: What the sender wants to hear: `none`, `positive`, `negative` or `full`.

        Raises:
            HubError: 400, 403 `DeviceMaximumQueueDepthExceeded`, 404, 413.
        """
        self.identity(address)
        if bool(address.module) != bool(input_name):
            raise HubError(400, "ArgumentInvalid", "messages go to devices, or to an input of a module")
        limit, count_max = (D2C_BYTES_MAX, INPUTS_WAITING_MAX) if input_name else (C2D_BYTES_MAX, C2D_WAITING_MAX)
        if len(body) > limit:
            raise HubError(413, "MessageTooLarge", f"{len(body)} bytes, at most {limit} are allowed", 413001)
        now = self.now_ms()
        if expires_ms > now + C2D_TTL_MS_MAX:
            raise HubError(400, "ArgumentInvalid", "a message lives at most 48 hours")
        self._expire(address)
        queue = self.queues.setdefault(address, Queue())
        if len(queue.messages) >= count_max:
            raise HubError(403, "DeviceMaximumQueueDepthExceeded", f"{count_max} messages wait already", 403004)
        message = CloudMessage(
            queue.next_number,
            body,
            dict(properties or {}),
            dict(system or {}),
            expires_ms or now + C2D_TTL_MS,
            input=input_name,
            feedback=feedback,
        )
        queue.next_number += 1
        queue.messages.append(message)
        self.note("queue", address)
        if link := self.links.get(address):
            link.wake()
        return message

    # Connections

    def connect(self, address: HubAddress, link: DeviceLink, *, is_clean: bool) -> bool:
        """A device is here; an older connection of it ends. Gives whether a session of it was kept.

        Raises:
            HubError: 404.
        """
        identity = self.identity(address)
        self.disconnect(address, "taken over")
        if is_clean:
            self.subscriptions.pop(address, None)
            self.note("session", address)
        self.links[address] = link
        identity.set_connected(True, self.now_ms())
        self.tell("connected", address)
        return bool(self.subscriptions.get(address))

    def disconnect(self, address: HubAddress, reason: str) -> bool:
        """End a connection, if there is one."""
        link = self.links.get(address)
        if link is None:
            return False
        self.gone(address, link)
        link.close(reason)
        return True

    def gone(self, address: HubAddress, link: DeviceLink) -> None:
        """A connection ended; nothing when it was taken over already."""
        if self.links.get(address) is not link:
            return
        del self.links[address]
        if identity := self.identities.get(address):
            identity.set_connected(False, self.now_ms())
        self.tell("disconnected", address)

    def subscribe(self, address: HubAddress, topic: str) -> None:
        """Remember a subscription."""
        self.subscriptions.setdefault(address, set()).add(topic)
        self.note("session", address)

    def unsubscribe(self, address: HubAddress, topic: str) -> None:
        """Forget one."""
        self.subscriptions.get(address, set()).discard(topic)
        self.note("session", address)

    # Documents of other parts, and the store

    def put_document(self, kind: str, name: str, document: JsonObject | None) -> None:
        """Keep a document; none takes it out."""
        if document is None:
            self.documents.pop((kind, name), None)
        else:
            self.documents[(kind, name)] = document
        self.changed.add((f"document/{kind}", name))

    def documents_of(self, kind: str) -> Iterator[tuple[str, JsonObject]]:
        """(name, document) of a kind, by name."""
        for (known, name), document in sorted(self.documents.items(), key=lambda item: item[0]):
            if known == kind:
                yield name, document

    def tell(self, what: str, address: HubAddress) -> None:
        """Tell observers: identities were `created` …, a `twin` written, `telemetry` taken, a device `connected` …."""
        for observer in self.observers:
            observer(what, address)

    def restore_event(self, event: Event) -> None:
        """Take back an event; drains begin after it."""
        self.telemetry.restore(event)
        self._drained = event.ordinal + 1


def address_of(text: str) -> HubAddress:
    """The address in `device` or `device/module`; names are the service's, so nothing is checked."""
    device, _, module = text.partition("/")
    return HubAddress(device, module)


def require_etag(wanted: str, found: str) -> None:
    """Compare a tag of If-Match; `*` and nothing stand for any.

    Raises:
        HubError: 412.
    """
    if wanted.strip('"') not in ("", "*", found):
        raise HubError(412, "PreconditionFailed", "it was written in between: read it and try again", 412001)
