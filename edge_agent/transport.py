"""HTTP/1.1 towards one origin, on `http.client`, with every wait bounded.

A hostile or broken server can send a byte now and then for ever; the timeout of a socket begins anew with each of
them. So all reading passes through one place that watches silence, a least amount in each window, a total, and a wish
to stop.
"""

import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self, cast
from urllib.parse import SplitResult, urlsplit

from edge_agent.limits import (
    CONNECT_MS_MAX,
    DOCUMENT_MS_MAX,
    ERROR_BYTES_MAX,
    FETCH_MS_MAX,
    STALL_MS_MAX,
    WINDOW_BYTES_MIN,
    WINDOW_MS,
)
from edge_contract.codes import CODES, Category
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import parse_object
from edge_contract.limits import CHUNK_BYTES

_TICK_S: Final = 0.25  # how soon a wish to stop is noticed
_UNAUTHORIZED: Final = 401
_EXPIRED: Final = "cloud.token-expired"
_REFUSALS: Final = {
    "cloud.device-revoked": "An operator revoked this device. With a new token: edge-agent enroll --force.",
    _EXPIRED: "Set the device's clock, if the registry's is right.",
}
_UNAVAILABLE: Final = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what.

    Attributes:
        total_ms: From sending the request to the last byte of the answer.
        connect_ms: Until the connection stands, TLS included.
        stall_ms: Longest silence.
        window_ms: Length of the windows in which `window_bytes_min` has to come.
        window_bytes_min: Least amount in each full window.
    """

    total_ms: int = FETCH_MS_MAX
    connect_ms: int = CONNECT_MS_MAX
    stall_ms: int = STALL_MS_MAX
    window_ms: int = WINDOW_MS
    window_bytes_min: int = WINDOW_BYTES_MIN


FOR_BLOBS: Final = Patience()
FOR_DOCUMENTS: Final = Patience(total_ms=DOCUMENT_MS_MAX)


def never() -> bool:
    """For requests that nobody cancels."""
    return False


class _Watch:
    """Watches one request; asked between any two pieces that come."""

    def __init__(self, patience: Patience, is_cancelled: Callable[[], bool], what: str) -> None:
        self._patience = patience
        self._is_cancelled = is_cancelled
        self._what = what
        now = time.monotonic()
        self._end = now + patience.total_ms / 1000
        self._heard = now
        self._window_end = now + patience.window_ms / 1000
        self._window_bytes = 0

    def wait(self) -> None:
        """Nothing came for a tick."""
        now = time.monotonic()
        if self._is_cancelled():
            raise EdgeError("network.cut", f"{self._what} was cancelled")
        if now - self._heard > self._patience.stall_ms / 1000:
            raise self._slow(f"sent nothing for {self._patience.stall_ms} ms")
        self._check(now)

    def hear(self, count: int) -> None:
        """So many bytes came."""
        now = self._heard = time.monotonic()
        self._window_bytes += count
        if self._is_cancelled():
            raise EdgeError("network.cut", f"{self._what} was cancelled")
        self._check(now)

    def _check(self, now: float) -> None:
        if now > self._end:
            raise self._slow(f"took longer than {self._patience.total_ms} ms")
        if now > self._window_end:
            if self._window_bytes < self._patience.window_bytes_min:
                detail = f"sent only {self._window_bytes} bytes in {self._patience.window_ms} ms"
                raise self._slow(detail, "network.too-slow")
            self._window_end = now + self._patience.window_ms / 1000
            self._window_bytes = 0

    def _slow(self, why: str, code: str = "network.timeout") -> EdgeError:
        return EdgeError(code, f"{self._what}: the server {why}")


class _Wire:
    """Stands between `http.client` and a socket: the same few methods, reading under a watch."""

    def __init__(self, inner: socket.socket) -> None:
        self._inner = inner
        self._uses = 1
        self.watch: _Watch | None = None
        inner.settimeout(_TICK_S)

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._inner.send(view) :]
            except TimeoutError:
                self._pause()

    def makefile(self, *_: Any) -> io.BufferedReader:
        self._uses += 1
        return io.BufferedReader(_Reader(self), CHUNK_BYTES)

    def receive_into(self, target: memoryview) -> int:
        while True:
            try:
                count = self._inner.recv_into(target)
            except TimeoutError:
                self._pause()
                continue
            if self.watch is not None:
                self.watch.hear(count)
            return count

    def close(self) -> None:
        self._uses -= 1
        if self._uses == 0:
            self._inner.close()

    def _pause(self) -> None:
        if self.watch is not None:
            self.watch.wait()


class _Reader(io.RawIOBase):
    """The raw half of what `http.client` reads answers from."""

    def __init__(self, wire: _Wire) -> None:
        super().__init__()
        self._wire: _Wire | None = wire

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        return 0 if self._wire is None else self._wire.receive_into(memoryview(target))

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        super().close()


class TokenSource(Protocol):
    """Gives bearer tokens. The thread that uses the origin."""

    def __call__(self) -> str:
        """A token that is good now.

        Raises:
            EdgeError: `device.key-unusable`.
        """
        ...

    def fresh(self) -> str:
        """A new token with the longest life, for a process that cannot ask for another one.

        Raises:
            EdgeError: `device.key-unusable`.
        """
        ...

    def refused(self, date: str) -> bool:
        """Hear that the server found the token outside its time, and what time it is there (the answer's `Date`).

        Returns:
            Whether another token is worth a try.
        """
        ...


class Origin:
    """One HTTP origin and its bearer tokens, if any; keeps one connection open between requests. Used by one thread."""

    def __init__(self, url: str, tokens: TokenSource | None = None, ca: Path | None = None) -> None:
        """Name an origin; nothing is connected yet.

        Args:
            url: `http://` or `https://` with host, optional port and optional path prefix.
            tokens: Gives the bearer token of each request, or none.
            ca: Certificates to trust for https; the system's when none.

        Raises:
            EdgeError: `config.invalid` for another kind of URL.
        """
        self._parts = _split(url)
        self._tokens = tokens
        self._ca = ca
        self._connection: http.client.HTTPConnection | None = None
        self._context: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        """Scheme, host and prefix, without a slash at the end."""
        return f"{self._parts.scheme}://{self._parts.netloc}{self._parts.path.rstrip('/')}"

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        patience: Patience = FOR_DOCUMENTS,
        is_cancelled: Callable[[], bool] = never,
    ) -> "Answer":
        """Send a request and read the head of the answer. Use the answer as a context manager.

        Args:
            method: GET, HEAD or POST.
            path: Path and query, beginning with `/`, below the origin's prefix.
            headers: Further headers.
            body: For POST.
            patience: How long to wait.
            is_cancelled: Asked at least four times a second while waiting.

        A token that the server finds outside its time is replaced once.

        Raises:
            EdgeError: `network.unreachable`, `network.timeout`, `network.cut`, `cloud.unavailable` for what is no HTTP,
                `device.key-unusable` when no token can be signed.
        """
        answer = self._request(method, path, headers, body, patience, is_cancelled)
        if self._tokens is None or answer.status != _UNAUTHORIZED:
            return answer
        if answer.error().code != _EXPIRED or not self._tokens.refused(answer.header("Date")):
            return answer
        with answer:
            pass
        self.close()  # a server that refused may end the connection, and a POST is not sent twice on suspicion
        return self._request(method, path, headers, body, patience, is_cancelled)

    def _request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None,
        body: bytes | None,
        patience: Patience,
        is_cancelled: Callable[[], bool],
    ) -> "Answer":
        what = f"{method} {self.url}{path}"
        all_headers = {"User-Agent": "lighterman-agent", "Accept-Encoding": "identity", **(headers or {})}
        token = "" if self._tokens is None else self._tokens()
        if token:
            all_headers["Authorization"] = f"Bearer {token}"
        watch = _Watch(patience, is_cancelled, what)
        target = f"{self._parts.path.rstrip('/')}{path}"
        while True:
            is_kept = self._connection is not None
            connection = self._connection or self._connect(patience, what)
            self._connection = None
            try:
                cast(_Wire, connection.sock).watch = watch
                connection.request(method, target, body, all_headers)
                answer = Answer(self, connection, connection.getresponse(), what)
            except (http.client.RemoteDisconnected, ConnectionError) as error:
                connection.close()
                # A server may close a kept connection at any time; that says nothing about this request.
                if is_kept and method in ("GET", "HEAD"):
                    continue
                raise EdgeError("network.cut", f"{what}: {error}") from error
            except http.client.HTTPException as error:
                connection.close()
                raise EdgeError("cloud.unavailable", f"{what}: the answer is not HTTP: {error!r}") from error
            except OSError as error:
                connection.close()
                raise EdgeError("network.cut", f"{what}: {error}") from error
            except BaseException:
                connection.close()
                raise
            return answer

    def close(self) -> None:
        """Close the kept connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def keep(self, connection: http.client.HTTPConnection) -> None:
        """Take back a connection whose answer was read to the end."""
        self.close()
        self._connection = connection

    def elsewhere(self, location: str) -> "tuple[Origin, str]":
        """Where a redirection leads: the origin, without our token if it is another one, and path and query there.

        Raises:
            EdgeError: `cloud.unavailable` for a redirection that leads out of https or nowhere.
        """
        if location.startswith("/") and not location.startswith("//"):
            location = f"{self._parts.scheme}://{self._parts.netloc}{location}"
        try:
            parts = _split(location)
        except EdgeError:
            raise EdgeError("cloud.unavailable", f"{self.url} redirects to {location[:200]!r}") from None
        if self._parts.scheme == "https" and parts.scheme != "https":
            raise EdgeError("cloud.unavailable", f"{self.url} redirects out of https")
        root = f"{parts.scheme}://{parts.netloc}"
        is_same = (parts.scheme, parts.netloc) == (self._parts.scheme, self._parts.netloc)
        path = parts.path or "/"
        return Origin(
            root, self._tokens if is_same else None, self._ca
        ), f"{path}?{parts.query}" if parts.query else path

    def _connect(self, patience: Patience, what: str) -> http.client.HTTPConnection:
        host, port, seconds = self._parts.hostname or "", self._parts.port, patience.connect_ms / 1000
        connection: http.client.HTTPConnection
        if self._parts.scheme == "https":
            if self._context is None:
                self._context = tls_context(self._ca)
            connection = http.client.HTTPSConnection(host, port, timeout=seconds, context=self._context)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=seconds)
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            hint = "If the registry's certificate is from an authority of your own, name it when enrolling: --ca FILE."
            raise EdgeError("network.unreachable", f"{what}: {error.verify_message}", hint) from error
        except TimeoutError as error:
            raise EdgeError("network.timeout", f"{what}: no connection within {patience.connect_ms} ms") from error
        except (OSError, UnicodeError) as error:
            raise EdgeError("network.unreachable", f"{what}: {error}", "Check the address and the network.") from error
        connection.sock = cast(socket.socket, _Wire(connection.sock))
        return connection


class Answer:
    """The answer to one request. Used by one thread, as a context manager."""

    def __init__(
        self, origin: Origin, connection: http.client.HTTPConnection, response: http.client.HTTPResponse, what: str
    ) -> None:
        """`Origin.request` is the way here."""
        self._origin = origin
        self._connection = connection
        self._response = response
        self._error: EdgeError | None = None
        self.what = what
        self.status = response.status

    def header(self, name: str) -> str:
        """A header's value, empty when absent."""
        return self._response.getheader(name) or ""

    @property
    def length(self) -> int | None:
        """Declared length of the body, or none."""
        return self._response.length

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes, in pieces of at most `CHUNK_BYTES`.

        Raises:
            EdgeError: `network.cut`, `network.timeout`; also `network.cut` when a declared length is not reached.
        """
        try:
            while chunk := self._response.read1(CHUNK_BYTES):
                yield chunk
        except (http.client.HTTPException, OSError) as error:
            raise EdgeError("network.cut", f"{self.what}: {error!r}") from error
        if self._response.length:
            raise EdgeError("network.cut", f"{self.what}: the connection ended {self._response.length} bytes too early")

    def read(self, bytes_max: int, too_large: str) -> bytes:
        """The whole body.

        Args:
            bytes_max: The longest body to accept.
            too_large: The error code for a longer one.

        Raises:
            EdgeError: `too_large`, `network.cut`, `network.timeout`.
        """
        parts: list[bytes] = []
        count = 0
        for chunk in self.chunks():
            count += len(chunk)
            if count > bytes_max:
                raise EdgeError(too_large, f"{self.what}: the answer is longer than {bytes_max} bytes")
            parts.append(chunk)
        return b"".join(parts)

    def error(self) -> EdgeError:
        """The error that an unwelcome status stands for; the code of a problem document (RFC 9457) counts most."""
        if self._error is None:
            self._error = self._read_error()
        return self._error

    def refusal(self) -> EdgeError:
        """The error that 401 or 403 stands for: these credentials, for this."""
        problem = self.error()
        if problem.code in _REFUSALS:
            return EdgeError(problem.code, problem.detail, _REFUSALS[problem.code])
        return EdgeError("network.refused", problem.detail, "Is the device still enrolled?")

    def _read_error(self) -> EdgeError:
        detail, code = f"HTTP status {self.status}", ""
        try:
            document = parse_object(self.read(ERROR_BYTES_MAX, "cloud.unavailable"), "problem", ERROR_BYTES_MAX)
            code = str(document.get("code", ""))
            detail = str(document.get("detail") or document.get("title") or detail)
        except (EdgeError, ContractError):
            pass  # whatever stands there, the status says enough
        if code not in CODES or CODES[code].category not in (Category.CLOUD, Category.ARTIFACT, Category.TRUST):
            code = _code_of(self.status)
        return EdgeError(code, f"{self.what}: {detail}")

    def __enter__(self) -> Self:
        """The answer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep the connection if the body was read to its end, else close it."""
        # read1() of a body of known length does not close the answer behind its last byte.
        is_whole = (self._response.isclosed() or self._response.length == 0) and not self._response.will_close
        self._response.close()
        if error is None and is_whole and self._connection.sock is not None:
            self._origin.keep(self._connection)
        else:
            self._connection.close()


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """TLS for a client that checks the server's certificate and name.

    Args:
        ca: File of certificates to trust; the system's when none.

    Raises:
        EdgeError: `config.file-missing` when the file cannot be read as certificates.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:
        raise EdgeError("config.file-missing", f"the certificates in {ca} cannot be read: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _code_of(status: int) -> str:
    if status in (401, 403):
        return "network.refused"
    if status == 404:
        return "cloud.not-found"
    if status >= 500 or status in _UNAVAILABLE or status < 400:
        return "cloud.unavailable"
    return "cloud.bad-request"


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, is_usable = SplitResult("", "", "", "", ""), False
    if not is_usable or parts.username is not None:
        raise EdgeError(
            "config.invalid", f"{url[:200]!r} is not a usable URL", "Use http://HOST[:PORT] or https://HOST[:PORT]."
        )
    return parts
