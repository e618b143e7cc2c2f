"""Where connections come in and leave: accepts on the inherited sockets within a bound, watches time, and drains.

Draining hands every connection over to the worker that takes over, at a moment when no part of an answer is on its way:
idle ones at once, those in the middle of sending a request with the bytes that came, busy ones after their answer.
No request is swallowed, because nothing that was received is dropped. All on the worker's event loop.
"""

import asyncio
import contextlib
import logging
import select
import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from edge_agent.worker.access import TcpAccess
from edge_agent.worker.budget import Budget
from edge_agent.worker.connection import Connection, Respond, Stage
from edge_agent.worker.frames import FrameModels
from edge_agent.worker.http import Request, Response
from edge_agent.worker.lane import FrameConnection, FrameLane
from edge_agent.worker.ledger import Ledger
from edge_agent.worker.limits import ACCEPT_BURST_MAX, LEAVE_MS_MAX, RECEIVE_BYTES, WorkerLimits

Handler = Callable[[Request, Respond], None]
Refuser = Callable[[HTTPStatus, str], Response]
HandOver = Callable[[int, str, bytes], None]
"""Takes a connection's descriptor (and closes it), its kind, and bytes received on it that nobody has answered."""

FRAMES: Final = "frames"
"""The kind of a connection to the unix socket that speaks frames."""

_log = logging.getLogger(__name__)


class Door:
    """The connections of one worker.

    Attributes:
        limits: Bounds in force.
        common_headers: Header lines that every answer has, each with its end.
        accepted: Connections accepted or taken over so far.
        ledger: Where it is noted how each connection stands.
        budget: Memory for large requests.
        scratch: Where connections receive what they keep a copy of.
    """

    def __init__(
        self,
        handler: Handler,
        refuser: Refuser,
        limits: WorkerLimits,
        common_headers: str = "",
        frames: FrameModels | None = None,
        ledger: Ledger | None = None,
        access: TcpAccess | None = None,
    ) -> None:
        """Make a door that is shut.

        Args:
            handler: Called with each request and where to put its answer.
            refuser: Makes the answer to a request that cannot be read.
            limits: Bounds.
            common_headers: Header lines for every answer, each ending in CR LF.
            frames: Answers clients of the unix socket that speak frames; none when HTTP alone is spoken.
            ledger: Where it is noted how each connection stands; one that nobody reads when none.
            access: Who may ask over TCP; everybody when none.
        """
        self.limits = limits
        self.common_headers = common_headers
        self.accepted = 0
        self.ledger = ledger or Ledger()
        self._access = access or TcpAccess("")
        self._handler = handler
        self._refuser = refuser
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[str, socket.socket] = {}
        self._is_open = False
        self._is_accepting = False
        self._connections: set[Connection] = set()
        self.budget = Budget(limits.receiving_bytes_max)
        self.scratch = memoryview(bytearray(RECEIVE_BYTES))
        self._lane: FrameLane | None = None
        if frames is not None:
            call = self._loop.call_soon_threadsafe
            self._lane = FrameLane(
                frames, limits, self.budget, self.ledger, call, self._depart_frames, self._forget_frames
            )
        self._is_draining = False
        self._hand_over: HandOver | None = None
        self._has_emptied = asyncio.Event()
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._connections) + self.frame_connections

    @property
    def frame_connections(self) -> int:
        """Of them those that speak frames."""
        return 0 if self._lane is None else len(self._lane.connections)

    @property
    def receiving_bytes(self) -> int:
        """Bytes of request bodies being received or answered."""
        return self.budget.used

    # --- coming in

    def listen(self, kind: str, sock: socket.socket) -> None:
        """Add a listening, non-blocking socket; `kind` is `unix` or `tcp`. It is closed here by the last drain alone.

        It takes the place of one of the same kind, from which what waits there is accepted first.
        """
        old = self._listeners.get(kind)
        if old is not None and self._is_open:
            self._accept(kind, old)
        is_accepting = self._is_accepting
        self._set_accepting(False)
        self._listeners[kind] = sock
        self._set_accepting(is_accepting)

    def open(self) -> None:
        """Accept connections; ends a drain."""
        self._is_open = True
        self._is_draining = False
        self._hand_over = None
        if self._lane is not None:
            self._lane.resume()
        self._set_accepting(self.connections < self.limits.connections_max)

    def shut(self) -> None:
        """Accept no more."""
        self._is_open = False
        self._set_accepting(False)

    def _set_accepting(self, is_on: bool) -> None:
        if is_on == self._is_accepting:
            return
        self._is_accepting = is_on
        for kind, sock in self._listeners.items():
            if is_on:
                self._loop.add_reader(sock, self._accept, kind, sock)
            else:
                self._loop.remove_reader(sock)

    def _accept(self, kind: str, listener: socket.socket) -> None:
        for _ in range(ACCEPT_BURST_MAX):
            if self.connections >= self.limits.connections_max:
                self._set_accepting(False)
                return
            try:
                sock, _address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors or memory: try again at the next sweep
                _log.warning("cannot accept: %s", error)
                self._set_accepting(False)
                self._watch_time()
                return
            self.ledger.enter(sock.fileno(), kind)
            self._admit(sock, kind, b"")

    def adopt(self, fd: int, kind: str, pending: bytes) -> None:
        """Take a connection over from another worker.

        Args:
            fd: Its descriptor, owned from now on.
            kind: `unix`, `tcp` or `frames`.
            pending: Bytes of a request that the other worker received and did not answer.
        """
        sock = socket.socket(fileno=fd)
        self.ledger.enter(fd, kind, is_adopted=True, has_begun=bool(pending))
        if kind != FRAMES:
            self._admit(sock, kind, pending).has_asked = True
        elif self._lane is None:
            self.ledger.close(sock)
        elif self._lane.admit(sock, pending):
            self.accepted += 1

    def _admit(self, sock: socket.socket, kind: str, pending: bytes) -> Connection:
        self._watch_time()
        sock.setblocking(False)
        if kind == "tcp":
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(self, sock, kind, pending)
        self._connections.add(connection)
        self.accepted += 1
        connection.start()
        return connection

    # --- what a connection asks

    def handle(self, connection: Connection, request: Request) -> None:
        """Pass a request on; see `Host`."""
        if not self._access.permits(connection.kind, request.head):
            connection.refuse(
                HTTPStatus.UNAUTHORIZED, "requests over TCP need the header Authorization: Bearer <token>"
            )
            return
        try:
            self._handler(request, lambda response: connection.respond(request, response, self._is_closing))
        except Exception:  # noqa: BLE001 - logged; a request without an answer would hold its connection for ever
            _log.exception("a request met a bug")
            connection.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "the worker failed; its log says more")

    def refuse(self, status: HTTPStatus, detail: str) -> Response:
        """See `Host`."""
        return self._refuser(status, detail)

    def reserve(self, byte_count: int) -> bool:
        """See `Host`."""
        return self.budget.take(byte_count)

    def speaks_frames(self, connection: Connection) -> bool:
        """See `Host`."""
        if self._lane is None or connection.kind != "unix":
            return False
        fd, pending = connection.release()
        self._lane.admit(socket.socket(fileno=fd), pending)
        return True

    def between_requests(self, connection: Connection) -> bool:
        """See `Host`."""
        if self._is_draining:
            self._send_away(connection)
            return False
        return True

    def forget(self, connection: Connection) -> None:
        """See `Host`."""
        self._connections.discard(connection)
        self._note_fewer()

    def _note_fewer(self) -> None:
        if not self.connections:
            self._has_emptied.set()
        if self._is_open and not self._is_accepting and self.connections < self.limits.connections_max:
            self._set_accepting(True)

    # --- frames

    def _depart_frames(self, connection: FrameConnection) -> None:
        """A connection waits to be given away, its thread is done with it."""
        assert self._lane is not None
        self._lane.connections.discard(connection)
        fd, pending = connection.release()
        if not self._is_draining:
            self._lane.admit(socket.socket(fileno=fd), pending)  # the drain was called off meanwhile
        elif self._hand_over is not None:
            self._hand_over(fd, FRAMES, pending)
        else:
            self.ledger.close(socket.socket(fileno=fd))
        self._note_fewer()

    def _forget_frames(self, connection: FrameConnection) -> None:
        assert self._lane is not None
        self._lane.connections.discard(connection)
        self._note_fewer()

    def _take_frames(self) -> None:
        """At the end of a drain's time: give away what is being computed, end what is being written."""
        for connection in list(self._lane.connections if self._lane is not None else ()):
            taken = connection.take()
            if taken is None:
                connection.cut_writing()
                continue
            assert self._lane is not None
            self._lane.connections.discard(connection)
            fd, pending = taken
            if self._hand_over is not None:
                self._hand_over(fd, FRAMES, pending)
            else:
                self._lane.refuse(socket.socket(fileno=fd), "the worker is being stopped")

    # --- time

    def _watch_time(self) -> None:
        """Look at the connections' times from now on; with none there is nothing to wake up for."""
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self.limits.sweep_ms / 1000, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        now, limits = time.monotonic(), self.limits
        for connection in list(self._connections):
            age_ms = (now - connection.since) * 1000
            if connection.stage is Stage.READING:
                if connection.is_idle:
                    if age_ms > limits.idle_ms:
                        connection.close()
                elif age_ms > limits.request_read_ms:
                    connection.refuse(
                        HTTPStatus.REQUEST_TIMEOUT, f"the request did not come whole within {limits.request_read_ms} ms"
                    )
            elif (connection.stage is Stage.WRITING and age_ms > limits.response_write_ms) or (
                connection.stage is Stage.LINGERING and age_ms > limits.linger_ms
            ):
                connection.close()
        if self._is_open and self.connections >= limits.connections_max and self._has_callers():
            self._make_room(now)
        if self._is_open and self.connections < limits.connections_max:
            self._set_accepting(True)
        if self._connections or (self._is_open and not self._is_accepting):
            self._watch_time()

    def _has_callers(self) -> bool:
        """Whether somebody waits to be accepted."""
        poller = select.poll()
        for sock in self._listeners.values():
            poller.register(sock, select.POLLIN)
        return bool(poller.poll(0))

    def _make_room(self, now: float) -> None:
        """End connections that keep others out: those that never asked anything, then those that are long silent."""
        limits = self.limits
        for has_asked, idle_ms in ((False, limits.crowded_new_ms), (True, limits.crowded_idle_ms)):
            for connection in list(self._connections):
                is_silent = connection.is_idle and (now - connection.since) * 1000 > idle_ms
                if is_silent and connection.has_asked is has_asked:
                    connection.close()
            if self.connections < limits.connections_max:
                return

    # --- leaving

    @property
    def _is_closing(self) -> bool:
        return self._is_draining and self._hand_over is None

    async def drain(self, deadline_ms: int, hand_over: HandOver | None) -> None:
        """Accept no more, answer what is being computed, and send every connection away.

        Args:
            deadline_ms: What is still being computed then goes to the successor as if it had just come; without a
                successor it is refused. A client that does not take its answer is cut off.
            hand_over: Gives a connection to the successor; without one this is the end: the listening sockets are
                closed, and every answer says that its connection is.
        """
        end = self._loop.time() + deadline_ms / 1000
        self._is_draining = True
        self._hand_over = hand_over
        if hand_over is None:
            # A client that was answered this moment may be about to ask again: closing now would cut that request off.
            parting_ms = min(self.limits.parting_ms, deadline_ms)
            await self._empty(parting_ms)
            if self._stop_listening():
                await self._empty(min(parting_ms, self._left_ms(end)))
        self.shut()
        for connection in list(self._connections):
            if connection.stage is Stage.READING and (hand_over is not None or connection.is_idle):
                self._send_away(connection)
        if self._lane is not None:
            self._lane.drain()
        await self._empty(self._left_ms(end))
        for connection in list(self._connections):
            self._send_away(connection)
        self._take_frames()
        await self._empty(LEAVE_MS_MAX)
        if self._lane is not None:
            for frames in self._lane.connections:
                frames.cut()

    def _stop_listening(self) -> bool:
        """Take in what the kernel has queued, for it was not refused, and let it refuse whoever comes from now on.

        Returns:
            Whether there was anything.
        """
        before = self.accepted
        for kind, sock in self._listeners.items():
            for _ in range(self.limits.connections_max // ACCEPT_BURST_MAX + 1):
                self._accept(kind, sock)
        self.shut()
        while self._listeners:
            self._listeners.popitem()[1].close()
        return self.accepted != before

    def _left_ms(self, end: float) -> int:
        return max(0, round((end - self._loop.time()) * 1000))

    async def _empty(self, timeout_ms: int) -> None:
        """Wait until no connection is left, or time is up."""
        end = self._loop.time() + timeout_ms / 1000
        # More than once: a connection that turns out to speak frames leaves one lane for the other.
        while self.connections and (left_s := end - self._loop.time()) > 0:
            self._has_emptied.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._has_emptied.wait(), left_s)

    def _send_away(self, connection: Connection) -> None:
        if connection.stage is Stage.RUNNING and self._hand_over is None:
            connection.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "the worker is being stopped")
        elif connection.stage in (Stage.READING, Stage.RUNNING) and self._hand_over is not None:
            kind = connection.kind
            fd, pending = connection.release()
            self._hand_over(fd, kind, pending)
        else:
            connection.close()

    def close(self) -> None:
        """Shut, and end every connection."""
        self.shut()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._connections):
            connection.close()
        if self._lane is not None:
            for frames in self._lane.connections:
                frames.cut()
