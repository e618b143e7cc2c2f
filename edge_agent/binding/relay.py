"""The agent's side of the relay: inputs of an IoT Edge module to the binding process, its answers to the outputs.

The agent holds the one connection that a module has, and looks into no message. What was delivered to it stays in its
memory until the binding process is done with it; what the process answers waits here until the link takes it.
"""

import contextlib
import itertools
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from edge_agent.binding.answers import HOPS_FACT
from edge_agent.binding.inputs import Inputs, Kept
from edge_agent.binding.limits import (
    CORRELATION_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    RELAY_DRAIN_MS,
    RELAY_OUTPUTS_MAX,
    RELAY_REPORT_MS,
    RELAY_RETRY_MS,
)
from edge_agent.binding.relay_wire import CORRELATION_FACT, frame, read_frame
from edge_agent.ports import Link, LinkInput, ModuleMessages
from edge_contract.bindings import topic_problem
from edge_contract.errors import EdgeError
from edge_contract.jsonio import Fields, JsonObject
from edge_contract.limits import BINDINGS_MAX, MODULES_MAX
from edge_contract.telemetry import Ack

_LOG: Final = logging.getLogger(__name__)
_PROPERTIES_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class _Answer:
    process: int
    number: int
    name: str
    properties: dict[str, str]
    content_type: str
    qos: int
    content: bytes


class InputRelay:
    """Between the link and the binding process. `attach` and `detach` belong to one thread, the rest to any."""

    def __init__(self, messages: ModuleMessages) -> None:
        """Listen to the module's inputs from now on; the link is not started yet."""
        self._messages = messages
        self._turn = threading.Condition()  # guards what follows
        self._inputs = Inputs()
        self._answers: deque[_Answer] = deque()
        self._news: deque[bytes] = deque()
        self._process = 0  # number of the process that is attached
        self._socket: socket.socket | None = None
        self._is_beginning = False  # a process is attached and has not said yet what it takes
        self._is_closed = False
        self._is_sending = False
        self._came = self._sent = self._unsent = self._invalid = 0
        self._told_ms = -RELAY_REPORT_MS
        self._untold = 0
        self._numbers = itertools.count(1)
        self._sender = threading.Thread(target=self._send_answers, name="relay-outputs", daemon=True)
        self._sender.start()
        messages.listen(self._heard)

    def attach(self) -> socket.socket:
        """A socket for a new binding process; whatever process there was before is forgotten."""
        self.detach()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with self._turn:
            self._socket = ours
            self._is_beginning = True
            process = self._process
        for work in (self._read, self._write):
            threading.Thread(target=work, args=(ours, process), name=f"relay{work.__name__}", daemon=True).start()
        return theirs

    def detach(self) -> None:
        """The binding process is over; what it had goes to the next one."""
        with self._turn:
            old, self._socket = self._socket, None
            self._is_beginning = False
            self._process += 1
            self._inputs.let_go()
            self._news.clear()
            self._turn.notify_all()
        if old is not None:
            with contextlib.suppress(OSError):
                old.shutdown(socket.SHUT_RDWR)
            old.close()

    def drain(self, timeout_ms: int = RELAY_DRAIN_MS) -> None:
        """Wait until everything that came is answered and handed to the link, but no longer than this."""
        with self._turn:
            self._turn.wait_for(self._is_drained, timeout_ms / 1000)
            left = len(self._inputs) + len(self._answers)
        if left:
            _LOG.warning("%d messages for inputs are lost with this process: they came and are not answered", left)

    def _is_drained(self) -> bool:
        if self._answers or self._is_sending:
            return False
        # A process that has not said yet what it takes may take what is parked.
        left = len(self._inputs) if self._is_beginning else len(self._inputs) - self._inputs.parked
        return left == 0

    def close(self) -> None:
        """Carry nothing any more."""
        self.detach()
        with self._turn:
            self._is_closed = True
            self._turn.notify_all()

    def report(self) -> JsonObject:
        """How it stands."""
        with self._turn:
            return {
                "inputs": self._came,
                "unanswered": len(self._inputs),
                "parked": self._inputs.parked,
                "dropped": dict(self._inputs.dropped),
                "invalid": self._invalid,
                "outputs": self._sent,
                "outputs_waiting": len(self._answers),
                "outputs_dropped": self._unsent,
            }

    # --- the link's thread

    def _heard(self, received: LinkInput) -> None:
        correlation = received.properties.get(CORRELATION_FACT)
        kept = Kept(
            number=next(self._numbers),
            name=received.name,
            hops=_plain(received.properties.get(HOPS_FACT, "0"), 8),
            correlation=None if correlation is None else _plain(correlation, CORRELATION_BYTES_MAX + 1),
            content=received.content,
            came_ms=time.monotonic_ns() // 1_000_000,
        )
        with self._turn:
            self._came += 1
            if topic_problem(f"inputs/{kept.name}", False) or len(kept.content) > MESSAGE_BYTES_MAX:
                self._invalid += 1
                return
            self._untold += self._inputs.offer(kept)
            untold = self._untold if kept.came_ms - self._told_ms >= RELAY_REPORT_MS else 0
            if untold:
                self._told_ms, self._untold = kept.came_ms, 0
            self._turn.notify_all()
        if untold:
            _LOG.warning("%d messages for inputs were dropped: more came than models answer, or are bound", untold)

    # --- threads of one attachment

    def _write(self, ours: socket.socket, process: int) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._process != process or self._news or self._inputs.is_ready)
                if self._process != process:
                    return
                kept = None if self._news else self._inputs.take()
                data = self._news.popleft() if self._news else b""
            if kept is not None:
                data = _input_frame(kept)
            try:
                ours.sendall(data)
            except OSError:
                return  # it has ended, and the keeper is about to see it

    def _read(self, ours: socket.socket, process: int) -> None:
        try:
            while (got := read_frame(ours)) is not None:
                fields, content = got
                with self._turn:
                    if self._process != process:
                        return
                    self._take(process, fields, content)
                    self._turn.notify_all()
        except OSError:
            return
        except EdgeError as error:
            _LOG.error("the binding process sends what cannot be read: %s", error)
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)  # it ends then, and the keeper starts another

    def _take(self, process: int, fields: Fields, content: bytes) -> None:
        kind = fields.text("kind")
        if kind == "bound":
            self._is_beginning = False
            filters = fields.texts("filters", BINDINGS_MAX * MODULES_MAX)
            self._untold += self._inputs.bind(filters, time.monotonic_ns() // 1_000_000)
        elif kind == "done":
            self._inputs.done(fields.integer("number"))
        elif kind == "unbound":
            self._inputs.give_back(fields.integer("number"))
        elif kind == "output":
            answer = _Answer(
                process,
                fields.integer("number"),
                fields.text("name"),
                fields.mapping("properties", _PROPERTIES_MAX),
                fields.text("content_type"),
                fields.integer("qos", high=1),
                content,
            )
            if len(self._answers) < RELAY_OUTPUTS_MAX:
                self._answers.append(answer)
            else:
                self._confirm(answer, is_refused=True)
        else:
            raise EdgeError("internal.bug", f"a frame of the relay is of the kind {kind[:40]!r}")
        fields.close()

    # --- the sender's thread

    def _send_answers(self) -> None:
        while True:
            with self._turn:
                self._is_sending = False
                self._turn.notify_all()
                self._turn.wait_for(lambda: self._answers or self._is_closed)
                if not self._answers:
                    return
                answer = self._answers.popleft()
                self._is_sending = True
            is_sent = self._send(answer)
            while not is_sent and answer.qos:
                with self._turn:
                    if self._turn.wait_for(lambda: self._is_closed, RELAY_RETRY_MS / 1000):
                        return
                is_sent = self._send(answer)
            with self._turn:
                self._confirm(answer, is_refused=not is_sent)

    def _send(self, answer: _Answer) -> bool:
        return self._messages.send_output(answer.name, answer.content, answer.properties, answer.content_type)

    def _confirm(self, answer: _Answer, is_refused: bool) -> None:
        if is_refused:
            self._unsent += 1
        else:
            self._sent += 1
        if answer.process == self._process:
            self._news.append(frame({"kind": "confirmed", "number": answer.number, "refused": is_refused}))
            self._turn.notify_all()


class DrainedLink:
    """A link that lets what came be answered before it ends. Implements `ports.Link`."""

    def __init__(self, link: Link, relay: InputRelay) -> None:
        """Put the relay before the link's end."""
        self._link, self._relay = link, relay

    def start(
        self, on_nudge: Callable[[int], None], on_ack: Callable[[Ack], None], on_online: Callable[[bool], None]
    ) -> None:
        """See `ports.Link.start`."""
        self._link.start(on_nudge, on_ack, on_online)

    def send_report(self, report: bytes) -> bool:
        """See `ports.Link.send_report`."""
        return self._link.send_report(report)

    def send_batch(self, batch: bytes) -> bool:
        """See `ports.Link.send_batch`."""
        return self._link.send_batch(batch)

    def stop(self) -> None:
        """See `ports.Link.stop`."""
        self._relay.drain()
        self._link.stop()


def _input_frame(kept: Kept) -> bytes:
    head: JsonObject = {"kind": "input", "number": kept.number, "name": kept.name, "hops": kept.hops}
    if kept.correlation is not None:
        head["correlation"] = kept.correlation
    return frame({**head, "again": kept.is_again}, kept.content)


def _plain(text: str, chars_max: int) -> str:
    """A text from outside that JSON can carry."""
    return text[:chars_max].encode("utf-8", "replace").decode()
