"""IoT Edge's workload API over a unix socket: what a module's process asks the runtime beside it for.

The real one knows the calling module by its process; this one believes the path, because it serves tests of one user.
Source: Azure IoT Edge, edgelet workload API, version 2020-07-07; measured against azure-iot-device 2.15.0rc1.
"""

import base64
import binascii
import hashlib
import hmac
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from device_sim.iothub.http_server import HttpServer
from device_sim.iothub.identities import HubError, Identity
from device_sim.iothub.service_limits import WORKLOAD_BODY_BYTES_MAX
from edge_contract.hub import HubAddress
from edge_contract.jsonio import JsonObject

if TYPE_CHECKING:
    from device_sim.iothub.running import Emulator

API_VERSION: Final = "2020-07-07"
_NONCE_BYTES: Final = 12
_NAME_BYTES_MAX: Final = 100  # Linux takes 107 bytes as the name of a socket


class Workload:
    """The workload API of one emulated IoT Edge device. A context manager; any thread."""

    def __init__(self, emulator: "Emulator", device: str, path: Path) -> None:
        """Serve a device of a running emulator.

        Args:
            emulator: Where the device is registered.
            device: Its identifier.
            path: Of the socket; a file that is there is replaced.

        Raises:
            ValueError: the path is too long for a socket.
        """
        if len(bytes(path)) > _NAME_BYTES_MAX:
            raise ValueError(f"{path} is too long for a socket: at most {_NAME_BYTES_MAX} bytes")
        self._emulator, self.device, self.path = emulator, device, path
        self._server = HttpServer()

    def __enter__(self) -> "Workload":
        """Start."""
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Stop."""
        self.stop()

    def start(self) -> None:
        """Listen; returns when clients can connect."""
        self._emulator.run(self._start())

    def stop(self) -> None:
        """Close; harmless when it is closed, or when the emulator is."""
        if not self._emulator.loop.is_closed():
            self._emulator.run(self._server.stop())
        self.path.unlink(missing_ok=True)

    def environment(self, module: str) -> dict[str, str]:
        """What the runtime sets in the environment of a module's container.

        Raises:
            HubError: 404.
        """
        address = HubAddress(self.device, module)
        generation = self._emulator.call(lambda: self._emulator.hub.identity(address).generation)
        return {
            "IOTEDGE_WORKLOADURI": f"unix://{self.path}",
            "IOTEDGE_APIVERSION": API_VERSION,
            "IOTEDGE_AUTHSCHEME": "sasToken",
            "IOTEDGE_MODULEGENERATIONID": generation,
            "IOTEDGE_IOTHUBHOSTNAME": self._emulator.name,
            "IOTEDGE_GATEWAYHOSTNAME": self._emulator.host,
            "IOTEDGE_DEVICEID": self.device,
            "IOTEDGE_MODULEID": module,
        }

    async def _start(self) -> None:
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(self.path))
            self.path.chmod(0o600)
            await self._server.start(make_app(self._emulator, self.device), listener)
        except BaseException:
            listener.close()
            raise


def make_app(emulator: "Emulator", device: str) -> Starlette:
    """The application for one device."""
    api = _Api(emulator, device)
    module = "/modules/{module}/genid/{generation}"
    return Starlette(
        routes=[
            _route("GET", "/trust-bundle", api.trust_bundle),
            _route("GET", "/manifest-trust-bundle", api.trust_bundle),
            _route("GET", "/modules", api.modules),
            _route("POST", f"{module}/sign", api.sign),
            _route("POST", f"{module}/encrypt", api.encrypt),
            _route("POST", f"{module}/decrypt", api.decrypt),
            _route("POST", f"{module}/certificate/server", api.server_certificate),
            _route("POST", "/modules/{module}/certificate/identity", api.identity_certificate),
        ]
    )


_Handler = Callable[[Request, JsonObject], Response]


def _route(method: str, path: str, handler: _Handler) -> Route:
    async def endpoint(request: Request) -> Response:
        try:
            if "api-version" not in request.query_params:
                raise HubError(400, "BadRequest", "the query has no api-version")
            return handler(request, await _body(request) if method == "POST" else {})
        except HubError as error:
            return JSONResponse({"message": error.detail}, error.status)

    wrapped: Callable[[Request], Awaitable[Response]] = endpoint
    return Route(path, wrapped, methods=[method])


class _Api:
    """What the requests do. On the emulator's loop."""

    def __init__(self, emulator: "Emulator", device: str) -> None:
        self._emulator, self._device = emulator, device

    def trust_bundle(self, _request: Request, _body: JsonObject) -> Response:
        # Plain PEM: clients hand it to TLS as it is, whatever the interface's description says of base64.
        return JSONResponse({"certificate": self._emulator.ca_pem})

    def modules(self, _request: Request, _body: JsonObject) -> Response:
        shown = [
            {
                "id": item.address.module,
                "name": item.address.module,
                "type": "docker",
                "config": {"settings": {}, "env": []},
                "status": {"runtimeStatus": {"status": "running" if item.connected else "stopped"}},
            }
            for item in self._emulator.hub.modules(self._device)
        ]
        return JSONResponse({"modules": shown})

    def sign(self, request: Request, body: JsonObject) -> Response:
        identity = self._module(request)
        keys = {"primary": identity.authentication.primary, "secondary": identity.authentication.secondary}
        key = keys.get(str(body.get("keyId", "primary")))
        if body.get("algo") != "HMACSHA256" or not key:
            raise HubError(400, "BadRequest", "expected algo HMACSHA256 and keyId primary or secondary")
        digest = hmac.new(base64.b64decode(key), _binary(body, "data"), hashlib.sha256).digest()
        return JSONResponse({"digest": base64.b64encode(digest).decode()})

    def encrypt(self, request: Request, body: JsonObject) -> Response:
        cipher, nonce = self._cipher(request, body)
        sealed = cipher.encrypt(nonce, _binary(body, "plaintext"), None)
        return JSONResponse({"ciphertext": base64.b64encode(sealed).decode()})

    def decrypt(self, request: Request, body: JsonObject) -> Response:
        cipher, nonce = self._cipher(request, body)
        try:
            plain = cipher.decrypt(nonce, _binary(body, "ciphertext"), None)
        except InvalidTag:
            raise HubError(400, "BadRequest", "the ciphertext is not one of this module and vector") from None
        return JSONResponse({"plaintext": base64.b64encode(plain).decode()})

    def server_certificate(self, request: Request, body: JsonObject) -> Response:
        identity = self._module(request)
        name = body.get("commonName")
        if not isinstance(name, str) or not name or len(name) > 64:
            raise HubError(400, "BadRequest", "commonName has 1 to 64 characters")
        names = tuple(dict.fromkeys((name, identity.address.module)))
        return _certificate(*self._emulator.authority.issue(name, names))

    def identity_certificate(self, request: Request, _body: JsonObject) -> Response:
        address = HubAddress(self._device, str(request.path_params["module"]))
        return _certificate(*self._emulator.authority.client(str(self._emulator.hub.identity(address).address)))

    def _module(self, request: Request) -> Identity:
        address = HubAddress(self._device, str(request.path_params["module"]))
        identity = self._emulator.hub.identity(address)
        if identity.generation != request.path_params["generation"]:
            raise HubError(404, "NotFound", f"module {address.module} has another generation")
        return identity

    def _cipher(self, request: Request, body: JsonObject) -> tuple[AESGCM, bytes]:
        key = base64.b64decode(self._module(request).authentication.primary)
        vector = _binary(body, "initializationVector")
        # One key a vector, so that a vector used twice for other texts gives away no key stream of another.
        derived = hmac.new(key, b"workload\0" + vector, hashlib.sha256).digest()
        return AESGCM(derived), hashlib.sha256(vector).digest()[:_NONCE_BYTES]


def _certificate(pem: str, key: str) -> Response:
    ends = x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc
    body = {"privateKey": {"type": "key", "bytes": key}, "certificate": pem, "expiration": ends.isoformat()}
    return JSONResponse(body, 201)


def _binary(body: JsonObject, key: str) -> bytes:
    try:
        return base64.b64decode(body.get(key, ""), validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise HubError(400, "BadRequest", f"{key} is no base64") from None


async def _body(request: Request) -> JsonObject:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > WORKLOAD_BODY_BYTES_MAX:
            raise HubError(413, "TooLarge", f"a body has at most {WORKLOAD_BODY_BYTES_MAX} bytes")
    try:
        value: Any = json.loads(bytes(data) or b"{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise HubError(400, "BadRequest", "the body is no JSON object")
    return value
