"""What a test orders: verbs over HTTP under `/admin`, and the same as methods for tests in the emulator's process.

The verbs ask for no password: the emulator listens on loopback addresses alone. Everything runs on the emulator's loop.
"""

import base64
import binascii
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from device_sim.iothub import dps, tls, troubles
from device_sim.iothub.hub import address_of
from device_sim.iothub.identities import HubError
from device_sim.iothub.limits import DRAIN_MAX, METHOD_S_DEFAULT, UNITS_MAX
from device_sim.iothub.messages import event_json
from edge_contract.errors import EdgeError
from edge_contract.hub import HubAddress
from edge_contract.jsonio import JsonObject, dump, parse_object
from edge_contract.limits import MIB

if TYPE_CHECKING:
    from device_sim.iothub.running import Emulator

_BODY_BYTES_MAX: Final = 1 * MIB
_Verb = Callable[[JsonObject], Awaitable[JsonObject]]


class Admin:
    """The verbs. On the emulator's loop."""

    def __init__(self, emulator: "Emulator") -> None:
        """Act on a running emulator."""
        self._emulator = emulator
        self._hub = emulator.hub

    async def add(self, order: JsonObject) -> JsonObject:
        """Register a device or module: `device`, `module`, `edge`, `key`, `certificate` (PEM), `authority` (true)."""
        address = _address(order)
        authentication: JsonObject = {"type": "sas"}
        if pem := order.get("certificate"):
            authentication = {"type": "selfSigned", "x509Thumbprint": {"primaryThumbprint": self._trusted(str(pem))}}
        elif order.get("authority"):
            authentication = {"type": "certificateAuthority"}
        elif order.get("key"):
            authentication["symmetricKey"] = {"primaryKey": order["key"], "secondaryKey": order["key"]}
        document: JsonObject = {"authentication": authentication}
        document["capabilities"] = {"iotEdge": bool(order.get("edge"))}
        identity = self._hub.create(address, document)
        return {"connection_string": self._connection_string(address), "identity": identity.to_json()}

    async def remove(self, order: JsonObject) -> JsonObject:
        """Take out a device or module."""
        self._hub.delete(_address(order))
        return {}

    async def trust(self, order: JsonObject) -> JsonObject:
        """Let devices show a `certificate` (PEM), or one that it signed."""
        return {"thumbprint": self._trusted(str(order.get("certificate") or ""))}

    async def twin(self, order: JsonObject) -> JsonObject:
        """A twin as the service shows it."""
        return self._hub.twin_document(_address(order))

    async def desired(self, order: JsonObject) -> JsonObject:
        """Merge `desired` into desired properties, or `replace` them."""
        document = {"properties": {"desired": order.get("desired") or {}}}
        twin = self._hub.write_twin(_address(order), document, is_patch=not order.get("replace"))
        return {"version": twin.desired.version}

    async def method(self, order: JsonObject) -> JsonObject:
        """Call the method `name` with `payload`; `response_s` and `connect_s` say how long to wait."""
        payload = json.dumps(order["payload"]).encode() if order.get("payload") is not None else b""
        waits = float(order.get("response_s") or METHOD_S_DEFAULT), float(order.get("connect_s") or 0)
        address, name = _address(order), str(order.get("name") or "")
        answer = await self._emulator.methods.invoke(address, name, payload, *waits)
        return {"status": answer.status, "payload": json.loads(answer.payload) if answer.payload.strip() else None}

    async def c2d(self, order: JsonObject) -> JsonObject:
        """Send a message to a device: `text` or `base64`, `properties`, `system` (such as `$.mid`)."""
        message = self._hub.send(_address(order), _body(order), order.get("properties"), order.get("system"))
        return {"number": message.number}

    async def input(self, order: JsonObject) -> JsonObject:
        """Send a message to the `input` of a module: else as `c2d`."""
        name, own, system = str(order.get("input") or ""), order.get("properties"), order.get("system")
        message = self._hub.send(_address(order), _body(order), own, system, input_name=name)
        return {"number": message.number}

    async def drain_telemetry(self, order: JsonObject) -> JsonObject:
        """Messages from devices since the last drain, at most `count`."""
        events = self._hub.drain_telemetry(int(order.get("count") or DRAIN_MAX))
        return {"messages": [event_json(event) for event in events]}

    async def drain_reported(self, order: JsonObject) -> JsonObject:
        """Patches of reported properties since the last drain, at most `count`."""
        count = min(int(order.get("count") or DRAIN_MAX), len(self._hub.reported))
        return {"patches": [self._hub.reported.popleft().to_json() for _ in range(count)]}

    async def fault(self, order: JsonObject) -> JsonObject:
        """Let something go wrong: `kind`, `operation`, `count`, `device`, `code`, `delay_ms`; see `troubles.Fault`."""
        fields = {name: order[name] for name in ("count", "code", "delay_ms") if order.get(name) is not None}
        if any(not isinstance(value, int) for value in fields.values()):
            raise HubError(400, "ArgumentInvalid", "count, code and delay_ms are whole numbers")
        kind, operation, device = (str(order.get(name) or "") for name in ("kind", "operation", "device"))
        self._emulator.faults.add(troubles.Fault(kind, operation, device=device, **fields))
        return await self.faults({})

    async def faults(self, _order: JsonObject) -> JsonObject:
        """What is still to go wrong, and how much did."""
        return {"faults": self._emulator.faults.shown(), "met": self._emulator.faults.met}

    async def clear_faults(self, _order: JsonObject) -> JsonObject:
        """Nothing goes wrong any more."""
        self._emulator.faults.clear()
        return await self.faults({})

    async def disconnect(self, order: JsonObject) -> JsonObject:
        """Drop the connection of a device or module, or of everybody."""
        addresses = [_address(order)] if order.get("device") else list(self._hub.links)
        return {"dropped": sum(self._hub.disconnect(address, "dropped on order") for address in addresses)}

    async def rates(self, order: JsonObject) -> JsonObject:
        """Throttle as a hub of so many `units` of tier S1; 0 throttles nothing."""
        units = order.get("units")
        if not isinstance(units, int) or not 0 <= units <= UNITS_MAX:
            raise HubError(400, "ArgumentInvalid", f"units is 0 to {UNITS_MAX}")
        self._emulator.set_units(units)
        return {"units": units}

    async def enrol(self, order: JsonObject) -> JsonObject:
        """Write an enrolment: `kind` (`single` or `group`), `name`, and the service's own form as `document`."""
        kind = dps.GROUP if order.get("kind") == "group" else dps.ENROLMENT
        document = order.get("document")
        if not isinstance(document, dict):
            raise HubError(400, "ArgumentInvalid", "document is an enrolment")
        made = self._emulator.dps.put(kind, str(order.get("name") or ""), document)
        for pem in dps.certificates(made):
            self._trusted(pem)
        return made

    async def state(self, _order: JsonObject) -> JsonObject:
        """How the emulator stands."""
        emulator, counts = self._emulator, self._emulator.mqtt.counts
        return {
            "name": emulator.name,
            "host": emulator.host,
            "connections": emulator.mqtt.connections,
            "connected": sorted(str(address) for address in self._hub.links),
            "devices": len(self._hub.identities),
            "telemetry": self._hub.telemetry.total,
            "connects": counts.connects,
            "refused": counts.refused,
            "closed_by_hub": counts.closed_by_hub,
            "storms": counts.storms,
            "received": counts.received,
            "sent": counts.sent,
            "by_operation": dict(counts.by_operation),
            "throttled": dict(emulator.rates.refused),
        }

    def connection_string(self, device: str, module: str = "") -> str:
        """The connection string of a device or module that proves who it is by a key or a certificate.

        Raises:
            HubError: 404.
        """
        return self._connection_string(HubAddress(device, module))

    def _connection_string(self, address: HubAddress) -> str:
        emulator, identity = self._emulator, self._hub.identity(address)
        parts = [f"HostName={emulator.name}", f"DeviceId={address.device}"]
        if address.module:
            parts.append(f"ModuleId={address.module}")
        if emulator.name != emulator.host:
            parts.append(f"GatewayHostName={emulator.host}")
        keys = identity.authentication.keys
        parts.append(f"SharedAccessKey={keys[0]}" if keys else "x509=true")
        return ";".join(parts)

    def _trusted(self, pem: str) -> str:
        try:
            self._emulator.trust(pem)
            return tls.thumbprint(pem)
        except ValueError:
            raise HubError(400, "ArgumentInvalid", "certificate is none in PEM") from None


def routes(emulator: "Emulator") -> list[Route]:
    """The verbs as routes of a Starlette application."""
    admin = emulator.verbs
    verbs: list[tuple[str, str, _Verb]] = [
        ("POST", "devices", admin.add),
        ("POST", "devices/remove", admin.remove),
        ("POST", "trust", admin.trust),
        ("GET", "twin", admin.twin),
        ("POST", "desired", admin.desired),
        ("POST", "method", admin.method),
        ("POST", "c2d", admin.c2d),
        ("POST", "input", admin.input),
        ("POST", "telemetry/drain", admin.drain_telemetry),
        ("POST", "reported/drain", admin.drain_reported),
        ("POST", "faults", admin.fault),
        ("GET", "faults", admin.faults),
        ("DELETE", "faults", admin.clear_faults),
        ("POST", "disconnect", admin.disconnect),
        ("POST", "rates", admin.rates),
        ("POST", "enrolments", admin.enrol),
        ("GET", "state", admin.state),
    ]
    return [Route(f"/admin/{path}", _endpoint(verb), methods=[how]) for how, path, verb in verbs]


def _endpoint(verb: _Verb) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            body = b""
            async for chunk in request.stream():
                body += chunk
                if len(body) > _BODY_BYTES_MAX:
                    raise HubError(413, "RequestEntityTooLarge", f"at most {_BODY_BYTES_MAX} bytes")
            order: JsonObject = dict(request.query_params)
            if body.strip():
                order |= parse_object(body, "the request", _BODY_BYTES_MAX)
            return Response(dump(await verb(order)), media_type="application/json")
        except HubError as error:
            return JSONResponse(
                {"error": {"name": error.name, "code": error.code, "detail": error.detail}}, error.status
            )
        except (EdgeError, ValueError, TypeError) as error:
            return JSONResponse({"error": {"name": "ArgumentInvalid", "code": 400000, "detail": str(error)}}, 400)

    return endpoint


def _address(order: JsonObject) -> HubAddress:
    device, module = order.get("device"), order.get("module") or ""
    if not isinstance(device, str) or not device or not isinstance(module, str):
        raise HubError(400, "ArgumentInvalid", "device and module are texts")
    return HubAddress(device, module) if module else address_of(device)


def _body(order: JsonObject) -> bytes:
    encoded: Any = order.get("base64")
    if encoded is None:
        return str(order.get("text") or "").encode()
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise HubError(400, "ArgumentInvalid", "base64 is none") from None
