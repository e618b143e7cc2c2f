"""The emulator's HTTP: the service API and the administration in one application."""

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from device_sim.iothub import admin, rest_registry, rest_service

if TYPE_CHECKING:
    from device_sim.iothub.running import Emulator


def make_app(emulator: "Emulator") -> ASGIApp:
    """The application; what a request changed is durable before its answer begins."""
    # Queries stand before devices, for whose name they would be taken.
    routes = [*admin.routes(emulator), *rest_service.routes(emulator), *rest_registry.routes(emulator)]
    app = Starlette(routes=routes)

    async def committing(scope: Scope, receive: Receive, send: Send) -> None:
        async def commit_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                emulator.commit()
            await send(message)

        await app(scope, receive, commit_and_send)

    return committing
