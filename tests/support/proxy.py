"""A TCP proxy on 127.0.0.1 that misbehaves on purpose: cuts connections, lets bytes trickle, or plays dead."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

_CHUNK_BYTES = 16 * 1024


class RoughProxy:
    """Passes connections on to one port; its attributes may be changed while it runs.

    Attributes:
        port: Where it listens.
        cut_after: Bytes towards the client after which each connection is reset; none for never.
        cuts: Connections it cut.
        passed: Bytes it passed towards clients.
        is_down: Whether new connections are closed at once and old ones die at their next byte.
        delay_s: Wait before each chunk towards the client.
    """

    def __init__(self, target_port: int) -> None:
        """Listen on a port of its own for `target_port` on 127.0.0.1."""
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.cut_after: int | None = None
        self.cuts = 0
        self.passed = 0
        self.is_down = False
        self.delay_s = 0.0
        self._closed = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)

    def __enter__(self) -> "RoughProxy":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop_all()
        self._thread.join(10)

    def drop_all(self) -> None:
        """Cut every connection there is now."""
        for item in list(self._sockets):
            with suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.is_down:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target_port), 10)
            except OSError:
                client.close()
                continue
            self._sockets |= {client, server}
            for source, sink, is_answer in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=(source, sink, is_answer), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        count = 0
        try:
            while (chunk := source.recv(_CHUNK_BYTES)) and not self.is_down:
                if is_answer:
                    if self.delay_s:
                        self._closed.wait(self.delay_s)
                    if self.cut_after is not None and count + len(chunk) > self.cut_after:
                        chunk = chunk[: max(0, self.cut_after - count)]
                        sink.sendall(chunk)
                        self.passed += len(chunk)
                        self.cuts += 1
                        break
                    count += len(chunk)
                    self.passed += len(chunk)
                sink.sendall(chunk)
        except OSError:
            pass  # the other side went away, which is what this proxy is about
        finally:
            for item in (source, sink):
                with suppress(OSError):
                    item.shutdown(socket.SHUT_RDWR)
                item.close()
                self._sockets.discard(item)


@contextmanager
def rough_proxy(target_port: int) -> Iterator[RoughProxy]:
    """A proxy for the length of a `with` block."""
    with RoughProxy(target_port) as proxy:
        yield proxy
