"""The service API of IoT Hub over HTTPS: registry, twins, methods, queries, configurations, statistics.

Handlers are in `rest_registry` and `rest_service`; here is what they share: who may, faults and rates, errors as the
service writes them. Source: Azure IoT Hub service REST API, version 2021-04-12; measured against azure-iot-hub 2.7.0.
"""

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from device_sim.iothub import policies, troubles
from device_sim.iothub.identities import HubError
from device_sim.iothub.service_limits import BODY_BYTES_MAX, LISTED_MAX
from edge_contract.errors import ContractError
from edge_contract.hub import HubAddress
from edge_contract.jsonio import JsonObject

if TYPE_CHECKING:
    from device_sim.iothub.running import Emulator

_THROTTLED: Final = 429


@dataclass(frozen=True, slots=True)
class Call:
    """One request whose sender may make it.

    Attributes:
        emulator: Whom it is for.
        request: As it came.
        body: JSON, or none without a body.
    """

    emulator: "Emulator"
    request: Request
    body: Any

    @property
    def address(self) -> HubAddress:
        """The device or module in the path."""
        return address_in(self.request)

    @property
    def document(self) -> JsonObject:
        """The body, which has to be an object.

        Raises:
            HubError: 400.
        """
        if not isinstance(self.body, dict):
            raise HubError(400, "ArgumentInvalid", "the body has to be a JSON object")
        return self.body

    @property
    def if_match(self) -> str | None:
        """The tag that the caller wants to find, `*` for any, or none."""
        return self.request.headers.get("if-match")

    @property
    def top(self) -> int:
        """How many the caller wants at most.

        Raises:
            HubError: 400.
        """
        text = self.request.query_params.get("top", str(LISTED_MAX))
        if not text.isdecimal() or not 1 <= int(text[:9]) <= LISTED_MAX:
            raise HubError(400, "ArgumentInvalid", f"top is 1 to {LISTED_MAX}")
        return int(text)


Handler = Callable[[Call], Awaitable[Response]]


def route(
    emulator: "Emulator", method: str, path: str, handler: Handler, rights: tuple[str, ...], operation: str = ""
) -> Route:
    """One request of the API.

    Args:
        emulator: Whom it is for.
        method: Of HTTP.
        path: With `{device}` and `{module}` where those stand.
        handler: What answers.
        rights: The sender needs one of these.
        operation: One of `troubles.OPERATIONS` whose rate counts it, or empty.
    """

    async def endpoint(request: Request) -> Response:
        try:
            _require_right(emulator, request, rights)
            await _meet_trouble(emulator, request, operation)
            return await handler(Call(emulator, request, await _body(request)))
        except HubError as error:
            return refusal(error)

    return Route(path, endpoint, methods=[method])


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON for the caller."""
    return JSONResponse(value, status, headers)


def tagged(value: JsonObject) -> Response:
    """JSON with its entity tag in the header too."""
    return JSONResponse(value, headers={"ETag": f'"{value["etag"]}"'})


def refusal(error: HubError) -> Response:
    """An error as the service writes it."""
    tracking = uuid.uuid4().hex
    body = {"Message": f"ErrorCode:{error.name};{error.detail}", "ExceptionMessage": f"Tracking ID:{tracking}"}
    headers = {"iothub-errorcode": error.name}
    if error.status == _THROTTLED:
        headers["Retry-After"] = "1"
    return JSONResponse(body, error.status, headers)


def address_in(request: Request) -> HubAddress:
    """The device or module in a path; empty where there is none."""
    return HubAddress(request.path_params.get("device", ""), request.path_params.get("module", ""))


def _require_right(emulator: "Emulator", request: Request, rights: tuple[str, ...]) -> None:
    hub = emulator.hub
    text = request.headers.get("authorization", "")
    resources = (hub.name, request.headers.get("host", hub.name))
    held, _expires = policies.judge(hub.policies, text, resources, hub.now_ms())
    if not held:
        raise HubError(
            401, "IotHubUnauthorizedAccess", "the token is missing, has expired, or is for another hub", 401002
        )
    if not held & set(rights):
        raise HubError(401, "IotHubUnauthorizedAccess", f"the policy does not give {' or '.join(rights)}", 401002)


async def _meet_trouble(emulator: "Emulator", request: Request, operation: str) -> None:
    fault = emulator.faults.take(troubles.SERVICE, str(address_in(request)))
    if fault is not None:
        if fault.delay_ms:
            await asyncio.sleep(fault.delay_ms / 1000)
        if fault.kind == troubles.THROTTLE:
            raise HubError(_THROTTLED, "ThrottlingException", "a fault", 429001)
        if fault.kind != troubles.DELAY:
            raise HubError(fault.code or 500, "ServerError", "a fault")
    if operation and not emulator.rates.take(operation, emulator.hub.now_ms()):
        raise HubError(_THROTTLED, "ThrottlingException", f"too many requests of the kind {operation}", 429001)


async def _body(request: Request) -> Any:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > BODY_BYTES_MAX:
            raise HubError(413, "RequestEntityTooLarge", f"a body has at most {BODY_BYTES_MAX} bytes")
    if not data.strip():
        return None
    try:
        return json.loads(bytes(data))
    except (ValueError, RecursionError, ContractError):
        raise HubError(400, "ArgumentInvalid", "the body is no JSON") from None
