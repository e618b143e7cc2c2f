"""Whether the registry lives, and whether it can work."""

from fastapi import APIRouter

from cloud_registry.api import shapes
from cloud_registry.errors import RegistryError
from cloud_registry.services import Services
from edge_contract.errors import EdgeError


def router(services: Services) -> APIRouter:
    """The routes below `/health`; they need no token and tell nothing secret."""
    routes = APIRouter(prefix="/health", tags=["health"])

    @routes.get("/live")
    def live() -> dict[str, bool]:
        """Whether the process answers."""
        return {"live": True}

    @routes.get("/ready")
    def ready() -> shapes.HealthAnswer:
        """Whether database and storage answer; `cloud.unavailable` with the failed check otherwise."""
        checks: dict[str, str] = {}
        for name, check in services.checks.items():
            try:
                check()
                checks[name] = "ok"
            except EdgeError as error:
                checks[name] = error.code
        failed = sorted(name for name, result in checks.items() if result != "ok")
        if failed:
            extras = {"ready": False, "checks": checks}
            raise RegistryError("cloud.unavailable", f"not ready: {', '.join(failed)}", "See the log.", extras)
        return shapes.HealthAnswer(ready=True, checks=checks)

    return routes
