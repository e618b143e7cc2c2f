"""Operator tokens."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from cloud_registry.api import shapes
from cloud_registry.api.auth import principal_of, requires
from cloud_registry.api.checks import checked_device
from cloud_registry.core.roles import Principal, Role, parse_role
from cloud_registry.services import Services


def router(services: Services) -> APIRouter:
    """The routes below `/api/v1/tokens`."""
    routes = APIRouter(prefix="/api/v1/tokens", tags=["tokens"])
    admin = requires(services.tokens, Role.ADMIN)
    operators = services.operators

    @routes.post("", status_code=201)
    def create_token(
        body: shapes.TokenAsk, response: Response, principal: Annotated[Principal, Depends(admin)]
    ) -> shapes.NewTokenAnswer:
        """Make an operator token. The answer alone holds it."""
        role = parse_role(body.role)
        response.headers["Cache-Control"] = "no-store"
        return shapes.NewTokenAnswer(
            name=body.name, role=str(role), token=operators.create(body.name, role, principal.name)
        )

    @routes.get("", dependencies=[Depends(admin)])
    def list_tokens() -> shapes.TokenList:
        """All operator tokens without their secrets."""
        return shapes.TokenList(items=[shapes.TokenAnswer.of(item) for item in operators.list()])

    @routes.get("/self")
    def get_own_token(principal: Annotated[Principal, Depends(principal_of(services.tokens))]) -> shapes.OwnTokenAnswer:
        """Whose token came with the request."""
        return shapes.OwnTokenAnswer(name=principal.name, role=None if principal.role is None else str(principal.role))

    @routes.delete("/{name}", status_code=204, dependencies=[Depends(admin)])
    def revoke_token(name: str) -> None:
        """Revoke an operator token; the last one with the role admin stays."""
        operators.revoke(checked_device(name))

    return routes
