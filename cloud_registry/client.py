"""Python client of the registry's HTTP interface: one method a route.

It needs httpx and the contract, nothing else of the registry, so an author's machine can use it. Methods block, may be
called from any thread, and raise `EdgeError` with the code of the registry's problem document, or a `network.` code.
Calls that may safely be repeated are, a bounded number of times. Dictionaries are the JSON objects of the interface as
`GET /openapi.json` describes them; times in them are RFC 3339 texts in UTC.
"""

import os
import random
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

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
from edge_contract.stream import VerifyingStream

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

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


class RegistryClient:
    """Talks to one registry with one token. Close it, or use it in a `with` block."""

    def __init__(self, url: str, token: str = "", timeout_s: float = 30.0, ca_file: Path | None = None) -> None:
        """Make a client; nothing is sent yet.

        Args:
            url: Base URL, for example `http://127.0.0.1:8400`.
            token: Bearer token; empty for routes that need none.
            timeout_s: Longest silence of the other side, and longest wait for a connection.
            ca_file: CA certificate (PEM) for an `https` registry with a private authority.

        Raises:
            EdgeError: `config.invalid`, `config.file-missing`.
        """
        try:
            self._base = httpx.URL(url.rstrip("/"))
        except httpx.InvalidURL as error:
            raise EdgeError("config.invalid", f"{url!r} is not a URL: {error}") from None
        if self._base.scheme not in ("http", "https") or not self._base.host:
            raise EdgeError(
                "config.invalid", f"{url!r} is not a URL of a registry", "Use http://HOST:PORT or https://…."
            )
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=timeout_s,
            verify=_tls_context(self._base.scheme, ca_file),
            # A proxy of the environment cannot reach this machine's own loopback address.
            trust_env=self._base.host not in _LOOPBACK,
        )

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    @property
    def url(self) -> str:
        """The base URL."""
        return str(self._base)

    # --- models -------------------------------------------------------------------------------------------------------

    def create_model(
        self,
        name: str,
        description: str = "",
        tags: Mapping[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> JsonObject:
        """Create a model; `cloud.conflict` if there is one of that name."""
        body = {
            "name": name,
            "description": description,
            "tags": dict(tags or {}),
            "properties": dict(properties or {}),
        }
        return self._json("POST", "/api/v1/models", body)

    def model(self, name: str) -> JsonObject:
        """One model with its newest version and aliases."""
        return self._json("GET", f"/api/v1/models/{_part(name)}")

    def update_model(self, name: str, changes: Mapping[str, Any]) -> JsonObject:
        """Change `description`, `tags` or `properties` of a model."""
        return self._json("PATCH", f"/api/v1/models/{_part(name)}", dict(changes))

    def delete_model(self, name: str) -> None:
        """Delete a model with its versions; `cloud.in-use` (extras: `needed_by`) while something needs it."""
        self._request("DELETE", f"/api/v1/models/{_part(name)}")

    def search(
        self,
        name: str = "",
        query: str = "",
        format: str = "",
        tags: Mapping[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
        created_after: str = "",
        created_before: str = "",
        limit: int | None = None,
        cursor: str = "",
    ) -> JsonObject:
        """One page of models: `{"items": […], "next": cursor or null}`."""
        params = [("name", name), ("q", query), ("format", format), ("cursor", cursor)]
        params += [("created_after", created_after), ("created_before", created_before)]
        params += [("tag", f"{key}={value}") for key, value in (tags or {}).items()]
        params += [("property", f"{key}={value}") for key, value in (properties or {}).items()]
        params += [("limit", str(limit))] if limit is not None else []
        return self._json("GET", "/api/v1/models", params=params)

    def register_version(self, model: str, version: Mapping[str, Any]) -> JsonObject:
        """Register the next version of a model; its files have to be in `models/<model>` already.

        Args:
            model: Name of the model.
            version: `format`, `files` (`[{path, digest, size}]`), and optionally `entry`, `description`, `tags`,
                `properties`, `lineage`, `inputs`, `outputs`.

        Returns:
            The version with its number. Not repeated by itself after a lost answer, which may have numbered one.
        """
        return self._json("POST", f"/api/v1/models/{_part(model)}/versions", dict(version))

    def versions(self, model: str, limit: int | None = None, cursor: str = "") -> JsonObject:
        """One page of versions, newest first."""
        params = [("cursor", cursor)] + ([("limit", str(limit))] if limit is not None else [])
        return self._json("GET", f"/api/v1/models/{_part(model)}/versions", params=params)

    def get_version(self, model: str, version: int | str) -> JsonObject:
        """One version by number or alias."""
        return self._json("GET", _version_path(model, version))

    def update_version(self, model: str, version: int | str, changes: Mapping[str, Any]) -> JsonObject:
        """Change `description`, `tags` or `properties` of a version; everything else never changes."""
        return self._json("PATCH", _version_path(model, version), dict(changes))

    def delete_version(self, model: str, version: int | str) -> None:
        """Delete a version; `cloud.in-use` (extras: `needed_by`) while something needs it.

        Its number is not used again.
        """
        self._request("DELETE", _version_path(model, version))

    def download(
        self, model: str, version: int | str, path: str, target: Path, progress: Progress | None = None
    ) -> int:
        """Download one file of a version, resuming what was cut; it gets its name once verified and durable.

        Args:
            model: Name of the model.
            version: Number or alias.
            path: Path of the file in the version.
            target: Where it goes; the folder has to exist. `<target>.partial` is used meanwhile and resumed later.
            progress: Called as bytes come.

        Returns:
            Size in bytes.
        """
        record = self.get_version(model, version)
        for file in record["files"]:
            if file["path"] == path:
                break
        else:
            raise EdgeError("cloud.not-found", f"version {record['version']} of {model} has no file {path!r}")
        url = f"{_version_path(model, record['version'])}/files/{quote(path)}"
        self._download(url, Digest(file["digest"]), int(file["size"]), target, progress)
        return int(file["size"])

    def set_alias(self, model: str, alias: str, version: int) -> JsonObject:
        """Point an alias at a version."""
        return self._json("PUT", f"/api/v1/models/{_part(model)}/aliases/{_part(alias)}", {"version": version})

    def delete_alias(self, model: str, alias: str) -> None:
        """Remove an alias; its history stays."""
        self._request("DELETE", f"/api/v1/models/{_part(model)}/aliases/{_part(alias)}")

    def aliases(self, model: str) -> list[JsonObject]:
        """All aliases of a model."""
        return _items(self._json("GET", f"/api/v1/models/{_part(model)}/aliases"))

    def alias_history(self, model: str, alias: str) -> list[JsonObject]:
        """Every change of an alias, oldest first."""
        return _items(self._json("GET", f"/api/v1/models/{_part(model)}/aliases/{_part(alias)}/history"))

    def register_bundle(self, model: str, version: int, index: Digest) -> JsonObject:
        """Tell the registry of a pushed and signed bundle; gives its manifests by platform. Safe to repeat."""
        return self._json("POST", f"{_version_path(model, version)}/bundles", {"index": str(index)}, repeat=True)

    def bundles(self, model: str, version: int | str) -> list[JsonObject]:
        """The bundles of a version: platform, digest and size of each manifest."""
        return _items(self._json("GET", f"{_version_path(model, version)}/bundles"))

    # --- content (OCI distribution) -----------------------------------------------------------------------------------

    def has_blob(self, repository: str, digest: Digest) -> bool:
        """Whether a repository holds a blob."""
        return self._exists(f"/v2/{quote(repository)}/blobs/{digest}")

    def upload_blob(self, repository: str, path: Path, digest: Digest, progress: Progress | None = None) -> int:
        """Upload a file as a blob, unless it is there already. Streams; goes on where it was cut.

        Args:
            repository: For example `models/digits`.
            path: The file.
            digest: Its digest; the registry verifies it.
            progress: Called as bytes go.

        Returns:
            Bytes that were sent.
        """
        try:
            size = path.stat().st_size
        except OSError as error:
            raise EdgeError("config.file-missing", f"cannot read {path}: {error.strerror}") from None
        return self._upload(repository, lambda offset: _file_chunks(path, offset), size, digest, progress)

    def upload_bytes(self, repository: str, data: bytes) -> Digest:
        """Upload some bytes as a blob, unless it is there already."""
        digest = Digest.of(data)
        self._upload(repository, lambda offset: iter([data[offset:]]), len(data), digest, None)
        return digest

    def read_blob(self, repository: str, digest: Digest, bytes_max: int) -> bytes:
        """The verified bytes of a small blob."""
        return self._read_small(f"/v2/{quote(repository)}/blobs/{digest}", bytes_max, digest)

    def put_manifest(self, repository: str, reference: str, media_type: str, data: bytes) -> Digest:
        """Put a manifest or index under a tag or its digest."""
        url = f"/v2/{quote(repository)}/manifests/{quote(reference)}"
        self._request("PUT", url, content=data, headers={"Content-Type": media_type})
        return Digest.of(data)

    def get_manifest(self, repository: str, reference: str, bytes_max: int = 4 * 1024 * 1024) -> bytes:
        """The bytes of a manifest or index by tag or digest, verified if asked for by digest."""
        digest = Digest(reference) if reference.startswith("sha256:") else None
        return self._read_small(f"/v2/{quote(repository)}/manifests/{quote(reference)}", bytes_max, digest)

    def has_manifest(self, repository: str, reference: str) -> bool:
        """Whether a repository holds a manifest or tag."""
        return self._exists(f"/v2/{quote(repository)}/manifests/{quote(reference)}")

    # --- trust --------------------------------------------------------------------------------------------------------

    def trust(self) -> JsonObject:
        """Online public keys and root versions of both TUF repositories."""
        return self._json("GET", "/api/v1/trust")

    def submit_roots(self, image: str | None = None, director: str | None = None) -> None:
        """Submit new root metadata (JSON texts)."""
        body = {key: value for key, value in (("image", image), ("director", director)) if value is not None}
        self._request("POST", "/api/v1/trust/roots", json=body)

    def submit_metadata(self, files: Mapping[str, str]) -> None:
        """Submit signed targets and bins (JSON texts by role name)."""
        self._request("POST", "/api/v1/trust/metadata", json={"files": dict(files)})

    def tuf_file(self, path: str, bytes_max: int = 64 * 1024 * 1024) -> bytes:
        """One metadata file, for example `image/timestamp.json` or `director/cam-1/2.targets.json`."""
        return self._read_small(f"/tuf/{quote(path)}", bytes_max, None)

    # --- devices ------------------------------------------------------------------------------------------------------

    def create_enrolment_token(
        self, device: str, tags: Mapping[str, str] | None = None, ttl_s: int | None = None
    ) -> JsonObject:
        """Make a one-time token: `{token, device, expires_at}`."""
        body: dict[str, Any] = {"device": device, "tags": dict(tags or {})}
        return self._json("POST", "/api/v1/enrolment-tokens", body | ({} if ttl_s is None else {"ttl_s": ttl_s}))

    def enrol(self, token: str, csr_pem: str, platform: str, hardware_id: str = "") -> JsonObject:
        """Spend an enrolment token; safe to repeat with the same key."""
        body = {"token": token, "csr_pem": csr_pem, "platform": platform, "hardware_id": hardware_id}
        return self._json("POST", "/api/v1/enrol", body, repeat=True)

    def devices(self, condition: str = "", name: str = "", limit: int | None = None, cursor: str = "") -> JsonObject:
        """One page of devices: `{"items": […], "next": cursor or null}`."""
        params = [("condition", condition), ("name", name), ("cursor", cursor)]
        params += [("limit", str(limit))] if limit is not None else []
        return self._json("GET", "/api/v1/devices", params=params)

    def all_devices(self, condition: str = "", name: str = "") -> Iterator[JsonObject]:
        """Every device, page after page."""
        yield from _pages(lambda cursor: self.devices(condition, name, cursor=cursor))

    def device(self, device: str) -> JsonObject:
        """One device."""
        return self._json("GET", f"/api/v1/devices/{_part(device)}")

    def set_tags(self, device: str, tags: Mapping[str, str]) -> JsonObject:
        """Replace the tags of a device."""
        return self._json("PUT", f"/api/v1/devices/{_part(device)}/tags", dict(tags))

    def delete_device(self, device: str) -> None:
        """Forget a device; its token stops working."""
        self._request("DELETE", f"/api/v1/devices/{_part(device)}")

    # --- deployments --------------------------------------------------------------------------------------------------

    def create_deployment(
        self,
        model: str,
        version: int | str,
        condition: str,
        module: str = "",
        policy: Mapping[str, Any] | None = None,
        name: str = "",
        priority: int = 0,
    ) -> JsonObject:
        """Create a deployment; `module` is the model's name unless given."""
        body: dict[str, Any] = {"model": model, "version": version, "condition": condition, "priority": priority}
        body |= {"policy": dict(policy or {})}
        body |= {key: value for key, value in (("module", module), ("name", name)) if value}
        return self._json("POST", "/api/v1/deployments", body)

    def deployments(self, limit: int | None = None, cursor: str = "") -> JsonObject:
        """One page of deployments, newest first."""
        params = [("cursor", cursor)] + ([("limit", str(limit))] if limit is not None else [])
        return self._json("GET", "/api/v1/deployments", params=params)

    def deployment(self, deployment: str) -> JsonObject:
        """One deployment with its counts."""
        return self._json("GET", f"/api/v1/deployments/{_part(deployment)}")

    def deployment_devices(self, deployment: str) -> list[JsonObject]:
        """Phase, outcome and error of every device of a deployment."""
        path = f"/api/v1/deployments/{_part(deployment)}/devices"
        return list(_pages(lambda cursor: self._json("GET", path, params=[("cursor", cursor)])))

    def update_deployment(self, deployment: str, changes: Mapping[str, Any]) -> JsonObject:
        """Change `version`, `condition` or `policy` of an active deployment."""
        return self._json("PATCH", f"/api/v1/deployments/{_part(deployment)}", dict(changes))

    def cancel_deployment(self, deployment: str) -> JsonObject:
        """Cancel a deployment; safe to repeat."""
        return self._json("POST", f"/api/v1/deployments/{_part(deployment)}/cancel", {}, repeat=True)

    def deployment_history(self, deployment: str) -> list[JsonObject]:
        """Every change of a deployment, oldest first."""
        return _items(self._json("GET", f"/api/v1/deployments/{_part(deployment)}/history"))

    def preview(self, condition: str) -> JsonObject:
        """Which devices a condition matches now: `{devices, count}`."""
        return self._json("POST", "/api/v1/deployments/preview", {"condition": condition}, repeat=True)

    # --- telemetry, tokens, health ------------------------------------------------------------------------------------

    def query(self, sql: str) -> JsonObject:
        """Run a read-only query on the telemetry lake: `{columns, rows, truncated}`."""
        return self._json("POST", "/api/v1/query", {"sql": sql}, repeat=True)

    def create_token(self, name: str, role: str) -> JsonObject:
        """Make an operator token; the answer alone holds it."""
        return self._json("POST", "/api/v1/tokens", {"name": name, "role": role})

    def tokens(self) -> list[JsonObject]:
        """Operator tokens without their secrets."""
        return _items(self._json("GET", "/api/v1/tokens"))

    def revoke_token(self, name: str) -> None:
        """Revoke an operator token."""
        self._request("DELETE", f"/api/v1/tokens/{_part(name)}")

    def ready(self) -> JsonObject:
        """Readiness of the registry."""
        return self._json("GET", "/health/ready")

    # --- how it is sent -----------------------------------------------------------------------------------------------

    def _url(self, path: str) -> httpx.URL:
        return httpx.URL(str(self._base) + path)

    def _json(
        self,
        method: str,
        path: str,
        body: JsonObject | None = None,
        params: Iterable[tuple[str, str]] = (),
        repeat: bool = False,
    ) -> JsonObject:
        kept = [(key, value) for key, value in params if value != ""]
        response = self._request(method, path, json=body, params=kept, repeat=repeat)
        return _object(response)

    def _request(
        self, method: str, path: str | httpx.URL, repeat: bool = False, answers: Iterable[int] = (), **options: Any
    ) -> httpx.Response:
        """Send, repeat when that is safe, and raise for a failed answer whose status is not among `answers`."""
        url = path if isinstance(path, httpx.URL) else self._url(path)
        attempts = CLIENT_ATTEMPTS_MAX if repeat or method in _REPEATABLE else 1
        for attempt in range(1, attempts + 1):
            try:
                with _translated(url):
                    response = self._http.request(method, url, **options)
            except EdgeError:
                if attempt == attempts:
                    raise
            else:
                if response.is_success or response.status_code in answers:
                    return response
                if response.status_code not in _PASSING or attempt == attempts:
                    raise _error_of(response)
            _pause(attempt)
        raise EdgeError("internal.bug", "a request ended without an answer")

    def _exists(self, path: str) -> bool:
        return self._request("HEAD", path, answers=(HTTPStatus.NOT_FOUND,)).is_success

    def _read_small(self, path: str, bytes_max: int, digest: Digest | None) -> bytes:
        for attempt in range(1, CLIENT_ATTEMPTS_MAX + 1):
            try:
                with _translated(self._url(path)), self._http.stream("GET", self._url(path)) as response:
                    if not response.is_success:
                        response.read()
                        raise _error_of(response)
                    data = _bounded(response, bytes_max)
            except EdgeError as error:
                if not error.code.startswith("network.") and error.code != "cloud.unavailable":
                    raise
                if attempt == CLIENT_ATTEMPTS_MAX:
                    raise
                _pause(attempt)
                continue
            if digest is not None and Digest.of(data) != digest:
                raise EdgeError("artifact.digest-mismatch", f"{path}: the registry sent bytes of another digest")
            return data
        raise EdgeError("internal.bug", "a request ended without an answer")

    def _upload(
        self,
        repository: str,
        chunks_from: Callable[[int], Iterator[bytes]],
        size: int,
        digest: Digest,
        progress: Progress | None,
    ) -> int:
        if self.has_blob(repository, digest):
            if progress:
                progress(size, size)
            return 0
        location = self._location(self._request("POST", f"/v2/{quote(repository)}/blobs/uploads/", repeat=True))
        offset = sent = failures = 0
        while offset < size:
            before = offset
            try:
                location = self._append(location, chunks_from(offset), offset, size, progress)
                sent += size - offset
                offset = size
            except EdgeError as error:
                if not error.code.startswith("network.") and error.code not in (
                    "cloud.unavailable",
                    "cloud.upload-invalid",
                ):
                    raise
                failures += 1
                if failures >= CLIENT_ATTEMPTS_MAX:
                    raise
                _pause(failures)
                response = self._request("GET", location)
                location, offset = self._location(response), _offset_of(response)
                if offset > before:
                    sent += offset - before
                    failures = 0
        url = location.copy_add_param("digest", str(digest))
        try:
            self._request("PUT", url, content=b"")
        except EdgeError:
            # The answer of an earlier attempt may have been lost after the blob was made.
            if not self.has_blob(repository, digest):
                raise
        if progress:
            progress(size, size)
        return sent

    def _append(
        self, location: httpx.URL, chunks: Iterator[bytes], offset: int, size: int, progress: Progress | None
    ) -> httpx.URL:
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size - offset),
            "Content-Range": f"{offset}-{size - 1}",
        }
        content = _counted(chunks, offset, size, progress)
        with _translated(location):
            response = self._http.request("PATCH", location, headers=headers, content=content)
        if not response.is_success:
            raise _error_of(response)
        return self._location(response)

    def _location(self, response: httpx.Response) -> httpx.URL:
        location = response.request.url.join(response.headers.get("location", ""))
        if (location.scheme, location.netloc) != (self._base.scheme, self._base.netloc):
            # The token goes nowhere else.
            raise EdgeError("cloud.unavailable", f"the registry points to another host, {location.host}")
        return location

    def _download(self, path: str, digest: Digest, size: int, target: Path, progress: Progress | None) -> None:
        partial = target.with_name(target.name + ".partial")
        failures = 0
        while True:
            stream = VerifyingStream(digest, size)
            before = _feed_file(stream, partial)
            try:
                self._download_rest(path, stream, partial, progress)
                stream.finish()
                break
            except EdgeError as error:
                if error.code.startswith("artifact."):
                    partial.unlink(missing_ok=True)
                    raise
                if not error.code.startswith("network.") and error.code != "cloud.unavailable":
                    raise
                failures = 0 if stream.count > before else failures + 1
                if failures >= CLIENT_ATTEMPTS_MAX:
                    raise
                _pause(failures + 1)
        _publish(partial, target)

    def _download_rest(self, path: str, stream: VerifyingStream, partial: Path, progress: Progress | None) -> None:
        size = stream.count + stream.remaining
        if stream.remaining == 0:
            partial.touch()
            return
        headers = {"Range": f"bytes={stream.count}-"} if stream.count else {}
        url = self._url(path)
        with _translated(url), self._http.stream("GET", url, headers=headers) as response:
            if not response.is_success:
                response.read()
                raise _error_of(response)
            if stream.count and response.status_code != HTTPStatus.PARTIAL_CONTENT:
                raise EdgeError("cloud.not-acceptable", f"{url.path}: the registry does not resume")
            with _disk(partial), partial.open("ab") as file:
                for chunk in response.iter_bytes(CLIENT_CHUNK_BYTES):
                    stream.feed(chunk)
                    file.write(chunk)
                    if progress:
                        progress(stream.count, size)
                file.flush()
                os.fsync(file.fileno())
        if stream.remaining:
            raise EdgeError("network.cut", f"{url.path}: {stream.remaining} bytes are missing")


def _part(name: str) -> str:
    return quote(name, safe="")


def _version_path(model: str, version: int | str) -> str:
    return f"/api/v1/models/{_part(model)}/versions/{_part(str(version))}"


def _items(document: JsonObject) -> list[JsonObject]:
    items: list[JsonObject] = document["items"]
    return items


def _pages(fetch: Callable[[str], JsonObject]) -> Iterator[JsonObject]:
    cursor = ""
    while True:
        page = fetch(cursor)
        yield from _items(page)
        cursor = page.get("next") or ""
        if not cursor:
            return


def _tls_context(scheme: str, ca_file: Path | None) -> ssl.SSLContext:
    if scheme == "http":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used, and cheaper than loading the system's authorities
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise EdgeError("config.file-missing", f"cannot read the CA certificate {ca_file}: {error}") from None


@contextmanager
def _translated(url: httpx.URL) -> Iterator[None]:
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


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EdgeError("device.disk-error", f"cannot write {path}: {error.strerror}") from None


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


def _pause(attempt: int) -> None:
    """Wait before the next attempt: doubling, capped, with jitter so that many clients do not knock together."""
    ceiling = min(CLIENT_BACKOFF_MS * 2 ** (attempt - 1), CLIENT_BACKOFF_MS_MAX)
    time.sleep(random.uniform(0.5, 1.0) * ceiling / 1000)


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


def _file_chunks(path: Path, offset: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while chunk := file.read(CLIENT_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise EdgeError("config.file-missing", f"cannot read {path}: {error.strerror}") from None


def _counted(chunks: Iterator[bytes], offset: int, size: int, progress: Progress | None) -> Iterator[bytes]:
    count = offset
    for chunk in chunks:
        yield chunk
        count += len(chunk)
        if progress:
            progress(count, size)


def _offset_of(response: httpx.Response) -> int:
    """Where an upload stands, from `Range: 0-<last byte>`."""
    first, dash, last = response.headers.get("range", "").removeprefix("bytes=").partition("-")
    if first != "0" or not dash or not last.isdecimal():
        return 0
    # Zero bytes and one byte look alike in this header; distribution-spec registries send 0-0 for both.
    return int(last) + 1 if int(last) > 0 else 0


def _feed_file(stream: VerifyingStream, path: Path) -> int:
    """Feed what an earlier attempt left; a file that is too long is not ours and is dropped."""
    if not path.is_file() or path.stat().st_size > stream.remaining:
        path.unlink(missing_ok=True)
        return 0
    for chunk in _file_chunks(path, 0):
        stream.feed(chunk)
    return stream.count


def _publish(partial: Path, target: Path) -> None:
    with _disk(target):
        os.replace(partial, target)
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
