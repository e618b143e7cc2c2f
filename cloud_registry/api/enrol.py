"""Enrolment: a device spends its one-time token for an identity, the broker's address, and the roots of trust."""

import secrets
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from cloud_registry.api.transfer import read_body
from cloud_registry.limits import CSR_CHARS_MAX, ENROL_REQUEST_BYTES_MAX, LABEL_CHARS_MAX, TOKEN_CHARS_MAX
from cloud_registry.services import Services
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import Fields, JsonObject, parse_object
from edge_contract.names import platform_name

DEVICE_TOKEN_PREFIX: Final = "lmd_"
_TOKEN_BYTES: Final = 32


class EnrolRequest(BaseModel):
    """What a device sends. The token names the device; the request's subject is ignored."""

    model_config = ConfigDict(extra="forbid")

    token: str = Field(max_length=TOKEN_CHARS_MAX)
    csr_pem: str = Field(max_length=CSR_CHARS_MAX, description="PKCS#10 certificate request")
    platform: str = Field(description="os/architecture[/variant]")
    hardware_id: str = Field("", max_length=LABEL_CHARS_MAX)


class BrokerAddress(BaseModel):
    """Where a device finds the broker."""

    host: str
    port: int
    tls: bool
    ca_pem: str | None


class EnrolAnswer(BaseModel):
    """A device's identity. `token` is shown this once."""

    device: str
    certificate_pem: str
    ca_pem: str
    token: str
    mqtt: BrokerAddress | None
    image_root: str
    director_root: str


def router(services: Services) -> APIRouter:
    """The route `POST /api/v1/enrol`; it needs no other authentication than the enrolment token."""
    routes = APIRouter(prefix="/api/v1", tags=["devices"])
    body: JsonObject = {
        "requestBody": {"content": {"application/json": {"schema": EnrolRequest.model_json_schema()}}, "required": True}
    }

    @routes.post("/enrol", status_code=201, openapi_extra=body, responses={201: {"model": EnrolAnswer}})
    async def enrol(request: Request) -> Response:
        """Exchange a one-time token and a certificate request for an identity.

        The same key may repeat the request until the token expires, because an answer can get lost.
        """
        # Read here, with a bound, because whoever sends it has shown no token yet.
        wanted = _read(await read_body(request, ENROL_REQUEST_BYTES_MAX, "an enrolment request"))
        answer = await run_in_threadpool(_enrol, services, wanted)
        return JSONResponse(answer.model_dump(), 201, headers={"Cache-Control": "no-store"})

    return routes


def _read(data: bytes) -> EnrolRequest:
    try:
        fields = Fields(parse_object(data, "enrolment request", ENROL_REQUEST_BYTES_MAX), "enrolment request")
        wanted: dict[str, Any] = {
            "token": fields.text("token", chars_max=TOKEN_CHARS_MAX),
            "csr_pem": fields.text("csr_pem", chars_max=CSR_CHARS_MAX),
            "platform": platform_name(fields.text("platform")),
            "hardware_id": fields.text("hardware_id", "", chars_max=LABEL_CHARS_MAX),
        }
        fields.close()
    except ContractError as error:
        raise EdgeError("cloud.bad-request", error.detail, error.hint) from None
    return EnrolRequest(**wanted)


def _enrol(services: Services, wanted: EnrolRequest) -> EnrolAnswer:
    # Whatever can be wrong without the token is found before the token is spent.
    key = services.authority.check_request(wanted.csr_pem)
    image_root, director_root = services.images.root(), services.director.root()
    if image_root is None or director_root is None:
        raise EdgeError("trust.root-unknown", "this registry has no roots of trust yet", "Run `packager keys init`.")
    broker = _broker(services)
    token = DEVICE_TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
    enrolled = services.enrolments.redeem(wanted.token, key, wanted.platform, wanted.hardware_id, token)
    services.roster.admit(enrolled.device)
    return EnrolAnswer(
        device=enrolled.device,
        certificate_pem=services.authority.issue(enrolled.device, wanted.csr_pem),
        ca_pem=services.authority.ca_pem(),
        token=token,
        mqtt=broker,
        image_root=image_root.decode("utf-8"),
        director_root=director_root.decode("utf-8"),
    )


def _broker(services: Services) -> BrokerAddress | None:
    inside, outside = services.config.mqtt, services.config.mqtt_public
    host = outside.host or inside.host
    if not host:
        return None
    ca_pem: str | None = None
    if outside.tls:
        ca_pem = services.authority.ca_pem()
        if outside.tls_ca is not None:
            try:
                ca_pem = outside.tls_ca.read_text(encoding="ascii")
            except (OSError, UnicodeError):
                raise EdgeError("config.file-missing", f"cannot read mqtt_public.tls_ca, {outside.tls_ca}") from None
    return BrokerAddress(host=host, port=outside.port or inside.port, tls=outside.tls, ca_pem=ca_pem)
