"""Kept-alive connections that have asked once and wait, and whether they still answer later."""

import socket
from types import TracebackType
from typing import Final

_TIMEOUT_S: Final = 30.0


class IdleConnections:
    """HTTP connections over TCP, each with one answer behind it."""

    def __init__(self, address: str, request: bytes, count: int) -> None:
        """Open them and ask once on each; `address` as the load generator takes it (`tcp:HOST:PORT`)."""
        _, host, port = address.split(":")
        self._request = request
        self._sockets = [socket.create_connection((host, int(port)), _TIMEOUT_S) for _ in range(count)]
        if lost := self.count_lost():
            self.close()
            raise RuntimeError(f"{lost} of {count} connections got no answer")

    def __enter__(self) -> "IdleConnections":
        """Use them in a block that closes them."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close them."""
        self.close()

    def close(self) -> None:
        """Close them."""
        for sock in self._sockets:
            sock.close()

    def count_lost(self) -> int:
        """Ask on each again; those without a good answer."""
        return sum(not self._is_answered(sock) for sock in self._sockets)

    def _is_answered(self, sock: socket.socket) -> bool:
        try:
            sock.sendall(self._request)
            received = b""
            while not (head := received.partition(b"\r\n\r\n"))[1]:
                more = sock.recv(65_536)
                if not more:
                    return False
                received += more
            lines = head[0].lower().split(b"\r\n")
            length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
            missing = length - len(head[2])
            while missing > 0:
                more = sock.recv(missing)
                if not more:
                    return False
                missing -= len(more)
        except OSError:
            return False
        return lines[0].split()[1] == b"200"
