"""Errors in the form of distribution-spec 1.1: `{"errors": [{"code", "message", "detail"}]}`."""

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final

from fastapi import Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.responses import Response

from cloud_registry.api.problems import status_of
from cloud_registry.errors import RegistryError
from edge_contract.errors import EdgeError

RETRY_AFTER_S: Final = 5
API_VERSION: Final = {"Docker-Distribution-Api-Version": "registry/2.0"}

_BY_CODE: Final[dict[str, tuple[int, str]]] = {
    "cloud.unauthorized": (401, "UNAUTHORIZED"),
    "cloud.token-expired": (401, "UNAUTHORIZED"),
    "cloud.device-revoked": (401, "UNAUTHORIZED"),
    "cloud.forbidden": (403, "DENIED"),
    "cloud.in-use": (409, "DENIED"),
    "cloud.name-invalid": (400, "NAME_INVALID"),
    "cloud.bad-request": (400, "UNSUPPORTED"),
    "cloud.not-found": (404, "BLOB_UPLOAD_UNKNOWN"),
    "cloud.upload-invalid": (416, "BLOB_UPLOAD_INVALID"),
    "cloud.not-acceptable": (416, "SIZE_INVALID"),
    "cloud.too-large": (413, "SIZE_INVALID"),
    "artifact.digest-invalid": (400, "DIGEST_INVALID"),
    "artifact.digest-mismatch": (400, "DIGEST_INVALID"),
    "artifact.size-mismatch": (400, "SIZE_INVALID"),
    "artifact.not-found": (404, "BLOB_UNKNOWN"),
    "artifact.manifest-invalid": (400, "MANIFEST_INVALID"),
    "artifact.document-invalid": (400, "MANIFEST_INVALID"),
    "artifact.duplicate-key": (400, "MANIFEST_INVALID"),
    "artifact.document-too-large": (413, "SIZE_INVALID"),
    "network.cut": (400, "BLOB_UPLOAD_INVALID"),
    "network.timeout": (408, "BLOB_UPLOAD_INVALID"),
    "device.busy": (429, "TOOMANYREQUESTS"),
}


class OciError(EdgeError):
    """An error with the name that the distribution API has for it in one place.

    Attributes:
        oci_code: For example `MANIFEST_UNKNOWN`.
        status: HTTP status, or none for the usual one of the code.
    """

    def __init__(self, error: EdgeError, oci_code: str, status: int | None = None) -> None:
        """Give an error that name."""
        super().__init__(error.code, error.detail, error.hint)
        self.oci_code = oci_code
        self.status = status


def unsupported(detail: str, hint: str) -> OciError:
    """What the distribution API knows, but is not done here (405)."""
    return OciError(EdgeError("cloud.forbidden", detail, hint), "UNSUPPORTED", 405)


def unknown_route() -> OciError:
    """A path the distribution API does not have (404)."""
    return OciError(
        EdgeError("cloud.not-found", "the distribution API has no such path", "See /v2/ of distribution-spec 1.1."),
        "UNSUPPORTED",
        404,
    )


@contextmanager
def named(code: str, oci_code: str) -> Iterator[None]:
    """Give errors of one code another name than usual while the block runs."""
    try:
        yield
    except EdgeError as error:
        if error.code != code or isinstance(error, OciError):
            raise
        raise OciError(error, oci_code) from None


def oci_error_response(error: EdgeError) -> Response:
    """The answer to a request that met an error."""
    status, oci_code = _BY_CODE.get(error.code, (status_of(error.code), "UNKNOWN"))
    if isinstance(error, OciError):
        status, oci_code = error.status or status, error.oci_code
    headers = dict(API_VERSION)
    if oci_code == "UNAUTHORIZED":
        headers["WWW-Authenticate"] = 'Basic realm="lighterman"'
    if oci_code == "TOOMANYREQUESTS":
        headers["Retry-After"] = str(RETRY_AFTER_S)
    extras = error.extras if isinstance(error, RegistryError) else {}
    if "size" in extras:
        headers["Content-Range"] = f"bytes */{extras['size']}"
    if "offset" in extras:
        headers["Range"] = range_so_far(int(extras["offset"]))
    message = f"{error.detail} {error.hint}".strip()
    body = {"errors": [{"code": oci_code, "message": message, "detail": {"code": error.code}}]}
    return JSONResponse(body, status, headers)


def range_so_far(offset: int) -> str:
    """The `Range` of an upload; zero bytes and one byte look alike, as in every registry."""
    return f"0-{max(0, offset - 1)}"


class OciRoute(APIRoute):
    """A route whose errors, those of authentication too, take the OCI form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler with errors turned into answers."""
        inner = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await inner(request)
            except EdgeError as error:
                return oci_error_response(error)

        return handler
