"""Downloads of TUF metadata: the image repository's, which is the same for all, and the director's for each device."""

from collections.abc import Callable

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from cloud_registry.api.auth import principal_of
from cloud_registry.core.roles import Principal, Role
from cloud_registry.services import Services
from edge_contract.errors import EdgeError
from edge_contract.names import device_name

_JSON = "application/json"


def router(services: Services) -> APIRouter:
    """The routes below `/tuf`; the token of that device, or the role viewer, may read them."""
    routes = APIRouter(prefix="/tuf", tags=["trust"])
    anybody = principal_of(services.tokens)
    itself = _device_or_viewer(anybody)

    @routes.get("/image/{filename}", dependencies=[Depends(anybody)], response_class=Response)
    def image_metadata(filename: str) -> Response:
        """One file of the image repository by its consistent-snapshot name, for example `timestamp.json`."""
        return _document(services.images.read(filename))

    @routes.get("/director/{device}/{filename}", dependencies=[Depends(itself)], response_class=Response)
    def director_metadata(device: str, filename: str) -> Response:
        """One file of a device's director repository; asking for the timestamp takes in new assignments."""
        return _document(services.director.metadata(device_name(device), filename))

    return routes


def _device_or_viewer(find: Callable[[Request], Principal]) -> Callable[[Request], Principal]:
    def dependency(request: Request) -> Principal:
        principal = find(request)
        if principal.is_device and principal.name != request.path_params["device"]:
            raise EdgeError("cloud.forbidden", f"{principal.name!r} may read its own metadata alone")
        if not principal.is_device:
            principal.require(Role.VIEWER)
        return principal

    return dependency


def _document(data: bytes) -> Response:
    # The versions of a device that was deleted and enrolled again start anew: nothing may be kept on the way.
    return Response(data, media_type=_JSON, headers={"Cache-Control": "private, no-cache"})
