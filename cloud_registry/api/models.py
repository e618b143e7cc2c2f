"""Models, versions, files, aliases and bundles."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from cloud_registry.api import shapes
from cloud_registry.api.auth import requires
from cloud_registry.api.checks import checked_model, checked_reference
from cloud_registry.api.transfer import blob_response
from cloud_registry.content import free_content
from cloud_registry.core.records import Bundle, Changes, File, NewVersion
from cloud_registry.core.registration import check_files, check_format, choose_entry
from cloud_registry.core.roles import Principal, Role
from cloud_registry.core.search import check_properties, read_page, read_search, write_cursor
from cloud_registry.limits import SNIFF_BYTES
from cloud_registry.services import Services
from edge_contract.deployment import bundle_repository, target_path
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.manifest import MODEL, VERSION, Descriptor, Index, Manifest
from edge_contract.names import alias_name
from edge_contract.names import tags as checked_tags
from edge_contract.tensors import TensorSpec

_BAD = "cloud.bad-request"


def router(services: Services) -> APIRouter:
    """The routes below `/api/v1/models`."""
    routes = APIRouter(prefix="/api/v1/models", tags=["models"])
    _add_models(routes, services)
    _add_versions(routes, services)
    _add_aliases(routes, services)
    _add_bundles(routes, services)
    return routes


def _add_models(routes: APIRouter, services: Services) -> None:
    viewer = Depends(requires(services.tokens, Role.VIEWER))
    publisher = requires(services.tokens, Role.PUBLISHER)
    models = services.models

    @routes.post("", status_code=201)
    def create_model(body: shapes.ModelAsk, principal: Annotated[Principal, Depends(publisher)]) -> shapes.ModelAnswer:
        """Create a model."""
        changes = _changes(shapes.ChangeAsk(**body.model_dump(exclude={"name"})))
        return shapes.ModelAnswer.of(models.create(body.name, changes, principal.name))

    @routes.get("", dependencies=[viewer])
    def search_models(
        name: Annotated[str, Query(description="exact, or with * for any characters")] = "",
        q: Annotated[str, Query(description="text in the name or a description")] = "",
        format: Annotated[str, Query(description="onnx, tflite or script")] = "",
        tag: Annotated[list[str] | None, Query(description="key=value, repeatable")] = None,
        property: Annotated[list[str] | None, Query(description="key=value, repeatable")] = None,
        created_after: Annotated[str, Query(description="RFC 3339")] = "",
        created_before: Annotated[str, Query(description="RFC 3339")] = "",
        limit: int | None = None,
        cursor: str = "",
    ) -> shapes.ModelPage:
        """Find models by name. A tag, property or format is met by the model or by one of its versions."""
        search = read_search(name, q, format, tag or [], property or [], created_after, created_before)
        found = models.search(search, read_page(limit, cursor, "models"))
        following = None if found.next_key is None else write_cursor("models", found.next_key)
        return shapes.ModelPage(items=[shapes.ModelAnswer.of(item) for item in found.items], next=following)

    @routes.get("/{name}", dependencies=[viewer])
    def get_model(name: str) -> shapes.ModelAnswer:
        """One model."""
        return shapes.ModelAnswer.of(models.get(checked_model(name)))

    @routes.patch("/{name}", dependencies=[Depends(publisher)])
    def update_model(name: str, body: shapes.ChangeAsk) -> shapes.ModelAnswer:
        """Change a model's description, tags or properties."""
        return shapes.ModelAnswer.of(models.update(checked_model(name), _changes(body)))

    @routes.delete("/{name}", status_code=204, dependencies=[Depends(publisher)])
    def delete_model(name: str) -> None:
        """Delete a model and its versions, unless something needs one (`needed_by`)."""
        free_content(models, services.blobs, name, models.delete(checked_model(name)))


def _add_versions(routes: APIRouter, services: Services) -> None:
    viewer = Depends(requires(services.tokens, Role.VIEWER))
    publisher = requires(services.tokens, Role.PUBLISHER)
    models = services.models

    @routes.post("/{name}/versions", status_code=201)
    def register_version(
        name: str, body: shapes.VersionAsk, principal: Annotated[Principal, Depends(publisher)]
    ) -> shapes.VersionAnswer:
        """Register the next version. Its files are in the repository `models/<name>` already."""
        models.get(checked_model(name))
        content = _content(body)
        _require_blobs(services, name, content)
        _check_entry(services, content)
        made = models.register(name, content, principal.name, lambda: _require_blobs(services, name, content))
        return shapes.VersionAnswer.of(made)

    @routes.get("/{name}/versions", dependencies=[viewer])
    def list_versions(name: str, limit: int | None = None, cursor: str = "") -> shapes.VersionPage:
        """The versions of a model, newest first."""
        kind = f"versions of {checked_model(name)}"
        found = models.versions(name, read_page(limit, cursor, kind))
        following = None if found.next_key is None else write_cursor(kind, found.next_key)
        return shapes.VersionPage(items=[shapes.VersionAnswer.of(item) for item in found.items], next=following)

    @routes.get("/{name}/versions/{version}", dependencies=[viewer])
    def get_version(name: str, version: str) -> shapes.VersionAnswer:
        """One version by number or alias."""
        return shapes.VersionAnswer.of(models.version(checked_model(name), checked_reference(version)))

    @routes.patch("/{name}/versions/{version}", dependencies=[Depends(publisher)])
    def update_version(name: str, version: str, body: shapes.ChangeAsk) -> shapes.VersionAnswer:
        """Change a version's description, tags or properties. Everything else of a version never changes."""
        changed = models.update_version(checked_model(name), checked_reference(version), _changes(body))
        return shapes.VersionAnswer.of(changed)

    @routes.delete("/{name}/versions/{version}", status_code=204, dependencies=[Depends(publisher)])
    def delete_version(name: str, version: str) -> None:
        """Delete a version, unless something needs it (`needed_by`). Its number is not used again."""
        removed = models.delete_version(checked_model(name), checked_reference(version))
        free_content(models, services.blobs, name, removed)

    path = "/{name}/versions/{version}/files/{path:path}"

    @routes.head(path, dependencies=[viewer], include_in_schema=False)
    @routes.get(path, dependencies=[viewer], response_class=Response)
    async def download_file(name: str, version: str, path: str, request: Request) -> Response:
        """One file of a version; supports ranges."""
        reference = checked_reference(version)
        found = await run_in_threadpool(models.version, checked_model(name), reference)
        for file in found.content.files:
            if file.path == path:
                headers = {"Content-Disposition": "attachment"}
                return await blob_response(request, services.blobs, file.digest, file.size, headers=headers)
        raise EdgeError("cloud.not-found", f"version {found.number} of {name} has no file {path[:200]!r}")


def _add_aliases(routes: APIRouter, services: Services) -> None:
    viewer = Depends(requires(services.tokens, Role.VIEWER))
    publisher = requires(services.tokens, Role.PUBLISHER)
    models = services.models

    @routes.get("/{name}/aliases", dependencies=[viewer])
    def list_aliases(name: str) -> shapes.AliasList:
        """Where each alias of a model points."""
        return shapes.AliasList(items=[shapes.AliasAnswer.of(item) for item in models.aliases(checked_model(name))])

    @routes.put("/{name}/aliases/{alias}")
    def set_alias(
        name: str, alias: str, body: shapes.AliasAsk, principal: Annotated[Principal, Depends(publisher)]
    ) -> shapes.AliasAnswer:
        """Point an alias at a version."""
        changed = models.set_alias(checked_model(name), alias_name(alias), body.version, principal.name)
        return shapes.AliasAnswer.of(changed)

    @routes.delete("/{name}/aliases/{alias}", status_code=204)
    def delete_alias(name: str, alias: str, principal: Annotated[Principal, Depends(publisher)]) -> None:
        """Remove an alias; its history stays."""
        models.delete_alias(checked_model(name), alias_name(alias), principal.name)

    @routes.get("/{name}/aliases/{alias}/history", dependencies=[viewer])
    def alias_history(name: str, alias: str) -> shapes.AliasList:
        """Every change of an alias, oldest first."""
        found = models.alias_history(checked_model(name), alias_name(alias))
        return shapes.AliasList(items=[shapes.AliasAnswer.of(item) for item in found])


def _add_bundles(routes: APIRouter, services: Services) -> None:
    viewer = Depends(requires(services.tokens, Role.VIEWER))
    publisher = Depends(requires(services.tokens, Role.PUBLISHER))
    models = services.models

    @routes.post("/{name}/versions/{version}/bundles", status_code=201, dependencies=[publisher])
    def register_bundle(name: str, version: str, body: shapes.BundleAsk) -> shapes.BundleAnswer:
        """Tell the registry of a bundle that was pushed to `bundles/<name>` and signed; unsigned ones are refused."""
        found = models.version(checked_model(name), checked_reference(version))
        index = Digest(body.index)
        added = _read_bundles(services, name, found.number, index)
        affected = models.add_bundles(name, found.number, added)
        services.notifier.devices_changed(affected.devices)
        manifests = [shapes.BundleManifest.of(item) for item in affected.result]
        return shapes.BundleAnswer(index=str(index), manifests=manifests)

    @routes.get("/{name}/versions/{version}/bundles", dependencies=[viewer])
    def list_bundles(name: str, version: str) -> shapes.BundleList:
        """The bundles of a version by platform."""
        found = models.bundles(checked_model(name), checked_reference(version))
        return shapes.BundleList(items=[shapes.BundleManifest.of(item) for item in found])


def _changes(body: shapes.ChangeAsk) -> Changes:
    return Changes(
        description=body.description,
        tags=None if body.tags is None else checked_tags(body.tags),
        properties=None if body.properties is None else check_properties(body.properties),
    )


def _content(body: shapes.VersionAsk) -> NewVersion:
    files = tuple(File(item.path, Digest(item.digest), item.size) for item in body.files)
    check_files(files)
    lineage: dict[str, Any] = {} if body.lineage is None else body.lineage.model_dump(exclude_none=True)
    return NewVersion(
        format=body.format,
        entry=choose_entry(body.format, body.entry, files),
        files=files,
        description=body.description,
        tags=checked_tags(body.tags),
        properties=check_properties(body.properties),
        lineage=lineage,
        inputs=tuple(TensorSpec.from_json(item.model_dump(), _BAD) for item in body.inputs),
        outputs=tuple(TensorSpec.from_json(item.model_dump(), _BAD) for item in body.outputs),
    )


def _require_blobs(services: Services, model: str, content: NewVersion) -> None:
    """Require that every file was uploaded, with its size."""
    repository = f"models/{model}"
    for file in content.files:
        size = services.blobs.in_repository(repository, file.digest)
        if size is None:
            hint = f"Upload it to /v2/{repository} first."
            raise EdgeError("artifact.not-found", f"{file.path}: {repository} has no blob {file.digest}", hint)
        if size != file.size:
            raise EdgeError("artifact.size-mismatch", f"{file.path}: the blob has {size} bytes, not {file.size}")


def _check_entry(services: Services, content: NewVersion) -> None:
    """Require that the entry begins like its format."""
    entry = next(file for file in content.files if file.path == content.entry)
    head = b"".join(services.blobs.open(entry.digest, 0, min(SNIFF_BYTES, entry.size)))
    check_format(content.format, entry.path, head, entry.size)


def _read_bundles(services: Services, model: str, number: int, index_digest: Digest) -> list[Bundle]:
    """Read a pushed index and its manifests, and require that authors signed each of them."""
    repository = bundle_repository(model)
    index = Index.parse(services.blobs.get_manifest(repository, str(index_digest)).data)
    _check_names(index.annotations, model, number, "index")
    return [_read_bundle(services, repository, model, number, item, index_digest) for item in index.manifests]


def _read_bundle(
    services: Services, repository: str, model: str, number: int, item: Descriptor, index_digest: Digest
) -> Bundle:
    stored = services.blobs.get_manifest(repository, str(item.digest))
    if len(stored.data) != item.size:
        raise EdgeError(
            "artifact.size-mismatch", f"{item.digest} has {len(stored.data)} bytes, the index says {item.size}"
        )
    _check_names(Manifest.parse(stored.data).annotations, model, number, f"manifest for {item.platform}")
    path = target_path(model, number, item.digest)
    target = services.images.target(path)
    if target is None:
        hint = "Sign it and submit the targets metadata first (`packager push` does)."
        raise EdgeError("trust.target-unknown", f"the image repository's metadata does not list {path}", hint)
    artifact = target.artifact
    signed = (target.digest, target.length, artifact.model, artifact.version, artifact.platform, artifact.repository)
    if signed != (item.digest, item.size, model, number, item.platform, repository):
        raise EdgeError("trust.metadata-mismatch", f"the signed metadata of {path} says something else than the index")
    return Bundle(
        platform=artifact.platform,
        manifest=item.digest,
        manifest_bytes=item.size,
        release_counter=artifact.release_counter,
        hardware_ids=artifact.hardware_ids,
        repository=repository,
        index=index_digest,
    )


def _check_names(annotations: dict[str, str], model: str, number: int, what: str) -> None:
    have = (annotations.get(MODEL), annotations.get(VERSION))
    if have != (model, str(number)):
        raise EdgeError("artifact.manifest-invalid", f"the {what} says it is of {have[0]} version {have[1]}")
