"""Watches the agent from a thread of its own, which a model that holds the event loop cannot hold up.

A worker that does not serve ends with its agent. One that serves goes on, and this thread then takes what the process
prints, so that its pipe neither fills up nor breaks: the agent that read it is gone.
"""

import contextlib
import os
import select
import threading
import time
from pathlib import Path

from edge_agent.serving.limits import RECEIVE_BYTES
from edge_agent.serving.logfile import BoundedLog

_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL


class Lifeline:
    """One thread. The methods are for the event loop."""

    def __init__(self, control_fd: int, grace_ms: int, output_fd: int | None = None, log: Path | None = None) -> None:
        """Watch from now on.

        Args:
            control_fd: The control socket; duplicated, and only polled.
            grace_ms: How long the process may take to end by itself once the agent is gone.
            output_fd: Reads what this process prints; none when it never outlives its agent.
            log: File that gets it while there is no agent.
        """
        self._grace_ms = grace_ms
        self._output_fd = output_fd
        self._log = None if log is None else BoundedLog(log)
        self._is_outliving = False
        self._lock = threading.Lock()  # guards the next two
        self._watched = os.dup(control_fd)
        self._is_new = False
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        threading.Thread(target=self._watch, name="agent-watch", daemon=True).start()

    def outlive(self) -> None:
        """Go on without an agent from now on."""
        self._is_outliving = self._output_fd is not None

    def obey(self) -> None:
        """End with the agent from now on."""
        self._is_outliving = False
        os.eventfd_write(self._wake_fd, 1)

    def adopted(self, control_fd: int) -> None:
        """Watch another agent, which reads the output."""
        with self._lock:
            old, self._watched = self._watched, os.dup(control_fd)
            self._is_new = True
        os.eventfd_write(self._wake_fd, 1)
        os.close(old)

    # --- its thread

    def _watch(self) -> None:
        while True:
            with self._lock:
                # A duplicate of its own: whoever replaces the other one closes it.
                fd, self._is_new = os.dup(self._watched), False
            try:
                self._wait_for_end(fd)
            finally:
                os.close(fd)
            if self._has_new():
                continue
            if self._is_outliving:
                self._take_output()
            if self._has_new():
                continue
            if not self._is_outliving:
                time.sleep(self._grace_ms / 1000)
                os._exit(1)

    def _has_new(self) -> bool:
        with self._lock:
            return self._is_new

    def _wait_for_end(self, fd: int) -> None:
        """Wait until the agent is gone, or another one is there."""
        poller = select.poll()
        poller.register(fd, 0)  # hang-up is always reported
        poller.register(self._wake_fd, select.POLLIN)
        while True:
            events = dict(poller.poll())
            self._forget_wake()
            if events.get(fd, 0) & _GONE or self._has_new():
                return

    def _take_output(self) -> None:
        """Copy what the process prints until another agent does, or the process is to end."""
        assert self._output_fd is not None
        assert self._log is not None
        poller = select.poll()
        poller.register(self._output_fd, select.POLLIN)
        poller.register(self._wake_fd, select.POLLIN)
        while self._is_outliving and not self._has_new():
            for fd, _event in poller.poll():
                if fd == self._wake_fd:
                    self._forget_wake()
                    continue
                with contextlib.suppress(BlockingIOError, InterruptedError):
                    self._log.write(os.read(fd, RECEIVE_BYTES))

    def _forget_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
