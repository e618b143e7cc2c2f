"""The control channel between agent and worker: JSON objects, one a line, on a stream socket pair; some carry files.

A message with descriptors says how many (`"fds": n`). The kernel delivers descriptors in order and not later than the
first byte they were sent with, so by the time a line is whole, its descriptors have come; both are first in, first out.
"""

import array
import contextlib
import json
import os
import socket
from collections import deque
from collections.abc import Iterator, Sequence

from edge_agent.serving.limits import CONTROL_FDS_MAX, CONTROL_LINE_BYTES_MAX, RECEIVE_BYTES, RECEIVE_FDS_MAX
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject, parse_object

Message = tuple[JsonObject, list[int]]
"""One message and the descriptors that came with it; the receiver closes them."""


def encode_message(message: JsonObject, fds: int = 0) -> bytes:
    """The line for one message.

    Args:
        message: A JSON object without NaN.
        fds: Number of descriptors that will travel with it.

    Raises:
        EdgeError: `internal.bug` when the line is longer than the receiver takes.
    """
    value = {**message, "fds": fds} if fds else message
    line = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
    if len(line) > CONTROL_LINE_BYTES_MAX:
        raise EdgeError(
            "internal.bug", f"a control message has {len(line)} bytes, at most {CONTROL_LINE_BYTES_MAX} fit"
        )
    return line


def send_message(sock: socket.socket, line: bytes | memoryview, fds: Sequence[int]) -> int:
    """Send (the start of) a line, with its descriptors on the first byte; gives the number of bytes sent.

    Raises:
        OSError: As `sendmsg`.
    """
    if not fds:
        return sock.send(line)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    return sock.sendmsg([line], ancillary)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Receive what is there: bytes (empty at the end of the stream) and descriptors, which the caller owns.

    Raises:
        OSError: As `recvmsg`.
    """
    space = socket.CMSG_SPACE(RECEIVE_FDS_MAX * array.array("i").itemsize)
    data, ancillary, _flags, _address = sock.recvmsg(RECEIVE_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)


def close_fds(fds: Sequence[int]) -> None:
    """Close descriptors that nobody wants."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


class MessageReader:
    """Puts received bytes and descriptors together to messages. Used by one thread."""

    def __init__(self) -> None:
        """Start at the beginning of a stream."""
        self._tail = b""
        self._fds: deque[int] = deque()

    def feed(self, data: bytes, fds: Sequence[int]) -> Iterator[Message]:
        """Take what one `receive` gave and pass on the messages it completes.

        Raises:
            EdgeError: `artifact.*` for a line that is not a JSON object or too long, `internal.bug` for descriptors
                that do not fit; the channel is of no use then.
        """
        self._fds.extend(fds)
        *lines, self._tail = (self._tail + data).split(b"\n")
        if len(self._tail) > CONTROL_LINE_BYTES_MAX:
            raise EdgeError("internal.bug", f"a control message is longer than {CONTROL_LINE_BYTES_MAX} bytes")
        for line in lines:
            message = parse_object(line, "control message", CONTROL_LINE_BYTES_MAX)
            count = message.pop("fds", 0)
            if type(count) is not int or not 0 <= count <= min(CONTROL_FDS_MAX, len(self._fds)):
                raise EdgeError(
                    "internal.bug", f"a control message announces {count!r} descriptors, which did not come"
                )
            yield message, [self._fds.popleft() for _ in range(count)]
        if len(self._fds) > CONTROL_FDS_MAX:  # more than the message that has begun may have
            raise EdgeError("internal.bug", f"{len(self._fds)} descriptors came that no control message announces")

    def close(self) -> None:
        """Close descriptors that came without their message."""
        close_fds(self._fds)
        self._fds.clear()
