"""One binding at work: takes its waiting messages in order, asks the module, hands over what is to be published."""

import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edge_agent.binding.answers import make_answer, make_error, make_overload
from edge_agent.binding.asking import Asker
from edge_agent.binding.counters import Counters
from edge_agent.binding.limits import ANSWER_BYTES_MAX, LOOK_MS, OVERLOAD_REPORT_MS, UNCONFIRMED_MAX
from edge_agent.binding.messages import Message, Outgoing
from edge_agent.binding.patience import is_crash, wait_ms
from edge_agent.binding.questions import check_message, make_question
from edge_agent.binding.waiting import Waiting
from edge_contract.bindings import Binding, Signature, check_form
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError

_LOG = logging.getLogger(__name__)

_INVALID = "model.input-invalid"
_MISFITS = (_INVALID, "model.output-invalid")
_KEYS = itertools.count(1)


class Lane:
    """One binding's line of messages and the thread that serves it.

    `offer`, `confirmed` and `forget` belong to the broker's thread, `change` and `stop` to the process's; `report` to
    any.
    """

    def __init__(
        self,
        binding: Binding,
        manifest: Digest,
        module: str,
        path: Path,
        send: Callable[[Outgoing], None],
        finish: Callable[[int], None],
        seen: Callable[[Digest], None],
        answer_bytes_max: int = ANSWER_BYTES_MAX,
    ) -> None:
        """Describe it; `start` lets it work.

        Args:
            binding: With names filled in.
            manifest: Of the bundle that it is from.
            module: Name of the module.
            path: Of its unix socket.
            send: Publishes.
            finish: Says that a message is done without an answer.
            seen: Hears which bundle answered, when it is another one than before.
            answer_bytes_max: Longest answer that can be sent.
        """
        self._answer_bytes_max = answer_bytes_max
        self.binding = binding
        self.counters = Counters()
        self.key = f"{binding.name}#{next(_KEYS)}"  # a lane of the same name may follow this one
        self._module = module
        self._asker = Asker(path)
        self._send = send
        self._finish = finish
        self._seen = seen
        self._changed = threading.Condition()  # guards what follows
        self._waiting = Waiting(binding.waiting_max, binding.overflow)
        self._dropped = 0
        self._dropped_told_ns = 0
        self._is_stopping = self._is_dropping = False
        self._bound = manifest
        self._room = threading.BoundedSemaphore(UNCONFIRMED_MAX)
        self._known: tuple[Digest, Signature] | None = None  # the lane's thread; of `_known_member`
        self._known_member = ""
        self._thread = threading.Thread(target=self._run, name=f"{module}-{binding.name}", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def change(self, binding: Binding, manifest: Digest) -> None:
        """Go on with another binding of the same name and input topic; what waits is its."""
        with self._changed:
            self.binding, self._bound = binding, manifest
            self._changed.notify_all()
            self._waiting.count_max, self._waiting.overflow = binding.waiting_max, binding.overflow

    def stop(self, is_dropping: bool) -> None:
        """End soon.

        Args:
            is_dropping: Whether what waits is done with; otherwise the broker delivers it again to the next process.
        """
        with self._changed:
            self._is_stopping = True
            self._is_dropping = is_dropping
            self._changed.notify_all()
        self._asker.interrupt()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end."""
        self._thread.join(timeout_s)

    @property
    def waiting(self) -> int:
        """How many messages wait."""
        return len(self._waiting)

    # --- the broker's thread

    def offer(self, message: Message) -> bool:
        """Let a message wait; gives whether anybody will say that it is done."""
        if message.is_retained and not self.binding.take_retained:
            self.counters.count("passed_over")
            return False
        if message.is_duplicate:
            self.counters.duplicates += 1
        with self._changed:
            dropped = self._waiting.offer(message)
            self._dropped += len(dropped)
            self._changed.notify()
        for other in dropped:
            self.counters.count("dropped")
            if other is not message:
                self._finish(other.number)
        return message not in dropped

    def confirmed(self, outgoing: Outgoing, is_refused: bool) -> None:
        """The broker has an answer of this lane, or will not have it."""
        if not outgoing.answers:
            return
        if is_refused:
            self.counters.count("unpublished")
        self._room.release()

    def forget(self, connection: int) -> None:
        """Let QoS 1 messages of earlier connections go: the broker delivers them again on this one."""
        with self._changed:
            self._waiting.remove(lambda message: message.qos > 0 and message.connection < connection)

    # --- the lane's thread

    def _run(self) -> None:
        try:
            while (message := self._next()) is not None:
                outgoing = self._answer(message)
                if outgoing is None or not self._take_room():
                    self._drop([message])
                    break
                self._publish(outgoing)
            self._drop(self._waiting.remove(lambda _message: True))
        finally:
            self._asker.close()

    def _drop(self, messages: list[Message]) -> None:
        """What this lane does not answer any more; done with only where the binding itself is gone."""
        if self._is_dropping:
            for message in messages:
                self.counters.count("dropped")
                self._finish(message.number)

    def _next(self) -> Message | None:
        """The oldest message, once there is one; none when this lane ends."""
        while True:
            with self._changed:
                told = self._overload()
                message = None if told else self._waiting.take()
                if message is None and not told:
                    if self._is_stopping:
                        return None
                    self._changed.wait(OVERLOAD_REPORT_MS / 1000 if self._dropped else None)
                    continue
                if self._is_stopping:
                    return None
            if told:
                self._publish(told)
            elif message is not None:
                return message

    def _publish(self, outgoing: Outgoing) -> None:
        self._send(replace(outgoing, origin=self.key))

    def _overload(self) -> Outgoing | None:
        now = time.monotonic_ns()
        if not self._dropped or now - self._dropped_told_ns < OVERLOAD_REPORT_MS * 1_000_000:
            return None
        self._dropped_told_ns, dropped, self._dropped = now, self._dropped, 0
        return make_overload(self.binding, self._module, dropped)

    def _take_room(self) -> bool:
        while not self._room.acquire(timeout=0.2):
            if self._is_stopping:
                return False
        return True

    def _answer(self, message: Message) -> Outgoing | None:
        """What goes out for a message, prediction or error; none when this lane ends meanwhile."""
        binding = self.binding
        try:
            check_message(binding, message)
            outgoing = self._predict(binding, message)
        except EdgeError as error:
            outcome = "invalid" if error.code == _INVALID else "failed"
            self.counters.count(outcome)
            return make_error(binding, self._module, message, error)
        except Exception:  # noqa: BLE001 - one message fails, not the binding
            _LOG.exception("a message on %s met a bug", message.topic)
            self.counters.count("failed")
            bug = EdgeError("internal.bug", "the binding failed; its log says more")
            return make_error(binding, self._module, message, bug)
        return outgoing

    def _predict(self, binding: Binding, message: Message) -> Outgoing | None:
        begun_ns = time.monotonic_ns()
        failures = crashes = 0
        is_fresh = False  # whether it was looked what is live, for this message
        while not self._is_stopping:
            try:
                signature = self._signature(binding)
                question = make_question(binding, signature, message.content)
                reply = self._asker.infer(binding.member, question)
                self._note(reply.manifest)
                latency_us = (time.monotonic_ns() - message.received_ns) // 1000
                outgoing = make_answer(binding, self._module, message, reply, latency_us)
                if len(outgoing.content) > self._answer_bytes_max:
                    raise _too_long(len(outgoing.content), self._answer_bytes_max)
                self.counters.count("answered", latency_us)
                return outgoing
            except EdgeError as error:
                if error.code in _MISFITS and not is_fresh:
                    # Another bundle may take and give other tensors; one look decides whose fault it is.
                    is_fresh = True
                    if self._is_rebound(binding):
                        binding = self.binding
                        continue
                failures += 1
                crashes += is_crash(error.code)
                passed_ms = (time.monotonic_ns() - begun_ns) // 1_000_000
                pause_ms = wait_ms(error.code, failures, crashes, passed_ms)
                if pause_ms is None:
                    raise
                self.counters.retries += 1
                self._pause(pause_ms)
        return None

    def _signature(self, binding: Binding) -> Signature:
        if self._known is None or self._known_member != binding.member:
            self._known, self._known_member = self._asker.signature(binding.member), binding.member
            self._seen(self._known[0])
        inputs, outputs = self._known[1]
        check_form(binding, inputs, outputs, _INVALID)
        return inputs, outputs

    def _is_rebound(self, binding: Binding) -> bool:
        """Whether another bundle is live than a message was prepared for; waits for that one's bindings."""
        known, self._known = self._known, None
        try:
            manifest = self._asker.manifest()
        except EdgeError:
            return False
        if manifest != self._bound:
            self._seen(manifest)
        deadline = time.monotonic() + LOOK_MS / 1000
        with self._changed:
            while self._bound != manifest and not self._is_stopping and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
        return known is None or known[0] != manifest or self.binding != binding

    def _note(self, manifest: Digest) -> None:
        """Another bundle answered: its signature is read before the next message."""
        if self._known is not None and manifest != self._known[0]:
            self._known = None
            self._seen(manifest)

    def _pause(self, pause_ms: int) -> None:
        """Wait before the next try."""
        deadline = time.monotonic() + pause_ms / 1000
        with self._changed:
            while not self._is_stopping and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)


def _too_long(count: int, most: int) -> EdgeError:
    detail = f"the answer has {count} bytes, and no more than {most} can be sent"
    return EdgeError("model.output-invalid", detail, "Answer with one tensor, or with fewer rows at a time.")
