"""Any registry of container images, read and written over the OCI distribution API (distribution-spec 1.1).

Credentials are those of other tools: the file that `docker login`, `podman login` and `skopeo login` write. A registry
on this machine's loopback is spoken to without TLS, as those tools can be told to; every other one with it.
"""

import base64
import binascii
import ipaddress
import json
import os
import re
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from edge_contract.digest import Digest
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import parse_object
from edge_contract.names import repository_name
from edge_contract.stream import verified, verify_bytes
from packager.iotedge.image_base import INDEX_TYPES, MANIFEST_TYPES, TAG, Blob, ImageSource
from packager.iotedge.image_limits import (
    AUTH_BYTES_MAX,
    DOCUMENT_BYTES_MAX,
    ERROR_CHARS_MAX,
    HTTP_ATTEMPTS_MAX,
    HTTP_PAUSE_S,
    HTTP_TIMEOUT_S,
    REDIRECTS_MAX,
    TOKEN_BYTES_MAX,
)
from packager.limits import COPY_BYTES

_HOST: Final = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,253})|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?")
_CHALLENGE: Final = re.compile(r'(\w{1,32})="([^"]{0,2048})"')
_DOCKER_HUB: Final = "docker.io"
_DOCKER_HOST: Final = "registry-1.docker.io"
_DOCKER_AUTH: Final = "https://index.docker.io/v1/"
_ACCEPTED: Final = ", ".join(sorted(INDEX_TYPES | MANIFEST_TYPES))
_PASSING: Final = frozenset({429, 502, 503, 504})
_FORM: Final = "A reference has the form HOST/NAME:TAG or HOST/NAME@sha256:…, like registry.example/edge/base:1."


@dataclass(frozen=True, slots=True)
class Reference:
    """What names an image in a registry.

    Attributes:
        host: With its port, if any.
        repository: Name of the repository.
        target: A tag or a digest.
    """

    host: str
    repository: str
    target: str

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Read a reference; `docker://` before it is allowed, a host is needed.

        Raises:
            EdgeError: `config.invalid`.
        """
        host, slash, rest = text.removeprefix("docker://").partition("/")
        if not slash or not _HOST.fullmatch(host) or not (host == "localhost" or set(".:") & set(host)):
            raise EdgeError("config.invalid", f"{text!r} does not begin with the host of a registry", _FORM)
        name, at, digest = rest.partition("@")
        last = name.rpartition("/")[2]
        tag = last.rpartition(":")[2] if ":" in last else ""
        name = name.removesuffix(f":{tag}") if tag else name
        try:
            target = str(Digest(digest)) if at else tag or "latest"
            if not at and not TAG.fullmatch(target):
                raise EdgeError("config.invalid", f"{text!r} has the tag {target!r}, which no image can have", _FORM)
            return cls(host, repository_name(name), target)
        except ContractError as error:
            raise EdgeError("config.invalid", f"{text!r} is not a reference: {error.detail}", _FORM) from None

    def __str__(self) -> str:
        """As people write it."""
        return f"{self.host}/{self.repository}{'@' if self.target.startswith('sha256:') else ':'}{self.target}"

    @property
    def is_here(self) -> bool:
        """Whether the registry is on this machine's loopback."""
        name = self.host.rpartition(":")[0] if ":" in self.host and not self.host.endswith("]") else self.host
        try:
            return name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
        except ValueError:
            return False


class RegistryImage(ImageSource):
    """Implements `ImageSource` with one repository of a registry, and writes to it. Used by one thread."""

    def __init__(self, reference: Reference, ca: Path | None = None) -> None:
        """Prepare; nothing is sent yet.

        Args:
            reference: Which image.
            ca: Certificates (PEM) to trust for https; the system's when none.

        Raises:
            EdgeError: `config.file-missing`, `config.invalid` for a file of credentials that cannot be read.
        """
        self.name = str(reference)
        self._reference = reference
        host = _DOCKER_HOST if reference.host == _DOCKER_HUB else reference.host
        self._base = f"{'http' if reference.is_here else 'https'}://{host}"
        self._login = _login(reference.host)
        self._authorization = ""
        try:
            verify: ssl.SSLContext | bool = True if ca is None else ssl.create_default_context(cafile=str(ca))
        except (OSError, ssl.SSLError) as error:
            raise EdgeError("config.file-missing", f"cannot use the certificates in {ca}: {error}") from None
        # A connection for each request: a registry may close one that waits at the moment it is used again.
        self._http = httpx.Client(
            timeout=HTTP_TIMEOUT_S,
            verify=verify,
            trust_env=not reference.is_here,
            max_redirects=REDIRECTS_MAX,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def close(self) -> None:
        """See `ImageSource.close`."""
        self._http.close()

    def __enter__(self) -> Self:
        """The image itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close connections."""
        self.close()

    # -- reading

    def first(self) -> tuple[str, bytes]:
        """See `ImageSource.first`; with a digest in the reference its bytes are checked by it."""
        media_type, data = self._manifest(self._reference.target)
        if self._reference.target.startswith("sha256:"):
            verify_bytes(data, Digest(self._reference.target), len(data))
        return media_type, data

    def document(self, digest: Digest, size: int, media_type: str) -> bytes:
        """See `ImageSource.document`."""
        if size > DOCUMENT_BYTES_MAX:
            raise EdgeError("artifact.document-too-large", f"{self.name}: {digest} has {size} bytes")
        if media_type in INDEX_TYPES | MANIFEST_TYPES:
            return verify_bytes(self._manifest(str(digest))[1], digest, size)
        return b"".join(self.chunks(Blob(media_type, digest, size)))

    def chunks(self, blob: Blob) -> Iterator[bytes]:
        """See `ImageSource.chunks`."""
        return verified(self._blob(blob.digest), blob.digest, blob.size)

    def tagged(self, tag: str) -> tuple[str, bytes]:
        """Media type and bytes of what a tag of the repository names.

        Raises:
            EdgeError: `artifact.not-found`, `cloud.*`, `network.*`.
        """
        return self._manifest(tag)

    def _manifest(self, target: str) -> tuple[str, bytes]:
        with self._asked("GET", f"/manifests/{target}", headers={"Accept": _ACCEPTED}) as answer:
            self._require(answer, 200)
            data = _bounded(answer, DOCUMENT_BYTES_MAX, self.name)
            return answer.headers.get("Content-Type", "").partition(";")[0].strip(), data

    def _blob(self, digest: Digest) -> Iterator[bytes]:
        with self._asked("GET", f"/blobs/{digest}") as answer:
            self._require(answer, 200)
            # As it came: layers are stored compressed, and a digest is of what is stored.
            yield from answer.iter_raw(COPY_BYTES)

    # -- writing

    def has(self, blob: Blob) -> bool:
        """Whether the repository holds a blob."""
        with self._asked("HEAD", f"/blobs/{blob.digest}") as answer:
            if answer.status_code == HTTPStatus.NOT_FOUND:
                return False
            self._require(answer, 200)
            return True

    def upload(self, blob: Blob, path: Path) -> bool:
        """Send a blob that is not there yet.

        Returns:
            Whether it had to be sent.

        Raises:
            EdgeError: `cloud.*`, `network.*`.
        """
        if self.has(blob):
            return False
        with self._asked("POST", "/blobs/uploads/") as answer:
            self._require(answer, 202)
            where = httpx.URL(str(answer.url)).join(answer.headers.get("Location", ""))
        if where.host != httpx.URL(self._base).host:
            raise EdgeError("cloud.unavailable", f"{self.name}: the registry sends uploads elsewhere, to {where.host}")
        # By path alone: behind a proxy some registries name themselves by a scheme that would give the token away.
        where = httpx.URL(self._base).copy_with(raw_path=where.raw_path)
        where = where.copy_merge_params({"digest": str(blob.digest)})
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
        with path.open("rb") as file:
            body = iter(lambda: file.read(COPY_BYTES), b"")
            with self._sent("PUT", str(where), headers=headers, content=body) as answer:
                self._require(answer, 201)
        return True

    def put_manifest(self, target: str, media_type: str, data: bytes) -> bool:
        """Put a manifest or an index under a tag or its digest.

        Returns:
            Whether the registry says that it lists referrers (distribution-spec 1.1, `OCI-Subject`).

        Raises:
            EdgeError: `cloud.*`, `network.*`.
        """
        with self._asked("PUT", f"/manifests/{target}", headers={"Content-Type": media_type}, content=data) as answer:
            self._require(answer, 201)
            return "OCI-Subject" in answer.headers

    # -- one request

    @contextmanager
    def _asked(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """Send to the repository; sign in when asked to, and repeat what passes, within bounds."""
        url = f"{self._base}/v2/{self._repository}{path}"
        for attempt in range(HTTP_ATTEMPTS_MAX):
            is_last = attempt == HTTP_ATTEMPTS_MAX - 1
            with self._sent(method, url, **options) as answer:
                # Whoever a download was sent on to may not ask for what is meant for the registry.
                is_ours = _origin(answer.url) == _origin(httpx.URL(url))
                if answer.status_code == HTTPStatus.UNAUTHORIZED and is_ours and not is_last:
                    challenge = answer.headers.get("WWW-Authenticate", "") or "none"
                elif answer.status_code in _PASSING and not is_last:
                    challenge = ""
                else:
                    yield answer
                    return
            if challenge:
                self._authorization = self._sign_in(challenge)
            else:
                time.sleep(HTTP_PAUSE_S * (attempt + 1))

    @contextmanager
    def _sent(self, method: str, url: str, **options: Any) -> Iterator[httpx.Response]:
        headers = dict(options.pop("headers", {}))
        if self._authorization:
            headers["Authorization"] = self._authorization
        try:
            # Reads may be sent elsewhere; httpx keeps the authorisation from another host.
            follow = method in ("GET", "HEAD")
            with self._http.stream(method, url, headers=headers, follow_redirects=follow, **options) as answer:
                yield answer
        except httpx.TimeoutException:
            raise EdgeError("network.timeout", f"{self.name}: the registry did not answer in time") from None
        except httpx.HTTPError as error:
            raise EdgeError("network.unreachable", f"{self.name}: {type(error).__name__}: {error}") from None

    @property
    def _repository(self) -> str:
        name = self._reference.repository
        return f"library/{name}" if self._reference.host == _DOCKER_HUB and "/" not in name else name

    def _sign_in(self, challenge: str) -> str:
        """What to send as authorisation, from what the registry asks for.

        Raises:
            EdgeError: `cloud.unauthorized`.
        """
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic" and self._login:
            return f"Basic {self._login}"
        told = dict(_CHALLENGE.findall(rest))
        realm = told.get("realm", "")
        if scheme.lower() != "bearer" or not realm.startswith(("https://", f"{self._base}/")):
            why = "wants credentials that it does not say how to give" if self._login else "wants credentials"
            hint = f"Sign in first: skopeo login {self._reference.host}, docker login or podman login."
            raise EdgeError("cloud.unauthorized", f"{self.name}: the registry {why}", hint)
        asked = {key: told[key] for key in ("service", "scope") if key in told}
        headers = {"Authorization": f"Basic {self._login}"} if self._login else {}
        self._authorization = ""
        with self._sent("GET", str(httpx.URL(realm).copy_merge_params(asked)), headers=headers) as answer:
            self._require(answer, 200)
            found = parse_object(_bounded(answer, TOKEN_BYTES_MAX, self.name), "the token", TOKEN_BYTES_MAX)
        return f"Bearer {found.get('token') or found.get('access_token') or ''}"

    def _require(self, answer: httpx.Response, status: int) -> None:
        if answer.status_code == status:
            return
        code = {401: "cloud.unauthorized", 403: "cloud.forbidden", 404: "artifact.not-found"}.get(
            answer.status_code, "cloud.unavailable" if answer.status_code >= 500 else "cloud.bad-request"
        )
        request = f"{answer.request.method} {answer.request.url.path}"
        why = f"{self.name}: {request} ended with {answer.status_code}{_reason(answer)}"
        hint = f"Sign in: skopeo login {self._reference.host}." if code == "cloud.unauthorized" else ""
        raise EdgeError(code, why, hint)


def _bounded(answer: httpx.Response, bytes_max: int, name: str) -> bytes:
    data = bytearray()
    for chunk in answer.iter_bytes():
        data += chunk
        if len(data) > bytes_max:
            raise EdgeError("artifact.document-too-large", f"{name}: an answer is longer than {bytes_max} bytes")
    return bytes(data)


def _reason(answer: httpx.Response) -> str:
    """What a registry says about a failure, in its own words and short."""
    try:
        errors = json.loads(_bounded(answer, TOKEN_BYTES_MAX, "")).get("errors")
        words = f"{errors[0].get('code')}: {errors[0].get('message')}"
    except (EdgeError, ValueError, AttributeError, LookupError, TypeError, httpx.HTTPError):
        return ""
    return f" ({words[:ERROR_CHARS_MAX]})"


def _login(host: str) -> str:
    """User and password for a host from the file of other tools, in base64; empty when they have none.

    Raises:
        EdgeError: `config.invalid` for a file that is not the JSON it has to be.
    """
    names = (_DOCKER_AUTH, host) if host == _DOCKER_HUB else (host,)
    for path in _auth_files():
        try:
            with path.open("rb") as file:
                data = file.read(AUTH_BYTES_MAX + 1)
        except OSError:
            continue
        try:
            found = parse_object(data, str(path), AUTH_BYTES_MAX).get("auths")
        except ContractError as error:
            raise EdgeError("config.invalid", f"the credentials in {path} cannot be read: {error.detail}") from None
        for name in names:
            entry = found.get(name) if isinstance(found, dict) else None
            login = entry.get("auth") if isinstance(entry, dict) else None
            if isinstance(login, str) and _is_login(login):
                return login
    return ""


def _auth_files() -> Iterable[Path]:
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        return [Path(named)]
    files = []
    if run := os.environ.get("XDG_RUNTIME_DIR"):
        files.append(Path(run) / "containers" / "auth.json")
    folder = os.environ.get("DOCKER_CONFIG")
    files.append((Path(folder) if folder else Path.home() / ".docker") / "config.json")
    return files


def _origin(url: httpx.URL) -> tuple[str, bytes]:
    return url.scheme, url.netloc


def _is_login(text: str) -> bool:
    try:
        return b":" in base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
