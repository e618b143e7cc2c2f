"""The application: routers, error handling, limits, and the published OpenAPI document."""

import logging
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import Response

from cloud_registry.api import (
    deltas,
    deployments,
    devices,
    enrol,
    health,
    models,
    oci,
    shapes,
    telemetry,
    tokens,
    trust,
    tuf,
)
from cloud_registry.api.middleware import AccessLog, BodyBound
from cloud_registry.api.problems import PROBLEM_TYPE, problem_response, route_problem, validation_problem
from cloud_registry.services import Services
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

_log: Final = logging.getLogger(__name__)
_DESCRIPTION: Final = """The registry of Lighterman: models, deployments, devices, trust metadata and telemetry.

Authentication: `Authorization: Bearer TOKEN`, or HTTP Basic with the token as password. Roles: viewer, publisher,
operator, admin; each may what those before it may. Errors are problem documents (RFC 9457) with a stable `code`.
Blobs and bundles are served below `/v2/` as the OCI distribution specification 1.1 says.
"""
_OPEN: Final = frozenset({"/health/live", "/health/ready", "/api/v1/enrol", "/metrics"})


def create_app(services: Services) -> FastAPI:
    """The application over its services; starting and stopping what runs in the background is the caller's."""
    app = FastAPI(
        title="Lighterman registry",
        version=_version(),
        description=_DESCRIPTION,
        docs_url=None,  # the pages would load scripts from another host
        redoc_url=None,
        redirect_slashes=False,
    )
    for module in (models, deltas, deployments, devices, tokens, trust, telemetry, enrol, health, tuf, oci):
        app.include_router(module.router(services))
    app.add_middleware(BodyBound, tokens=services.tokens)
    app.add_middleware(AccessLog)
    _handle_errors(app)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


def _version() -> str:
    try:
        return version("lighterman")
    except PackageNotFoundError:
        return "0"


def _handle_errors(app: FastAPI) -> None:
    async def on_edge_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, EdgeError)
        if error.category == "internal":
            _log.error("%s %s: %s", request.method, request.url.path, error)
        return problem_response(request, error)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem_response(request, validation_problem(error.errors()))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        # The framework wraps whatever stops a body from being read.
        if isinstance(error.__cause__, EdgeError):
            return problem_response(request, error.__cause__)
        return route_problem(request, error.status_code, str(error.detail), error.headers)

    async def on_bug(request: Request, _error: Exception) -> Response:
        hint = "Report it with the registry's log of this moment."
        return problem_response(request, EdgeError("internal.bug", "the registry met an error of its own", hint))

    app.add_exception_handler(EdgeError, on_edge_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_bug)


def _document(app: FastAPI) -> JsonObject:
    """The OpenAPI document with what the framework does not know: authentication, and one form of error everywhere."""
    if app.openapi_schema:
        return app.openapi_schema
    document: dict[str, Any] = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    parts = document.setdefault("components", {})
    parts["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "basic": {"type": "http", "scheme": "basic", "description": "any user name, the token as password"},
    }
    schemas = parts.setdefault("schemas", {})
    schemas["Problem"] = shapes.Problem.model_json_schema()
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    error = {
        "description": "A problem document",
        "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = error
            if path not in _OPEN:
                operation["security"] = [{"bearer": []}, {"basic": []}]
    app.openapi_schema = document
    return document
