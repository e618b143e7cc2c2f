"""The registry in the service API: devices, modules, many at once, statistics. On the emulator's loop."""

from typing import TYPE_CHECKING, Final

from starlette.responses import Response
from starlette.routing import Route

from device_sim.iothub.identities import HubError, Identity
from device_sim.iothub.policies import REGISTRY_READ, REGISTRY_WRITE, SERVICE
from device_sim.iothub.rest import Call, answer, route, tagged
from device_sim.iothub.service_limits import BULK_MAX
from edge_contract.hub import HubAddress
from edge_contract.jsonio import JsonObject

if TYPE_CHECKING:
    from device_sim.iothub.running import Emulator

_READ: Final = (REGISTRY_READ,)
_WRITE: Final = (REGISTRY_WRITE,)


def routes(emulator: "Emulator") -> list[Route]:
    """Requests about identities."""
    return [
        route(emulator, "GET", "/devices", _list, _READ),
        route(emulator, "POST", "/devices", _bulk, _WRITE),
        route(emulator, "GET", "/devices/{device}", _get, _READ),
        route(emulator, "PUT", "/devices/{device}", _put, _WRITE),
        route(emulator, "DELETE", "/devices/{device}", _delete, _WRITE),
        route(emulator, "DELETE", "/devices/{device}/commands", _purge, (SERVICE,)),
        route(emulator, "GET", "/devices/{device}/modules", _modules, _READ),
        route(emulator, "GET", "/devices/{device}/modules/{module}", _get, _READ),
        route(emulator, "PUT", "/devices/{device}/modules/{module}", _put, _WRITE),
        route(emulator, "DELETE", "/devices/{device}/modules/{module}", _delete, _WRITE),
        route(emulator, "GET", "/statistics/devices", _device_statistics, _READ),
        route(emulator, "GET", "/statistics/service", _service_statistics, _READ),
    ]


def _shown(call: Call, identity: Identity) -> JsonObject:
    return identity.to_json(call.emulator.hub.waiting(identity.address))


async def _list(call: Call) -> Response:
    return answer([_shown(call, item) for item in call.emulator.hub.devices()[: call.top]])


async def _modules(call: Call) -> Response:
    return answer([_shown(call, item) for item in call.emulator.hub.modules(call.address.device)])


async def _get(call: Call) -> Response:
    return tagged(_shown(call, call.emulator.hub.identity(call.address)))


async def _put(call: Call) -> Response:
    hub, address, body = call.emulator.hub, call.address, call.document
    named = (body.get("deviceId", address.device), body.get("moduleId", address.module) or "")
    if named != (address.device, address.module):
        raise HubError(400, "ArgumentInvalid", "the identifier in the body is another one than in the path")
    if call.if_match is None:
        return tagged(_shown(call, hub.create(address, body)))
    return tagged(_shown(call, hub.update(address, body, call.if_match)))


async def _delete(call: Call) -> Response:
    call.emulator.hub.delete(call.address, call.if_match or "*")
    return Response(status_code=204)


async def _purge(call: Call) -> Response:
    count = call.emulator.hub.purge(call.address)
    return answer({"deviceId": call.address.device, "moduleId": None, "totalMessagesPurged": count})


async def _bulk(call: Call) -> Response:
    if not isinstance(call.body, list) or len(call.body) > BULK_MAX:
        raise HubError(400, "ArgumentInvalid", f"the body is a list of at most {BULK_MAX} devices")
    errors = []
    for item in call.body:
        try:
            _import(call, item)
        except HubError as error:
            errors.append(
                {
                    "deviceId": str(item.get("id") if isinstance(item, dict) else ""),
                    "errorCode": error.name,
                    "errorStatus": error.detail,
                }
            )
    return answer({"isSuccessful": not errors, "errors": errors, "warnings": []}, 400 if errors else 200)


def _import(call: Call, item: object) -> None:
    """Do what one entry of an import says.

    Raises:
        HubError: it cannot be done.
    """
    if not isinstance(item, dict):
        raise HubError(400, "ArgumentInvalid", "an entry is an object")
    if not isinstance(item.get("id"), str):
        raise HubError(400, "ArgumentInvalid", "an entry has the identifier of a device as its id")
    hub, mode = call.emulator.hub, item.get("importMode", "createOrUpdate")
    address = HubAddress(item["id"], str(item.get("moduleId") or ""))
    tags, properties = item.get("tags"), item.get("properties")
    etag, twin_etag = str(item.get("eTag") or "*"), str(item.get("twinETag") or "*")
    document: JsonObject = {key: value for key, value in item.items() if value is not None}
    if mode == "delete" or mode == "deleteIfMatchETag":
        hub.delete(address, etag if mode == "deleteIfMatchETag" else "*")
    elif mode in ("updateTwin", "updateTwinIfMatchETag"):
        wanted = twin_etag if mode == "updateTwinIfMatchETag" else "*"
        hub.write_twin(address, {"tags": tags, "properties": properties}, is_patch=True, etag=wanted)
    elif mode in ("update", "updateIfMatchETag"):
        hub.update(address, document, etag if mode == "updateIfMatchETag" else "*")
    elif mode in ("create", "createOrUpdate", "createOrUpdateIfMatchETag"):
        if address in hub.identities and mode != "create":
            hub.update(address, document, etag if mode == "createOrUpdateIfMatchETag" else "*")
        else:
            hub.create(address, document)
        if tags or properties:
            hub.write_twin(address, {"tags": tags, "properties": properties}, is_patch=True)
    else:
        raise HubError(400, "ArgumentInvalid", f"importMode {str(mode)[:40]!r} is unknown")


async def _device_statistics(call: Call) -> Response:
    devices = call.emulator.hub.devices()
    enabled = sum(item.is_enabled for item in devices)
    counts = {"totalDeviceCount": len(devices), "enabledDeviceCount": enabled}
    return answer(counts | {"disabledDeviceCount": len(devices) - enabled})


async def _service_statistics(call: Call) -> Response:
    return answer({"connectedDeviceCount": sum(item.connected for item in call.emulator.hub.devices())})
