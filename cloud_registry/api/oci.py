"""The OCI distribution API, version 1.1: pull, push, content discovery, content management.

Routes are below `/v2/`. Every operator may pull; a device may pull its own bundles by digest and sees nothing else;
pushing needs the role publisher. Blobs of one repository cannot be read through another.
"""

from typing import Final
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from cloud_registry.api.auth import principal_of, requires
from cloud_registry.api.oci_errors import API_VERSION, OciRoute, named, unknown_route, unsupported
from cloud_registry.api.oci_push import PushApi
from cloud_registry.api.oci_rights import DeviceRights
from cloud_registry.api.transfer import blob_response, names_tag
from cloud_registry.core.distribution import is_managed, parse_reference, repository_name
from cloud_registry.core.roles import Principal, Role
from cloud_registry.limits import TAGS_PAGE_MAX
from cloud_registry.ports import BlobStorage
from cloud_registry.services import Services
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject, dump
from edge_contract.manifest import INDEX_TYPE

_METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


def router(services: Services) -> APIRouter:
    """The routes of the distribution API."""
    routes = APIRouter(route_class=OciRoute, include_in_schema=False)
    reader = [Depends(principal_of(services.tokens))]
    writer = [Depends(requires(services.tokens, Role.PUBLISHER))]
    pull = PullApi(services.blobs, DeviceRights(services.rights, services.blobs))
    push = PushApi(services.blobs)
    name = "/v2/{name:path}"
    for path, methods, endpoint, rights in (
        ("/v2/", ["GET", "HEAD"], pull.version, reader),
        ("/v2", ["GET", "HEAD"], pull.version, reader),
        (f"{name}/blobs/uploads/", ["POST"], push.start, writer),
        (f"{name}/blobs/uploads", ["POST"], push.start, writer),
        (f"{name}/blobs/uploads/{{upload}}", ["PATCH"], push.chunk, writer),
        (f"{name}/blobs/uploads/{{upload}}", ["PUT"], push.finish, writer),
        (f"{name}/blobs/uploads/{{upload}}", ["GET", "HEAD"], push.progress, writer),
        (f"{name}/blobs/uploads/{{upload}}", ["DELETE"], push.cancel, writer),
        (f"{name}/blobs/{{digest}}", ["GET", "HEAD"], pull.blob, reader),
        (f"{name}/blobs/{{digest}}", ["DELETE"], pull.delete_blob, writer),
        (f"{name}/manifests/{{reference}}", ["GET", "HEAD"], pull.manifest, reader),
        (f"{name}/manifests/{{reference}}", ["PUT"], push.manifest, writer),
        (f"{name}/manifests/{{reference}}", ["DELETE"], pull.delete_manifest, writer),
        (f"{name}/tags/list", ["GET"], pull.tags, reader),
        (f"{name}/referrers/{{digest}}", ["GET"], pull.referrers, reader),
        (name, _METHODS, pull.unknown, reader),
    ):
        routes.add_api_route(path, endpoint, methods=methods, dependencies=rights, response_model=None)
    return routes


class PullApi:
    """Pull, content discovery and content management."""

    def __init__(self, blobs: BlobStorage, rights: DeviceRights) -> None:
        """Serve this storage; `rights` says what of it a device may read."""
        self._blobs = blobs
        self._rights = rights

    async def version(self) -> Response:
        """Whether the API is here, and whether the token is good."""
        return JSONResponse({}, headers=API_VERSION)

    async def unknown(self) -> Response:
        """Any other path."""
        raise unknown_route()

    async def blob(self, request: Request) -> Response:
        """A blob, or one range of it."""
        repository = repository_name(request.path_params["name"])
        digest = Digest(request.path_params["digest"])
        if (device := _device(request)) is not None:
            await run_in_threadpool(self._rights.require_blob, device, repository, digest)
        size = await run_in_threadpool(self._blobs.in_repository, repository, digest)
        if size is None:
            raise EdgeError("artifact.not-found", f"{repository} has no blob {digest}")
        return await blob_response(request, self._blobs, digest, size, headers={"Docker-Content-Digest": str(digest)})

    async def manifest(self, request: Request) -> Response:
        """A manifest or index by tag or digest, byte by byte as it was put."""
        repository = repository_name(request.path_params["name"])
        reference = request.path_params["reference"]
        if (device := _device(request)) is not None:
            await run_in_threadpool(self._rights.require_manifest, device, repository, Digest(reference))
        with named("artifact.not-found", "MANIFEST_UNKNOWN"):
            stored = await run_in_threadpool(self._blobs.get_manifest, repository, reference)
        tag = f'"{stored.digest}"'
        headers = {
            "Content-Type": stored.media_type,
            "Docker-Content-Digest": str(stored.digest),
            "ETag": tag,
            # A tag may move at any time.
            "Cache-Control": "private, no-cache",
        }
        if names_tag(request.headers.get("if-none-match"), tag):
            return Response(status_code=304, headers=headers)
        if request.method == "HEAD":
            return Response(headers=headers | {"Content-Length": str(len(stored.data))})
        return Response(stored.data, headers=headers)

    async def tags(self, request: Request) -> Response:
        """The tags of a repository, a page at a time."""
        repository = repository_name(request.path_params["name"])
        if (device := _device(request)) is not None:
            self._rights.refuse(device, repository)
        count = _count(request.query_params.get("n"))
        last = request.query_params.get("last", "")
        with named("artifact.not-found", "NAME_UNKNOWN"):
            # One more than asked for tells whether another page follows.
            found = await run_in_threadpool(self._blobs.tags, repository, last, min(count + 1, TAGS_PAGE_MAX))
        page = list(found[: min(count, TAGS_PAGE_MAX - 1)])
        headers: dict[str, str] = {}
        if page and len(found) > len(page):
            headers["Link"] = _next(f"/v2/{repository}/tags/list", {"n": str(count), "last": page[-1]})
        return JSONResponse({"name": repository, "tags": page}, headers=headers)

    async def referrers(self, request: Request) -> Response:
        """The manifests that refer to a digest, as an index; empty when there are none."""
        repository = repository_name(request.path_params["name"])
        digest = Digest(request.path_params["digest"])
        if (device := _device(request)) is not None:
            self._rights.refuse(device, repository)
        artifact_type = request.query_params.get("artifactType", "")
        last = request.query_params.get("last")
        last_digest = None if last is None else Digest(last)
        page = await run_in_threadpool(self._blobs.referrers, repository, digest, artifact_type, last_digest)
        manifests: list[JsonObject] = []
        for item in page:
            descriptor: JsonObject = {"mediaType": item.media_type, "digest": str(item.digest), "size": item.size}
            if item.artifact_type:
                descriptor["artifactType"] = item.artifact_type
            if item.annotations:
                descriptor["annotations"] = dict(item.annotations)
            manifests.append(descriptor)
        headers = {"Content-Type": INDEX_TYPE}
        query = {}
        if artifact_type:
            headers["OCI-Filters-Applied"] = "artifactType"
            query["artifactType"] = artifact_type
        if page and await run_in_threadpool(self._blobs.referrers, repository, digest, artifact_type, page[-1].digest):
            headers["Link"] = _next(f"/v2/{repository}/referrers/{digest}", query | {"last": str(page[-1].digest)})
        document = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}
        return Response(dump(document), headers=headers)

    async def delete_blob(self, request: Request) -> Response:
        """Remove a blob from a repository."""
        repository = _deletable(request)
        digest = Digest(request.path_params["digest"])
        await run_in_threadpool(self._blobs.delete_blob, repository, digest)
        return Response(status_code=202)

    async def delete_manifest(self, request: Request) -> Response:
        """Remove a tag, or a manifest with all its tags."""
        repository = _deletable(request)
        reference = request.path_params["reference"]
        parse_reference(reference)
        with named("artifact.not-found", "MANIFEST_UNKNOWN"):
            await run_in_threadpool(self._blobs.delete_manifest, repository, reference)
        return Response(status_code=202)


def _device(request: Request) -> str | None:
    """The device that asks, or none when an operator does."""
    principal: Principal = request.state.principal
    return principal.name if principal.is_device else None


def _deletable(request: Request) -> str:
    repository = repository_name(request.path_params["name"])
    if is_managed(repository):
        raise unsupported(
            f"the content of {repository} belongs to a model version", "Delete the version: DELETE /api/v1/models/…"
        )
    return repository


def _count(value: str | None) -> int:
    if value is None:
        return TAGS_PAGE_MAX - 1
    if not value.isascii() or not value.isdecimal() or len(value) > 9:
        raise EdgeError("cloud.bad-request", f"n is {value[:20]!r}", "Use a whole number.")
    return int(value)


def _next(path: str, query: dict[str, str]) -> str:
    return f'<{quote(path)}?{urlencode(query)}>; rel="next"'
