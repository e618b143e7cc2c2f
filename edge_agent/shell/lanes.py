"""Threads that carry commands out, so that the loop never blocks. Each port is used by one lane alone."""

import queue
import threading
from collections.abc import Callable

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.shell.dispatch import Dispatcher, Lane, lane_of
from edge_agent.shell.limits import JOIN_MS, LANE_COMMANDS_MAX


class Lanes:
    """One thread a lane. `submit` and `cancel` are for the loop's thread.

    `post` and `crash` are called from the lanes.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        post: Callable[[inputs.Event], None],
        crash: Callable[[BaseException], None],
    ) -> None:
        """Make the lanes; `start` starts them.

        Args:
            dispatcher: Carries one command out.
            post: Takes each completing event.
            crash: Takes what is not an operating error: a bug, which ends the process.
        """
        self._dispatcher = dispatcher
        self._post = post
        self._crash = crash
        self._queues: dict[Lane, queue.SimpleQueue[do.Command | None]] = {lane: queue.SimpleQueue() for lane in Lane}
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name=f"lane-{lane}", daemon=True) for lane in Lane
        ]
        self._lock = threading.Lock()  # guards the two sets
        self._unfinished: set[int] = set()
        self._cancelled: set[int] = set()
        self._is_stopping = threading.Event()

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def submit(self, command: do.Command) -> None:
        """Queue a command on its lane.

        Raises:
            AssertionError: If the lane has `LANE_COMMANDS_MAX` commands to do; the process begins anew then.
        """
        waiting = self._queues[lane_of(command)]
        if waiting.qsize() >= LANE_COMMANDS_MAX:
            raise AssertionError(f"the {lane_of(command)} lane is {waiting.qsize()} commands behind")
        if (op := getattr(command, "op", None)) is not None:
            with self._lock:
                self._unfinished.add(op)
        waiting.put(command)

    def cancel(self, op: int) -> None:
        """Let an operation end as soon as it looks; its completion no longer matters."""
        with self._lock:
            if op in self._unfinished:
                self._cancelled.add(op)

    def stop(self) -> None:
        """Cancel everything and wait for the threads within `JOIN_MS`.

        A lane that hangs is left to the process's end.
        """
        self._is_stopping.set()
        for waiting in self._queues.values():
            waiting.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(JOIN_MS / 1000)

    @property
    def unfinished(self) -> int:
        """How many operations are waiting or under way."""
        return len(self._unfinished)

    def _run(self, lane: Lane) -> None:
        waiting = self._queues[lane]
        while (command := waiting.get()) is not None:
            if self._is_stopping.is_set():
                continue
            op = getattr(command, "op", None)

            def is_cancelled(op: int | None = op) -> bool:
                return op in self._cancelled or self._is_stopping.is_set()

            try:
                event = None if op in self._cancelled else self._dispatcher.execute(command, is_cancelled)
            except BaseException as bug:  # noqa: BLE001  # whatever it is, the loop ends the process with it
                self._crash(bug)
                return
            if op is not None:
                with self._lock:
                    self._unfinished.discard(op)
                    self._cancelled.discard(op)
            if event is not None:
                self._post(event)
