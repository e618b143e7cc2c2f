"""Roots and signed metadata of the image repository."""

from typing import Annotated

from fastapi import APIRouter, Depends

from cloud_registry.api import shapes
from cloud_registry.api.auth import requires
from cloud_registry.core.roles import Principal, Role
from cloud_registry.ports import OnlineKeyWish
from cloud_registry.services import Services
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject


def router(services: Services) -> APIRouter:
    """The routes below `/api/v1/trust`."""
    routes = APIRouter(prefix="/api/v1/trust", tags=["trust"])
    viewer = Depends(requires(services.tokens, Role.VIEWER))
    publisher = requires(services.tokens, Role.PUBLISHER)
    admin = Depends(requires(services.tokens, Role.ADMIN))
    images = services.images

    @routes.get("", dependencies=[viewer])
    def trust_summary() -> JsonObject:
        """The server's online public keys, which authors name in their roots, and the versions of both roots."""
        return images.trust_summary()

    @routes.post("/online-keys", dependencies=[admin])
    def prepare_online_keys(body: shapes.OnlineKeysAsk) -> JsonObject:
        """Have next online keys ready for a root to introduce; nothing is signed with them before it does.

        Answers as `GET /api/v1/trust`. Asking again changes nothing, unless `afresh`.
        """
        wishes = [OnlineKeyWish(item.repository, item.role, item.uri) for item in body.keys]
        return images.prepare_online_keys(wishes, body.afresh)

    @routes.post("/roots", status_code=204)
    def submit_roots(body: shapes.RootsAsk, principal: Annotated[Principal, Depends(publisher)]) -> None:
        """Submit root metadata: the first by an admin, each next one signed by enough keys of the one before."""
        if body.image is None and body.director is None:
            raise EdgeError("cloud.bad-request", "neither `image` nor `director` holds a root")
        if not images.trust_summary()["initialised"]:
            principal.require(Role.ADMIN)
        images.submit_roots(_bytes(body.image), _bytes(body.director))

    @routes.post("/metadata", status_code=204, dependencies=[Depends(publisher)])
    def submit_metadata(body: shapes.MetadataAsk) -> None:
        """Submit signed targets of any level; the server signs a new snapshot and timestamp over them."""
        images.submit_metadata({name: text.encode("utf-8") for name, text in body.files.items()})

    return routes


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8")
