"""The pushing half of the OCI distribution API: uploads in one piece, in chunks, by mount; manifests."""

from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from cloud_registry.api.oci_errors import named, range_so_far
from cloud_registry.api.transfer import read_body, receive_upload
from cloud_registry.core.distribution import (
    check_tags,
    parse_content_range,
    parse_reference,
    read_document,
    repository_name,
)
from cloud_registry.errors import RegistryError
from cloud_registry.ports import BlobStorage
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import MANIFEST_BYTES_MAX


class PushApi:
    """Uploads and manifests."""

    def __init__(self, blobs: BlobStorage) -> None:
        """Write into this storage."""
        self._blobs = blobs

    async def start(self, request: Request) -> Response:
        """Start an upload; with `digest` the body is the whole blob, with `mount` and `from` no byte needs to come."""
        repository = repository_name(request.path_params["name"])
        query = request.query_params
        if query.get("digest-algorithm", "sha256") != "sha256":
            raise EdgeError("artifact.digest-invalid", "this registry knows sha256 alone")
        if "mount" in query and "from" in query:
            mounted = Digest(query["mount"])
            if await self._mount(repository, repository_name(query["from"]), mounted):
                return _created(f"/v2/{repository}/blobs/{mounted}", mounted)
        digest = Digest(query["digest"]) if "digest" in query else None
        upload = await run_in_threadpool(self._blobs.begin_upload, repository)
        if digest is None:
            return _accepted(repository, upload, 0)
        try:
            await receive_upload(request, self._blobs, upload, 0)
            await run_in_threadpool(self._blobs.finish_upload, upload, digest)
        except EdgeError:
            # Nobody was told its address, so nobody can go on with it.
            await run_in_threadpool(self._blobs.abort, upload)
            raise
        return _created(f"/v2/{repository}/blobs/{digest}", digest)

    async def _mount(self, repository: str, source: str, digest: Digest) -> bool:
        if await run_in_threadpool(self._blobs.in_repository, source, digest) is None:
            return False
        try:
            await run_in_threadpool(self._blobs.link_blob, repository, digest)
        except EdgeError as error:
            if error.code != "artifact.not-found":
                raise
            return False
        return True

    async def chunk(self, request: Request) -> Response:
        """The next bytes of an upload."""
        repository, upload, offset = await self._find(request)
        offset = await receive_upload(request, self._blobs, upload, offset, _announced(request, offset))
        return _accepted(repository, upload, offset)

    async def progress(self, request: Request) -> Response:
        """How far an upload is."""
        repository, upload, offset = await self._find(request)
        return _accepted(repository, upload, offset, status=204)

    async def cancel(self, request: Request) -> Response:
        """Forget an upload."""
        _, upload, _ = await self._find(request)
        await run_in_threadpool(self._blobs.abort, upload)
        return Response(status_code=204)

    async def finish(self, request: Request) -> Response:
        """The last bytes of an upload, if any are left, and the digest of all of them."""
        repository, upload, offset = await self._find(request)
        digest = Digest(request.query_params.get("digest", ""))
        await receive_upload(request, self._blobs, upload, offset, _announced(request, offset))
        await run_in_threadpool(self._blobs.finish_upload, upload, digest)
        return _created(f"/v2/{repository}/blobs/{digest}", digest)

    async def _find(self, request: Request) -> tuple[str, str, int]:
        repository = repository_name(request.path_params["name"])
        upload: Any = request.path_params["upload"]
        offset = await run_in_threadpool(self._blobs.upload_offset, repository, upload)
        return repository, str(upload), offset

    async def manifest(self, request: Request) -> Response:
        """Keep a manifest or index."""
        repository = repository_name(request.path_params["name"])
        reference = request.path_params["reference"]
        target = parse_reference(reference)
        tags = check_tags(request.query_params.getlist("tag"))
        media_type = request.headers.get("content-type", "").split(";", 1)[0].strip()
        data = await read_body(request, MANIFEST_BYTES_MAX, "a manifest")
        document = await run_in_threadpool(read_document, media_type, data)
        with named("artifact.not-found", "MANIFEST_BLOB_UNKNOWN"):
            digest = await run_in_threadpool(self._blobs.put_manifest, repository, reference, media_type, data)
            for tag in tags if target.tag is None else ():
                await run_in_threadpool(self._blobs.put_manifest, repository, tag, media_type, data)
        response = _created(f"/v2/{repository}/manifests/{digest}", digest)
        if document.subject is not None:
            response.headers["OCI-Subject"] = str(document.subject)
        if target.tag is None:
            for tag in tags:
                response.headers.append("OCI-Tag", tag)
        return response


def _announced(request: Request, offset: int) -> int | None:
    header = request.headers.get("content-range")
    if header is None:
        return None
    first, count = parse_content_range(header)
    if first != offset:
        raise RegistryError(
            "cloud.upload-invalid",
            f"the upload stands at {offset} bytes, the chunk begins at {first}",
            "Go on from where the upload stands.",
            {"offset": offset},
        )
    return count


def _created(location: str, digest: Digest) -> Response:
    return Response(status_code=201, headers={"Location": location, "Docker-Content-Digest": str(digest)})


def _accepted(repository: str, upload: str, offset: int, status: int = 202) -> Response:
    return Response(
        status_code=status,
        headers={
            "Location": f"/v2/{repository}/blobs/uploads/{upload}",
            "Range": range_so_far(offset),
            "Docker-Upload-UUID": upload,
        },
    )
