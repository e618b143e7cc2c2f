"""Twins, methods, queries and configurations in the service API. On the emulator's loop."""

import base64
import binascii
import json
from typing import TYPE_CHECKING, Final

from starlette.responses import Response
from starlette.routing import Route

from device_sim.iothub import troubles
from device_sim.iothub.identities import HubError
from device_sim.iothub.limits import METHOD_S_DEFAULT, METHOD_S_MAX, METHOD_S_MIN
from device_sim.iothub.policies import REGISTRY_READ, REGISTRY_WRITE, SERVICE
from device_sim.iothub.rest import Call, answer, route, tagged
from device_sim.iothub.service_limits import QUERY_PAGE_DEFAULT, QUERY_PAGE_MAX
from edge_contract.jsonio import JsonObject

if TYPE_CHECKING:
    from device_sim.iothub.running import Emulator

_SERVICE: Final = (SERVICE,)
_READ: Final = (REGISTRY_READ, SERVICE)
_WRITE: Final = (REGISTRY_WRITE, SERVICE)


def routes(emulator: "Emulator") -> list[Route]:
    """Requests about what devices do."""
    found = [
        # Before `/devices/{device}`, which these would be taken for.
        route(emulator, "POST", "/devices/query", _query, _READ, troubles.TWIN_GET),
        route(emulator, "POST", "/devices/{device}/applyConfigurationContent", _apply_content, _WRITE),
        route(emulator, "GET", "/configurations", _configurations, _READ),
        route(emulator, "POST", "/configurations/testQueries", _test_queries, _READ),
        route(emulator, "GET", "/configurations/{name}", _configuration, _READ),
        route(emulator, "PUT", "/configurations/{name}", _put_configuration, _WRITE),
        route(emulator, "DELETE", "/configurations/{name}", _delete_configuration, _WRITE),
    ]
    for path in ("/twins/{device}", "/twins/{device}/modules/{module}"):
        found += [
            route(emulator, "GET", path, _twin, _SERVICE, troubles.TWIN_GET),
            route(emulator, "PATCH", path, _patch_twin, _SERVICE, troubles.DESIRED),
            route(emulator, "PUT", path, _put_twin, _SERVICE, troubles.DESIRED),
            route(emulator, "POST", f"{path}/methods", _method, _SERVICE, troubles.METHOD),
        ]
    return found


async def _twin(call: Call) -> Response:
    return tagged(call.emulator.hub.twin_document(call.address))


async def _patch_twin(call: Call) -> Response:
    return _write_twin(call, is_patch=True)


async def _put_twin(call: Call) -> Response:
    return _write_twin(call, is_patch=False)


def _write_twin(call: Call, *, is_patch: bool) -> Response:
    hub = call.emulator.hub
    hub.write_twin(call.address, call.document, is_patch=is_patch, etag=call.if_match or "*")
    return tagged(hub.twin_document(call.address))


async def _method(call: Call) -> Response:
    order = call.document
    response_s = _seconds(order, "responseTimeoutInSeconds", METHOD_S_MIN, METHOD_S_DEFAULT)
    connect_s = _seconds(order, "connectTimeoutInSeconds", 0, 0)
    payload = json.dumps(order["payload"]).encode() if order.get("payload") is not None else b""
    name = str(order.get("methodName") or "")
    result = await call.emulator.methods.invoke(call.address, name, payload, response_s, connect_s)
    try:
        value = json.loads(result.payload) if result.payload.strip() else None
    except (ValueError, RecursionError):
        raise HubError(502, "BadDeviceResponse", "the device answered with something that is no JSON") from None
    return answer({"status": result.status, "payload": value})


def _seconds(order: JsonObject, key: str, least: int, default: int) -> int:
    value = order.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= METHOD_S_MAX:
        raise HubError(400, "ArgumentInvalid", f"{key} is {least} to {METHOD_S_MAX}")
    return value


async def _query(call: Call) -> Response:
    text = call.document.get("query")
    if not isinstance(text, str):
        raise HubError(400, "ArgumentInvalid", "query is a text")
    headers = call.request.headers
    count = headers.get("x-ms-max-item-count", str(QUERY_PAGE_DEFAULT))
    if not count.isdecimal() or not 1 <= int(count[:9]) <= QUERY_PAGE_MAX:
        raise HubError(400, "ArgumentInvalid", f"x-ms-max-item-count is 1 to {QUERY_PAGE_MAX}")
    start = _continued(headers.get("x-ms-continuation", ""), text)
    kind, results = call.emulator.configurations.query(text)
    end = start + int(count)
    told = {"x-ms-item-type": kind}
    if end < len(results):
        told["x-ms-continuation"] = base64.urlsafe_b64encode(f"{end}:{text}".encode()).decode()
    return answer(results[start:end], headers=told)


def _continued(token: str, query: str) -> int:
    """Where a page begins; the token belongs to one query."""
    if not token:
        return 0
    try:
        start, _, text = base64.urlsafe_b64decode(token).decode().partition(":")
        if text == query:
            return int(start)
    except (binascii.Error, UnicodeDecodeError, ValueError):
        pass
    raise HubError(400, "ArgumentInvalid", "the continuation token is not one of this query")


async def _apply_content(call: Call) -> Response:
    call.emulator.configurations.apply_content(call.address.device, call.document)
    return Response(status_code=204)


async def _configurations(call: Call) -> Response:
    return answer(call.emulator.configurations.first(call.top))


async def _configuration(call: Call) -> Response:
    return tagged(call.emulator.configurations.get(_name(call)))


async def _put_configuration(call: Call) -> Response:
    document, is_new = call.emulator.configurations.put(_name(call), call.document, call.if_match)
    return answer(document, 201 if is_new else 200, {"ETag": f'"{document["etag"]}"'})


async def _delete_configuration(call: Call) -> Response:
    call.emulator.configurations.delete(_name(call), call.if_match or "*")
    return Response(status_code=204)


async def _test_queries(call: Call) -> Response:
    return answer(call.emulator.configurations.test(call.document))


def _name(call: Call) -> str:
    return str(call.request.path_params["name"])
