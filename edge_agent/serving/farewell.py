"""Answers clients whose request was under way when their worker ended: at once, and never with a wait.

The answer is a 503, or an error frame. Closing a connection with unread bytes would reset it, and a reset can overtake
the answer; so a thread reads on for a bounded time, until each client has closed its side.
"""

import contextlib
import json
import os
import selectors
import socket
import threading
import time
from typing import Final

from edge_agent.frames import ANSWER, ERROR, LAST, PREFIX
from edge_agent.serving.limits import FAREWELL_MS, RECEIVE_BYTES

_CODE: Final = "model.worker-crashed"
_HINT: Final = "The next worker is on its way: ask again."
_NO_MANIFEST: Final = bytes(32)


class Farewell:
    """The connections that end with one worker. Used by one thread, and by its own after `begin`.

    Attributes:
        count: Clients that are answered.
    """

    def __init__(self, module: str, detail: str) -> None:
        """Have nobody to answer yet.

        Args:
            module: Name of the module, for the name of the thread.
            detail: What happened, for the clients.
        """
        self.count = 0
        self._module = module
        self._http = _http_answer(detail)
        self._frames = _frames_answer(detail)
        self._lingering: list[socket.socket] = []

    def add(self, fd: int, *, is_frames: bool) -> None:
        """Answer one client; the descriptor is owned from now on."""
        sock = _socket(fd)
        if sock is None:
            return
        self.count += 1
        try:
            sock.setblocking(False)
            # It goes into the kernel's buffer: nothing of an answer has been sent on this connection, so there is room.
            sock.send(self._frames if is_frames else self._http)
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # the client is gone
            sock.close()
            return
        self._lingering.append(sock)

    def cut(self, fd: int) -> None:
        """End one that may have a part of an answer; the descriptor is owned from now on."""
        sock = _socket(fd)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def begin(self) -> None:
        """Read on beside everything else, and close."""
        if not self._lingering:
            return
        try:
            threading.Thread(target=self._linger, name=f"farewell-{self._module}", daemon=True).start()
        except RuntimeError:  # no thread to be had; the answers are on their way all the same
            for sock in self._lingering:
                sock.close()

    def _linger(self) -> None:
        end = time.monotonic() + FAREWELL_MS / 1000
        with selectors.DefaultSelector() as selector:
            for sock in self._lingering:
                selector.register(sock, selectors.EVENT_READ)
            while selector.get_map() and (left_s := end - time.monotonic()) > 0:
                for key, _events in selector.select(left_s):
                    if not _read_on(key.fileobj):
                        selector.unregister(key.fileobj)
        for sock in self._lingering:
            sock.close()


def _read_on(sock: object) -> bool:
    """Throw away what came; false when the client has closed."""
    assert isinstance(sock, socket.socket)
    try:
        return bool(sock.recv(RECEIVE_BYTES))
    except (BlockingIOError, InterruptedError):
        return True
    except OSError:
        return False


def _socket(fd: int) -> socket.socket | None:
    try:
        return socket.socket(fileno=fd)
    except OSError:  # not a socket: a worker that has lost its mind sent it
        with contextlib.suppress(OSError):
            os.close(fd)
        return None


def _http_answer(detail: str) -> bytes:
    body = json.dumps({"error": f"{detail} {_HINT}", "code": _CODE}).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def _frames_answer(detail: str) -> bytes:
    body = json.dumps({"code": _CODE, "detail": detail, "hint": _HINT}).encode()
    return ANSWER.pack(PREFIX, ERROR, LAST, 0, len(body), 0, 0, 0, _NO_MANIFEST) + body
