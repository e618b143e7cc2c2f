"""HTTP on the emulator's loop: one place that knows uvicorn."""

import asyncio
import socket
from pathlib import Path
from typing import Final

import uvicorn
from starlette.types import ASGIApp

_POLL_S: Final = 0.01
_STOP_S: Final = 5.0


class HttpServer:
    """Serves an application on one socket. On one loop."""

    def __init__(self, app: ASGIApp, tls: tuple[Path, Path] | None = None) -> None:
        """Nothing is served yet.

        Args:
            app: What answers.
            tls: Files of a certificate and its key, or none for plain HTTP.
        """
        self._app, self._tls = app, tls
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, listener: socket.socket) -> None:
        """Serve a bound socket, which belongs to the server from now on; returns when clients can connect."""
        config = uvicorn.Config(
            self._app,
            ssl_certfile=self._tls[0] if self._tls else None,
            ssl_keyfile=self._tls[1] if self._tls else None,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started and not self._task.done():  # noqa: ASYNC110 - it offers nothing to wait for
            await asyncio.sleep(_POLL_S)

    async def stop(self) -> None:
        """End; harmless when nothing is served."""
        if self._server is None or self._task is None:
            return
        self._server.should_exit = True
        # Clients keep connections for their next request; nobody is to wait until they close them.
        for connection in list(self._server.server_state.connections):
            if (transport := getattr(connection, "transport", None)) is not None:
                transport.abort()
        await asyncio.wait([self._task], timeout=_STOP_S)
        self._server = self._task = None
