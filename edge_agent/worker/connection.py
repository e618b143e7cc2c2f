"""One client connection: receives requests one after the other, sends answers, and can be handed over at any moment
at which no part of an answer is on its way. Runs on the worker's event loop and nowhere else."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from enum import Enum, auto
from http import HTTPStatus
from typing import Final, Protocol

from edge_agent.frames import FIRST_BYTE
from edge_agent.serving.page import BUSY, IDLE, WRITING
from edge_agent.worker.budget import Budget
from edge_agent.worker.http import (
    CONTINUE,
    INFERENCE_LENGTH,
    BadRequestError,
    ChunkedBody,
    Head,
    Request,
    Response,
    find_head,
    too_large,
)
from edge_agent.worker.ledger import Ledger
from edge_agent.worker.limits import JOIN_BYTES_MAX, LINGER_BYTES_MAX, SEND_PARTS_MAX, WorkerLimits

LENGTH_DIGITS_MAX: Final = 12
_FRAME: Final = bytes((FIRST_BYTE,))
_AGAIN: Final = (BlockingIOError, InterruptedError)


class Stage(Enum):
    """Where a connection stands."""

    READING = auto()  # waits for a request, or has received a part of one
    RUNNING = auto()  # a request is being computed
    WRITING = auto()  # its answer is on its way
    LINGERING = auto()  # refused; reads what the client still sends
    CLOSED = auto()


# Looking up a member of an Enum costs more than a name, and each request does it a dozen times.
_READING, _RUNNING, _WRITING, _LINGERING, _CLOSED = Stage


class Host(Protocol):
    """What a connection needs of its owner."""

    limits: WorkerLimits
    common_headers: str
    budget: Budget
    scratch: memoryview
    ledger: Ledger

    def handle(self, connection: "Connection", request: Request) -> None:
        """Compute an answer and give it to `connection.respond`, at once or later."""
        ...

    def refuse(self, status: HTTPStatus, detail: str) -> Response:
        """The answer to a request that cannot be read."""
        ...

    def reserve(self, byte_count: int) -> bool:
        """Ask for room for bytes of a body (negative: give it back)."""
        ...

    def speaks_frames(self, connection: "Connection") -> bool:
        """Told of a connection that begins a request with the first byte of a frame; true when it is taken away."""
        ...

    def between_requests(self, connection: "Connection") -> bool:
        """Told after each answer; false when the connection does not stay here."""
        ...

    def forget(self, connection: "Connection") -> None:
        """Told once, when the connection is closed or released."""
        ...


class Connection:
    """A connection and its state. See the module for threads.

    Attributes:
        kind: `unix` or `tcp`.
        stage: Where it stands.
        since: Monotonic seconds at which the stage was entered, or the request begun.
        has_asked: Whether a request came on it, here or at another worker.
    """

    def __init__(self, host: Host, sock: socket.socket, kind: str, pending: bytes = b"") -> None:
        """Take a connected, non-blocking socket.

        Args:
            host: Its owner.
            sock: Owned from now on.
            kind: `unix` or `tcp`.
            pending: Bytes that another worker has received on it and not answered.
        """
        self.kind = kind
        self.stage = _READING
        self.since = time.monotonic()
        self.has_asked = bool(pending)
        self._host = host
        self._sock = sock
        self._states = host.ledger.states  # written in time: it is what the agent finds when this process is killed
        self._slot = host.ledger.slot(sock.fileno())
        self._loop = asyncio.get_running_loop()
        self._is_read_watched = False
        self._is_advancing = False
        self._reserved = 0
        self._out: list[memoryview] = []
        self._is_last = False
        self._is_refused = False
        self._lingered = 0
        self._received = bytearray(pending)
        self._scanned = 0
        self._known = b""  # the last head, and what it was read as: clients send the same one again and again
        self._known_head: Head | None = None
        self._place: memoryview | None = None  # of a body that came in pieces
        self._forget_request()

    def _forget_request(self) -> None:
        self._request: Request | None = None
        self._head: Head | None = None
        self._head_bytes = b""
        self._chunked: ChunkedBody | None = None
        self._chunked_bytes = b""
        self._body: memoryview | bytes | None = None
        self._filled = 0
        if self._place is not None:
            self._host.budget.keep(self._place)
            self._place = None
        if self._reserved:
            self._host.reserve(-self._reserved)
            self._reserved = 0

    @property
    def is_idle(self) -> bool:
        """Whether no byte of a request has come."""
        return self.stage is _READING and self._head is None and not self._received

    def start(self) -> None:
        """Begin to read; pending bytes first."""
        self._watch(True)
        if self._received:
            self._advance()

    # --- receiving

    def _watch(self, is_on: bool) -> None:
        if is_on != self._is_read_watched:
            self._is_read_watched = is_on
            if is_on:
                self._loop.add_reader(self._sock, self._on_readable)
            else:
                self._loop.remove_reader(self._sock)

    def _on_readable(self) -> None:
        if self.stage in (_RUNNING, _WRITING):
            self._look_ahead()
            return
        if self.stage is _READING:
            self._states[self._slot] = BUSY
        try:
            if self._body is not None and self.stage is _READING:
                assert self._place is not None
                count = self._sock.recv_into(self._place[self._filled :])
                self._filled += count
            else:
                scratch = self._host.scratch
                count = self._sock.recv_into(scratch)
                data = bytes(scratch[:count])
                if self.stage is _LINGERING:
                    self._lingered += count
                    if not count or self._lingered > LINGER_BYTES_MAX:
                        self.close()
                    return
                if self.is_idle:
                    self.since = time.monotonic()
                    if self._goes_on_as_before(data):
                        return
                    if data[:1] == _FRAME:
                        self._received += data
                        if self._host.speaks_frames(self):
                            return
                        data = b""
                self._received += data
        except _AGAIN:
            if self.is_idle:
                self._states[self._slot] = IDLE
            return
        except OSError:
            self.close()
            return
        if count:
            self._advance()
        else:
            self.close()

    def _goes_on_as_before(self, data: bytes) -> bool:
        """The short way of a request that has the same head as the one before, if this is one."""
        head, start = self._known_head, len(self._known)
        if head is None or not data.startswith(self._known):
            return False
        size, have = head.body_bytes or 0, len(data) - start
        if have > size:
            return False
        self._head_bytes, self._head = self._known, head
        if have < size:
            try:
                self._begin_body(head, size, memoryview(data)[start:])
            except BadRequestError as error:
                self.refuse(error.status, error.detail)
            return True
        self._body = data[start:]
        self._request = request = Request(head, self._body, time.monotonic_ns())
        self.stage = _RUNNING
        self._is_advancing = True
        try:
            self._host.handle(self, request)
        finally:
            self._is_advancing = False
        return True

    def _look_ahead(self) -> None:
        """While an answer is made or sent: see whether the client is gone, and leave what it sends to the kernel."""
        try:
            is_gone = not self._sock.recv(1, socket.MSG_PEEK)
        except _AGAIN:
            return
        except OSError:
            is_gone = True
        if is_gone and self.stage is _RUNNING:
            self.close()
        else:
            self._watch(False)

    def _advance(self) -> None:
        """Go on with what was received: find requests and have them handled, until one has to be waited for."""
        if self._is_advancing:
            return
        self._is_advancing = True
        try:
            while self.stage is _READING:
                request = self._next_request()
                if request is None:
                    break
                self.stage = _RUNNING
                self._request = request
                self._host.handle(self, request)
        except BadRequestError as error:
            self.refuse(error.status, error.detail)
        finally:
            self._is_advancing = False

    def _next_request(self) -> Request | None:
        if self._head is None and not self._begin():
            return None
        head = self._head
        assert head is not None
        if self._chunked is not None:
            self._reserve(len(self._received))
            end = self._chunked.scan(self._received)
            if end is None:
                return None
            body: bytes | memoryview = self._chunked.body(self._received)
            self._chunked_bytes = bytes(self._received[:end])
            del self._received[:end]
        elif self._body is not None:
            if self._filled < len(self._body):
                return None
            body = self._body
        else:
            size = head.body_bytes or 0
            if len(self._received) < size:
                self._begin_body(head, size, self._received)
                self._received.clear()
                return None
            body = bytes(self._received[:size])
            del self._received[:size]
        self._body = body
        return Request(head, body, time.monotonic_ns())

    def _begin(self) -> bool:
        """Read a head, once it is whole."""
        while self._received[:2] == b"\r\n":  # RFC 9112 2.2: empty lines before a request are ignored
            del self._received[:2]
            self._scanned = 0
        head = self._known_head
        if head is not None and self._received.startswith(self._known):
            end = len(self._known)
        else:
            head = None
            end = find_head(self._received, self._scanned)
        if not end:
            self._scanned = len(self._received)
            return False
        self._scanned = 0
        self._head_bytes = bytes(self._received[:end])
        del self._received[:end]
        head = head or self._read_head()
        bytes_max = self._host.limits.body_bytes_max
        if head.body_bytes is None:
            self._chunked = ChunkedBody(bytes_max)
        elif head.body_bytes > bytes_max:
            raise BadRequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large(bytes_max))
        self._head = head
        if head.expects_continue and not self._received and head.body_bytes != 0:
            with contextlib.suppress(OSError):
                self._sock.send(CONTINUE)
        return True

    def _read_head(self) -> Head:
        head = Head(self._head_bytes)
        if head.body_bytes is not None and not head.expects_continue:
            self._known, self._known_head = self._head_bytes, head
        return head

    def _begin_body(self, head: Head, size: int, begin: bytearray | memoryview) -> None:
        """Receive a body into a place of its own."""
        self._reserve(size)
        self._body = self._place = self._host.budget.lend(size, _tensors_begin(head))
        self._filled = len(begin)
        self._place[: self._filled] = begin

    def _reserve(self, total: int) -> None:
        more = total - self._reserved
        if more > 0:
            if not self._host.reserve(more):
                raise BadRequestError(HTTPStatus.SERVICE_UNAVAILABLE, "too many large requests at once; try again")
            self._reserved = total

    # --- answering

    def respond(self, request: Request, response: Response, is_last: bool = False) -> bool:
        """Send the answer to the request that is being handled.

        Args:
            request: What it answers.
            response: The answer.
            is_last: Whether to end the connection after it.

        Returns:
            False when nobody waits for it any more: too late, handed over, or the client is gone.
        """
        if self._request is not request:
            return False
        self._is_last = is_last or not request.head.is_keep_alive
        self._send(response, with_body=request.head.method != "HEAD")
        return True

    def refuse(self, status: HTTPStatus, detail: str) -> None:
        """Answer whatever is going on with a refusal and end the connection."""
        self.stage = _RUNNING
        self._is_refused = True
        self._is_last = True
        self._send(self._host.refuse(status, detail), with_body=True)

    def _send(self, response: Response, with_body: bool) -> None:
        self._request = None
        size = sum(map(len, response.parts))
        parts: list[bytes | memoryview] = [response.head(self._host.common_headers, self._is_last, size)]
        if with_body:
            parts += response.parts
            if size <= JOIN_BYTES_MAX:
                parts = [b"".join(parts)]
        self.stage = _WRITING
        self._states[self._slot] = WRITING
        self.since = time.monotonic()
        self._out = [memoryview(part) for part in parts if len(part)]
        if self._write():
            self._sent()
        elif self.stage is _WRITING:
            self._loop.add_writer(self._sock, self._on_writable)

    def _write(self) -> bool:
        """Send what the kernel takes; true when all is sent. Closes on an error."""
        try:
            while self._out:
                if len(self._out) == 1:
                    sent = self._sock.send(self._out[0])
                else:
                    sent = self._sock.sendmsg(self._out[:SEND_PARTS_MAX])
                while self._out and sent >= len(self._out[0]):
                    sent -= len(self._out.pop(0))
                if sent:
                    self._out[0] = self._out[0][sent:]
        except _AGAIN:
            return False
        except OSError:
            self.close()
            return False
        return True

    def _on_writable(self) -> None:
        if self._write():
            self._loop.remove_writer(self._sock)
            self._sent()
            self._advance()

    def _sent(self) -> None:
        self.has_asked = True
        self._forget_request()
        self.since = time.monotonic()
        if self._is_last:
            if self._is_refused:
                self._linger()
            else:
                self.close()
            return
        self.stage = _READING
        self._states[self._slot] = BUSY if self._received else IDLE
        if self._host.between_requests(self):
            self._watch(True)
            # An answer that came later than its request was read: nobody else goes on.
            if self._received and not self._is_advancing:
                self._loop.call_soon(self._advance)

    def _linger(self) -> None:
        """Say that nothing more will be sent, and read on for a while.

        Closing with unread bytes would reset the connection, and a reset can overtake the answer.
        """
        self.stage = _LINGERING
        self._received.clear()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        self._watch(True)

    # --- leaving

    def release(self) -> tuple[int, bytes]:
        """Give the connection away: its descriptor, and the bytes of a request that came and was not answered.

        Must not be called while an answer is on its way.
        """
        if self.stage is _RUNNING and self._chunked is not None:
            unread = self._head_bytes + self._chunked_bytes + bytes(self._received)
        elif self.stage is _RUNNING:
            unread = b"".join((self._head_bytes, self._body or b"", self._received))
        else:
            body = b"" if self._body is None else self._body[: self._filled]
            unread = b"".join((self._head_bytes, body, self._received))
        self._leave()
        return self._sock.detach(), unread

    def close(self) -> None:
        """End the connection."""
        if self.stage is not _CLOSED:
            if self._request is not None:
                self._request.is_gone = True
            self._leave()
            self._host.ledger.close(self._sock)

    def _leave(self) -> None:
        self._watch(False)
        self._loop.remove_writer(self._sock)
        request = self._request
        self._forget_request()
        self.stage = _CLOSED
        if request is not None and request.on_gone is not None:
            request.on_gone()
        self._out = []
        self._received = bytearray()
        self._host.forget(self)


def _tensors_begin(head: Head) -> int:
    """Where the binary data of an inference request begins in its body."""
    value = head.headers.get(INFERENCE_LENGTH, b"0")
    return int(value) if value.isdigit() and len(value) <= LENGTH_DIGITS_MAX else 0


Respond = Callable[[Response], bool]
"""Takes the answer to one request, on the event loop; false when nobody waits for it any more."""
