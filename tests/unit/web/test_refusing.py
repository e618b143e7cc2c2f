"""Sockets that a service has let go of: a worker that holds them too answers what is queued, and nobody new gets in."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from edge_agent.serving.sockets import Listeners


def test_what_was_queued_can_be_accepted_and_nobody_joins_the_queue(tmp_path: Path) -> None:
    listeners = Listeners.open("line", tmp_path, "127.0.0.1", 0)
    address, path = (listeners.host, listeners.port), str(listeners.unix_path)
    held = {kind: sock.dup() for kind, sock in (("unix", listeners.unix), ("tcp", listeners.tcp))}
    with held["unix"], held["tcp"], socket.create_connection(address, 5) as early:
        listeners.close()
        with socket.socket() as late:
            late.settimeout(0.3)
            with pytest.raises(TimeoutError):
                late.connect(address)
        with socket.socket(socket.AF_UNIX) as late, pytest.raises(FileNotFoundError):
            late.connect(path)
        accepted, _ = held["tcp"].accept()
        with accepted:
            early.sendall(b"question")
            assert accepted.recv(100) == b"question"
            accepted.sendall(b"answer")
            assert early.recv(100) == b"answer"
        with pytest.raises(BlockingIOError):
            held["tcp"].accept()
    with socket.socket() as later, pytest.raises(ConnectionRefusedError):
        later.connect(address)


def test_a_socket_that_systemd_keeps_goes_on_queueing(tmp_path: Path) -> None:
    listeners = Listeners.open("line", tmp_path, "127.0.0.1", 0)
    kept = listeners.tcp.dup()
    activated = type(listeners)(
        listeners.unix, listeners.unix_path, listeners.unix_file, listeners.tcp, listeners.host, listeners.port,
        activated=frozenset({"tcp"}),
    )  # fmt: skip
    with kept:
        activated.close()
        with socket.create_connection((listeners.host, listeners.port), 5):
            accepted, _ = kept.accept()
            accepted.close()
    assert not os.path.exists(listeners.unix_path)
