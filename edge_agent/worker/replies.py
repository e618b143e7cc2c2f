"""Errors as HTTP answers: `{"error": what happened and what to do, "code": a stable code}`. Pure, any thread."""

from http import HTTPStatus
from typing import Final

from edge_agent.worker.http import JSON_TYPE, Response
from edge_agent.worker.inflating import CODINGS
from edge_agent.worker.oip import write_json
from edge_contract.errors import EdgeError

STATUS_BY_CODE: Final[dict[str, HTTPStatus]] = {
    "model.input-invalid": HTTPStatus.BAD_REQUEST,
    "model.load-refused": HTTPStatus.FORBIDDEN,
    "model.not-offered": HTTPStatus.NOT_IMPLEMENTED,
    "model.not-serving": HTTPStatus.NOT_FOUND,
    "model.overloaded": HTTPStatus.SERVICE_UNAVAILABLE,
    "model.timeout": HTTPStatus.GATEWAY_TIMEOUT,
}
"""HTTP status by error code; any other code is the model's or our fault."""

_CODE_BY_STATUS: Final[dict[HTTPStatus, str]] = {
    HTTPStatus.UNAUTHORIZED: "cloud.unauthorized",
    HTTPStatus.SERVICE_UNAVAILABLE: "model.overloaded",
    HTTPStatus.INTERNAL_SERVER_ERROR: "internal.bug",
}
_HEADERS_BY_STATUS: Final[dict[HTTPStatus, tuple[str, ...]]] = {
    HTTPStatus.SERVICE_UNAVAILABLE: ("Retry-After: 1",),
    HTTPStatus.UNAUTHORIZED: ("WWW-Authenticate: Bearer",),
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: (f"Accept-Encoding: {CODINGS}",),
}
OUTCOME_BY_CODE: Final = {
    "model.input-invalid": "invalid",
    "model.not-offered": "invalid",
    "model.overloaded": "overloaded",
    "model.timeout": "overloaded",  # of its turn
}
"""How a request that ended with an error is counted; with any other code it failed by the model's fault."""


def failure(error: EdgeError, status: HTTPStatus | None = None) -> Response:
    """The answer that says what went wrong; `status` where the code does not say it."""
    status = status or STATUS_BY_CODE.get(error.code, HTTPStatus.INTERNAL_SERVER_ERROR)
    text = f"{error.detail} {error.hint}".strip()
    headers = _HEADERS_BY_STATUS.get(status, ())
    return Response(status, JSON_TYPE, [write_json({"error": text, "code": error.code})], headers)


def refusal(status: HTTPStatus, detail: str) -> Response:
    """The answer to a request that cannot be read or is not wanted."""
    return failure(EdgeError(_CODE_BY_STATUS.get(status, "model.input-invalid"), detail), status)
