"""How a worker that serves gets on without its agent: it waits at a socket of its own for the next one, within a bound.

The socket is there from the moment the worker serves, not only once the agent is gone: whoever looks for workers then
finds it at once. It lies in a folder that the agent's user alone may enter, and the kernel says who connects.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_agent.serving.channel import encode_message, send_message
from edge_agent.serving.limits import HELLO_PROTOCOL
from edge_agent.serving.orphans import waiting_name
from edge_agent.serving.sockets import peer_of
from edge_agent.worker.control import Control
from edge_agent.worker.lifeline import Lifeline
from edge_agent.worker.limits import ORPHAN_LOOK_MS, SUITOR_MS
from edge_contract.jsonio import JsonObject

_log = logging.getLogger(__name__)
_BACKLOG: Final = 4


class Outliving:
    """A worker's life beyond its agent's. On the event loop."""

    def __init__(
        self,
        folder: Path,
        module: str,
        orphan_ms: int,
        control: Control,
        lifeline: Lifeline,
        hello: Callable[[], tuple[JsonObject, list[int]]],
        on_over: Callable[[str], None],
    ) -> None:
        """Do nothing yet; see `prepare`.

        Args:
            folder: Where to wait.
            module: Name of the module; names the socket.
            orphan_ms: How long to wait.
            control: Gets the next agent's connection.
            lifeline: Told what to do when the agent is gone.
            hello: Gives what the next agent has to know, and descriptors, which stay its own.
            on_over: Called with the reason when nobody will come any more.
        """
        self._folder = folder
        self._name = waiting_name(module, os.getpid())
        self._orphan_ms = orphan_ms
        self._control = control
        self._lifeline = lifeline
        self._hello = hello
        self._on_over = on_over
        self._loop = asyncio.get_running_loop()
        self._place = -1
        self._socket: socket.socket | None = None
        self._file: tuple[int, int] | None = None
        self._suitor: socket.socket | None = None
        self._alone_since: float | None = None
        self._look: asyncio.TimerHandle | None = None

    @property
    def is_prepared(self) -> bool:
        """Whether this process goes on when its agent is gone."""
        return self._socket is not None

    def prepare(self) -> None:
        """Outlive the agent from now on; where no socket can be had, go on as one that ends with it."""
        if self._socket is not None:
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._place = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            with contextlib.suppress(FileNotFoundError):  # of a process with this number, before the machine restarted
                os.unlink(self._name, dir_fd=self._place)
            # By way of the folder's descriptor: the whole path may be longer than an address holds.
            sock.bind(f"/proc/self/fd/{self._place}/{self._name}")
            sock.listen(_BACKLOG)
            self._file = self._file_now()
        except OSError as error:
            _log.error("this worker ends with its agent: it cannot wait in %s: %s", self._folder, error)
            sock.close()
            return
        self._socket = sock
        self._loop.add_reader(sock, self._on_suitor)
        self._lifeline.outlive()

    def _file_now(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._name, dir_fd=self._place, follow_symlinks=False)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def give_up(self) -> None:
        """End with the agent from now on, and wait for no other."""
        self._lifeline.obey()
        self.shut()

    def shut(self) -> None:
        """Wait for no other agent."""
        if self._look is not None:
            self._look.cancel()
        if self._suitor is not None:
            self._suitor.close()
            self._suitor = None
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            if self._file_now() == self._file:
                with contextlib.suppress(OSError):
                    os.unlink(self._name, dir_fd=self._place)

    # --- alone

    def lost(self) -> None:
        """The agent is gone, or the one that came did not take this worker."""
        if self._alone_since is None:
            self._alone_since = time.monotonic()
            _log.warning("the agent is gone; serving on without it")
        if self._suitor is not None:
            self._greet()
        self._watch_time()

    def _watch_time(self) -> None:
        if self._look is not None:
            self._look.cancel()
        self._look = self._loop.call_later(ORPHAN_LOOK_MS / 1000, self._look_around)

    def _look_around(self) -> None:
        self._look = None
        if self._alone_since is None:
            return
        if (time.monotonic() - self._alone_since) * 1000 >= self._orphan_ms:
            self._on_over(f"no agent came within {self._orphan_ms} ms")
        elif self._file_now() != self._file:
            self._on_over(f"{self._folder / self._name} is gone, so no agent can find this worker")
        else:
            self._watch_time()

    # --- the next agent

    def _on_suitor(self) -> None:
        assert self._socket is not None
        try:
            sock, _address = self._socket.accept()
        except OSError:
            return
        if peer_of(sock)[1] not in (os.geteuid(), 0):
            sock.close()
            return
        if self._suitor is not None:
            self._suitor.close()
        self._suitor = sock
        # It may be quicker than the news of the old one's end.
        self._control.look()
        if not self._waits(sock):
            return  # it was, and has been greeted
        if self._control.is_connected:
            self._loop.call_later(SUITOR_MS / 1000, self._turn_away, sock)
        else:
            self._greet()

    def _waits(self, sock: socket.socket) -> bool:
        return self._suitor is sock

    def _turn_away(self, sock: socket.socket) -> None:
        """The agent is there after all: two of them share a run directory."""
        if self._waits(sock):
            self._suitor = None
            with contextlib.suppress(OSError), sock:
                sock.setblocking(False)
                sock.send(encode_message({"event": "busy"}))

    def _greet(self) -> None:
        suitor, self._suitor = self._suitor, None
        assert suitor is not None
        facts, fds = self._hello()
        alone_ms = 0 if self._alone_since is None else int((time.monotonic() - self._alone_since) * 1000)
        line = encode_message({"event": "hello", "protocol": HELLO_PROTOCOL, "alone_ms": alone_ms, **facts}, len(fds))
        try:
            suitor.setblocking(False)
            # A new connection's buffer is empty, and this is a fraction of it.
            if send_message(suitor, line, fds) != len(line):
                raise BlockingIOError
        except OSError as error:
            _log.warning("an agent that came could not be greeted: %s", error)
            suitor.close()
            return
        self._control.attach(suitor)

    def welcomed(self) -> None:
        """The next agent has taken this worker over."""
        self._alone_since = None
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self._lifeline.adopted(self._control.fileno())
        _log.info("another agent has taken over")
