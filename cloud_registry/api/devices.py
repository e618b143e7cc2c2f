"""Devices, their tags, and the one-time tokens that enrol them."""

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Query

from cloud_registry.api import shapes_fleet as shapes
from cloud_registry.api.auth import requires
from cloud_registry.api.checks import checked_device
from cloud_registry.api.shapes import Labels
from cloud_registry.core.condition import parse_condition
from cloud_registry.core.instants import to_text
from cloud_registry.core.records import Device
from cloud_registry.core.roles import Principal, Role
from cloud_registry.core.search import read_page, write_cursor
from cloud_registry.limits import ENROLMENT_TTL_S_DEFAULT, ONLINE_MS
from cloud_registry.services import Services
from edge_contract.errors import EdgeError


def router(services: Services) -> APIRouter:
    """The routes below `/api/v1/devices`, and `/api/v1/enrolment-tokens`."""
    routes = APIRouter(prefix="/api/v1", tags=["devices"])
    viewer = Depends(requires(services.tokens, Role.VIEWER))
    operator = requires(services.tokens, Role.OPERATOR)
    devices = services.devices

    def shown(device: Device) -> shapes.DeviceAnswer:
        return shapes.DeviceAnswer.of(device, services.clock.wall_ms(), ONLINE_MS)

    @routes.post("/enrolment-tokens", status_code=201)
    def create_enrolment_token(
        body: shapes.EnrolmentAsk, principal: Annotated[Principal, Depends(operator)]
    ) -> shapes.EnrolmentAnswer:
        """Make a one-time token by which a device gets its identity."""
        ttl_s = ENROLMENT_TTL_S_DEFAULT if body.ttl_s is None else body.ttl_s
        made = devices.create_enrolment(body.device, body.tags, ttl_s, principal.name)
        return shapes.EnrolmentAnswer(token=made.token, device=made.device, expires_at=to_text(made.expires_ms))

    @routes.get("/devices", dependencies=[viewer])
    def list_devices(
        condition: Annotated[str, Query(description="only devices that this condition matches")] = "",
        name: Annotated[str, Query(description="exact, or with * for any characters")] = "",
        limit: int | None = None,
        cursor: str = "",
    ) -> shapes.DevicePage:
        """Devices by name."""
        if "\0" in name:
            raise EdgeError("cloud.bad-request", "the name holds the character NUL")
        wanted = parse_condition(condition) if condition else None
        found = devices.list(name, wanted, read_page(limit, cursor, "devices"))
        following = None if found.next_key is None else write_cursor("devices", found.next_key)
        return shapes.DevicePage(items=[shown(item) for item in found.items], next=following)

    @routes.get("/devices/{device}", dependencies=[viewer])
    def get_device(device: str) -> shapes.DeviceAnswer:
        """One device: desired, reported, and what of it needs attention."""
        found = devices.get(checked_device(device))
        try:
            version = services.director.version(device)
        except EdgeError:
            version = None  # the director's own trouble is no reason to show nothing
        return shapes.DeviceAnswer.of(found, services.clock.wall_ms(), ONLINE_MS, version)

    @routes.put("/devices/{device}/tags", dependencies=[Depends(operator)])
    def set_tags(device: str, tags: Annotated[Labels, Body(examples=[{"site": "north"}])]) -> shapes.DeviceAnswer:
        """Replace a device's tags. Deployments whose condition it now matches assign it their bundles at once."""
        affected = devices.set_tags(checked_device(device), tags)
        services.notifier.devices_changed(affected.devices)
        return shown(affected.result)

    @routes.post("/devices/{device}/revocation")
    def revoke_device(device: str, principal: Annotated[Principal, Depends(operator)]) -> shapes.DeviceAnswer:
        """End a device's identity: its key and certificate open nothing any more. Enrol it again to let it back in."""
        services.roster.remove(services.enrolments.revoke(checked_device(device), principal.name))
        return shown(devices.get(device))

    @routes.get("/devices/{device}/history", dependencies=[viewer])
    def device_history(device: str) -> shapes.DeviceHistory:
        """What happened to a device's identity, oldest first; that of a deleted device too."""
        found = services.enrolments.history(checked_device(device))
        return shapes.DeviceHistory(items=[shapes.DeviceChangeAnswer.of(item) for item in found])

    @routes.delete("/devices/{device}", status_code=204)
    def delete_device(device: str, principal: Annotated[Principal, Depends(operator)]) -> None:
        """Forget a device; its key stops working. Its telemetry stays."""
        identity = devices.delete(checked_device(device), principal.name)
        services.director.forget(device)
        services.roster.remove(identity)

    return routes
