"""Runs the application: one socket, one uvicorn server, a graceful end on SIGTERM and SIGINT."""

import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Final

from cloud_registry.config import RegistryConfig
from cloud_registry.limits import CONNECTIONS_WAITING_MAX, HEADER_BYTES_MAX, STOP_TIMEOUT_S
from edge_contract.errors import EdgeError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_log: Final = logging.getLogger(__name__)
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def listen(config: RegistryConfig) -> socket.socket:
    """A socket that is bound and listens, so that clients queue up from now on; close it, or give it to `run_server`.

    Raises:
        EdgeError: `config.invalid` if the address cannot be had.
    """
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        # With the protocol named, asyncio switches Nagle's algorithm off for each connection; without it every small
        # answer waits some 40 ms for the other side's delayed acknowledgement.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise EdgeError("config.invalid", f"{config.host!r} is not an address of this machine: {error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
        listener.listen(CONNECTIONS_WAITING_MAX)
    except OSError as error:
        listener.close()
        hint = "Is another registry running? Choose another --port, or 0 for any."
        raise EdgeError("config.invalid", f"cannot listen on {config.host}:{config.port}: {error}", hint) from None
    return listener


def url_of(config: RegistryConfig, listener: socket.socket) -> str:
    """The base URL under which a listening socket is reached."""
    scheme = "https" if config.tls_cert else "http"
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{scheme}://{host}:{listener.getsockname()[1]}"


def run_server(app: "ASGIApp", config: RegistryConfig, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serve until a signal comes, then finish the requests in flight, bounded. Call it from the main thread.

    Args:
        app: The application.
        config: For TLS.
        listener: The socket; closed at the end.
        on_ready: Called once when requests are being answered.
    """
    import uvicorn

    class Server(uvicorn.Server):
        """Says when it is ready."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """Start, then say so."""
            await super().startup(sockets)
            on_ready()

    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ssl_certfile=config.tls_cert,
        ssl_keyfile=config.tls_key,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
        h11_max_incomplete_event_size=HEADER_BYTES_MAX,
    )
    server = Server(settings)

    def on_signal(number: int, _frame: FrameType | None) -> None:
        # Before the server is ready it has no handlers of its own. Afterwards it raises each signal it took once more,
        # for whoever was here before: this handler then keeps the process from ending as if it had been killed.
        _log.info("signal %d, stopping", number)
        server.should_exit = True

    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listener.close()
