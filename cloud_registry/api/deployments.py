"""Deployments: create, preview, change, cancel, and how they stand."""

from typing import Annotated

from fastapi import APIRouter, Depends

from cloud_registry.api import shapes_fleet as shapes
from cloud_registry.api.auth import requires
from cloud_registry.api.checks import checked_deployment, checked_model, checked_reference
from cloud_registry.core.condition import parse_condition
from cloud_registry.core.records import Affected, Deployment, DeploymentChanges, NewDeployment
from cloud_registry.core.roles import Principal, Role
from cloud_registry.core.search import read_page, write_cursor
from cloud_registry.services import Services
from edge_contract.deployment import Policy
from edge_contract.names import model_name


def router(services: Services) -> APIRouter:
    """The routes below `/api/v1/deployments`."""
    routes = APIRouter(prefix="/api/v1/deployments", tags=["deployments"])
    _add_changes(routes, services)
    _add_views(routes, services)
    return routes


def _add_changes(routes: APIRouter, services: Services) -> None:
    operator = requires(services.tokens, Role.OPERATOR)
    deployments = services.deployments

    def answer(affected: Affected[Deployment]) -> shapes.DeploymentAnswer:
        services.notifier.devices_changed(affected.devices)
        return shapes.DeploymentAnswer.of(affected.result)

    @routes.post("", status_code=201)
    def create_deployment(
        body: shapes.DeploymentAsk, principal: Annotated[Principal, Depends(operator)]
    ) -> shapes.DeploymentAnswer:
        """Assign a model version to every device that a condition matches, now and later."""
        parse_condition(body.condition)
        version = services.models.version(checked_model(body.model), checked_reference(str(body.version)))
        content = NewDeployment(
            name=body.name,
            model=body.model,
            version=version.number,
            module=model_name(body.module) if body.module else body.model,
            condition=body.condition,
            policy=_policy(body.policy) or Policy(),
            priority=body.priority,
        )
        return answer(deployments.create(content, principal.name))

    @routes.post("/preview", dependencies=[Depends(requires(services.tokens, Role.VIEWER))])
    def preview(body: shapes.PreviewAsk) -> shapes.PreviewAnswer:
        """Which devices a condition matches now; nothing changes."""
        names = list(services.devices.matching(parse_condition(body.condition)))
        return shapes.PreviewAnswer(devices=names, count=len(names))

    @routes.patch("/{deployment}")
    def update_deployment(
        deployment: str, body: shapes.DeploymentChangeAsk, principal: Annotated[Principal, Depends(operator)]
    ) -> shapes.DeploymentAnswer:
        """Change the version, condition or policy of an active deployment. The history keeps what it was."""
        before = deployments.get(checked_deployment(deployment))
        if body.condition is not None:
            parse_condition(body.condition)
        number = None
        if body.version is not None:
            number = services.models.version(before.content.model, checked_reference(str(body.version))).number
        changes = DeploymentChanges(version=number, condition=body.condition, policy=_policy(body.policy))
        return answer(deployments.update(deployment, changes, principal.name))

    @routes.post("/{deployment}/cancel")
    def cancel_deployment(
        deployment: str, principal: Annotated[Principal, Depends(operator)]
    ) -> shapes.DeploymentAnswer:
        """End a deployment; its devices go back to what the next matching one assigns, if there is one."""
        return answer(deployments.cancel(checked_deployment(deployment), principal.name))


def _add_views(routes: APIRouter, services: Services) -> None:
    viewer = Depends(requires(services.tokens, Role.VIEWER))
    deployments = services.deployments

    @routes.get("", dependencies=[viewer])
    def list_deployments(limit: int | None = None, cursor: str = "") -> shapes.DeploymentPage:
        """Deployments, newest first."""
        found = deployments.list(read_page(limit, cursor, "deployments"))
        following = None if found.next_key is None else write_cursor("deployments", found.next_key)
        return shapes.DeploymentPage(items=[shapes.DeploymentAnswer.of(item) for item in found.items], next=following)

    @routes.get("/{deployment}", dependencies=[viewer])
    def get_deployment(deployment: str) -> shapes.DeploymentAnswer:
        """One deployment with its counts."""
        return shapes.DeploymentAnswer.of(deployments.get(checked_deployment(deployment)))

    @routes.get("/{deployment}/devices", dependencies=[viewer])
    def list_deployment_devices(
        deployment: str, limit: int | None = None, cursor: str = ""
    ) -> shapes.DeploymentDevicePage:
        """How a deployment stands on each device, by name."""
        kind = f"devices of {checked_deployment(deployment)}"
        found = deployments.devices(deployment, read_page(limit, cursor, kind))
        following = None if found.next_key is None else write_cursor(kind, found.next_key)
        items = [shapes.DeploymentDeviceAnswer.of(item) for item in found.items]
        return shapes.DeploymentDevicePage(items=items, next=following)

    @routes.get("/{deployment}/history", dependencies=[viewer])
    def deployment_history(deployment: str) -> shapes.DeploymentHistory:
        """Every change of a deployment by an operator, oldest first."""
        found = deployments.history(checked_deployment(deployment))
        return shapes.DeploymentHistory(items=[shapes.DeploymentChangeAnswer.of(item) for item in found])


def _policy(shape: shapes.PolicyShape | None) -> Policy | None:
    return None if shape is None else shape.policy()
