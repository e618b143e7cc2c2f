"""One worker process as the agent sees it: spoken to, listened to by a thread of its own, and ended."""

import contextlib
import logging
import os
import queue
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence

from edge_agent.serving.channel import MessageReader, close_fds, encode_message, receive, send_message
from edge_agent.serving.guard import Guard
from edge_agent.serving.handle import UNKNOWN_EXIT
from edge_agent.serving.limits import EVENTS_WAITING_MAX, OUTPUT_REST_READS_MAX, RECEIVE_BYTES, ServingLimits
from edge_agent.serving.logfile import BoundedLog
from edge_agent.serving.parking import Adopter, Connection
from edge_agent.serving.starting import Running
from edge_contract.codes import CODES
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

_log = logging.getLogger(__name__)
_END_POLL_S = 0.05


def told_error(message: JsonObject) -> EdgeError | None:
    """The error that a worker's message tells of, if it does."""
    if "code" not in message:
        return None
    code = str(message["code"])
    return EdgeError(
        code if code in CODES else "internal.bug", str(message.get("detail")), str(message.get("hint", ""))
    )


class WorkerProcess:
    """A running (or ended) worker. Commands come from one thread at a time; `adopt` from any.

    Attributes:
        module: Name of the module it belongs to.
        manifest: Digest of the bundle's manifest.
        golden: Digest of what it computed on the golden vectors; known once it is proved.
        terms: On what terms of the agent it was proved.
        successor: Gets the connections that this worker gives away.
        undelivered: Connections it gave away that the successor did not take; the owner closes them or gives them back.
        is_expected_to_end: Whether its end is no news.
        guard: Against its crash, its hanging and its appetite.
    """

    def __init__(
        self,
        module: str,
        manifest: Digest,
        running: Running,
        log: BoundedLog,
        limits: ServingLimits,
        on_sample: Callable[[str, JsonObject], None],
        on_end: Callable[["WorkerProcess"], None],
    ) -> None:
        """Listen to a process that was started, or adopted.

        Args:
            module: Name of the module.
            manifest: Digest of the bundle's manifest.
            running: The process and what connects it with the agent; owned from now on.
            log: Gets what it prints.
            limits: Bounds.
            on_sample: Gets (module, record), on this worker's thread; must not block.
            on_end: Called once on this worker's thread when the process is gone.
        """
        self.module = module
        self.manifest = manifest
        self.golden: Digest | None = None
        self.terms = ""
        self.successor: Adopter | None = None
        self.undelivered: list[Connection] = []
        self.is_expected_to_end = False
        self.guard = Guard(module, limits)
        self._limits = limits
        self._log = log
        self._on_sample = on_sample
        self._on_end = on_end
        self._events: queue.Queue[JsonObject] = queue.Queue(EVENTS_WAITING_MAX)
        self._question = 0
        self._has_ended = threading.Event()
        self._send_lock = threading.Lock()
        self._process = running.process
        self._control = running.control
        self._output = running.output
        self._control.settimeout(limits.send_ms / 1000)
        self._thread = threading.Thread(target=self._listen, name=f"worker-{module}", daemon=True)
        self._thread.start()
        with contextlib.suppress(EdgeError):  # whoever wants something of it is told
            self.command("keep")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._has_ended.is_set() or self._process.poll() is not None

    # --- speaking

    def command(self, op: str, fds: Sequence[int] = (), **fields: object) -> None:
        """Send a command; descriptors are not closed.

        Raises:
            EdgeError: `model.worker-crashed` when nobody reads it.
        """
        try:
            self._send(op, fds, **fields)
        except OSError as error:
            raise self._crash(f"it was told to {op}") from error

    def _send(self, op: str, fds: Sequence[int] = (), **fields: object) -> None:
        line = memoryview(encode_message({"op": op, **fields}, len(fds)))
        with self._send_lock:
            while line:
                sent = send_message(self._control, line, fds)
                line, fds = line[sent:], ()

    def expect(self, event: str, timeout_ms: int, doing: str, question: int | None = None) -> JsonObject:
        """Wait for an event (the answer to a question); others that come meanwhile are old news.

        Raises:
            EdgeError: `model.timeout`, `model.worker-crashed`, or what the worker refused with.
        """
        deadline = time.monotonic() + timeout_ms / 1000
        while True:
            message = self._next_event(deadline)
            if message is None:
                raise EdgeError(
                    "model.timeout",
                    f"the worker of {self.module!r} took longer than {timeout_ms} ms {doing}",
                    self._hint(),
                )
            name = message.get("event")
            if name == event and message.get("id") == question:
                return message
            if name == "ended":
                raise self._crash(doing)
            if name == "refused":
                raise told_error(message) or EdgeError("internal.bug", "a worker refused without saying why")

    def _next_event(self, deadline: float) -> JsonObject | None:
        """The oldest event, `ended` once they are all taken and the process is gone, none when time is up."""
        while True:
            if self._has_ended.is_set() and self._events.empty():
                return {"event": "ended"}
            left_s = deadline - time.monotonic()
            try:
                # The end wakes nobody: it must be told even when the queue is full.
                return self._events.get(timeout=min(max(left_s, 0.0), _END_POLL_S))
            except queue.Empty:
                if left_s <= 0:
                    return None

    def ask_stats(self) -> JsonObject:
        """Ask for counters.

        Raises:
            EdgeError: `model.timeout` or `model.worker-crashed`.
        """
        return self._ask("stats", self._limits.answer_ms, "to say how it is")

    def ask_golden(self) -> Digest | None:
        """Let it compute its golden vectors again, beside its requests.

        Returns:
            Digest over the outputs, or none when the bundle has no golden vectors.

        Raises:
            EdgeError: `model.golden-mismatch` and other `model.` codes, `device.disk-corrupt` when the golden vectors
                in its slot are not those it was proved with, `model.timeout`, `model.worker-crashed`.
        """
        answer = self._ask("golden", self._limits.golden_ms, "to compute its golden vectors again")
        if (error := told_error(answer)) is not None:
            raise error
        golden = answer.get("golden")
        return None if golden is None else Digest(str(golden))

    def _ask(self, op: str, timeout_ms: int, doing: str) -> JsonObject:
        """Ask, and take the answer to this very question: those to questions that were given up may come late."""
        self._question += 1
        self.command(op, id=self._question)
        return self.expect(op, timeout_ms, doing, self._question)

    def adopt(self, connection: Connection) -> None:
        """Give the worker a client's connection; our copies of it are kept against its crash.

        Raises:
            EdgeError: `model.worker-crashed`; the descriptors are still open then.
        """
        self.guard.send(connection, lambda sent: self.command("adopt", sent[1], transport=sent[0]))

    def _crash(self, doing: str) -> EdgeError:
        self._has_ended.wait(self._limits.exit_ms / 1000)
        code = self._process.poll()
        if code is None:
            reason = "does not read its commands"
        elif code == UNKNOWN_EXIT:
            reason = "ended"
        elif code < 0:
            reason = f"ended by {signal.Signals(-code).name}"
        else:
            reason = f"ended with exit code {code}"
        if self.guard.reason:
            reason = f"{self.guard.reason} and was ended"
        hint = self._hint()
        if self.guard.was_short:
            return EdgeError(
                "device.memory-short",
                f"the worker of {self.module!r} reached the bound on its memory while {doing}",
                f"Let the policy give it more memory, or deploy a smaller model. {hint}",
            )
        if code == -signal.SIGKILL and not self.is_expected_to_end:
            hint = f"The kernel ends processes so when memory runs out. {hint}"
        return EdgeError("model.worker-crashed", f"the worker of {self.module!r} {reason} while {doing}", hint)

    def _hint(self) -> str:
        return f"Its log is {self._log.path}."

    # --- ending

    def stop(self) -> None:
        """Let it end, and kill it when it does not. Returns when it is gone."""
        self.is_expected_to_end = True
        # Said, because a worker that serves takes the end of the channel alone for the end of its agent.
        with contextlib.suppress(OSError):
            self._send("stop")
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._thread.join((self._limits.exit_ms + self._limits.send_ms) / 1000)
        self.guard.keeping.close()

    def fail(self) -> None:
        """End it at once as if it had ended by itself, for one that is of no use any more. Returns when it is gone."""
        self._process.kill()
        self._has_ended.wait((self._limits.exit_ms + self._limits.send_ms) / 1000)

    def rescue(self) -> list[Connection]:
        """Take what its clients can go on with from a worker that ended by itself, and fail their requests under way.

        Returns:
            Connections that the next worker is to adopt; the caller owns them.
        """
        self.fail()
        found = self.guard.keeping.salvage(str(self._crash("it computed").detail) + ".")
        found += self.undelivered
        self.undelivered = []
        self.guard.keeping.close()
        return found

    def kill(self) -> None:
        """End it at once. Returns when it is gone."""
        self.is_expected_to_end = True
        self._process.kill()
        self.stop()

    # --- listening

    def _listen(self) -> None:
        """The worker's thread: pass on what it says until it is gone, then see that it is."""
        reader = MessageReader()
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._control, selectors.EVENT_READ)
                selector.register(self._output, selectors.EVENT_READ)
                if self._process.end_fd is not None:
                    selector.register(self._process.end_fd, selectors.EVENT_READ)
                while True:
                    ready = {key.fd for key, _events in selector.select(self.guard.wait_s)}
                    if self.guard.verdict():
                        self.guard.end_with_traces(self._process)
                        break
                    if self._output in ready and not self._copy_output():
                        selector.unregister(self._output)
                    if self._control.fileno() in ready:
                        if not self._take_messages(reader):
                            break
                    elif self._process.end_fd in ready:
                        break  # gone, and everything that it said was read
        except (OSError, EdgeError, ValueError, queue.Full) as error:
            # A channel that broke is as good as one that ended.
            _log.error("module %s: its worker cannot be understood: %s", self.module, error)
        finally:
            reader.close()
            self._reap()

    def _copy_output(self) -> bool:
        try:
            data = os.read(self._output, RECEIVE_BYTES)
        except BlockingIOError:
            return True
        self._log.write(data)
        return bool(data)

    def _take_messages(self, reader: MessageReader) -> bool:
        try:
            data, received = receive(self._control)
        except ConnectionResetError:  # it ended with commands unread; all that it said was received before
            return False
        if not data:
            close_fds(received)
            return False
        for message, fds in reader.feed(data, received):
            if self.guard.hear(message, fds):
                continue
            name = message.get("event")
            if name == "sample":
                self._on_sample(self.module, message.get("record") or {})
            elif name == "connection" and 0 < len(fds) <= 2:
                self.guard.keeping.gave_away(message)
                self._pass_on((str(message.get("transport")), fds))
            else:
                close_fds(fds)
                self._events.put_nowait(message)
        return True

    def _pass_on(self, connection: Connection) -> None:
        if self.successor is None:
            close_fds(connection[1])
            return
        try:
            # After one that was not taken no other is tried: each would wait its whole time.
            if not self.undelivered:
                self.successor.adopt(connection)
                return
        except EdgeError as error:
            _log.error("module %s: a connection could not be handed over: %s", self.module, error)
        self.undelivered.append(connection)

    def _reap(self) -> None:
        if not self._process.wait(self._limits.exit_ms / 1000):
            self._process.kill()
            while not self._process.wait(self._limits.exit_ms / 1000):
                _log.error("module %s: process %d was killed and is still there", self.module, self.pid)
        self.guard.ended()
        with contextlib.suppress(OSError):
            for _ in range(OUTPUT_REST_READS_MAX):  # who holds the pipe may print without end
                if not self._copy_output_rest():
                    break
        os.close(self._output)
        self._has_ended.set()
        self._on_end(self)
        with self._send_lock:
            self._control.close()
        self._process.close()

    def _copy_output_rest(self) -> bool:
        """What was printed last; the pipe may be held open by what a script started, so only what is there."""
        data = os.read(self._output, RECEIVE_BYTES)
        self._log.write(data)
        return bool(data)
