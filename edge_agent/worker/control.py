"""The worker's end of the control channel. Runs on the event loop."""

import asyncio
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from edge_agent.serving.channel import Message, MessageReader, close_fds, encode_message, receive, send_message
from edge_agent.worker.limits import CONTROL_WAITING_BYTES_MAX
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

_log = logging.getLogger(__name__)


class Control:
    """Sends events to the agent without ever blocking, and passes its commands on.

    Attributes:
        dropped: Samples dropped because the agent did not read.
    """

    def __init__(self, sock: socket.socket, on_message: Callable[[Message], None], on_end: Callable[[], None]) -> None:
        """Take the socket and begin to read.

        Args:
            sock: The worker's end of the pair; owned from now on.
            on_message: Gets each command and owns its descriptors.
            on_end: Called once when the agent is gone or talks nonsense.
        """
        self.dropped = 0
        self._sock = sock
        self._on_message = on_message
        self._on_end = on_end
        self._reader = MessageReader()
        self._out: deque[tuple[memoryview, list[int]]] = deque()
        self._out_bytes = 0
        self._is_ended = False
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)
        self._loop.add_reader(sock, self._on_readable)

    def _on_readable(self) -> None:
        try:
            data, fds = receive(self._sock)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end()
            return
        if not data:
            close_fds(fds)
            self._end()
            return
        try:
            for message in self._reader.feed(data, fds):
                self._on_message(message)
        except (EdgeError, KeyError, TypeError, ValueError) as error:
            _log.error("the control channel is of no use any more: %s", error)
            self._end()

    def _end(self) -> None:
        if not self._is_ended:
            self._is_ended = True
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._reader.close()
            for _line, fds in self._out:
                close_fds(fds)
            self._on_end()

    def send(self, event: JsonObject, fds: Sequence[int] = ()) -> None:
        """Send an event; descriptors are closed once they are on their way."""
        self._queue(encode_message(event, len(fds)), list(fds))

    def offer_samples(self, records: Sequence[JsonObject]) -> None:
        """Send samples if the agent keeps up, else drop them."""
        for record in records:
            if self._out_bytes > CONTROL_WAITING_BYTES_MAX:
                self.dropped += 1
                continue
            self._queue(encode_message({"event": "sample", "record": record}), [])

    def _queue(self, line: bytes, fds: list[int]) -> None:
        if self._is_ended:
            close_fds(fds)
            return
        self._out.append((memoryview(line), fds))
        self._out_bytes += len(line)
        if len(self._out) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._out:
            line, fds = self._out[0]
            try:
                sent = send_message(self._sock, line, fds)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._sock, self._flush)
                return
            except OSError:
                self._end()
                return
            close_fds(fds)
            self._out_bytes -= sent
            if sent == len(line):
                self._out.popleft()
            else:
                self._out[0] = (line[sent:], [])
        self._loop.remove_writer(self._sock)


def watch_agent(fd: int, grace_ms: int) -> None:
    """End this process when the agent is gone, even while the event loop is stuck in a model.

    Args:
        fd: The control socket; only polled.
        grace_ms: How long the process may take to end by itself.
    """

    def watch() -> None:
        poller = select.poll()
        poller.register(fd, 0)  # hang-up is always reported
        while not any(event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _fd, event in poller.poll()):
            pass
        time.sleep(grace_ms / 1000)
        os._exit(1)

    threading.Thread(target=watch, name="agent-watch", daemon=True).start()
