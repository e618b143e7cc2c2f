"""Problem documents (RFC 9457), and the only place where HTTP status codes stand beside error codes."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from cloud_registry.errors import RegistryError
from edge_contract.codes import CODES, Category
from edge_contract.errors import EdgeError

PROBLEM_TYPE: Final = "application/problem+json"
TYPE_BASE: Final = "https://lighterman.dev/problems/"
_UNAUTHORIZED: Final = 401
_NOT_FOUND: Final = 404
_PLACES_MAX: Final = 10
_PLACE_CHARS_MAX: Final = 200

_STATUS_BY_CODE: Final[dict[str, int]] = {
    "artifact.not-found": 404,
    "artifact.document-too-large": 413,
    "cloud.unauthorized": 401,
    "cloud.token-expired": 401,
    "cloud.device-revoked": 401,
    "cloud.forbidden": 403,
    "cloud.not-found": 404,
    "cloud.conflict": 409,
    "cloud.in-use": 409,
    "cloud.too-large": 413,
    "cloud.not-acceptable": 416,
    "cloud.upload-invalid": 416,
    "cloud.token-spent": 403,
    "cloud.unavailable": 503,
    "device.busy": 503,
    "device.disk-full": 507,
    "network.cut": 400,
    "network.timeout": 408,
    "trust.root-unknown": 409,
}
_STATUS_BY_CATEGORY: Final[dict[Category, int]] = {
    Category.TRUST: 422,
    Category.ARTIFACT: 422,
    Category.MODEL: 422,
    Category.DEVICE: 503,
    Category.NETWORK: 502,
    Category.CLOUD: 400,
    Category.CONFIG: 500,
    Category.INTERNAL: 500,
}


def status_of(code: str) -> int:
    """The HTTP status that belongs to an error code."""
    return _STATUS_BY_CODE.get(code) or _STATUS_BY_CATEGORY[CODES[code].category]


def problem_document(error: EdgeError, instance: str) -> dict[str, Any]:
    """The members of a problem document.

    Args:
        error: What happened.
        instance: Path of the request.
    """
    document: dict[str, Any] = {
        "type": TYPE_BASE + error.code,
        "title": CODES[error.code].summary,
        "status": status_of(error.code),
        "detail": error.detail,
        "instance": instance,
        "code": error.code,
        "hint": error.hint,
    }
    return document | (error.extras if isinstance(error, RegistryError) else {})


def problem_response(request: Request, error: EdgeError) -> Response:
    """The answer to a request that met an error."""
    status = status_of(error.code)
    headers = {"WWW-Authenticate": 'Basic realm="lighterman"'} if status == _UNAUTHORIZED else None
    return JSONResponse(problem_document(error, request.url.path), status, headers=headers, media_type=PROBLEM_TYPE)


def validation_problem(errors: Sequence[Any]) -> EdgeError:
    """The error for a body or parameter that does not fit its schema; `errors` says where and why."""
    found = [
        {"where": ".".join(str(part) for part in item["loc"])[:_PLACE_CHARS_MAX], "why": str(item["msg"])}
        for item in errors[:_PLACES_MAX]
    ]
    first = found[0] if found else {"where": "request", "why": "is not valid"}
    detail = f"{first['where']}: {first['why']}"
    return RegistryError("cloud.bad-request", detail, "See /openapi.json for what is expected.", {"errors": found})


def route_problem(request: Request, status: int, detail: str, headers: Mapping[str, str] | None) -> Response:
    """The answer when the framework refuses a request: no such path, or not with this method."""
    code = "cloud.not-found" if status == _NOT_FOUND else "cloud.bad-request"
    error = EdgeError(code, f"{request.method} {request.url.path}: {detail}", "See /openapi.json for what there is.")
    document = problem_document(error, request.url.path) | {"status": status}
    return JSONResponse(document, status, headers=dict(headers or {}), media_type=PROBLEM_TYPE)
