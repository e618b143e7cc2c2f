"""The first process of a container: signals go on, orphans are buried, the exit code is the service's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edge_agent.web.first import become_a_child_of_init
from tests.support.require import REPOSITORY_ROOT

_WAIT_S = 30

_START = """
import os, signal, sys, time
from edge_agent.web.first import watch_over_a_child
# Orphans come to this process, as they come to the first one.
import ctypes
ctypes.CDLL(None).prctl(36, 1)
watch_over_a_child()
"""


@contextmanager
def watched(body: str) -> Iterator[subprocess.Popen[str]]:
    """A process that watches over a child, which does `body`."""
    with subprocess.Popen(
        [sys.executable, "-c", _START + body],
        cwd=REPOSITORY_ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("code", [0, 5, 70])
def test_the_exit_code_is_the_childs(code: int) -> None:
    with watched(f"sys.exit({code})") as process:
        assert process.wait(_WAIT_S) == code


def test_a_signal_that_ended_it_is_told_as_shells_do() -> None:
    with watched("os.kill(os.getpid(), signal.SIGKILL)") as process:
        assert process.wait(_WAIT_S) == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_go_on_once(number: signal.Signals) -> None:
    body = """
seen = []
def take(signum, frame):
    seen.append(signum)
for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(each, take)
print("ready", flush=True)
end = time.monotonic() + 20
while not seen and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.2)
print(seen, flush=True)
"""
    with watched(body) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == f"[{int(number)}]\n"
        assert process.wait(_WAIT_S) == 0


def test_orphans_are_buried() -> None:
    body = """
parent = os.getppid()
if os.fork() == 0:
    if os.fork() == 0:
        time.sleep(0.2)
        os._exit(0)
    os._exit(0)
os.wait()
def children():
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        return file.read().split()
end = time.monotonic() + 20
while len(children()) < 2 and time.monotonic() < end:
    time.sleep(0.005)
while len(children()) > 1 and time.monotonic() < end:
    time.sleep(0.005)
print(children() == [str(os.getpid())], flush=True)
"""
    with watched(body) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert process.wait(_WAIT_S) == 0


def test_an_ordinary_process_stays_what_it_is() -> None:
    before = os.getpid()
    become_a_child_of_init()
    assert os.getpid() == before
