"""Kubernetes manifests for one bundle (API of Kubernetes 1.30 and later).

A Deployment with the probes on the paths of the Open Inference Protocol, a Service, autoscaling on processor use, and a
disruption budget. The pod fulfils the restricted Pod Security Standard and can write to one volume.
"""

from typing import Any, Final

from edge_contract.jsonio import JsonObject
from edge_contract.limits import MIB
from packager.service.limits import (
    ALIVE_FAILURES,
    ALIVE_S,
    PRINTED_BYTES,
    PROBE_S,
    PROBE_TIMEOUT_S,
    USER,
)
from packager.service.request import TRUST_PATH, WORK_PATH, ServiceRequest

_ARCHITECTURES: Final = {"linux/amd64": "amd64", "linux/arm64": "arm64", "linux/arm/v7": "arm", "linux/arm/v6": "arm"}
_PORTS: Final = {"http": 80, "https": 443}
_STEADY_S: Final = 300
_DNS_PORT: Final = 53
_TOKEN_KEY: Final = "token"
_READY: Final = "/v2/health/ready"
_LIVE: Final = "/v2/health/live"


def kubernetes(request: ServiceRequest) -> list[JsonObject]:
    """The documents that deploy a bundle, in the order they are applied."""
    documents = [_config_map(request)] if request.trust_files else []
    documents += [_deployment(request), _service(request), _autoscaler(request), _budget(request)]
    if request.has_network_policy:
        documents.append(_network_policy(request))
    return documents


def _selector(request: ServiceRequest) -> dict[str, str]:
    return {"app.kubernetes.io/name": "lighterman", "app.kubernetes.io/instance": request.service_name}


def _document(request: ServiceRequest, api: str, kind: str, spec: JsonObject, name: str = "") -> JsonObject:
    metadata: JsonObject = {"name": name or request.service_name}
    if request.namespace:
        metadata["namespace"] = request.namespace
    metadata["labels"] = {
        **_selector(request),
        "app.kubernetes.io/version": str(request.facts.version),
        "app.kubernetes.io/component": "model",
    }
    metadata["annotations"] = request.facts.notes
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **spec}


def _trust_name(request: ServiceRequest) -> str:
    return f"{request.service_name}-trust"


def _config_map(request: ServiceRequest) -> JsonObject:
    return _document(request, "v1", "ConfigMap", {"data": request.trust_files}, _trust_name(request))


def _deployment(request: ServiceRequest) -> JsonObject:
    # Without a number of replicas: that is the autoscaler's, and applying the file again must not undo it.
    spec = {
        "revisionHistoryLimit": 5,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "selector": {"matchLabels": _selector(request)},
        "template": {
            "metadata": {
                "labels": {**_selector(request), "app.kubernetes.io/version": str(request.facts.version)},
                "annotations": request.facts.notes,
            },
            "spec": _pod(request),
        },
    }
    return _document(request, "apps/v1", "Deployment", {"spec": spec})


def _pod(request: ServiceRequest) -> JsonObject:
    volumes: list[JsonObject] = [{"name": "work", "emptyDir": {"sizeLimit": _mebibytes(request.store_bytes)}}]
    if request.trust_files:
        volumes.append({"name": "trust", "configMap": {"name": _trust_name(request)}})
    architectures = sorted({_ARCHITECTURES[platform] for platform in request.facts.manifests})
    on_these = {"key": "kubernetes.io/arch", "operator": "In", "values": architectures}
    required = {"nodeSelectorTerms": [{"matchExpressions": [on_these]}]}
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": request.grace_s,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}},
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": _selector(request)},
            }
        ],
        "containers": [_container(request)],
        "volumes": volumes,
    }


def _container(request: ServiceRequest) -> JsonObject:
    requests = {"cpu": f"{request.cpu_millis}m", "memory": _mebibytes(request.memory_request_bytes)}
    limits = {"memory": _mebibytes(request.memory_limit_bytes)}
    if request.cpu_limit_millis:
        limits = {"cpu": f"{request.cpu_limit_millis}m", **limits}
    disk = {"ephemeral-storage": _mebibytes(request.store_bytes + PRINTED_BYTES)}
    mounts: list[JsonObject] = [{"name": "work", "mountPath": WORK_PATH}]
    if request.trust_files:
        mounts.append({"name": "trust", "mountPath": TRUST_PATH, "readOnly": True})
    container: JsonObject = {
        "name": "model",
        "image": request.image,
        "imagePullPolicy": "IfNotPresent",
        "args": request.arguments(),
        "ports": [{"name": "http", "containerPort": request.port, "protocol": "TCP"}],
    }
    secrets = {"LIGHTERMAN_TOKEN": request.token_secret, "LIGHTERMAN_ACCESS_TOKEN": request.access_secret}
    if variables := [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": _TOKEN_KEY}}}
        for variable, secret in secrets.items()
        if secret
    ]:
        container["env"] = variables
    return {
        **container,
        "startupProbe": _probe(_READY, PROBE_S, -(-request.start_s // PROBE_S)),
        "readinessProbe": _probe(_READY, PROBE_TIMEOUT_S, 2),
        "livenessProbe": _probe(_LIVE, ALIVE_S, ALIVE_FAILURES),
        "resources": {"requests": {**requests, **disk}, "limits": {**limits, **disk}},
        "securityContext": {
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }


def _probe(path: str, period_s: int, failures: int) -> JsonObject:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": period_s,
        "timeoutSeconds": PROBE_TIMEOUT_S,
        "failureThreshold": failures,
    }


def _service(request: ServiceRequest) -> JsonObject:
    port = {"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP", "appProtocol": "http"}
    return _document(
        request,
        "v1",
        "Service",
        {"spec": {"type": "ClusterIP", "selector": _selector(request), "ports": [port]}},
    )


def _autoscaler(request: ServiceRequest) -> JsonObject:
    target = {"type": "Utilization", "averageUtilization": request.utilization}
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": request.service_name},
        "minReplicas": request.replicas_min,
        "maxReplicas": request.replicas_max,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": _STEADY_S}},
    }
    return _document(request, "autoscaling/v2", "HorizontalPodAutoscaler", {"spec": spec})


def _budget(request: ServiceRequest) -> JsonObject:
    spec = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": _selector(request)},
        # A pod that answers nobody must not keep a node from being drained.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return _document(request, "policy/v1", "PodDisruptionBudget", {"spec": spec})


def _network_policy(request: ServiceRequest) -> JsonObject:
    """Clients of the same namespace come in; what goes out is names and the registry, if there is one."""
    egress: list[JsonObject] = []
    if request.registry:
        names = [{"port": _DNS_PORT, "protocol": protocol} for protocol in ("UDP", "TCP")]
        egress = [{"ports": names}, {"ports": [{"port": _registry_port(request.registry), "protocol": "TCP"}]}]
    ingress = {"from": [{"podSelector": {}}], "ports": [{"port": "http", "protocol": "TCP"}]}
    spec: dict[str, Any] = {
        "podSelector": {"matchLabels": _selector(request)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [ingress],
        "egress": egress,
    }
    return _document(request, "networking.k8s.io/v1", "NetworkPolicy", {"spec": spec})


def _registry_port(url: str) -> int:
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    return parts.port or _PORTS[parts.scheme]


def _mebibytes(count: int) -> str:
    return f"{count // MIB}Mi"
