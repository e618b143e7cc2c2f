"""Answers requests: routes, admission, running models on the event loop or in threads, counting, sampling.

A model whose runs are quick runs on the event loop itself (a thread hop costs more than a tiny inference); slow models,
scripts and large requests run in threads, one a model where the engine takes one call at a time.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from importlib import metadata
from typing import Any, Final

from edge_agent.worker.arrays import Array, invalid, is_finite
from edge_agent.worker.bundle import LoadedBundle, LoadedMember
from edge_agent.worker.connection import Respond
from edge_agent.worker.engines import JsonEngine
from edge_agent.worker.http import BINARY_TYPE, INFERENCE_LENGTH, JSON_TYPE, Request, Response
from edge_agent.worker.limits import (
    CORES_USED_MAX,
    INLINE_BODY_BYTES_MAX,
    INLINE_GROWTH_MAX,
    INLINE_US_MAX,
    REQUEST_ID_CHARS_MAX,
    WorkerLimits,
)
from edge_agent.worker.metrics import PROMETHEUS_TYPE, Metrics
from edge_agent.worker.oip import InferRequest, read_json, read_request, write_answer, write_json
from edge_agent.worker.priority import resident_bytes
from edge_agent.worker.sampler import Sampler, plain_value
from edge_agent.worker.turns import Turns
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

_log = logging.getLogger(__name__)

STATUS_BY_CODE: Final[dict[str, HTTPStatus]] = {
    "model.input-invalid": HTTPStatus.BAD_REQUEST,
    "model.not-serving": HTTPStatus.NOT_FOUND,
    "model.overloaded": HTTPStatus.SERVICE_UNAVAILABLE,
    "model.timeout": HTTPStatus.GATEWAY_TIMEOUT,
}
"""HTTP status by error code; any other code is the model's or our fault."""

_CODE_BY_STATUS: Final[dict[HTTPStatus, str]] = {
    HTTPStatus.UNAUTHORIZED: "cloud.unauthorized",
    HTTPStatus.SERVICE_UNAVAILABLE: "model.overloaded",
    HTTPStatus.INTERNAL_SERVER_ERROR: "internal.bug",
}
_OUTCOME_BY_CODE: Final = {
    "model.input-invalid": "invalid",
    "model.overloaded": "overloaded",
    "model.timeout": "overloaded",  # of its turn
}
_HEADERS_BY_STATUS: Final[dict[HTTPStatus, tuple[str, ...]]] = {
    HTTPStatus.SERVICE_UNAVAILABLE: ("Retry-After: 1",),
    HTTPStatus.UNAUTHORIZED: ("WWW-Authenticate: Bearer",),
}
_EWMA_SHARE: Final = 1 / 16


def _own_version() -> str:
    try:
        return metadata.version("lighterman")
    except metadata.PackageNotFoundError:
        return "unknown"


_OWN_VERSION: Final = _own_version()
"""Asked early: a script may have the folder that knows it taken off the path."""


@dataclass(slots=True)
class _Served:
    """One model and how it is run."""

    member: LoadedMember
    json_engine: JsonEngine | None
    pool: ThreadPoolExecutor
    turns: Turns
    in_pool: int = 0
    runs: int = 0


class Service:
    """The models of one bundle behind HTTP. `handle` and `refuse` run on the event loop."""

    def __init__(
        self, module: str, bundle: LoadedBundle, metrics: Metrics, sampler: Sampler, limits: WorkerLimits
    ) -> None:
        """Serve a proved bundle.

        Args:
            module: Name of the module; also serves as the name of a model when there is one only.
            bundle: What to serve.
            metrics: Counts requests.
            sampler: Collects predictions.
            limits: Bounds.
        """
        self._bundle = bundle
        self._version = str(bundle.runtime.version)
        self._metrics = metrics
        self._sampler = sampler
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._waiting = 0
        self.connections: Callable[[], int] = lambda: 0
        self.samples_lost: Callable[[], int] = lambda: 0
        self._about = {
            "module": module,
            "model": bundle.runtime.model,
            "version": self._version,
            "manifest": str(bundle.manifest),
        }
        self._served = {name: self._serve(member) for name, member in bundle.members.items()}
        self._routes = self._make_routes(module)
        self._methods: dict[str, set[str]] = {}
        for method, path in self._routes:
            self._methods.setdefault(path, set()).add(method)

    @property
    def common_headers(self) -> str:
        """Header lines of every answer: which bundle computed it."""
        return f"Lighterman-Manifest: {self._bundle.manifest}\r\nLighterman-Model-Version: {self._version}\r\n"

    @property
    def waiting(self) -> int:
        """Requests running in or waiting for a thread."""
        return self._waiting

    @property
    def is_computing(self) -> bool:
        """Whether a model computes in a thread."""
        return any(served.in_pool or served.turns.is_busy for served in self._served.values())

    @property
    def runs(self) -> int:
        """How often a thread has come to an end with a model; stands still while a model is stuck."""
        return sum(served.runs + served.turns.given for served in self._served.values())

    async def run_aside(self, name: str, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Run a model in its own threads for somebody else than a client; counted and sampled nowhere.

        Args:
            name: Of the model.
            inputs: As `Engine.run`.
            wanted: As `Engine.run`.

        Raises:
            EdgeError: As `Engine.run`.
        """
        served = self._served[name]
        served.in_pool += 1  # so that a request does not wait for an engine on the event loop
        try:
            return await self._loop.run_in_executor(served.pool, served.member.engine.run, inputs, wanted)
        finally:
            served.in_pool -= 1
            served.runs += 1

    def _serve(self, member: LoadedMember) -> _Served:
        engine = member.engine
        json_engine = engine if not engine.inputs and isinstance(engine, JsonEngine) else None
        threads = CORES_USED_MAX if engine.is_concurrent else 1
        turns = Turns(threads, self._limits.requests_waiting_max)
        return _Served(member, json_engine, ThreadPoolExecutor(threads, f"model-{member.name}"), turns)

    def compute(
        self,
        name: str,
        inputs: Mapping[str, Array],
        wanted: Sequence[str],
        received_ns: int,
        request_id: str = "",
        deadline_ns: int = 0,
        is_gone: Callable[[], bool] = lambda: False,
    ) -> dict[str, Array]:
        """Run a model for a client that is not HTTP: in the calling thread, admitted, checked, counted and sampled.

        Any thread but the event loop's.

        Args:
            name: Of the model.
            inputs: Arrays that fit its signature.
            wanted: Names of outputs it has; empty for all.
            received_ns: Monotonic clock when the request's last byte came.
            request_id: As the client named it.
            deadline_ns: Monotonic clock when the answer is of no use any more; 0 for `request_run_ms` from now.
            is_gone: Asked after a wait; a request whose client is gone is not computed.

        Returns:
            Arrays by output name, in order.

        Raises:
            EdgeError: `model.overloaded`, `model.timeout`, `model.output-invalid`, what `Engine.run` raises,
                `device.memory-short`, `internal.bug`.
            ConnectionAbortedError: The client is gone.
        """
        served = self._served[name]
        outcome = "failed"
        try:
            outputs = self._compute_in_turn(
                served, inputs, wanted, deadline_ns or received_ns + self._limits.request_run_ms * 1_000_000, is_gone
            )
            if not served.member.allow_nonfinite:
                for output, array in outputs.items():
                    if not is_finite(array):
                        raise EdgeError("model.output-invalid", f"output {output!r} of {name!r} is NaN or infinite")
            outcome = "ok"
        except EdgeError as error:
            outcome = _OUTCOME_BY_CODE.get(error.code, "failed")
            raise
        except ConnectionAbortedError:
            outcome = "cancelled"
            raise
        except MemoryError:
            raise EdgeError("device.memory-short", "the request does not fit in memory") from None
        except Exception:  # noqa: BLE001 - one request fails, not the worker
            _log.exception("an inference request met a bug")
            raise EdgeError("internal.bug", "the worker failed; its log says more") from None
        finally:
            latency_us = (time.monotonic_ns() - received_ns) // 1000
            self._metrics.count(name, outcome, latency_us)
        if self._sampler.wants():
            self._sampler.offer_tensors(name, inputs, outputs, latency_us, request_id)
        return outputs

    @staticmethod
    def _compute_in_turn(
        served: _Served,
        inputs: Mapping[str, Array],
        wanted: Sequence[str],
        deadline_ns: int,
        is_gone: Callable[[], bool],
    ) -> dict[str, Array]:
        turns, engine = served.turns, served.member.engine
        if turns.take(deadline_ns) and is_gone():
            turns.give()
            raise ConnectionAbortedError
        try:
            if engine.is_concurrent or engine.is_quick:
                return engine.run(inputs, wanted)
            return served.pool.submit(engine.run, inputs, wanted).result()  # a script has one thread of its own
        finally:
            turns.give()

    def _make_routes(self, module: str) -> dict[tuple[str, str], Callable[[Request, Respond], None]]:
        """Every path this worker knows; a bundle has few models and one version, so they can be listed."""
        routes: dict[tuple[str, str], Callable[[Request, Respond], None]] = {
            ("GET", "/v2"): self._quick(self._server),
            ("GET", "/v2/health/live"): self._quick(lambda: {"live": True}),
            # The specification calls the key of readiness `live`, its readers expect `ready`.
            ("GET", "/v2/health/ready"): self._quick(lambda: {"live": True, "ready": True}),
            ("POST", "/v2/repository/index"): self._quick(self._index),
            ("GET", "/metrics"): self._show_metrics,
        }
        names = dict(self._served)
        if len(names) == 1:
            names.setdefault(module, next(iter(names.values())))
        for name, served in names.items():
            ready = {"name": served.member.name, "ready": True}
            for base in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{self._version}"):
                routes["GET", base] = self._quick(partial(self._model, served.member))
                routes["GET", base + "/ready"] = self._quick(partial(dict, ready))
                routes["POST", base + "/infer"] = partial(self._infer, served)
        return routes

    # --- routing

    def handle(self, request: Request, respond: Respond) -> None:
        """Answer one request, now or later."""
        method = "GET" if request.head.method == "HEAD" else request.head.method
        path = request.head.path
        if len(path) > 1 and path.endswith("/"):
            path = path[:-1]
        route = self._routes.get((method, path))
        if route is not None:
            route(request, respond)
        elif allowed := self._methods.get(path):
            methods = ", ".join(sorted(allowed))
            response = self._failure(invalid(f"{path} wants {methods}"), HTTPStatus.METHOD_NOT_ALLOWED)
            response.headers = (f"Allow: {methods}",)
            respond(response)
        else:
            models = ", ".join(sorted(self._served))
            error = EdgeError(
                "model.not-serving",
                f"there is nothing at {path[:200]!r}",
                f"Models here: {models}; version {self._version}.",
            )
            respond(self._failure(error))

    def refuse(self, status: HTTPStatus, detail: str) -> Response:
        """The answer to a request that cannot be read or is not wanted."""
        return self._failure(EdgeError(_CODE_BY_STATUS.get(status, "model.input-invalid"), detail), status)

    def _failure(self, error: EdgeError, status: HTTPStatus | None = None) -> Response:
        status = status or STATUS_BY_CODE.get(error.code, HTTPStatus.INTERNAL_SERVER_ERROR)
        text = f"{error.detail} {error.hint}".strip()
        headers = _HEADERS_BY_STATUS.get(status, ())
        return Response(status, JSON_TYPE, [write_json({"error": text, "code": error.code})], headers)

    @staticmethod
    def _quick(make: Callable[[], Any]) -> Callable[[Request, Respond], None]:
        def answer(_request: Request, respond: Respond) -> None:
            respond(Response(HTTPStatus.OK, JSON_TYPE, [write_json(make())]))

        return answer

    # --- what is here

    def _server(self) -> JsonObject:
        return {"name": "lighterman", "version": _OWN_VERSION, "extensions": ["binary_tensor_data"]}

    def _index(self) -> list[JsonObject]:
        return [{"name": name, "version": self._version, "state": "READY", "reason": ""} for name in self._served]

    def _model(self, member: LoadedMember) -> JsonObject:
        engine = member.engine
        return {
            "name": member.name,
            "versions": [self._version],
            "platform": engine.platform,
            "inputs": [spec.to_json() for spec in engine.inputs],
            "outputs": [spec.to_json() for spec in engine.outputs],
        }

    def _show_metrics(self, _request: Request, respond: Respond) -> None:
        gauges: dict[str, tuple[str, str, float]] = {
            "lighterman_inference_requests_waiting": (
                "gauge",
                "Requests running in or waiting for a thread.",
                self._waiting,
            ),
            "lighterman_connections": ("gauge", "Open connections.", self.connections()),
            "lighterman_samples_total": ("counter", "Predictions collected.", self._sampler.taken),
            "lighterman_samples_dropped_total": (
                "counter",
                "Predictions not collected for want of room.",
                self._sampler.dropped + self.samples_lost(),
            ),
            "process_resident_memory_bytes": ("gauge", "Resident memory.", resident_bytes()),
            "process_cpu_seconds_total": ("counter", "CPU time of the process.", time.process_time()),
        }
        respond(Response(HTTPStatus.OK, PROMETHEUS_TYPE, [self._metrics.text(self._about, gauges)]))

    # --- inference

    def _infer(self, served: _Served, request: Request, respond: Respond) -> None:
        if self._runs_inline(served, request):
            response, outcome = self._compute(served, request)
            self._deliver(served, request, respond, response, outcome)
            return
        if self._waiting >= self._limits.requests_waiting_max:
            error = EdgeError(
                "model.overloaded", f"{self._waiting} requests are waiting already", "Try again in a second."
            )
            self._deliver(served, request, respond, self._failure(error), "overloaded")
            return
        self._waiting += 1
        served.in_pool += 1
        future = served.pool.submit(self._compute, served, request)
        request.on_gone = future.cancel  # what has not begun is not begun any more
        timer = self._loop.call_later(self._limits.request_run_ms / 1000, self._give_up, served, request, respond)
        future.add_done_callback(
            lambda done: self._loop.call_soon_threadsafe(self._finish, served, request, respond, timer, done)
        )

    @staticmethod
    def _runs_inline(served: _Served, request: Request) -> bool:
        member = served.member
        return (
            member.engine.is_quick
            and 0 < member.run_us <= INLINE_US_MAX
            and len(request.body) <= INLINE_BODY_BYTES_MAX
            and ((served.in_pool == 0 and not served.turns.is_busy) or member.engine.is_concurrent)
        )

    def _give_up(self, served: _Served, request: Request, respond: Respond) -> None:
        detail = f"{served.member.name!r} took longer than {self._limits.request_run_ms} ms"
        self._deliver(served, request, respond, self._failure(EdgeError("model.timeout", detail)), "failed")
        if request.on_gone is not None:
            request.on_gone()

    def _finish(
        self,
        served: _Served,
        request: Request,
        respond: Respond,
        timer: asyncio.TimerHandle,
        done: "Future[tuple[Response, str]]",
    ) -> None:
        timer.cancel()
        self._waiting -= 1
        served.in_pool -= 1
        if done.cancelled():
            response, outcome = self._failure(EdgeError("model.timeout", "it was cancelled")), "cancelled"
        else:
            served.runs += 1
            response, outcome = done.result()
        self._deliver(served, request, respond, response, outcome)

    def _deliver(self, served: _Served, request: Request, respond: Respond, response: Response, outcome: str) -> None:
        if not respond(response):
            if not request.is_gone:
                return  # answered before, or somebody else answers it
            outcome = "cancelled"
        latency_us = (time.monotonic_ns() - request.received_ns) // 1000
        self._metrics.count(served.member.name, outcome, latency_us)

    def _compute(self, served: _Served, request: Request) -> tuple[Response, str]:
        """The answer to an inference request and its outcome. On the event loop or in a thread of the model's pool."""
        try:
            answer = self._json_answer if served.json_engine else self._tensor_answer
            return answer(served, request), "ok"
        except EdgeError as error:
            return self._failure(error), "invalid" if error.code == "model.input-invalid" else "failed"
        except MemoryError:
            return self._failure(EdgeError("device.memory-short", "the request does not fit in memory")), "failed"
        except Exception:  # noqa: BLE001 - one request fails, not the worker
            _log.exception("an inference request met a bug")
            return self._failure(EdgeError("internal.bug", "the worker failed; its log says more")), "failed"

    def _tensor_answer(self, served: _Served, request: Request) -> Response:
        member, engine = served.member, served.member.engine
        asked = read_request(request.body, _json_bytes(request), engine.inputs, engine.outputs)
        start = time.perf_counter_ns()
        outputs = engine.run(asked.inputs, asked.outputs)
        run_us = (time.perf_counter_ns() - start) / 1000
        if member.input_bytes:
            # A batch is not the model's usual time; without this one large request would end inline running.
            growth = max(1.0, sum(array.nbytes for array in asked.inputs.values()) / member.input_bytes)
            member.run_us += (run_us / min(growth, INLINE_GROWTH_MAX) - member.run_us) * _EWMA_SHARE
        self._check(member, asked, outputs)
        answer = write_answer(asked, member.name, self._version, outputs)
        if self._sampler.wants():
            latency_us = (time.monotonic_ns() - request.received_ns) // 1000
            self._sampler.offer_tensors(member.name, asked.inputs, outputs, latency_us, asked.id)
        if answer.json_bytes is None:
            return Response(HTTPStatus.OK, JSON_TYPE, answer.parts)
        headers = (f"Inference-Header-Content-Length: {answer.json_bytes}",)
        return Response(HTTPStatus.OK, BINARY_TYPE, answer.parts, headers)

    @staticmethod
    def _check(member: LoadedMember, asked: InferRequest, outputs: dict[str, Array]) -> None:
        for name, array in outputs.items():
            if is_finite(array):
                continue
            if not member.allow_nonfinite:
                raise EdgeError("model.output-invalid", f"output {name!r} of {member.name!r} is NaN or infinite")
            if not asked.binary.get(name, asked.is_binary):
                raise invalid(f"output {name!r} has NaN or infinity, which JSON cannot say", "Ask for binary data.")

    def _json_answer(self, served: _Served, request: Request) -> Response:
        assert served.json_engine is not None
        name = served.member.name
        if _json_bytes(request) is not None:
            raise invalid(f"{name!r} declares no inputs: it takes JSON and no binary data")
        data = read_json(request.body)
        request_id = data.get("id") if isinstance(data, dict) else None
        if not isinstance(request_id, str) or len(request_id) > REQUEST_ID_CHARS_MAX:
            request_id = ""
        engine: Any = served.member.engine  # during a trial it is another than the one that was loaded
        result = engine.run_json(data)
        document: JsonObject = {"model_name": name, "model_version": self._version, "outputs": [], "result": result}
        if request_id:
            document["id"] = request_id
        body = write_json(document, plain_value)
        if self._sampler.wants():
            latency_us = (time.monotonic_ns() - request.received_ns) // 1000
            self._sampler.offer_json(name, data, result, latency_us, request_id)
        return Response(HTTPStatus.OK, JSON_TYPE, [body])


def _json_bytes(request: Request) -> int | None:
    value = request.head.headers.get(INFERENCE_LENGTH)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 12:
        raise invalid("the header Inference-Header-Content-Length has to be a whole number")
    return int(value)
