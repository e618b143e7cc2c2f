"""What every request passes through: a bound on the size and silence of bodies, and the access log."""

import asyncio
import logging
import time
from typing import Final
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloud_registry.api.auth import authenticate
from cloud_registry.api.problems import problem_response
from cloud_registry.core.roles import Principal, Role
from cloud_registry.limits import METADATA_REQUEST_BYTES_MAX, REQUEST_BYTES_MAX, UPLOAD_SILENCE_S_MAX
from cloud_registry.metrics import METRICS
from cloud_registry.ports import Authenticator
from edge_contract.errors import EdgeError

METADATA_PATH: Final = "/api/v1/trust/metadata"
_API: Final = "/api/"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_log: Final = logging.getLogger("cloud_registry.access")


class BodyBound:
    """Refuses bodies of the JSON interface that are too long or never end. Blob uploads have bounds of their own."""

    def __init__(self, app: ASGIApp, tokens: Authenticator) -> None:
        """Wrap an application; `tokens` tells who may send the one kind of long body."""
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] != "http" or not scope["path"].startswith(_API):
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        bytes_max = REQUEST_BYTES_MAX
        if scope["path"] == METADATA_PATH and await run_in_threadpool(self._is_publisher, request):
            bytes_max = METADATA_REQUEST_BYTES_MAX
        too_large = EdgeError("cloud.too-large", f"a request to {scope['path']} has at most {bytes_max} bytes")
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > bytes_max:
            await problem_response(request, too_large)(scope, receive, send)
            return
        count = 0
        is_whole = False

        async def bounded() -> Message:
            nonlocal count, is_whole
            if is_whole:
                return await receive()
            try:
                async with asyncio.timeout(UPLOAD_SILENCE_S_MAX):
                    message = await receive()
            except TimeoutError:
                raise EdgeError("network.timeout", f"no byte came for {UPLOAD_SILENCE_S_MAX} seconds") from None
            count += len(message.get("body", b""))
            if count > bytes_max:
                raise too_large
            is_whole = not message.get("more_body", False)
            return message

        await self._app(scope, bounded, send)

    def _is_publisher(self, request: Request) -> bool:
        try:
            return authenticate(self._tokens, request.headers.get("authorization")).may(Role.PUBLISHER)
        except EdgeError:
            return False  # the route itself refuses it, and says why


class AccessLog:
    """One line a request: who, what, how it ended, how long it took. No query strings, no headers, no bodies."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            seconds = time.monotonic() - started
            METRICS.requests.labels(_method(scope["method"]), f"{status // 100}xx").inc()
            METRICS.request_seconds.observe(seconds)
            principal = scope.get("state", {}).get("principal")
            _log.info(
                "%s %s %s %d %dms",
                principal.name if isinstance(principal, Principal) else "-",
                scope["method"],
                quote(scope["path"]),
                status,
                seconds * 1000,
            )


def _method(method: str) -> str:
    """A method for a metric's label: whoever makes up methods makes up no labels."""
    return method if method in _METHODS else "other"
