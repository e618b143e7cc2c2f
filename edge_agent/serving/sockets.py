"""The listening sockets of a module. The agent makes and keeps them; workers inherit them and accept on them.

While no worker accepts, the kernel queues connections, so that neither a swap nor a crash refuses one. An agent may get
them from somebody who had them before: systemd, the agent before it, or a worker that outlived that one.
"""

import array
import contextlib
import os
import socket
import stat
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from edge_agent.serving.limits import LISTEN_BACKLOG, UNIX_PATH_BYTES_MAX
from edge_contract.errors import EdgeError

_CREDENTIALS: Final = struct.Struct("3i")
_SO_ATTACH_FILTER: Final = 26
_INSTRUCTION: Final = struct.Struct("=HBBI")
_PROGRAM: Final = struct.Struct("@HP")
_NO_SYN: Final = (
    (0x30, 0, 0, 13),  # the byte of flags in a TCP header
    (0x54, 0, 0, 0x12),  # of them SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone
    (0x06, 0, 0, 0),  # is dropped,
    (0x06, 0, 0, 0xFFFF_FFFF),  # all others pass
)
"""Classic BPF."""


@dataclass(frozen=True, slots=True)
class Given:
    """Listening sockets that somebody had before, checked; none where there is none.

    Attributes:
        unix: A unix socket.
        tcp: A TCP socket.
        activated: Kinds (`unix`, `tcp`) that systemd made (socket activation): it decides about addresses, and
            removes files.
    """

    unix: socket.socket | None = None
    tcp: socket.socket | None = None
    activated: frozenset[str] = frozenset()

    def close(self) -> None:
        """Close both."""
        for sock in (self.unix, self.tcp):
            if sock is not None:
                sock.close()


@dataclass(frozen=True, slots=True)
class Listeners:
    """The two sockets a module listens on.

    Attributes:
        unix: Listens at `unix_path`.
        unix_path: File of the unix socket, mode 0660.
        unix_file: Device and inode of that file.
        tcp: Listens at `host`:`port`.
        host: Address of the TCP socket.
        port: Its port.
        activated: Kinds (`unix`, `tcp`) that systemd made; the file of such a unix socket is not ours to remove.
    """

    unix: socket.socket
    unix_path: Path
    unix_file: tuple[int, int]
    tcp: socket.socket
    host: str
    port: int
    activated: frozenset[str] = frozenset()

    @classmethod
    def open(
        cls, module: str, run_dir: Path, host: str, port: int, path: Path | None = None, given: Given | None = None
    ) -> "Listeners":
        """Bind both and listen, or go on with what was given.

        Args:
            module: Name of the module; names the unix socket `<run_dir>/<module>.sock`.
            run_dir: Folder that this agent alone writes (it holds the lock); a socket left there is replaced.
            host: IPv4 address to listen on.
            port: TCP port, 0 for any that is free.
            path: Another path for the unix socket than that in `run_dir`.
            given: Sockets to go on with, owned from now on. One whose address is another than the one asked for is
                closed, unless systemd made it. The file of a unix socket may be gone; see `is_in_place`.

        Raises:
            EdgeError: `config.invalid` when the path is too long or an address cannot be had.
        """
        given = given or Given()
        path = path or run_dir / f"{module}.sock"
        unix, tcp = given.unix, given.tcp
        if unix is not None and "unix" not in given.activated and Path(unix.getsockname()) != path:
            unix.close()
            unix = None
        if tcp is not None and "tcp" not in given.activated and not _is_at(tcp, host, port):
            tcp.close()
            tcp = None
        activated = given.activated
        if unix is None:
            unix, unix_file = _listen_unix(path)
        else:
            path = Path(unix.getsockname())
            unix_file = _take_unix(unix, path)
        try:
            tcp = _listen_tcp(module, host, port) if tcp is None else tcp
        except EdgeError:
            unix.close()
            if "unix" not in activated:
                path.unlink(missing_ok=True)
            raise
        host, port = tcp.getsockname()[:2]
        return cls(unix, path, unix_file, tcp, host, port, activated)

    @property
    def is_in_place(self) -> bool:
        """Whether the file of the unix socket is still the one that was made, so that clients find it."""
        return _file_of(self.unix_path) == self.unix_file

    def with_new_unix(self) -> "Listeners":
        """The same with a new unix socket at the same path, in place of whatever is there; the old one is closed here.

        Raises:
            EdgeError: `config.invalid`; the old one is untouched then.
        """
        unix, unix_file = _listen_unix(self.unix_path)
        self.unix.close()
        return replace(self, unix=unix, unix_file=unix_file, activated=self.activated - {"unix"})

    def close(self) -> None:
        """Stop listening and remove the file of the unix socket.

        A worker may still hold both to take in what the kernel has queued. Nobody joins that queue any more: at the one
        because its file is gone, at the other because the kernel drops what would begin a connection. A client tries
        once more after a second, and is refused then.
        """
        self.unix.close()
        if "tcp" not in self.activated:
            _drop_new(self.tcp)
        self.tcp.close()
        if "unix" not in self.activated:
            with contextlib.suppress(OSError):
                self.unix_path.unlink()


def _drop_new(tcp: socket.socket) -> None:
    """Let the kernel drop segments that would begin a connection (socket(7), SO_ATTACH_FILTER; RFC 9293, 3.1)."""
    program = array.array("B", b"".join(_INSTRUCTION.pack(*instruction) for instruction in _NO_SYN))
    with contextlib.suppress(OSError):  # only a convenience for clients: without it a few may be reset
        tcp.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _PROGRAM.pack(len(_NO_SYN), program.buffer_info()[0]))


def listening_socket(fd: int, family: int) -> socket.socket | None:
    """A duplicate of a stream socket of this family that listens, non-blocking; none when it is no such thing.

    A unix socket has to have a file as well.
    """
    duplicate = os.dup(fd)
    try:
        sock = socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        return None
    try:
        is_right = sock.family == family and sock.type == socket.SOCK_STREAM
        is_right = is_right and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        if is_right and (family != socket.AF_UNIX or str(sock.getsockname()).startswith("/")):
            sock.setblocking(False)
            return sock
    except OSError:
        pass
    sock.close()
    return None


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Process id and user id of who made the other end of a connected unix socket, or listened there (unix(7))."""
    pid, uid, _gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


def _is_at(tcp: socket.socket, host: str, port: int) -> bool:
    found = tcp.getsockname()
    return found[0] == host and port in (0, found[1])


def _listen_tcp(module: str, host: str, port: int) -> socket.socket:
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind((host, port))
        tcp.listen(LISTEN_BACKLOG)
        tcp.setblocking(False)
    except OSError as error:
        tcp.close()
        raise EdgeError(
            "config.invalid",
            f"module {module!r} cannot listen on {host}:{port}: {error.strerror or error}",
            "Choose another port for the module, or leave it out to get any free one.",
        ) from error
    return tcp


def _take_unix(unix: socket.socket, path: Path) -> tuple[int, int]:
    """Make this process the one that listens, and find the file by which clients reach the socket.

    Returns:
        Device and inode of the file; (0, 0) when what is at the path leads elsewhere.
    """
    # To listen again changes nothing but whom the kernel names as the one who does.
    unix.listen(LISTEN_BACKLOG)
    before = _file_of(path)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
            probe.setblocking(False)
            probe.connect(os.fspath(path))
            is_ours = peer_of(probe)[0] == os.getpid()
    except BlockingIOError:
        is_ours = True  # its queue is full; a stranger is told of by the attestation
    except OSError:
        is_ours = False
    return before if before is not None and is_ours and before == _file_of(path) else (0, 0)


def _file_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _listen_unix(path: Path) -> tuple[socket.socket, tuple[int, int]]:
    if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
        raise EdgeError(
            "config.invalid",
            f"the path {path} is too long for a unix socket ({UNIX_PATH_BYTES_MAX} bytes)",
            "Choose a run directory with a shorter path.",
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if path.is_symlink() or path.exists():
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise EdgeError("config.invalid", f"{path} exists and is not a socket", "Move it away.")
            path.unlink()
        sock.bind(os.fspath(path))
        # Nobody can connect before listen(), so there is no moment with wider permissions.
        path.chmod(0o660)
        sock.listen(LISTEN_BACKLOG)
        sock.setblocking(False)
        found = path.lstat()
    except OSError as error:
        sock.close()
        raise EdgeError(
            "config.invalid",
            f"cannot listen at {path}: {error.strerror or error}",
            "The run directory has to exist and be writable by the agent.",
        ) from error
    except EdgeError:
        sock.close()
        raise
    return sock, (found.st_dev, found.st_ino)
