"""Queries on the telemetry lake, and the registry's own metrics."""

import contextlib

from fastapi import APIRouter, Depends
from starlette.responses import Response

from cloud_registry.api import shapes
from cloud_registry.api.auth import requires
from cloud_registry.core.roles import Role
from cloud_registry.limits import QUERY_ROWS_MAX
from cloud_registry.metrics import METRICS, render
from cloud_registry.query import run_query
from cloud_registry.services import Services
from edge_contract.errors import EdgeError


def router(services: Services) -> APIRouter:
    """The routes `POST /api/v1/query` and `GET /metrics`."""
    routes = APIRouter(tags=["telemetry"])
    viewer = Depends(requires(services.tokens, Role.VIEWER))

    @routes.post("/api/v1/query", dependencies=[viewer])
    def query(body: shapes.QueryAsk) -> shapes.QueryAnswer:
        """Run one SELECT over the tables `telemetry`, `predictions` and `reports`."""
        result = run_query(services.fleet, services.config.lake_dir, body.sql, QUERY_ROWS_MAX)
        return shapes.QueryAnswer(columns=result.columns, rows=result.rows, truncated=result.truncated)

    @routes.get("/metrics")
    def metrics() -> Response:
        """Metrics of this process in the text format of Prometheus; they name no device, model or person."""
        # A database that is away is told of by `/health/ready`; the rest of the metrics is wanted most then.
        with contextlib.suppress(EdgeError):
            for standing, number in services.deployments.standings().items():
                METRICS.deployment_devices.labels(standing).set(number)
        text, content_type = render()
        return Response(text, media_type=content_type)

    return routes
