"""The listening sockets of a module. The agent makes and keeps them; workers inherit them and accept on them.

While no worker accepts, the kernel queues connections, so that neither a swap nor a crash refuses one.
"""

import contextlib
import os
import socket
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from edge_agent.serving.limits import LISTEN_BACKLOG, UNIX_PATH_BYTES_MAX
from edge_contract.errors import EdgeError


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
    """

    unix: socket.socket
    unix_path: Path
    unix_file: tuple[int, int]
    tcp: socket.socket
    host: str
    port: int

    @classmethod
    def open(cls, module: str, run_dir: Path, host: str, port: int, path: Path | None = None) -> "Listeners":
        """Bind both and listen.

        Args:
            module: Name of the module; names the unix socket `<run_dir>/<module>.sock`.
            run_dir: Folder that this agent alone writes (it holds the lock); a socket left there is replaced.
            host: IPv4 address to listen on.
            port: TCP port, 0 for any that is free.
            path: Another path for the unix socket than that in `run_dir`.

        Raises:
            EdgeError: `config.invalid` when the path is too long or an address cannot be had.
        """
        path = path or run_dir / f"{module}.sock"
        unix, unix_file = _listen_unix(path)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind((host, port))
            tcp.listen(LISTEN_BACKLOG)
            tcp.setblocking(False)
        except OSError as error:
            tcp.close()
            unix.close()
            path.unlink(missing_ok=True)
            raise EdgeError(
                "config.invalid",
                f"module {module!r} cannot listen on {host}:{port}: {error.strerror or error}",
                "Choose another port for the module, or leave it out to get any free one.",
            ) from error
        return cls(unix, path, unix_file, tcp, host, tcp.getsockname()[1])

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
        return replace(self, unix=unix, unix_file=unix_file)

    def close(self) -> None:
        """Stop listening and remove the file of the unix socket."""
        self.unix.close()
        self.tcp.close()
        with contextlib.suppress(OSError):
            self.unix_path.unlink()


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
