"""Deltas of model versions: what was made, and what the fleet holds that more could be made from."""

from typing import Annotated

from fastapi import APIRouter, Depends

from cloud_registry.api import shapes_deltas as shapes
from cloud_registry.api.auth import requires
from cloud_registry.api.checks import checked_model, checked_reference
from cloud_registry.content import free_deltas
from cloud_registry.core.condition import parse_condition
from cloud_registry.core.records import KnownDelta
from cloud_registry.core.roles import Principal, Role
from cloud_registry.services import Services
from edge_contract.delta import read_delta_manifest
from edge_contract.deployment import bundle_repository
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.names import model_name


def router(services: Services) -> APIRouter:
    """The routes below `/api/v1/models/<name>/versions/<version>` that have to do with deltas."""
    routes = APIRouter(prefix="/api/v1/models/{name}/versions/{version}", tags=["deltas"])
    viewer = Depends(requires(services.tokens, Role.VIEWER))
    publisher = requires(services.tokens, Role.PUBLISHER)

    @routes.post("/deltas", status_code=201)
    def register_delta(
        name: str, version: str, body: shapes.DeltaAsk, principal: Annotated[Principal, Depends(publisher)]
    ) -> shapes.DeltaAnswer:
        """Tell the registry of a delta that was pushed to `bundles/<name>`. Devices hear of it with their metadata."""
        found = services.models.version(checked_model(name), checked_reference(version))
        known = _read(services, name, found.number, Digest(body.manifest))
        affected = services.deltas.add(name, found.number, known, principal.name)
        services.notifier.devices_changed(affected.devices)
        free_deltas(services.blobs, name, affected.result.replaced)
        return shapes.DeltaAnswer.of(affected.result.known)

    @routes.get("/deltas", dependencies=[viewer])
    def list_deltas(name: str, version: str) -> shapes.DeltaList:
        """The deltas of a version, the smallest first."""
        found = services.deltas.list(checked_model(name), checked_reference(version))
        return shapes.DeltaList(items=[shapes.DeltaAnswer.of(item) for item in found])

    @routes.delete("/deltas/{digest}", status_code=204, dependencies=[Depends(publisher)])
    def delete_delta(name: str, version: str, digest: str) -> None:
        """Forget a delta; devices fetch whole files instead."""
        removed = services.deltas.remove(checked_model(name), checked_reference(version), Digest(digest))
        free_deltas(services.blobs, name, [removed])

    @routes.get("/bases", dependencies=[viewer])
    def list_bases(name: str, version: str, condition: str = "", module: str = "") -> shapes.BasesAnswer:
        """What the devices of a condition (none: all) hold that this version could be made from; most common first."""
        names = services.devices.matching(parse_condition(condition or "*"))
        wanted = model_name(module) if module else checked_model(name)
        found = services.deltas.bases(checked_model(name), checked_reference(version), names, wanted)
        return shapes.BasesAnswer.of(found, len(names))

    return routes


def _read(services: Services, model: str, number: int, manifest: Digest) -> KnownDelta:
    """Read a pushed artifact, and require that it is about this version and whole.

    Raises:
        EdgeError: `artifact.not-found`, `artifact.manifest-invalid`, `artifact.size-mismatch`.
    """
    repository = bundle_repository(model)
    delta, subject = read_delta_manifest(services.blobs.get_manifest(repository, str(manifest)).data)
    if subject not in {bundle.index for bundle in services.models.bundles(model, str(number))}:
        raise EdgeError(
            "artifact.manifest-invalid",
            f"the delta refers to {subject}, which is no bundle of {model} version {number}",
            "Register the bundle first (`packager push` does).",
        )
    sizes = {file.digest: file.size for file in services.models.version(model, str(number)).content.files}
    if sizes.get(delta.new) != delta.new_bytes:
        raise EdgeError(
            "artifact.manifest-invalid",
            f"the delta makes {delta.new} of {delta.new_bytes} bytes, which is no file of {model} version {number}",
        )
    size = services.blobs.in_repository(repository, delta.digest)
    if size is None:
        raise EdgeError("artifact.not-found", f"{repository} has no blob {delta.digest}", "Push the delta first.")
    if size != delta.bytes:
        raise EdgeError("artifact.size-mismatch", f"{delta.digest} has {size} bytes, its manifest says {delta.bytes}")
    return KnownDelta(delta, manifest, subject)
