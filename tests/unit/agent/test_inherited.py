"""What a starting agent makes of descriptors that somebody passes to it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from edge_agent.serving.channel import close_fds
from edge_agent.serving.inherited import name_listeners, name_parked, read_inherited
from edge_agent.serving.sockets import Given, Listeners
from edge_agent.shell.reexec import take_passed

LOOPBACK = "127.0.0.1"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def _listeners(stack: ExitStack, folder: Path, module: str = "digits") -> Listeners:
    listeners = Listeners.open(module, folder, LOOPBACK, 0)
    stack.callback(listeners.close)
    return listeners


def _open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _close(given: Given) -> None:
    given.close()


def test_what_one_program_names_the_next_one_reads(tmp_path: Path, stack: ExitStack) -> None:
    listeners = _listeners(stack, tmp_path)
    client, pending = os.pipe()
    parked = [("tcp", [client, pending]), ("frames", [os.dup(client)])]
    named = [*name_listeners("digits", listeners), *name_parked("digits", parked)]
    found = read_inherited([(name, os.dup(fd)) for name, fd in named])
    given = found.given["digits"]
    stack.callback(_close, given)
    assert given.unix is not None
    assert given.tcp is not None
    assert given.unix.getsockname() == str(listeners.unix_path)
    assert given.tcp.getsockname() == (LOOPBACK, listeners.port)
    assert given.activated == frozenset()
    assert [(transport, len(fds)) for transport, fds in found.parked["digits"]] == [("tcp", 2), ("frames", 1)]
    for _transport, fds in (*parked, *found.parked["digits"]):
        close_fds(fds)


def test_a_module_may_be_called_like_what_is_passed_on(tmp_path: Path, stack: ExitStack) -> None:
    for module in ("parked-cars", "pending"):
        listeners = _listeners(stack, tmp_path, module)
        found = read_inherited([(f"{module}.unix", os.dup(listeners.unix.fileno()))])
        stack.callback(_close, found.given.get(module, Given()))
        assert found.given[module].unix is not None


def test_a_socket_of_systemd_goes_before_one_that_an_agent_kept(tmp_path: Path, stack: ExitStack) -> None:
    mine, theirs = _listeners(stack, tmp_path), _listeners(stack, tmp_path, "theirs")
    for order in (1, -1):
        named = [("kept/digits/unix", os.dup(mine.unix.fileno())), ("digits.unix", os.dup(theirs.unix.fileno()))]
        given = read_inherited(named[::order]).given["digits"]
        assert given.unix is not None
        assert given.unix.getsockname() == str(theirs.unix_path)
        assert given.activated == {"unix"}
        given.close()


@pytest.mark.parametrize(
    "name",
    ["unknown", "digits.http", "../etc.unix", ".unix", "kept/digits", "kept/digits/udp", "parked/a", "digits.tcp"],
)
def test_what_is_of_no_use_is_closed(name: str, tmp_path: Path, stack: ExitStack) -> None:
    listeners = _listeners(stack, tmp_path)
    before = _open()
    found = read_inherited([(name, os.dup(listeners.unix.fileno()))])  # a unix socket is no `digits.tcp` either
    assert (found.given, found.parked) == ({}, {})
    assert _open() == before


def test_what_does_not_listen_is_not_taken(tmp_path: Path) -> None:
    before = _open()
    one, other = socket.socketpair()
    with one, other, (tmp_path / "file").open("wb") as file:
        named = [("digits.unix", os.dup(one.fileno())), ("digits.unix", os.dup(file.fileno()))]
        assert read_inherited(named).given == {}
    assert _open() == before


def test_a_program_takes_what_it_passed_on_to_itself_and_nothing_else(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        os.set_inheritable(file.fileno(), True)
        passed = {"pid": os.getpid(), "named": [["kept/digits/tcp", file.fileno()]]}
        environment = {"LIGHTERMAN_PASSED": json.dumps(passed), "PATH": "/bin"}
        assert take_passed(environment) == [("kept/digits/tcp", file.fileno())]
        assert environment == {"PATH": "/bin"}
        assert not os.get_inheritable(file.fileno())
    for text in ("", "{", "[]", '{"pid": 1, "named": []}', json.dumps({"pid": os.getpid(), "named": [["a"]]})):
        assert take_passed({"LIGHTERMAN_PASSED": text}) is None


def test_an_address_that_is_another_now_is_not_kept(tmp_path: Path, stack: ExitStack) -> None:
    old = _listeners(stack, tmp_path)
    given = Given(socket.socket(fileno=os.dup(old.unix.fileno())), socket.socket(fileno=os.dup(old.tcp.fileno())))
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    new = Listeners.open("digits", tmp_path, LOOPBACK, port, given=given)
    stack.callback(new.close)
    assert new.port == port
    assert new.unix_path == old.unix_path
    assert new.is_in_place, "the unix socket is the same"


def test_a_given_socket_whose_file_leads_elsewhere_is_found_out(tmp_path: Path, stack: ExitStack) -> None:
    old = _listeners(stack, tmp_path)
    given = Given(socket.socket(fileno=os.dup(old.unix.fileno())))
    stranger = _listeners(stack, tmp_path)  # at the same path
    new = Listeners.open("digits", tmp_path, LOOPBACK, 0, given=given)
    # The stranger is of this very process here, so the kernel names it rightly; only the file tells them apart.
    stack.callback(new.close)
    stranger.unix.close()
    again = Given(socket.socket(fileno=os.dup(new.unix.fileno())))
    found = Listeners.open("digits", tmp_path, LOOPBACK, 0, given=again)
    stack.callback(found.close)
    assert not found.is_in_place
