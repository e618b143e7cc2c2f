"""A Compose file for one bundle (the Compose Specification)."""

from typing import Any, Final

from edge_contract.jsonio import JsonObject
from edge_contract.limits import MIB
from packager.service.limits import ALIVE_FAILURES, ALIVE_S, PROBE_S, PROBE_TIMEOUT_S, USER
from packager.service.request import TRUST_PATH, WORK_PATH, ServiceRequest

_PROCESSES_MAX: Final = 256
_TOKEN: Final = "token"
_ACCESS_TOKEN: Final = "access-token"
_VARIABLES: Final = {_TOKEN: "LIGHTERMAN_TOKEN", _ACCESS_TOKEN: "LIGHTERMAN_ACCESS_TOKEN"}
_ASK: Final = "import urllib.request as r; r.urlopen('http://127.0.0.1:{port}/v2/health/ready', timeout={timeout})"


def compose(request: ServiceRequest) -> JsonObject:
    """The document that runs a bundle on one machine."""
    # The bundle lies in memory here, so it counts; on Kubernetes it lies on the node's disk.
    limit_bytes = request.memory_limit_bytes + request.store_bytes
    ask = _ASK.format(port=request.port, timeout=PROBE_TIMEOUT_S - 1)
    service: JsonObject = {
        "image": request.image,
        "command": request.arguments(*(f"/run/secrets/{name}" if name else "" for name in _secrets(request))),
        "user": f"{USER}:{USER}",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "tmpfs": [f"{WORK_PATH}:size={request.store_bytes // MIB}m,mode=0700,uid={USER},gid={USER}"],
        "ports": [f"{request.publish}:{request.port}"],
        "healthcheck": {
            "test": ["CMD", "python", "-c", ask],
            "interval": f"{ALIVE_S}s",
            "timeout": f"{PROBE_TIMEOUT_S}s",
            "retries": ALIVE_FAILURES,
            "start_period": f"{request.start_s}s",
            "start_interval": f"{PROBE_S}s",
        },
        "deploy": {"resources": _resources(request, limit_bytes)},
        "stop_grace_period": f"{request.grace_s}s",
        "restart": "unless-stopped",
        "labels": request.facts.notes,
    }
    document: JsonObject = {"name": request.service_name, "services": {request.service_name: service}}
    if secrets := {name: {"environment": _VARIABLES[name]} for name in _secrets(request) if name}:
        service["secrets"] = list(secrets)
        document["secrets"] = secrets
    if request.trust_files:
        service["configs"] = [{"source": name, "target": f"{TRUST_PATH}/{name}"} for name in request.trust_files]
        document["configs"] = {name: {"content": text} for name, text in request.trust_files.items()}
    literal: JsonObject = _literal(document)
    return literal


def _secrets(request: ServiceRequest) -> tuple[str, str]:
    """Names of the secrets that the service has: the registry's token and the clients', empty for none."""
    return _TOKEN if request.token_secret else "", _ACCESS_TOKEN if request.access_secret else ""


def _resources(request: ServiceRequest, limit_bytes: int) -> JsonObject:
    limits: JsonObject = {"memory": f"{limit_bytes // MIB}M", "pids": _PROCESSES_MAX}
    if request.cpu_limit_millis:
        limits["cpus"] = _cpus(request.cpu_limit_millis)
    promised = {"cpus": _cpus(request.cpu_millis), "memory": f"{request.memory_request_bytes // MIB}M"}
    return {"limits": limits, "reservations": promised}


def _cpus(millis: int) -> str:
    return f"{millis // 1000}.{millis % 1000:03d}"


def _literal(value: Any) -> Any:
    """With nothing in it that Compose would fill in from the environment."""
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return value.replace("$", "$$") if isinstance(value, str) else value
