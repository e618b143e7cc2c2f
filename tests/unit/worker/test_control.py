"""The worker's end of the control channel beside an agent that does not read, or a kernel that takes no more."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from edge_agent.serving.channel import MessageReader, close_fds, receive, send_message
from edge_agent.worker import control
from edge_agent.worker.control import Control
from edge_agent.worker.limits import KEEPS_WAITING_MAX


def _open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _null() -> int:
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


def test_an_agent_that_does_not_read_takes_no_end_of_descriptors() -> None:
    async def offer() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            # A small buffer, so that events wait here and not in the kernel.
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            channel = Control(theirs, lambda _message: None, lambda: None)
            before = _open()
            for slot in range(2 * KEEPS_WAITING_MAX):
                channel.send({"event": "keep", "slot": slot, "transport": "unix"}, (_null(),))
            assert _open() - before <= KEEPS_WAITING_MAX
            channel.send({"event": "stats"})  # what is asked for is said all the same
            channel._end()
            assert _open() <= before

    asyncio.run(offer())


def test_too_many_descriptors_on_their_way_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = [errno.ETOOMANYREFS] * 2

    def send(sock: socket.socket, line: bytes | memoryview, fds: Sequence[int]) -> int:
        if fds and refusals:
            raise OSError(refusals.pop(), "too many references")
        return send_message(sock, line, fds)

    monkeypatch.setattr(control, "send_message", send)
    ends: list[bool] = []

    async def say() -> list[object]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            channel = Control(theirs, lambda _message: None, lambda: ends.append(True))
            channel.send({"event": "keep", "slot": 1, "transport": "unix"}, (_null(),))
            channel.send({"event": "stats"})
            reader, heard = MessageReader(), list[object]()
            async with asyncio.timeout(10):
                while len(heard) < 2 and not ends:
                    try:
                        data, received = receive(ours)
                    except BlockingIOError:
                        await asyncio.sleep(0.01)
                        continue
                    for message, fds in reader.feed(data, received):
                        close_fds(fds)
                        heard.append((message["event"], len(fds)))
            channel._end()
        return heard

    assert asyncio.run(say()) == [("keep", 1), ("stats", 0)]
