"""What a worker says of itself: the server, its models, the repository index, metrics; and what it refuses to do."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from importlib import metadata
from typing import Any, Final

from edge_agent.worker.arrays import invalid
from edge_agent.worker.bundle import LoadedBundle, LoadedMember
from edge_agent.worker.http import JSON_TYPE, Request, Response
from edge_agent.worker.metrics import PROMETHEUS_TYPE, Metrics
from edge_agent.worker.oip import read_json, write_json
from edge_agent.worker.priority import resident_bytes
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

Answer = Callable[[Request], Response]

EXTENSIONS: Final = ("binary_tensor_data", "model_repository", "lighterman_frames")
_REFUSED_PATHS: Final = (
    ("/v2/repository/models/", "model.load-refused", "models are loaded and unloaded by signed assignment"),
    ("/v2/systemsharedmemory", "model.not-offered", "there is no shared memory between clients and this server"),
    ("/v2/cudasharedmemory", "model.not-offered", "there is no shared memory between clients and this server"),
    ("/v2/trace", "model.not-offered", "there are no traces here"),
    ("/v2/logging", "model.not-offered", "what is logged here is not for clients to set"),
)
_REFUSED_OF_MODELS: Final = ("/config", "/stats", "/trace/setting", "/generate", "/generate_stream")


def _own_version() -> str:
    try:
        return metadata.version("lighterman")
    except metadata.PackageNotFoundError:
        return "unknown"


_OWN_VERSION: Final = _own_version()
"""Asked early: a script may have the folder that knows it taken off the path."""


class Catalogue:
    """Answers that need no model. On the event loop.

    Attributes:
        gauges: Gives further series for the metrics; see `Metrics.text`.
    """

    def __init__(self, module: str, bundle: LoadedBundle, metrics: Metrics) -> None:
        """Describe a proved bundle; `module` is the name of the module."""
        self.gauges: Callable[[], Mapping[str, tuple[str, str, Mapping[str, float]]]] = dict
        self._bundle = bundle
        self._version = str(bundle.runtime.version)
        self._metrics = metrics
        self._about = {
            "module": module,
            "model": bundle.runtime.model,
            "version": self._version,
            "manifest": str(bundle.manifest),
        }

    def routes(self) -> dict[tuple[str, str], Answer]:
        """Answers by method and path, without those of one model."""
        return {
            ("GET", "/v2"): _saying(self._server),
            ("GET", "/v2/health/live"): _saying(lambda: {"live": True}),
            # The specification calls the key of readiness `live`, its readers expect `ready`.
            ("GET", "/v2/health/ready"): _saying(lambda: {"live": True, "ready": True}),
            ("POST", "/v2/repository/index"): self._index,
            ("GET", "/metrics"): self._show_metrics,
        }

    def routes_of(self, member: LoadedMember, base: str) -> dict[tuple[str, str], Answer]:
        """Those of one model, below its path."""
        return {
            ("GET", base): _saying(partial(self._model, member)),
            ("GET", base + "/ready"): _saying(lambda: {"name": member.name, "ready": True}),
        }

    def missing(self, path: str) -> EdgeError:
        """Why there is nothing at a path."""
        for prefix, code, detail in _REFUSED_PATHS:
            if path.startswith(prefix):
                return EdgeError(code, f"{detail}; {path[:200]!r} does nothing")
        if path.startswith("/v2/models/") and path.endswith(_REFUSED_OF_MODELS):
            return EdgeError("model.not-offered", f"{path[:200]!r} is an extension that is not offered here")
        models = ", ".join(sorted(self._bundle.members))
        return EdgeError(
            "model.not-serving",
            f"there is nothing at {path[:200]!r}",
            f"Models here: {models}; version {self._version}.",
        )

    def _server(self) -> JsonObject:
        return {"name": "lighterman", "version": _OWN_VERSION, "extensions": EXTENSIONS}

    def _index(self, request: Request) -> Response:
        """Every model is ready, for a worker serves nothing before all of them are; so the filter changes nothing."""
        wish = read_json(request.body) if request.body else {}
        if not isinstance(wish, dict) or not isinstance(wish.get("ready", False), bool):
            raise invalid('the repository index takes an object with "ready": true or false')
        listed = [
            {"name": name, "version": self._version, "state": "READY", "reason": ""} for name in self._bundle.members
        ]
        return Response(HTTPStatus.OK, JSON_TYPE, [write_json(listed)])

    def _model(self, member: LoadedMember) -> JsonObject:
        engine = member.engine
        return {
            "name": member.name,
            "versions": [self._version],
            "platform": engine.platform,
            "inputs": [spec.to_json() for spec in engine.inputs],
            "outputs": [spec.to_json() for spec in engine.outputs],
        }

    def _show_metrics(self, _request: Request) -> Response:
        drift = {name: member.drift.value for name, member in self._bundle.members.items()}
        text = "Distance of the mean of live outputs from that of golden ones, in golden standard deviations."
        more = {
            "lighterman_output_drift": ("gauge", text, drift),
            **self.gauges(),
            "process_resident_memory_bytes": ("gauge", "Resident memory.", {"": float(resident_bytes())}),
            "process_cpu_seconds_total": ("counter", "CPU time of the process.", {"": time.process_time()}),
        }
        return Response(HTTPStatus.OK, PROMETHEUS_TYPE, [self._metrics.text(self._about, more)])


def _saying(make: Callable[[], Any]) -> Answer:
    return lambda _request: Response(HTTPStatus.OK, JSON_TYPE, [write_json(make())])
