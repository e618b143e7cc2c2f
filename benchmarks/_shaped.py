"""A TCP proxy on 127.0.0.1 that lets every connection have so many kilobits a second, as a slow link would."""

import asyncio
import contextlib
import threading
from typing import Final, Self

_PIECE_BYTES: Final = 4_096
_STOP_S: Final = 10.0


class ShapedLink:
    """Passes connections on to one port, each at its own speed towards the client.

    Attributes:
        port: Where it listens, once entered.
        passed: Bytes that it passed towards clients.
    """

    def __init__(self, target_port: int, kbps: float) -> None:
        """Stand before `target_port` on 127.0.0.1; `kbps` are thousands of bits a second for each connection."""
        self._target_port = target_port
        self._bytes_per_s = kbps * 1_000 / 8
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="shaped-link", daemon=True)
        self._server: asyncio.Server | None = None
        self.port = 0
        self.passed = 0

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(_STOP_S)
        return self

    def __exit__(self, *_: object) -> None:
        """Cut every connection and end."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_STOP_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_S)
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1_024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            there, to = await asyncio.open_connection("127.0.0.1", self._target_port)
            up = asyncio.create_task(self._pass(reader, to, None))
            try:
                await self._pass(there, writer, self._bytes_per_s)
            finally:
                up.cancel()
                to.close()
        writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, speed: float | None) -> None:
        loop = asyncio.get_running_loop()
        free_at = loop.time()
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE_BYTES):
                writer.write(data)
                await writer.drain()
                if speed is not None:
                    self.passed += len(data)
                    # The next piece may go when this one would have left the link.
                    free_at = max(free_at, loop.time()) + len(data) / speed
                    await asyncio.sleep(free_at - loop.time())
        with contextlib.suppress(OSError):
            writer.close()
