"""How the client's requests travel: one HTTP connection pool, bounded repeats, and errors with stable codes."""

import random
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import httpx

from cloud_registry.errors import RegistryError
from cloud_registry.limits import (
    CLIENT_ANSWER_BYTES_MAX,
    CLIENT_ATTEMPTS_MAX,
    CLIENT_BACKOFF_MS,
    CLIENT_BACKOFF_MS_MAX,
    CLIENT_CHUNK_BYTES,
    TEXT_EXCERPT_CHARS,
)
from edge_contract.codes import CODES
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

_REPEATABLE: Final = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_PASSING: Final = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})
_CODE_BY_STATUS: Final = {
    HTTPStatus.UNAUTHORIZED: "cloud.unauthorized",
    HTTPStatus.FORBIDDEN: "cloud.forbidden",
    HTTPStatus.NOT_FOUND: "cloud.not-found",
    HTTPStatus.CONFLICT: "cloud.conflict",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "cloud.too-large",
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: "cloud.upload-invalid",
}
_CODE_BY_OCI: Final = {
    "BLOB_UNKNOWN": "artifact.not-found",
    "MANIFEST_UNKNOWN": "artifact.not-found",
    "MANIFEST_BLOB_UNKNOWN": "artifact.not-found",
    "NAME_UNKNOWN": "artifact.not-found",
    "DIGEST_INVALID": "artifact.digest-mismatch",
    "SIZE_INVALID": "artifact.size-mismatch",
    "MANIFEST_INVALID": "artifact.manifest-invalid",
    "NAME_INVALID": "cloud.name-invalid",
    "BLOB_UPLOAD_INVALID": "cloud.upload-invalid",
    "BLOB_UPLOAD_UNKNOWN": "cloud.upload-invalid",
    "UNAUTHORIZED": "cloud.unauthorized",
    "DENIED": "cloud.forbidden",
}
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class Transport:
    """Sends requests to one registry with one token. Any thread.

    Attributes:
        base: The base URL.
    """

    def __init__(self, url: str, token: str = "", timeout_s: float = 30.0, ca_file: Path | None = None) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: Base URL, for example `http://127.0.0.1:8400`.
            token: Bearer token; empty for routes that need none.
            timeout_s: Longest silence of the other side, and longest wait for a connection.
            ca_file: CA certificate (PEM) for an `https` registry with a private authority.

        Raises:
            EdgeError: `config.invalid`, `config.file-missing`.
        """
        try:
            self.base = httpx.URL(url.rstrip("/"))
        except httpx.InvalidURL as error:
            raise EdgeError("config.invalid", f"{url!r} is not a URL: {error}") from None
        if self.base.scheme not in ("http", "https") or not self.base.host:
            raise EdgeError(
                "config.invalid", f"{url!r} is not a URL of a registry", "Use http://HOST:PORT or https://…."
            )
        if token and not (token.isascii() and token.isprintable() and " " not in token):
            hint = "A token is one line of printable ASCII characters without blanks."
            raise EdgeError("config.invalid", "the token holds characters that no token has", hint)
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=timeout_s,
            verify=_tls_context(self.base.scheme, ca_file),
            # A proxy of the environment cannot reach this machine's own loopback address.
            trust_env=self.base.host not in _LOOPBACK,
        )

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def json(
        self,
        method: str,
        path: str,
        body: JsonObject | None = None,
        params: Iterable[tuple[str, str]] = (),
        repeat: bool = False,
    ) -> JsonObject:
        """Send a JSON object (or nothing) and give the one that comes back; empty parameters are left out."""
        kept = [(key, value) for key, value in params if value != ""]
        return _object(self.request(method, path, json=body, params=kept, repeat=repeat))

    def request(
        self, method: str, path: str | httpx.URL, repeat: bool = False, answers: Iterable[int] = (), **options: Any
    ) -> httpx.Response:
        """Send, repeat when that is safe, and raise for a failed answer whose status is not among `answers`.

        Args:
            method: HTTP method; GET, HEAD, PUT and DELETE are repeated anyway.
            path: Path with the leading slash, or a whole URL of the same host.
            repeat: Whether another method may be repeated too.
            answers: Failed statuses that are an answer to the caller.
            options: As httpx takes them.
        """
        url = path if isinstance(path, httpx.URL) else self.url_of(path)
        attempts = CLIENT_ATTEMPTS_MAX if repeat or method in _REPEATABLE else 1
        for attempt in range(1, attempts + 1):
            try:
                with translated(url):
                    response = self._http.request(method, url, **options)
            except EdgeError:
                if attempt == attempts:
                    raise
            else:
                if response.is_success or response.status_code in answers:
                    return response
                if method == "DELETE" and attempt > 1 and response.status_code == HTTPStatus.NOT_FOUND:
                    return response  # the attempt before did it, and its answer was lost
                if response.status_code not in _PASSING or attempt == attempts:
                    raise _error_of(response)
            pause(attempt)
        raise EdgeError("internal.bug", "a request ended without an answer")

    def exists(self, path: str) -> bool:
        """Whether HEAD finds something."""
        return self.request("HEAD", path, answers=(HTTPStatus.NOT_FOUND,)).is_success

    def read(self, path: str, bytes_max: int, digest: Digest | None) -> bytes:
        """A small document as a whole, verified when a digest is given."""
        for attempt in range(1, CLIENT_ATTEMPTS_MAX + 1):
            try:
                with self.stream(path, {}) as response:
                    data = _bounded(response, bytes_max)
            except EdgeError as error:
                if not is_passing(error) or attempt == CLIENT_ATTEMPTS_MAX:
                    raise
                pause(attempt)
                continue
            if digest is not None and Digest.of(data) != digest:
                raise EdgeError("artifact.digest-mismatch", f"{path}: the registry sent bytes of another digest")
            return data
        raise EdgeError("internal.bug", "a request ended without an answer")

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """A successful answer to GET whose body is read while it comes."""
        url = self.url_of(path)
        with translated(url), self._http.stream("GET", url, headers=headers) as response:
            if not response.is_success:
                response.read()
                raise _error_of(response)
            yield response

    def send(self, url: httpx.URL, headers: Mapping[str, str], chunks: Iterator[bytes]) -> httpx.Response:
        """PATCH with a body that is made while it goes; never repeated here."""
        with translated(url):
            response = self._http.request("PATCH", url, headers=headers, content=chunks)
        if not response.is_success:
            raise _error_of(response)
        return response

    def location(self, response: httpx.Response) -> httpx.URL:
        """The absolute URL of a `Location` header; the token goes to no other host."""
        location = response.request.url.join(response.headers.get("location", ""))
        if (location.scheme, location.netloc) != (self.base.scheme, self.base.netloc):
            raise EdgeError("cloud.unavailable", f"the registry points to another host, {location.host}")
        return location

    def url_of(self, path: str) -> httpx.URL:
        """The whole URL of a path."""
        return httpx.URL(str(self.base) + path)


def is_passing(error: EdgeError) -> bool:
    """Whether trying again may help."""
    return error.code.startswith("network.") or error.code == "cloud.unavailable"


def pause(attempt: int) -> None:
    """Wait before the next attempt: doubling, capped, with jitter so that many clients do not knock together."""
    ceiling = min(CLIENT_BACKOFF_MS * 2 ** (attempt - 1), CLIENT_BACKOFF_MS_MAX)
    time.sleep(random.uniform(0.5, 1.0) * ceiling / 1000)


@contextmanager
def translated(url: httpx.URL) -> Iterator[None]:
    """Turn the library's exceptions into errors with a `network.` code."""
    where = f"{url.scheme}://{url.netloc.decode('ascii')}{url.path}"
    try:
        yield
    except httpx.ConnectError as error:
        hint = "Is the registry running, and is the URL right?"
        raise EdgeError("network.unreachable", f"cannot reach {where}: {error}", hint) from None
    except httpx.TimeoutException:
        raise EdgeError("network.timeout", f"{where} did not answer in time") from None
    except httpx.TransportError as error:
        raise EdgeError("network.cut", f"the connection to {where} was cut: {error}") from None


def _tls_context(scheme: str, ca_file: Path | None) -> ssl.SSLContext:
    if scheme == "http":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used, and cheaper than loading the system's authorities
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise EdgeError("config.file-missing", f"cannot read the CA certificate {ca_file}: {error}") from None


def _object(response: httpx.Response) -> JsonObject:
    if len(response.content) > CLIENT_ANSWER_BYTES_MAX:
        raise EdgeError("cloud.unavailable", f"{response.request.url.path}: the answer is too long")
    try:
        value = response.json()
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise EdgeError("cloud.unavailable", f"{response.request.url.path}: the answer is not a JSON object")
    return value


def _error_of(response: httpx.Response) -> EdgeError:
    """The error that a failed answer stands for: a problem document, an OCI error body, or just a status."""
    path = response.request.url.path
    try:
        document = response.json()
    except ValueError:
        document = None
    if isinstance(document, dict):
        code = document.get("code")
        if isinstance(code, str) and code in CODES:
            known = {"type", "title", "status", "detail", "instance", "code", "hint"}
            extras = {key: value for key, value in document.items() if key not in known}
            return RegistryError(code, str(document.get("detail", "")), str(document.get("hint", "")), extras)
        errors = document.get("errors")
        if isinstance(errors, list) and errors and isinstance(errors[0], dict):
            return _oci_error(errors[0], response, path)
    return EdgeError(_code_of(response.status_code), f"{path} answered {response.status_code}: {_excerpt(response)}")


def _oci_error(error: Mapping[str, Any], response: httpx.Response, path: str) -> EdgeError:
    detail = error.get("detail")
    code = detail.get("code") if isinstance(detail, dict) else None
    if not isinstance(code, str) or code not in CODES:
        code = _CODE_BY_OCI.get(str(error.get("code"))) or _code_of(response.status_code)
    hint = str(detail.get("hint", "")) if isinstance(detail, dict) else ""
    return EdgeError(code, f"{path}: {str(error.get('message', '')) or error.get('code')}", hint)


def _code_of(status: int) -> str:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "cloud.unavailable"
    return (
        _CODE_BY_STATUS.get(HTTPStatus(status), "cloud.bad-request")
        if status in set(HTTPStatus)
        else "cloud.bad-request"
    )


def _excerpt(response: httpx.Response) -> str:
    return response.text[:TEXT_EXCERPT_CHARS] or "no text"


def _bounded(response: httpx.Response, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    count = 0
    for chunk in response.iter_bytes(CLIENT_CHUNK_BYTES):
        count += len(chunk)
        if count > bytes_max:
            raise EdgeError(
                "artifact.document-too-large", f"{response.request.url.path} is longer than {bytes_max} bytes"
            )
        parts.append(chunk)
    return b"".join(parts)
