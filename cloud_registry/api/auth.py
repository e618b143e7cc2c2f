"""Who sent a request: a bearer token, or HTTP Basic with the token as password (what container tools can send)."""

import base64
import binascii
from collections.abc import Callable
from typing import Final

from fastapi import Request

from cloud_registry.core.roles import Principal, Role
from cloud_registry.ports import Authenticator
from edge_contract.errors import EdgeError

AUTHORIZATION_CHARS_MAX: Final = 1024
_HINT: Final = "Send `Authorization: Bearer TOKEN`, or the token as the password of HTTP Basic authentication."


def token_of(authorization: str | None) -> str:
    """The token in an `Authorization` header.

    Raises:
        EdgeError: `cloud.unauthorized` if there is none.
    """
    if authorization and len(authorization) <= AUTHORIZATION_CHARS_MAX:
        scheme, _, rest = authorization.partition(" ")
        if scheme.lower() == "bearer" and rest.strip():
            return rest.strip()
        if scheme.lower() == "basic":
            try:
                return base64.b64decode(rest.strip(), validate=True).decode("utf-8").partition(":")[2]
            except (binascii.Error, UnicodeError):
                pass
    raise EdgeError("cloud.unauthorized", "no token came with the request", _HINT)


def authenticate(tokens: Authenticator, authorization: str | None) -> Principal:
    """Who sent a request with this `Authorization` header.

    Raises:
        EdgeError: `cloud.unauthorized`.
    """
    principal = tokens.authenticate(token_of(authorization))
    if principal is None:
        raise EdgeError("cloud.unauthorized", "the token is unknown, or was revoked", _HINT)
    return principal


def principal_of(tokens: Authenticator) -> Callable[[Request], Principal]:
    """A dependency that gives the principal of a request, whatever its rights."""

    def dependency(request: Request) -> Principal:
        principal = authenticate(tokens, request.headers.get("authorization"))
        request.state.principal = principal
        return principal

    return dependency


def requires(tokens: Authenticator, role: Role) -> Callable[[Request], Principal]:
    """A dependency that lets operators with at least this role pass.

    Use: `principal: Principal = Depends(requires(services.tokens, Role.PUBLISHER))`.
    """
    find = principal_of(tokens)

    def dependency(request: Request) -> Principal:
        principal = find(request)
        principal.require(role)
        return principal

    return dependency
