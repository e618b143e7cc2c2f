"""The worker's end of the control channel, which may outlast one agent. Runs on the event loop."""

import asyncio
import contextlib
import errno
import logging
import socket
from collections import deque
from collections.abc import Callable, Sequence

from edge_agent.serving.channel import Message, MessageReader, close_fds, encode_message, receive, send_message
from edge_agent.worker.limits import CONTROL_WAITING_BYTES_MAX, INFLIGHT_RETRY_MS, KEEPS_WAITING_MAX
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

_log = logging.getLogger(__name__)


def sample_line(record: JsonObject) -> bytes:
    """The message for one sample. Any thread: writing it takes longer than many an answer, so not the event loop's."""
    return encode_message({"event": "sample", "record": record})


class Control:
    """Sends events to the agent without ever blocking, and passes its commands on.

    Without an agent events are lost; samples wait for the next one within the bound that they always have.

    Attributes:
        dropped: Samples dropped because the agent did not read.
    """

    def __init__(self, sock: socket.socket, on_message: Callable[[Message], None], on_end: Callable[[], None]) -> None:
        """Take the socket and begin to read.

        Args:
            sock: The worker's end of the pair; owned from now on.
            on_message: Gets each command and owns its descriptors.
            on_end: Called when the agent is gone or talks nonsense; once for each `attach`.
        """
        self.dropped = 0
        self._on_message = on_message
        self._on_end = on_end
        self._reader = MessageReader()
        self._out: deque[tuple[memoryview, list[int]]] = deque()
        self._out_bytes = 0
        self._samples: deque[bytes] = deque()
        self._samples_bytes = 0
        self._is_ended = False
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self.attach(sock)

    @property
    def is_connected(self) -> bool:
        """Whether there is an agent, as far as is known."""
        return not self._is_ended

    def fileno(self) -> int:
        """The descriptor of the control socket."""
        return self._sock.fileno()

    def attach(self, sock: socket.socket) -> None:
        """Speak with another agent from now on; the one before is gone.

        Args:
            sock: Connected with it; owned from now on.
        """
        if sock is not self._sock:
            self._sock.close()
        self._sock = sock
        self._reader = MessageReader()
        self._is_ended = False
        sock.setblocking(False)
        self._loop.add_reader(sock, self._on_readable)

    def look(self) -> None:
        """Take what has come at once, the end of the agent above all."""
        while not self._is_ended and self._on_readable():
            pass

    def _on_readable(self) -> bool:
        """Take what has come; false when that was nothing."""
        try:
            data, fds = receive(self._sock)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self._end()
            return False
        if not data:
            close_fds(fds)
            self._end()
            return False
        try:
            for message in self._reader.feed(data, fds):
                self._on_message(message)
        except (EdgeError, KeyError, IndexError, OSError, TypeError, ValueError) as error:
            # What came with the rest of it cannot be told from what comes next any more.
            _log.error("the control channel is of no use any more: %s", error)
            self._end()
        return True

    def _break_off(self, sock: socket.socket) -> None:
        """End what cannot be written to, after what the agent said before its end."""
        if sock is self._sock:
            self.look()
            self._end()

    def _end(self) -> None:
        if not self._is_ended:
            self._is_ended = True
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._reader.close()
            with contextlib.suppress(OSError):  # seen by an agent that is still there: it talked nonsense
                self._sock.shutdown(socket.SHUT_RDWR)
            for _line, fds in self._out:
                close_fds(fds)
            self._out.clear()
            self._out_bytes = 0
            self._on_end()

    def send(self, event: JsonObject, fds: Sequence[int] = ()) -> None:
        """Send an event; descriptors are closed once they are on their way.

        Duplicates of connections (`keep`) are left out while the agent reads nothing: they are cut if this one crashes.
        """
        if fds and event.get("event") == "keep" and len(self._out) >= KEEPS_WAITING_MAX:
            close_fds(fds)
            return
        self._queue(encode_message(event, len(fds)), list(fds))

    def offer_samples(self, lines: Sequence[bytes]) -> None:
        """Send samples, as `sample_line` writes them, if the agent keeps up, else drop them."""
        for line in lines:
            if self._out_bytes + self._samples_bytes > CONTROL_WAITING_BYTES_MAX:
                self.dropped += 1
                continue
            if self._is_ended:
                self._samples.append(line)
                self._samples_bytes += len(line)
            else:
                self._queue(line, [])

    def send_waiting(self) -> None:
        """Send the samples that waited for another agent."""
        self._samples_bytes = 0
        while self._samples:
            self._queue(self._samples.popleft(), [])

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
            except OSError as error:
                self._loop.remove_writer(self._sock)
                if error.errno == errno.ETOOMANYREFS:  # unix(7): of all processes of this user; they will be read
                    self._loop.call_later(INFLIGHT_RETRY_MS / 1000, self._flush)
                    return
                self._loop.call_soon(self._break_off, self._sock)
                return
            close_fds(fds)
            self._out_bytes -= sent
            if sent == len(line):
                self._out.popleft()
            else:
                self._out[0] = (line[sent:], [])
        self._loop.remove_writer(self._sock)
