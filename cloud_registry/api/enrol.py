"""Enrolment: a device spends its one-time token for an identity, the broker's address, and the roots of trust.

Later it renews its certificate with its own signature alone.
"""

import hashlib
import hmac
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from cloud_registry.api.auth import principal_of
from cloud_registry.api.transfer import read_body
from cloud_registry.core.instants import to_text
from cloud_registry.core.roles import Principal
from cloud_registry.limits import CSR_CHARS_MAX, ENROL_REQUEST_BYTES_MAX, LABEL_CHARS_MAX, TOKEN_CHARS_MAX
from cloud_registry.services import Services
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import Fields, JsonObject, parse_object
from edge_contract.names import platform_name
from edge_contract.signed import TOKEN_BODY

_LINK_REQUEST: Final = (
    "PKCS#10 request of another key, for TLS alone: of a device whose own key is where TLS cannot use it"
)


class EnrolRequest(BaseModel):
    """What a device sends. The token names the device; the request's subject is ignored."""

    model_config = ConfigDict(extra="forbid")

    token: str = Field(max_length=TOKEN_CHARS_MAX)
    csr_pem: str = Field(max_length=CSR_CHARS_MAX, description="PKCS#10 certificate request")
    link_csr_pem: str = Field("", max_length=CSR_CHARS_MAX, description=_LINK_REQUEST)
    platform: str = Field(description="os/architecture[/variant]")
    hardware_id: str = Field("", max_length=LABEL_CHARS_MAX)


class BrokerAddress(BaseModel):
    """Where a device finds the broker."""

    host: str
    port: int
    tls: bool
    ca_pem: str | None


class EnrolAnswer(BaseModel):
    """A device's identity; its own key is the secret that goes with it."""

    device: str
    identity: str = Field(description="common name of the certificate; another one at every enrolment")
    certificate_pem: str
    link_certificate_pem: str | None = None
    certificate_until: str = Field(examples=["2026-03-01T12:00:00.000Z"])
    ca_pem: str
    mqtt: BrokerAddress | None
    image_root: str
    director_root: str


class RenewalAsk(BaseModel):
    """A device's request for its next certificate, with the same key or a new one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    csr_pem: str = Field(
        max_length=CSR_CHARS_MAX, description="PKCS#10 certificate request, signed by the key it is for"
    )
    link_csr_pem: str = Field("", max_length=CSR_CHARS_MAX, description=_LINK_REQUEST)


class RenewalAnswer(BaseModel):
    """A device's next certificate."""

    device: str
    identity: str = Field(description="as before: renewing is no new enrolment")
    certificate_pem: str
    link_certificate_pem: str | None = None
    certificate_until: str = Field(examples=["2026-03-01T12:00:00.000Z"])
    ca_pem: str


def router(services: Services) -> APIRouter:
    """`POST /api/v1/enrol`, which needs the enrolment token alone, and the renewal, which needs the device's own."""
    routes = APIRouter(prefix="/api/v1", tags=["devices"])

    @routes.post(
        "/enrol", status_code=201, openapi_extra=_body_of(EnrolRequest), responses={201: {"model": EnrolAnswer}}
    )
    async def enrol(request: Request) -> Response:
        """Exchange a one-time token and a certificate request for an identity.

        The same key may repeat the request until the token expires, because an answer can get lost.
        """
        # Read here, with a bound, because whoever sends it has shown no token yet.
        wanted = _read(await read_body(request, ENROL_REQUEST_BYTES_MAX, "an enrolment request"))
        answer = await run_in_threadpool(_enrol, services, wanted)
        return JSONResponse(answer.model_dump(), 201, headers={"Cache-Control": "no-store"})

    @routes.post(
        "/devices/self/certificate",
        status_code=201,
        openapi_extra=_body_of(RenewalAsk),
        responses={201: {"model": RenewalAnswer}},
    )
    async def renew_certificate(
        request: Request, principal: Annotated[Principal, Depends(principal_of(services.tokens))]
    ) -> Response:
        """Get the next certificate. A new key is asked for with a token that the old key signed for this very body.

        The old key stays good until the first request that the new one signed, so that a device that is cut off in
        between has a key that works, whichever it kept.
        """
        if not principal.is_device:
            raise EdgeError(
                "cloud.forbidden", f"{principal.name!r} is no device: only devices renew their certificates"
            )
        data = await read_body(request, ENROL_REQUEST_BYTES_MAX, "a renewal")
        if not hmac.compare_digest(principal.body_sha256.encode(), hashlib.sha256(data).hexdigest().encode()):
            raise EdgeError(
                "cloud.unauthorized",
                "the token was not signed for this request",
                f"Sign a token with the claim {TOKEN_BODY}, the SHA-256 of the request's body.",
            )
        answer = await run_in_threadpool(_renew, services, principal.name, _read_renewal(data))
        return JSONResponse(answer.model_dump(), 201, headers={"Cache-Control": "no-store"})

    return routes


def _body_of(shape: type[BaseModel]) -> JsonObject:
    """What the published interface says of a body that is read here."""
    schema = shape.model_json_schema()
    return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}}


def _read_renewal(data: bytes) -> RenewalAsk:
    try:
        fields = Fields(parse_object(data, "renewal", ENROL_REQUEST_BYTES_MAX), "renewal")
        csr_pem = fields.text("csr_pem", chars_max=CSR_CHARS_MAX)
        link_csr_pem = fields.text("link_csr_pem", "", chars_max=CSR_CHARS_MAX)
        fields.close()
    except ContractError as error:
        raise EdgeError("cloud.bad-request", error.detail, error.hint) from None
    return RenewalAsk(csr_pem=csr_pem, link_csr_pem=link_csr_pem)


def _renew(services: Services, device: str, wanted: RenewalAsk) -> RenewalAnswer:
    key = services.authority.check_request(wanted.csr_pem)
    _check_link(services, wanted.link_csr_pem)
    until_ms = services.clock.wall_ms() + services.authority.device_life_ms
    identity = services.enrolments.renew(device, key, until_ms)
    return RenewalAnswer(
        device=device,
        identity=identity,
        certificate_pem=services.authority.issue(identity, wanted.csr_pem, until_ms),
        link_certificate_pem=_issue_link(services, identity, wanted.link_csr_pem, until_ms),
        certificate_until=to_text(until_ms),
        ca_pem=services.authority.ca_pem(),
    )


def _read(data: bytes) -> EnrolRequest:
    try:
        fields = Fields(parse_object(data, "enrolment request", ENROL_REQUEST_BYTES_MAX), "enrolment request")
        wanted: dict[str, Any] = {
            "token": fields.text("token", chars_max=TOKEN_CHARS_MAX),
            "csr_pem": fields.text("csr_pem", chars_max=CSR_CHARS_MAX),
            "link_csr_pem": fields.text("link_csr_pem", "", chars_max=CSR_CHARS_MAX),
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
    _check_link(services, wanted.link_csr_pem)
    image_root, director_root = services.images.root(), services.director.root()
    if image_root is None or director_root is None:
        raise EdgeError("trust.root-unknown", "this registry has no roots of trust yet", "Run `packager keys init`.")
    broker = _broker(services)
    until_ms = services.clock.wall_ms() + services.authority.device_life_ms
    enrolled = services.enrolments.redeem(wanted.token, key, wanted.platform, wanted.hardware_id, until_ms)
    if enrolled.former is not None:
        services.roster.remove(enrolled.former)
    services.roster.admit(enrolled.identity, enrolled.device)
    return EnrolAnswer(
        device=enrolled.device,
        identity=enrolled.identity,
        certificate_pem=services.authority.issue(enrolled.identity, wanted.csr_pem, until_ms),
        link_certificate_pem=_issue_link(services, enrolled.identity, wanted.link_csr_pem, until_ms),
        certificate_until=to_text(until_ms),
        ca_pem=services.authority.ca_pem(),
        mqtt=broker,
        image_root=image_root.decode("utf-8"),
        director_root=director_root.decode("utf-8"),
    )


def _check_link(services: Services, csr_pem: str) -> None:
    if csr_pem:
        services.authority.check_request(csr_pem)


def _issue_link(services: Services, identity: str, csr_pem: str, until_ms: int) -> str | None:
    """A certificate under the same name for a key that opens TLS and nothing else: it is not enrolled."""
    return services.authority.issue(identity, csr_pem, until_ms) if csr_pem else None


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
