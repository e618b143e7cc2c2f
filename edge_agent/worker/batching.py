"""Micro-batching: requests that come together are computed together, within a bound of time (ADR 27). Any thread.

A member's bundle says how (`Member.batching`); without it nothing waits for anything. Requests are joined along the
first dimension when everything else about them agrees: the names, types and other sizes of the inputs, and the outputs
that are wanted. Whoever came first is computed first; nobody is passed over for a better fit.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge_agent.worker.arrays import Array
from edge_agent.worker.engines import Engine
from edge_contract.errors import EdgeError
from edge_contract.pipeline import Batching

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Waiting:
    """A request that waits to be computed.

    Attributes:
        inputs: Arrays by name.
        wanted: As `Engine.run`.
        deadline_ns: Monotonic clock when the answer is of no use any more.
        rows: Size of the first dimension; 0 when it cannot be joined with others.
        likeness: Equal for requests that can be joined.
        came_ns: When it came.
        answer: Gets the outputs.
    """

    inputs: Mapping[str, Array]
    wanted: tuple[str, ...]
    deadline_ns: int
    rows: int
    likeness: Any
    came_ns: int = field(default_factory=time.monotonic_ns)
    answer: "Future[dict[str, Array]]" = field(default_factory=Future)


class Batcher:
    """Computes the requests for one model in one thread of its own, together where they fit.

    Attributes:
        runs: How often the model ran.
        requests: How many requests that answered.
        is_busy: Whether it is computing.
    """

    def __init__(self, name: str, engine: Callable[[], Engine], batching: Batching, waiting_max: int) -> None:
        """Make a batcher; its thread begins with the first request.

        Args:
            name: Of the model.
            engine: Gives what runs it, which may be another one from time to time.
            batching: Rows and time.
            waiting_max: Requests that may wait; one more is refused.
        """
        self.runs = 0
        self.requests = 0
        self.is_busy = False
        self._name = name
        self._engine = engine
        self._rows_max = batching.rows_max
        self._wait_ns = batching.wait_us * 1000
        self._waiting_max = waiting_max
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(
        self, inputs: Mapping[str, Array], wanted: Sequence[str], deadline_ns: int
    ) -> "Future[dict[str, Array]]":
        """Queue a request.

        Args:
            inputs: Arrays that fit the model's signature; not changed before they are computed.
            wanted: As `Engine.run`.
            deadline_ns: Monotonic clock; a request that is not begun by then fails with `model.timeout`.

        Returns:
            Gets the outputs or what `Engine.run` raises, in the batcher's thread. Cancelling it takes the request out.

        Raises:
            EdgeError: `model.overloaded`.
        """
        rows = {array.shape[0] if array.ndim else 0 for array in inputs.values()}
        likeness = (tuple(wanted), *sorted((name, array.dtype.str, array.shape[1:]) for name, array in inputs.items()))
        item = _Waiting(inputs, tuple(wanted), deadline_ns, rows.pop() if len(rows) == 1 else 0, likeness)
        with self._changed:
            if len(self._queue) >= self._waiting_max:
                raise EdgeError("model.overloaded", f"{len(self._queue)} requests are waiting already", "Try again.")
            self._queue.append(item)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"batch-{self._name}", daemon=True)
                self._thread.start()
            self._changed.notify()
        return item.answer

    def _work(self) -> None:
        while True:
            batch = [item for item in self._gather() if self._is_wanted(item)]
            self.is_busy = True
            try:
                if batch:
                    self._compute(batch)
            finally:
                self.runs += 1
                self.is_busy = False

    def _gather(self) -> list[_Waiting]:
        """The oldest request and those right behind it that fit, waiting for more of them for a bounded time."""
        with self._changed:
            while not self._queue:
                self._changed.wait()
            batch = [self._queue.popleft()]
            rows, likeness = batch[0].rows, batch[0].likeness
            if not 0 < rows < self._rows_max:
                return batch
            until_ns = batch[0].came_ns + self._wait_ns
            while rows < self._rows_max:
                if self._queue:
                    following = self._queue[0]
                    if not following.rows or following.likeness != likeness or rows + following.rows > self._rows_max:
                        break
                    rows += following.rows
                    batch.append(self._queue.popleft())
                    continue
                # Half of what is left until a deadline is for computing.
                now_ns = time.monotonic_ns()
                until_ns = min(until_ns, *((now_ns + item.deadline_ns) // 2 for item in batch))
                if until_ns <= now_ns or not self._changed.wait((until_ns - now_ns) / 1e9):
                    break
            return batch

    @staticmethod
    def _is_wanted(item: _Waiting) -> bool:
        if not item.answer.set_running_or_notify_cancel():
            return False
        if time.monotonic_ns() > item.deadline_ns:
            item.answer.set_exception(EdgeError("model.timeout", "the request's time was up before its turn came"))
            return False
        return True

    def _compute(self, batch: list[_Waiting]) -> None:
        self.requests += len(batch)
        if len(batch) > 1:
            try:
                answers = self._together(batch)
            except Exception as error:  # noqa: BLE001 - whose fault it is shows when each is computed by itself
                _log.info(
                    "%r failed on %d requests together, each is computed again: %s", self._name, len(batch), error
                )
            else:
                for item, outputs in zip(batch, answers, strict=True):
                    item.answer.set_result(outputs)
                return
        for item in batch:
            try:
                item.answer.set_result(self._engine().run(item.inputs, item.wanted))
            except BaseException as error:  # noqa: BLE001 - whoever waits for the answer gets it
                item.answer.set_exception(error)

    def _together(self, batch: list[_Waiting]) -> list[dict[str, Array]]:
        first = batch[0]
        joined = {name: np.concatenate([item.inputs[name] for item in batch]) for name in first.inputs}
        outputs = self._engine().run(joined, first.wanted)
        ends = np.cumsum([item.rows for item in batch])
        for name, array in outputs.items():
            if not array.ndim or array.shape[0] != ends[-1]:
                raise EdgeError(
                    "model.output-invalid", f"output {name!r} does not have a row for each row of the input"
                )
        answers: list[dict[str, Array]] = []
        for item, end in zip(batch, ends, strict=True):
            answers.append({name: array[end - item.rows : end] for name, array in outputs.items()})
        return answers
