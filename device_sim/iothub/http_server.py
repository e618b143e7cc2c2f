"""HTTP on the emulator's event loop: one application on one listening socket. The one place that knows uvicorn."""

import asyncio
import socket
from pathlib import Path
from typing import Final

import uvicorn
from starlette.types import ASGIApp

_POLL_S: Final = 0.01
_GRACE_S: Final = 2
_STOP_S: Final = 5.0


class HttpServer:
    """Serves an application on one socket. On the loop."""

    def __init__(self) -> None:
        """Nothing is served yet."""
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, app: ASGIApp, listener: socket.socket, tls: tuple[Path, Path] | None = None) -> None:
        """Serve; returns when clients can connect.

        Args:
            app: What answers.
            listener: A bound socket, the server's from now on.
            tls: Certificate and key, or none for plain HTTP.
        """
        config = uvicorn.Config(
            app,
            ssl_certfile=tls[0] if tls else None,
            ssl_keyfile=tls[1] if tls else None,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=_GRACE_S,
        )
        self._server = uvicorn.Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started and not self._task.done():  # noqa: ASYNC110 - it offers nothing to wait for
            await asyncio.sleep(_POLL_S)

    async def stop(self) -> None:
        """Close everything; harmless when nothing is served."""
        if self._server is None or self._task is None:
            return
        self._server.should_exit = True
        # Clients keep connections for their next request; nobody is to wait until they close them.
        for connection in list(self._server.server_state.connections):
            if (transport := getattr(connection, "transport", None)) is not None:
                transport.abort()
        await asyncio.wait([self._task], timeout=_STOP_S)
        self._server = self._task = None
