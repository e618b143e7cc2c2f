"""The lane of frames: connections with a thread each and bounds for all of them, handed over at a frame's boundary.

A blocking thread answers a tiny model faster than an event loop does, and uses every core for a large one. Each thread
waits for its client and for one descriptor that wakes all of them. What a thread has received and not answered leaves
with its connection, so nothing is lost wherever it stood.
"""

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from edge_agent.frames import DESCRIBE, FIRST_BYTE, ID_BYTES_MAX, INFER, LAST, PREFIX, REQUEST, VERSION, invalid
from edge_agent.serving.page import BUSY, FRAMES, IDLE, WRITING
from edge_agent.worker.budget import Budget
from edge_agent.worker.cores import share_core
from edge_agent.worker.frames import FrameModels, Parts
from edge_agent.worker.ledger import Ledger
from edge_agent.worker.limits import (
    FRAME_BUFFER_BYTES,
    FRAME_STACK_BYTES,
    LINGER_BYTES_MAX,
    RECEIVE_BYTES,
    SEND_PARTS_MAX,
    WorkerLimits,
)
from edge_contract.errors import EdgeError

_log = logging.getLogger(__name__)
_AGAIN: Final = (BlockingIOError, InterruptedError)
_HEAD_BYTES: Final = REQUEST.size
_FRAME_BUSY: Final = BUSY | FRAMES
_FRAME_WRITING: Final = WRITING | FRAMES


# Where a connection stands. Numbers, because looking up the members of an Enum can be measured here.
_READING: Final = 0  # waits for a frame, or has received a part of one
_RUNNING: Final = 1  # one is being computed
_WRITING: Final = 2  # its answer is on its way
_TAKEN: Final = 3  # given away in the middle of computing
_GONE: Final = 4


class _LeavingError(Exception):
    """The worker drains: the connection leaves with what it has received."""


class _EndedError(Exception):
    """The client is gone, or was refused."""


class FrameConnection:
    """One connection; `run` is its thread, `release`, `take` and `cut` are for the event loop."""

    def __init__(self, lane: "FrameLane", sock: socket.socket, pending: bytes) -> None:
        """Take a connected socket.

        Args:
            lane: Its owner.
            sock: Owned from now on; made non-blocking.
            pending: Bytes received on it that nobody has answered.
        """
        self._lane = lane
        self._sock = sock
        sock.setblocking(False)
        self._limits = lane.limits
        self._models = lane.models
        self._unchecked_bytes = min(FRAME_BUFFER_BYTES, self._limits.body_bytes_max)
        self._use(pending)
        self._body: memoryview | None = None  # of a payload too large for the buffer
        self._filled = 0
        self._payload: bytes | memoryview = b""
        self._head: tuple[int, ...] = ()
        self._reserved = 0
        self._is_core_shared = False
        self._lock = threading.Lock()  # decides who has a request whose computing has just ended: thread or event loop
        self._stage = _READING
        self._poller = select.poll()
        self._poller.register(sock, select.POLLIN)
        self._poller.register(lane.wake_fd, select.POLLIN)
        self._fd = sock.fileno()
        self._states = lane.ledger.states  # written in time: it is what the agent finds when this process is killed
        self._slot = lane.ledger.slot(self._fd)
        self._states[self._slot] = _FRAME_BUSY if pending else IDLE

    def _use(self, received: bytes) -> None:
        """Begin with a fresh buffer that holds these bytes."""
        self._buffer = bytearray(max(FRAME_BUFFER_BYTES, len(received)))
        self._buffer[: len(received)] = received
        self._view = memoryview(self._buffer)
        self._have = len(received)

    # --- its thread

    def run(self) -> None:
        """Answer frames until the client or the worker leaves."""
        try:
            self._serve()
        except _LeavingError:
            self._lane.depart(self)
            return
        except (OSError, _EndedError):
            pass
        except Exception:  # noqa: BLE001 - one connection ends, not the worker
            _log.exception("a connection of frames met a bug")
        self._close()

    def _serve(self) -> None:
        """Answer frames until the connection is not this thread's any more, or cannot go on.

        One function for the way of a small request that comes whole: calls are what costs time here.

        Raises:
            OSError, _EndedError, _LeavingError: See there.
        """
        lane, lock, models, is_gone = self._lane, self._lock, self._models, self._is_gone
        states, slot, unpack, clock_ns = self._states, self._slot, REQUEST.unpack_from, time.monotonic_ns
        small = _HEAD_BYTES + self._unchecked_bytes
        is_quick, connections = models.is_quick, lane.connections
        while not lane.is_draining:
            if not self._have:
                self._have = self._wait_and_read(self._buffer, 0.0)
            have = self._have
            head = unpack(self._buffer)
            if have == _HEAD_BYTES + head[4] <= small and head[0] == PREFIX and not head[2] and not head[3]:
                payload: bytes | memoryview = bytes(self._view[_HEAD_BYTES:have])
                self._head, self._payload, self._have = head, payload, 0
            else:
                head, payload = self._receive()
            received_ns = clock_ns()
            if is_quick and (len(connections) > 1) is not self._is_core_shared:
                self._is_core_shared = not self._is_core_shared
                share_core(self._is_core_shared)
            self._stage = _RUNNING
            if head[1] == INFER:
                answer = models.infer(head, payload, received_ns, is_gone)
            elif head[1] == DESCRIBE:
                answer = models.describe(head[6])
            else:
                answer = models.fail(invalid(f"there is no request of kind {head[1]}"), head[6])
            with lock:
                if self._stage != _RUNNING:
                    return
                self._stage = _WRITING
            states[slot] = _FRAME_WRITING
            self._send(answer)
            states[slot] = _FRAME_BUSY if self._have else IDLE
            if self._body is not None or len(self._buffer) > FRAME_BUFFER_BYTES:
                self._tidy()
            self._stage = _READING
        raise _LeavingError

    def _tidy(self) -> None:
        """After a large request: give its room back."""
        self._lane.budget.take(-self._reserved)
        self._reserved = 0
        if self._body is not None:
            self._lane.budget.keep(self._body)
        self._body, self._payload = None, b""
        if len(self._buffer) > FRAME_BUFFER_BYTES >= self._have:
            self._use(bytes(self._view[: self._have]))

    def _receive(self) -> tuple[tuple[int, ...], bytes | memoryview]:
        """The rest of a frame that has begun: the fields of its head, and its payload."""
        buffer = self._buffer
        deadline = 0.0  # not looked at the clock yet
        if self._have < _HEAD_BYTES:
            deadline = self._deadline()
            while self._have < _HEAD_BYTES and buffer[0] == FIRST_BYTE:
                self._have += self._wait_and_read(self._view[self._have :], deadline)
        head = REQUEST.unpack_from(buffer)
        if head[0] != PREFIX:
            self._refuse_prefix()
        size, have = head[4], self._have
        if head[2] or head[3] or size > self._unchecked_bytes:
            self._check(head)
        end = _HEAD_BYTES + size
        if end > len(buffer):
            return head, self._receive_large(head, size, deadline or self._deadline())
        if have < end:
            deadline = deadline or self._deadline()
            while self._have < end:
                self._have += self._wait_and_read(self._view[self._have :], deadline)
            have = self._have
        self._head = head
        self._payload = payload = bytes(self._view[_HEAD_BYTES:end])
        if have > end:
            buffer[: have - end] = buffer[end:have]
        self._have = have - end
        return head, payload

    def _deadline(self) -> float:
        return time.monotonic() + self._limits.request_read_ms / 1000

    def _receive_large(self, head: tuple[int, ...], size: int, deadline: float) -> memoryview:
        if not self._lane.budget.take(size):
            raise self._refuse(
                EdgeError("model.overloaded", "too many large requests at once", "Try again later."), head[6]
            )
        self._reserved = size
        body = self._lane.budget.lend(size)
        self._filled = self._have - _HEAD_BYTES
        body[: self._filled] = self._view[_HEAD_BYTES : self._have]
        self._head = head
        self._body, self._have = body, 0
        while self._filled < size:
            self._filled += self._wait_and_read(body[self._filled :], deadline)
        self._payload = body
        return body

    def _wait_and_read(self, place: bytearray | memoryview, deadline: float) -> int:
        """Receive what is there, waiting for it; `deadline` in monotonic seconds, 0 for that of an idle connection."""
        while True:
            timeout_ms = max(0.0, (deadline - time.monotonic()) * 1000) if deadline else self._limits.idle_ms
            ready = self._poller.poll(timeout_ms)
            if not ready:
                if not deadline:
                    raise _EndedError
                raise self._refuse(
                    invalid(f"the request did not come whole within {self._limits.request_read_ms} ms"), 0
                )
            if self._lane.is_draining:
                raise _LeavingError
            self._states[self._slot] = _FRAME_BUSY
            try:
                count = self._sock.recv_into(place)
            except _AGAIN:
                if not deadline:
                    self._states[self._slot] = IDLE
                continue
            if not count:
                raise _EndedError
            return count

    # --- refusing

    def _check(self, head: tuple[int, ...]) -> None:
        """Refuse what the stream does not survive."""
        size_max = self._limits.body_bytes_max
        if head[4] > size_max:
            error = invalid(f"the payload of a request has at most {size_max} bytes, {head[4]} were announced")
            raise self._refuse(error, head[6])
        if head[2] or head[3] > min(ID_BYTES_MAX, head[4]):
            raise self._refuse(invalid("a request has no flags, and an id within its payload"), head[6])

    def _refuse_prefix(self) -> None:
        if self._buffer[:3] == PREFIX.to_bytes(4, "little")[:3]:
            detail = f"frames of version {self._buffer[3]} are not spoken here"
        else:
            detail = "what came does not begin like a frame"
        raise self._refuse(invalid(detail, f"Version {VERSION} of frames is spoken here, and HTTP/1.1."), 0)

    def _refuse(self, error: EdgeError, number: int) -> "_EndedError":
        """Say why, and that nothing more will be said; read on for a while, because a reset can overtake the answer."""
        self._states[self._slot] = _FRAME_WRITING
        with contextlib.suppress(OSError, _EndedError):
            self._send(self._models.fail(error, number, LAST))
            self._sock.shutdown(socket.SHUT_WR)
            end, left = time.monotonic() + self._limits.linger_ms / 1000, LINGER_BYTES_MAX
            while left > 0 and not self._lane.is_draining:
                wait_ms = (end - time.monotonic()) * 1000
                if wait_ms <= 0 or not self._poller.poll(wait_ms):
                    break
                with contextlib.suppress(*_AGAIN):
                    if not (count := len(self._sock.recv(RECEIVE_BYTES))):
                        break
                    left -= count
        return _EndedError()

    def _is_gone(self) -> bool:
        try:
            return not self._sock.recv(1, socket.MSG_PEEK)
        except _AGAIN:
            return False
        except OSError:
            return True

    # --- sending

    def _send(self, parts: Parts) -> None:
        if len(parts) == 1:
            part = parts[0]
            try:
                sent = self._sock.send(part)
            except _AGAIN:
                sent = 0
            if sent == len(part):
                return
            parts = [memoryview(part)[sent:]]
        self._send_waiting([memoryview(part) for part in parts if len(part)])

    def _send_waiting(self, parts: list[memoryview]) -> None:
        deadline = time.monotonic() + self._limits.response_write_ms / 1000
        poller = select.poll()
        poller.register(self._sock, select.POLLOUT)
        while parts:
            try:
                sent = self._sock.sendmsg(parts[:SEND_PARTS_MAX])
            except _AGAIN:
                left_ms = (deadline - time.monotonic()) * 1000
                if left_ms <= 0 or not poller.poll(left_ms):
                    raise _EndedError from None  # a client that does not take its answer
                continue
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if sent:
                parts[0] = parts[0][sent:]

    # --- leaving

    def release(self) -> tuple[int, bytes]:
        """Give the connection away once its thread has left it: its descriptor, and what came and was not answered."""
        unread = bytes(self._view[: self._have])
        if self._body is not None:
            unread = b"".join((REQUEST.pack(*self._head), self._body[: self._filled], unread))
        self._end()
        return self._sock.detach(), unread

    def take(self) -> tuple[int, bytes] | None:
        """Give the connection away in the middle of computing; its thread finds that out when it is done.

        Returns:
            A copy of its descriptor, and what came and was not answered; none when it is not computing.
        """
        with self._lock:
            if self._stage is not _RUNNING:
                return None
            self._stage = _TAKEN
            self._lane.ledger.leave(self._fd)
            return os.dup(self._fd), b"".join((REQUEST.pack(*self._head), self._payload, self._view[: self._have]))

    def cut_writing(self) -> None:
        """End it if its client does not take an answer."""
        with self._lock, contextlib.suppress(OSError):
            if self._stage is _WRITING:
                self._sock.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End it whatever it does."""
        with self._lock, contextlib.suppress(OSError):
            if self._stage not in (_GONE, _TAKEN):
                self._sock.shutdown(socket.SHUT_RDWR)

    def _end(self) -> bool:
        """Note that this connection is not here any more; false when it was taken away before."""
        with self._lock:
            is_ours = self._stage is not _TAKEN
            self._stage = _GONE
        if self._reserved:
            self._lane.budget.take(-self._reserved)
            self._reserved = 0
        return is_ours

    def _close(self) -> None:
        if self._end():
            self._lane.ledger.close(self._sock)
        else:
            self._sock.close()  # somebody else's by now
        self._lane.forget(self)


class FrameLane:
    """The connections that speak frames. On the event loop, but for `depart` and `forget`, which their threads call.

    Attributes:
        models: Answers requests.
        limits: Bounds.
        budget: Room for large requests, shared with the other lane.
        ledger: Where it is noted how each connection stands.
        wake_fd: Readable while the worker drains.
        is_draining: Whether it does.
    """

    def __init__(
        self,
        models: FrameModels,
        limits: WorkerLimits,
        budget: Budget,
        ledger: Ledger,
        call: Callable[..., object],
        on_departed: Callable[[FrameConnection], None],
        on_forgotten: Callable[[FrameConnection], None],
    ) -> None:
        """Make a lane without connections.

        Args:
            models: Answers requests.
            limits: Bounds.
            budget: Room for large requests.
            ledger: Where it is noted how each connection stands.
            call: Has the event loop call something; any thread.
            on_departed: Called by it with a connection that waits to be released.
            on_forgotten: Called by it with a connection that has ended.
        """
        self.models = models
        self.limits = limits
        self.budget = budget
        self.ledger = ledger
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.is_draining = False
        self._call = call
        self._on_departed = on_departed
        self._on_forgotten = on_forgotten
        self.connections: set[FrameConnection] = set()

    def admit(self, sock: socket.socket, pending: bytes) -> bool:
        """Take a connection and answer what it has sent; refuse and close it when there are too many.

        Returns:
            Whether it was taken.
        """
        if len(self.connections) >= self.limits.frame_connections_max:
            self.refuse(sock, f"{len(self.connections)} connections speak frames already")
            return False
        connection = FrameConnection(self, sock, pending)
        thread = threading.Thread(target=connection.run, name="frames", daemon=True)
        try:
            self._start(thread)
        except RuntimeError:
            self.refuse(sock, "the system gives no more threads")
            return False
        self.connections.add(connection)
        return True

    @staticmethod
    def _start(thread: threading.Thread) -> None:
        """Start it with a small stack: where memory is bounded by an rlimit, all of it counts from the first moment."""
        usual = threading.stack_size(FRAME_STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)

    def refuse(self, sock: socket.socket, detail: str) -> None:
        """Say why, and close."""
        answer = self.models.fail(EdgeError("model.overloaded", detail, "Close some, or use HTTP."), 0, LAST)
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.send(b"".join(answer))
            sock.shutdown(socket.SHUT_WR)
        self.ledger.leave(sock.fileno())
        sock.close()

    def drain(self) -> None:
        """Have every connection leave at once, or after its answer."""
        self.is_draining = True
        os.eventfd_write(self.wake_fd, 1)

    def resume(self) -> None:
        """Connections stay again."""
        self.is_draining = False
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wake_fd)

    def depart(self, connection: FrameConnection) -> None:
        """Called by a thread that leaves its connection."""
        self._post(self._on_departed, connection)

    def forget(self, connection: FrameConnection) -> None:
        """Called by a thread that has closed its connection."""
        self._post(self._on_forgotten, connection)

    def _post(self, function: Callable[[FrameConnection], None], connection: FrameConnection) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended, and so does the process
            self._call(function, connection)
