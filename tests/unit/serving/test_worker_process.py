"""The agent's side of one worker, beside a peer that says what no worker should."""

from __future__ import annotations

import errno
import os
import queue
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge_agent.serving.channel import encode_message
from edge_agent.serving.limits import ServingLimits
from edge_agent.serving.logfile import BoundedLog
from edge_agent.serving.parking import Connection
from edge_agent.serving.samples import SampleDeliverer
from edge_agent.serving.sockets import Listeners
from edge_agent.serving.starting import Running, start_worker
from edge_agent.serving.worker_process import WorkerProcess
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

MANIFEST = Digest.of(b"manifest")


class _Gone:
    """A process that has ended."""

    pid = 2**22 + 1
    end_fd = None

    def poll(self) -> int | None:
        return 0

    def wait(self, timeout_s: float) -> bool:
        return True

    def kill(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class _Adopter:
    got: list[Connection] = field(default_factory=list)

    def adopt(self, connection: Connection) -> None:
        self.got.append(connection)


def _worker(folder: Path, control: socket.socket, output: int) -> tuple[WorkerProcess, threading.Event]:
    is_over = threading.Event()
    worker = WorkerProcess(
        "digits", MANIFEST, Running(_Gone(), control, output), BoundedLog(folder / "digits.log"), ServingLimits(),
        lambda _module, _record: None, lambda _worker: is_over.set(),
    )  # fmt: skip
    return worker, is_over


def test_a_connection_without_descriptors_is_passed_on_to_nobody(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    output, output_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    adopter = _Adopter()
    worker, is_over = _worker(tmp_path, ours, output)
    worker.successor = adopter
    with theirs:
        theirs.sendall(encode_message({"event": "connection", "transport": "unix", "slot": 9}))
    assert is_over.wait(30)
    os.close(output_in)
    assert adopter.got == []


def test_who_prints_without_end_does_not_hold_up_the_end_of_a_worker(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    _, is_over = _worker(tmp_path, ours, os.open("/dev/zero", os.O_RDONLY))
    assert is_over.wait(30)


def test_an_agent_without_descriptors_starts_no_worker_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pipe2(_flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    listeners = Listeners.open("digits", tmp_path, "127.0.0.1", 0)
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "pipe2", pipe2)
    with pytest.raises(EdgeError, match="no worker could be started"):
        start_worker("digits", tmp_path, listeners, None)
    assert len(os.listdir("/proc/self/fd")) == before
    listeners.close()


def test_a_sample_that_nobody_understands_ends_no_others() -> None:
    taken: queue.Queue[str] = queue.Queue()

    def on_sample(_module: str, record: JsonObject) -> None:
        taken.put({**record}["id"])

    samples = SampleDeliverer(on_sample)
    samples.take("digits", [1])  # type: ignore[arg-type]
    samples.take("digits", {"id": "second"})
    assert taken.get(timeout=30) == "second"
    assert samples.dropped == 1
    samples.close(30)
