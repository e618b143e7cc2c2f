"""Finds the workers that outlived the agent before this one, and takes them over.

Each waits at a socket of its own in one folder. The kernel says who listens there; the worker says what it serves and
passes what it serves with. Nothing that a peer says is taken on trust where the kernel can be asked instead, and nobody
is ended who is not certainly a worker. Used by one thread, once, before anything is served.
"""

import contextlib
import errno
import logging
import os
import select
import socket
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.serving.channel import MessageReader, close_fds, encode_message, receive, send_message
from edge_agent.serving.handle import AdoptedProcess
from edge_agent.serving.limits import HELLO_PROTOCOL, ORPHANS_MAX
from edge_agent.serving.sockets import listening_socket, peer_of
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.names import model_name

_log = logging.getLogger(__name__)
_SUFFIX: Final = ".sock"
_PROC: Final = Path("/proc")
_LIST_MAX: Final = 4_096
"""Connections that one worker may name."""


def waiting_name(module: str, pid: int) -> str:
    """Name of the socket at which a worker waits."""
    return f"{module}.{pid}{_SUFFIX}"


@dataclass(slots=True)
class Orphan:
    """A worker that outlived its agent and said hello.

    Attributes:
        module: Name of the module it serves.
        manifest: Digest of the bundle it serves.
        golden: Digest of what it computed on the golden vectors, or none.
        terms: On what terms it was proved, as its agent put it.
        serving_ms: For how long it has served.
        process: Its process.
        control: The new control channel.
        output: Reads what it prints.
        unix: The unix socket on which it accepts.
        tcp: The TCP socket on which it accepts.
        limbo: Connections (by the kernel's number of their socket) that it gave away and nobody may have got.
        adopted: Connections that it got from another worker.
        speaks_ours: Whether it understands this agent; of one that does not only `module` and the sockets are of use.
    """

    module: str
    manifest: Digest
    golden: Digest | None
    terms: str
    serving_ms: int
    process: AdoptedProcess
    control: socket.socket
    output: int
    unix: socket.socket
    tcp: socket.socket
    limbo: frozenset[int]
    adopted: frozenset[int]
    speaks_ours: bool

    def say(self, op: str, **fields: object) -> None:
        """Send a command.

        Raises:
            OSError: It is gone.
        """
        line = memoryview(encode_message({"op": op, **fields}))
        while line:
            line = line[send_message(self.control, line, ()) :]

    def close(self) -> None:
        """Close all but the listening sockets; the process goes on."""
        self.control.close()
        self.process.close()
        close_fds([self.output])


class _OthersError(Exception):
    """It is not for this agent, and nobody's mistake."""


@dataclass(slots=True)
class _Suit:
    """A worker that was asked and has not answered yet."""

    path: Path
    sock: socket.socket
    process: AdoptedProcess
    reader: MessageReader


def find_orphans(folder: Path, hello_ms: int) -> list[Orphan]:
    """Greet every worker that waits in a folder.

    A socket at which nobody listens is removed. Who is not a worker of ours is left alone; a worker that does not
    answer in time, or not rightly, is of no use to anybody and is killed.

    Args:
        folder: Holds a socket for each worker, `<module>.<pid>.sock`.
        hello_ms: For all of them together.

    Returns:
        Those that answered, who served the longest first. They wait to be told what to do.
    """
    suits = _ask_all(folder)
    found: list[Orphan] = []
    deadline = time.monotonic() + hello_ms / 1000
    poller = select.poll()
    for fd in suits:
        poller.register(fd, select.POLLIN)
    while suits and (left_s := deadline - time.monotonic()) > 0:
        for fd, _event in poller.poll(left_s * 1000):
            suit = suits[fd]
            try:
                orphan = _hear(suit)
            except _OthersError as error:
                _give_up(suit, str(error), may_kill=False)
            except (EdgeError, OSError, ValueError, TypeError, KeyError) as error:
                _give_up(suit, f"cannot be understood: {error}")
            else:
                if orphan is None:
                    continue
                found.append(orphan)
            poller.unregister(fd)
            del suits[fd]
    for suit in suits.values():
        _give_up(suit, f"said nothing within {hello_ms} ms")
    return sorted(found, key=lambda orphan: -orphan.serving_ms)


def _ask_all(folder: Path) -> dict[int, _Suit]:
    """Connect to each, by descriptor of the connection."""
    suits: dict[int, _Suit] = {}
    try:
        names = sorted(path.name for path in folder.iterdir() if path.name.endswith(_SUFFIX))
        place = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return suits
    try:
        if len(names) > ORPHANS_MAX:
            _log.error("%s holds %d sockets; %d of them are looked at", folder, len(names), ORPHANS_MAX)
        for name in names[:ORPHANS_MAX]:
            if (suit := _ask(folder / name, place)) is not None:
                suits[suit.sock.fileno()] = suit
    finally:
        os.close(place)
    return suits


def _ask(path: Path, place: int) -> _Suit | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.ENOTSOCK, "it is no socket")
        sock.setblocking(False)
        # By way of the folder's descriptor: the whole path may be longer than an address holds.
        sock.connect(f"/proc/self/fd/{place}/{path.name}")
        pid, uid = peer_of(sock)
        if uid != os.geteuid():
            raise OSError(errno.EPERM, f"user {uid} listens there")
        if path.name.split(".")[-2:-1] != [str(pid)]:
            raise OSError(errno.EPERM, f"process {pid} listens there")
        # After the connection: who is named is either there still, or its end is seen on the connection.
        return _Suit(path, sock, AdoptedProcess(pid), MessageReader())
    except OSError as error:
        sock.close()
        if error.errno in (errno.ECONNREFUSED, errno.ESRCH):
            _log.info("the worker that waited at %s is gone", path.name)
            with contextlib.suppress(OSError):
                path.unlink()
        else:
            _log.error("who waits at %s is not adopted: %s", path, error.strerror)
        return None


def _hear(suit: _Suit) -> Orphan | None:
    """Take what it says; none while that is not whole.

    Raises:
        _OthersError: It ends, or has another agent.
        EdgeError, OSError, ValueError, TypeError, KeyError: It is no good; descriptors are closed.
    """
    data, received = receive(suit.sock)
    if not data:
        close_fds(received)
        raise _OthersError("ended the connection")
    for message, fds in suit.reader.feed(data, received):
        try:
            if message.get("event") == "busy":
                raise _OthersError("has another agent")
            if message.get("event") != "hello":
                raise ValueError(f"its first word is {message.get('event')!r}")
            return _orphan(suit, message, fds)
        except BaseException:
            close_fds(fds)
            raise
    return None


def _orphan(suit: _Suit, hello: JsonObject, fds: list[int]) -> Orphan:
    # These and the three descriptors are in the hello of every version.
    module, protocol = model_name(hello["module"]), int(hello["protocol"])
    golden, manifest = hello["golden"], Digest(str(hello["manifest"]))
    limbo, adopted = _numbers(hello["limbo"]), _numbers(hello["adopted"])
    serving_ms, terms = int(hello["serving_ms"]), str(hello.get("terms", ""))
    if len(fds) != 3 or not stat.S_ISFIFO(os.fstat(fds[2]).st_mode):
        raise ValueError("it does not pass two sockets and a pipe")
    digest = None if golden is None else Digest(str(golden))
    unix, tcp = listening_socket(fds[0], socket.AF_UNIX), listening_socket(fds[1], socket.AF_INET)
    if unix is None or tcp is None:
        for sock in (unix, tcp):
            if sock is not None:
                sock.close()
        raise ValueError("the sockets that it passes do not listen")
    close_fds(fds[:2])
    suit.sock.settimeout(None)
    return Orphan(
        module, manifest, digest, terms, serving_ms, suit.process, suit.sock, fds[2], unix, tcp, limbo, adopted,
        protocol == HELLO_PROTOCOL,
    )  # fmt: skip


def _numbers(value: object) -> frozenset[int]:
    if not isinstance(value, list) or len(value) > _LIST_MAX or not all(type(item) is int for item in value):
        raise ValueError("it does not name its connections rightly")
    return frozenset(value)


def _give_up(suit: _Suit, why: str, may_kill: bool = True) -> None:
    """End what is a worker and of no use; leave whatever else it is alone."""
    pid = suit.process.pid
    suit.reader.close()
    suit.sock.close()
    if may_kill and suit.process.poll() is None and _is_worker(pid):
        _log.error("process %d at %s is killed: it %s", pid, suit.path.name, why)
        suit.process.kill()
        suit.process.wait(1.0)
        with contextlib.suppress(OSError):
            suit.path.unlink()
    else:
        _log.error("process %d at %s is not adopted: it %s", pid, suit.path.name, why)
    suit.process.close()


def _is_worker(pid: int) -> bool:
    """Whether a process was started as a worker."""
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"edge_agent.worker" in words[:-1] and b"--orphans" in words
