"""Python client of the registry's HTTP interface: one method a route.

It needs httpx and the contract, nothing else of the registry, so an author's machine can use it. Methods block, may be
called from any thread, and raise `EdgeError` with the code of the registry's problem document, or a `network.` code.
Calls that may safely be repeated are, a bounded number of times. Dictionaries are the JSON objects of the interface as
`GET /openapi.json` describes them; times in them are RFC 3339 texts in UTC.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from cloud_registry.client.content import Progress, download, file_chunks, upload
from cloud_registry.client.transport import Transport
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

__all__ = ["Progress", "RegistryClient"]


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
        self._transport = Transport(url, token, timeout_s, ca_file)

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
        self._transport.close()

    @property
    def url(self) -> str:
        """The base URL."""
        return str(self._transport.base)

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
        return self._transport.json("POST", "/api/v1/models", body)

    def model(self, name: str) -> JsonObject:
        """One model with its newest version and aliases."""
        return self._transport.json("GET", f"/api/v1/models/{_part(name)}")

    def update_model(self, name: str, changes: Mapping[str, Any]) -> JsonObject:
        """Change `description`, `tags` or `properties` of a model."""
        return self._transport.json("PATCH", f"/api/v1/models/{_part(name)}", dict(changes))

    def delete_model(self, name: str) -> None:
        """Delete a model with its versions; `cloud.in-use` (extras: `needed_by`) while something needs it."""
        self._transport.request("DELETE", f"/api/v1/models/{_part(name)}")

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
        return self._transport.json("GET", "/api/v1/models", params=params)

    def register_version(self, model: str, version: Mapping[str, Any]) -> JsonObject:
        """Register the next version of a model; its files have to be in `models/<model>` already.

        Args:
            model: Name of the model.
            version: `format`, `files` (`[{path, digest, size}]`), and optionally `entry`, `description`, `tags`,
                `properties`, `lineage`, `inputs`, `outputs`.

        Returns:
            The version with its number. Not repeated by itself after a lost answer, which may have numbered one.
        """
        return self._transport.json("POST", f"/api/v1/models/{_part(model)}/versions", dict(version))

    def versions(self, model: str, limit: int | None = None, cursor: str = "") -> JsonObject:
        """One page of versions, newest first."""
        params = [("cursor", cursor)] + ([("limit", str(limit))] if limit is not None else [])
        return self._transport.json("GET", f"/api/v1/models/{_part(model)}/versions", params=params)

    def get_version(self, model: str, version: int | str) -> JsonObject:
        """One version by number or alias."""
        return self._transport.json("GET", _version_path(model, version))

    def update_version(self, model: str, version: int | str, changes: Mapping[str, Any]) -> JsonObject:
        """Change `description`, `tags` or `properties` of a version; everything else never changes."""
        return self._transport.json("PATCH", _version_path(model, version), dict(changes))

    def delete_version(self, model: str, version: int | str) -> None:
        """Delete a version; `cloud.in-use` (extras: `needed_by`) while something needs it.

        Its number is not used again.
        """
        self._transport.request("DELETE", _version_path(model, version))

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
        download(self._transport, url, Digest(file["digest"]), int(file["size"]), target, progress)
        return int(file["size"])

    def set_alias(self, model: str, alias: str, version: int) -> JsonObject:
        """Point an alias at a version."""
        return self._transport.json(
            "PUT", f"/api/v1/models/{_part(model)}/aliases/{_part(alias)}", {"version": version}
        )

    def delete_alias(self, model: str, alias: str) -> None:
        """Remove an alias; its history stays."""
        self._transport.request("DELETE", f"/api/v1/models/{_part(model)}/aliases/{_part(alias)}")

    def aliases(self, model: str) -> list[JsonObject]:
        """All aliases of a model."""
        return _items(self._transport.json("GET", f"/api/v1/models/{_part(model)}/aliases"))

    def alias_history(self, model: str, alias: str) -> list[JsonObject]:
        """Every change of an alias, oldest first."""
        return _items(self._transport.json("GET", f"/api/v1/models/{_part(model)}/aliases/{_part(alias)}/history"))

    def register_bundle(self, model: str, version: int, index: Digest) -> JsonObject:
        """Tell the registry of a pushed and signed bundle; gives its manifests by platform. Safe to repeat."""
        return self._transport.json(
            "POST", f"{_version_path(model, version)}/bundles", {"index": str(index)}, repeat=True
        )

    def bundles(self, model: str, version: int | str) -> list[JsonObject]:
        """The bundles of a version: platform, digest and size of each manifest."""
        return _items(self._transport.json("GET", f"{_version_path(model, version)}/bundles"))

    def register_delta(self, model: str, version: int, manifest: Digest) -> JsonObject:
        """Tell the registry of a pushed delta by the digest of its artifact's manifest. Safe to repeat."""
        return self._transport.json(
            "POST", f"{_version_path(model, version)}/deltas", {"manifest": str(manifest)}, repeat=True
        )

    def deltas(self, model: str, version: int | str) -> list[JsonObject]:
        """The deltas of a version, the smallest first."""
        return _items(self._transport.json("GET", f"{_version_path(model, version)}/deltas"))

    def delete_delta(self, model: str, version: int | str, digest: Digest) -> None:
        """Forget a delta, by its own digest."""
        self._transport.request("DELETE", f"{_version_path(model, version)}/deltas/{digest}")

    def bases(self, model: str, version: int | str, condition: str = "", module: str = "") -> JsonObject:
        """What devices hold that a version could be made from.

        Returns:
            `{devices, current, without, unserved, bases: [...]}`.
        """
        params = [("condition", condition), ("module", module)]
        return self._transport.json("GET", f"{_version_path(model, version)}/bases", params=params)

    # --- content (OCI distribution) -----------------------------------------------------------------------------------

    def has_blob(self, repository: str, digest: Digest) -> bool:
        """Whether a repository holds a blob."""
        return self._transport.exists(f"/v2/{quote(repository)}/blobs/{digest}")

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
        return upload(self._transport, repository, lambda offset: file_chunks(path, offset), size, digest, progress)

    def mount_blob(self, repository: str, digest: Digest, source: str) -> bool:
        """Make a blob of the repository `source` a member of another, with no byte sent; false where it is not one."""
        if not self.has_blob(source, digest):
            return False
        path = f"/v2/{quote(repository)}/blobs/uploads/?mount={digest}&from={quote(source)}"
        self._transport.request("POST", path, repeat=True)
        # Another registry may answer with an ordinary upload instead.
        return self.has_blob(repository, digest)

    def upload_bytes(self, repository: str, data: bytes) -> Digest:
        """Upload some bytes as a blob, unless it is there already."""
        digest = Digest.of(data)
        upload(self._transport, repository, lambda offset: iter([data[offset:]]), len(data), digest, None)
        return digest

    def read_blob(self, repository: str, digest: Digest, bytes_max: int) -> bytes:
        """The verified bytes of a small blob."""
        return self._transport.read(f"/v2/{quote(repository)}/blobs/{digest}", bytes_max, digest)

    def download_blob(
        self, repository: str, digest: Digest, size: int, target: Path, progress: Progress | None = None
    ) -> None:
        """Download a blob of any length; see `download`."""
        download(self._transport, f"/v2/{quote(repository)}/blobs/{digest}", digest, size, target, progress)

    def put_manifest(self, repository: str, reference: str, media_type: str, data: bytes) -> Digest:
        """Put a manifest or index under a tag or its digest."""
        url = f"/v2/{quote(repository)}/manifests/{quote(reference)}"
        self._transport.request("PUT", url, content=data, headers={"Content-Type": media_type})
        return Digest.of(data)

    def get_manifest(self, repository: str, reference: str, bytes_max: int = 4 * 1024 * 1024) -> bytes:
        """The bytes of a manifest or index by tag or digest, verified if asked for by digest."""
        digest = Digest(reference) if reference.startswith("sha256:") else None
        return self._transport.read(f"/v2/{quote(repository)}/manifests/{quote(reference)}", bytes_max, digest)

    def has_manifest(self, repository: str, reference: str) -> bool:
        """Whether a repository holds a manifest or tag."""
        return self._transport.exists(f"/v2/{quote(repository)}/manifests/{quote(reference)}")

    # --- trust --------------------------------------------------------------------------------------------------------

    def trust(self) -> JsonObject:
        """Online public keys and root versions of both TUF repositories."""
        return self._transport.json("GET", "/api/v1/trust")

    def submit_roots(self, image: str | None = None, director: str | None = None) -> None:
        """Submit new root metadata (JSON texts)."""
        body = {key: value for key, value in (("image", image), ("director", director)) if value is not None}
        self._transport.request("POST", "/api/v1/trust/roots", json=body)

    def prepare_online_keys(self, keys: Sequence[Mapping[str, str]] = (), afresh: bool = False) -> JsonObject:
        """Have the registry get next online keys ready; the trust summary.

        Args:
            keys: `repository`, `role` and `uri` of each; all roles with keys of the registry's own when empty.
            afresh: Make new ones even if unused ones wait.
        """
        body: JsonObject = {"keys": [dict(key) for key in keys], "afresh": afresh}
        return self._transport.json("POST", "/api/v1/trust/online-keys", body)

    def submit_metadata(self, files: Mapping[str, str]) -> None:
        """Submit signed targets (JSON texts by role name)."""
        self._transport.request("POST", "/api/v1/trust/metadata", json={"files": dict(files)})

    def tuf_file(self, path: str, bytes_max: int = 64 * 1024 * 1024) -> bytes:
        """One metadata file, for example `image/timestamp.json` or `director/cam-1/2.targets.json`."""
        return self._transport.read(f"/tuf/{quote(path)}", bytes_max, None)

    # --- devices ------------------------------------------------------------------------------------------------------

    def create_enrolment_token(
        self, device: str, tags: Mapping[str, str] | None = None, ttl_s: int | None = None
    ) -> JsonObject:
        """Make a one-time token: `{token, device, expires_at}`."""
        body: dict[str, Any] = {"device": device, "tags": dict(tags or {})}
        return self._transport.json(
            "POST", "/api/v1/enrolment-tokens", body | ({} if ttl_s is None else {"ttl_s": ttl_s})
        )

    def enrol(self, token: str, csr_pem: str, platform: str, hardware_id: str = "") -> JsonObject:
        """Spend an enrolment token; safe to repeat with the same key."""
        body = {"token": token, "csr_pem": csr_pem, "platform": platform, "hardware_id": hardware_id}
        return self._transport.json("POST", "/api/v1/enrol", body, repeat=True)

    def devices(self, condition: str = "", name: str = "", limit: int | None = None, cursor: str = "") -> JsonObject:
        """One page of devices: `{"items": […], "next": cursor or null}`."""
        params = [("condition", condition), ("name", name), ("cursor", cursor)]
        params += [("limit", str(limit))] if limit is not None else []
        return self._transport.json("GET", "/api/v1/devices", params=params)

    def all_devices(self, condition: str = "", name: str = "") -> Iterator[JsonObject]:
        """Every device, page after page."""
        yield from _pages(lambda cursor: self.devices(condition, name, cursor=cursor))

    def device(self, device: str) -> JsonObject:
        """One device."""
        return self._transport.json("GET", f"/api/v1/devices/{_part(device)}")

    def set_tags(self, device: str, tags: Mapping[str, str]) -> JsonObject:
        """Replace the tags of a device."""
        return self._transport.json("PUT", f"/api/v1/devices/{_part(device)}/tags", dict(tags))

    def revoke_device(self, device: str) -> JsonObject:
        """End a device's identity; safe to repeat."""
        return self._transport.json("POST", f"/api/v1/devices/{_part(device)}/revocation", {}, repeat=True)

    def device_history(self, device: str) -> list[JsonObject]:
        """What happened to a device's identity, oldest first."""
        return _items(self._transport.json("GET", f"/api/v1/devices/{_part(device)}/history"))

    def delete_device(self, device: str) -> None:
        """Forget a device; its key stops working."""
        self._transport.request("DELETE", f"/api/v1/devices/{_part(device)}")

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
        return self._transport.json("POST", "/api/v1/deployments", body)

    def deployments(self, limit: int | None = None, cursor: str = "") -> JsonObject:
        """One page of deployments, newest first."""
        params = [("cursor", cursor)] + ([("limit", str(limit))] if limit is not None else [])
        return self._transport.json("GET", "/api/v1/deployments", params=params)

    def deployment(self, deployment: str) -> JsonObject:
        """One deployment with its counts."""
        return self._transport.json("GET", f"/api/v1/deployments/{_part(deployment)}")

    def deployment_devices(self, deployment: str) -> list[JsonObject]:
        """Phase, outcome and error of every device of a deployment."""
        path = f"/api/v1/deployments/{_part(deployment)}/devices"
        return list(_pages(lambda cursor: self._transport.json("GET", path, params=[("cursor", cursor)])))

    def update_deployment(self, deployment: str, changes: Mapping[str, Any]) -> JsonObject:
        """Change `version`, `condition` or `policy` of an active deployment."""
        return self._transport.json("PATCH", f"/api/v1/deployments/{_part(deployment)}", dict(changes))

    def cancel_deployment(self, deployment: str) -> JsonObject:
        """Cancel a deployment; safe to repeat."""
        return self._transport.json("POST", f"/api/v1/deployments/{_part(deployment)}/cancel", {}, repeat=True)

    def deployment_history(self, deployment: str) -> list[JsonObject]:
        """Every change of a deployment, oldest first."""
        return _items(self._transport.json("GET", f"/api/v1/deployments/{_part(deployment)}/history"))

    def preview(self, condition: str) -> JsonObject:
        """Which devices a condition matches now: `{devices, count}`."""
        return self._transport.json("POST", "/api/v1/deployments/preview", {"condition": condition}, repeat=True)

    # --- telemetry, tokens, health ------------------------------------------------------------------------------------

    def query(self, sql: str) -> JsonObject:
        """Run a read-only query on the telemetry lake: `{columns, rows, truncated}`."""
        return self._transport.json("POST", "/api/v1/query", {"sql": sql}, repeat=True)

    def create_token(self, name: str, role: str) -> JsonObject:
        """Make an operator token; the answer alone holds it."""
        return self._transport.json("POST", "/api/v1/tokens", {"name": name, "role": role})

    def tokens(self) -> list[JsonObject]:
        """Operator tokens without their secrets."""
        return _items(self._transport.json("GET", "/api/v1/tokens"))

    def own_token(self) -> JsonObject:
        """Name and role of the token that this client sends."""
        return self._transport.json("GET", "/api/v1/tokens/self")

    def revoke_token(self, name: str) -> None:
        """Revoke an operator token."""
        self._transport.request("DELETE", f"/api/v1/tokens/{_part(name)}")

    def ready(self) -> JsonObject:
        """Readiness of the registry."""
        return self._transport.json("GET", "/health/ready")


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
