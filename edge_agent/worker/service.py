"""Answers requests: routes, admission, running models on the event loop or in threads, counting, sampling.

A model whose runs are quick runs on the event loop itself (a thread hop costs more than a tiny inference); slow models,
scripts and large requests run in threads, one a model where the engine takes one call at a time.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from typing import TypeVar

from edge_agent.worker.answering import CODING, Answering, Served, guarded
from edge_agent.worker.arrays import Array, invalid
from edge_agent.worker.batching import Batcher
from edge_agent.worker.bundle import LoadedBundle, LoadedMember
from edge_agent.worker.catalogue import Answer, Catalogue
from edge_agent.worker.connection import Respond
from edge_agent.worker.engines import JsonEngine
from edge_agent.worker.http import Request, Response
from edge_agent.worker.limits import CORES_USED_MAX, INLINE_BODY_BYTES_MAX, INLINE_US_MAX, WorkerLimits
from edge_agent.worker.metrics import Metrics
from edge_agent.worker.replies import OUTCOME_BY_CODE, failure, refusal
from edge_agent.worker.sampler import Sampler
from edge_agent.worker.turns import Turns
from edge_contract.errors import EdgeError

_log = logging.getLogger(__name__)

T = TypeVar("T")


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
        self._served = {name: self._serve(member) for name, member in bundle.members.items()}
        self._answering = Answering(self._version, metrics, sampler, limits)
        self._catalogue = Catalogue(module, bundle, metrics)
        self._catalogue.gauges = self._gauges
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
        return any(
            served.in_pool or served.turns.is_busy or (served.batcher is not None and served.batcher.is_busy)
            for served in self._served.values()
        )

    @property
    def runs(self) -> int:
        """How often a thread has come to an end with a model; stands still while a model is stuck."""
        return sum(
            served.runs + served.turns.given + (served.batcher.runs if served.batcher is not None else 0)
            for served in self._served.values()
        )

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

    def _serve(self, member: LoadedMember) -> Served:
        engine = member.engine
        json_engine = engine if not engine.inputs and isinstance(engine, JsonEngine) else None
        threads = CORES_USED_MAX if engine.is_concurrent else 1
        waiting_max = self._limits.requests_waiting_max
        turns = Turns(threads, waiting_max)
        batcher = Batcher(member.name, lambda: member.engine, member.batching, waiting_max) if member.batching else None
        return Served(member, json_engine, ThreadPoolExecutor(threads, f"model-{member.name}"), turns, batcher)

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
                `model.input-invalid` for outputs that are not finite because inputs are not, `device.memory-short`,
                `internal.bug`.
            ConnectionAbortedError: The client is gone.
        """
        served = self._served[name]
        outcome = "failed"
        try:
            outputs = self._compute_in_turn(
                served, inputs, wanted, deadline_ns or received_ns + self._limits.request_run_ms * 1_000_000, is_gone
            )
            self._answering.judge(served.member, inputs, outputs)
            outcome = "ok"
        except EdgeError as error:
            outcome = OUTCOME_BY_CODE.get(error.code, "failed")
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
        served: Served,
        inputs: Mapping[str, Array],
        wanted: Sequence[str],
        deadline_ns: int,
        is_gone: Callable[[], bool],
    ) -> dict[str, Array]:
        if served.batcher is not None:
            return _compute_in_batch(served.batcher, inputs, wanted, deadline_ns)
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
        quick = self._catalogue.routes()
        slow: dict[tuple[str, str], Callable[[Request, Respond], None]] = {}
        names = dict(self._served)
        if len(names) == 1:
            names.setdefault(module, next(iter(names.values())))
        for name, served in names.items():
            for base in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{self._version}"):
                quick.update(self._catalogue.routes_of(served.member, base))
                slow["POST", base + "/infer"] = partial(self._infer, served)
        return {**{key: partial(_answer_at_once, answer) for key, answer in quick.items()}, **slow}

    # --- routing

    def handle(self, request: Request, respond: Respond) -> None:
        """Answer one request, now or later."""
        head = request.head
        path = head.path
        route = self._routes.get((head.method, path))
        if route is not None:
            route(request, respond)
            return
        method = "GET" if head.method == "HEAD" else head.method
        if len(path) > 1 and path.endswith("/"):
            path = path[:-1]
        route = self._routes.get((method, path))
        if route is not None:
            route(request, respond)
        elif allowed := self._methods.get(path):
            methods = ", ".join(sorted(allowed))
            response = failure(invalid(f"{path} wants {methods}"), HTTPStatus.METHOD_NOT_ALLOWED)
            response.headers = (f"Allow: {methods}",)
            respond(response)
        else:
            respond(failure(self._catalogue.missing(path)))

    def refuse(self, status: HTTPStatus, detail: str) -> Response:
        """The answer to a request that cannot be read or is not wanted."""
        return refusal(status, detail)

    def _gauges(self) -> Mapping[str, tuple[str, str, Mapping[str, float]]]:
        batchers = {name: served.batcher for name, served in self._served.items() if served.batcher is not None}
        runs = {name: float(batcher.runs) for name, batcher in batchers.items()}
        batched = {name: float(batcher.requests) for name, batcher in batchers.items()}
        dropped = float(self._sampler.dropped + self.samples_lost())
        waiting = "Requests running in or waiting for a thread."
        return {
            "lighterman_inference_requests_waiting": ("gauge", waiting, {"": float(self._waiting)}),
            "lighterman_batch_runs_total": ("counter", "Runs of a model whose requests are batched.", runs),
            "lighterman_batched_requests_total": ("counter", "Requests computed in those runs.", batched),
            "lighterman_connections": ("gauge", "Open connections.", {"": float(self.connections())}),
            "lighterman_samples_total": ("counter", "Predictions collected.", {"": float(self._sampler.taken)}),
            "lighterman_samples_dropped_total": (
                "counter",
                "Predictions not collected for want of room.",
                {"": dropped},
            ),
        }

    # --- inference

    def _infer(self, served: Served, request: Request, respond: Respond) -> None:
        is_small = len(request.body) <= INLINE_BODY_BYTES_MAX and CODING not in request.head.headers
        if is_small and self._runs_inline(served):
            response, outcome = self._answering.answer(served, request)
            self._deliver(served, request, respond, response, outcome)
        elif self._waiting >= self._limits.requests_waiting_max:
            error = EdgeError(
                "model.overloaded", f"{self._waiting} requests are waiting already", "Try again in a second."
            )
            self._deliver(served, request, respond, failure(error), "overloaded")
        elif is_small and served.batcher is not None:
            self._infer_in_batch(served, served.batcher, request, respond)
        else:
            self._infer_in_pool(served, request, respond)

    @staticmethod
    def _runs_inline(served: Served) -> bool:
        member = served.member
        return (
            served.batcher is None
            and member.engine.is_quick
            and 0 < member.run_us <= INLINE_US_MAX
            and (member.engine.is_concurrent or (served.in_pool == 0 and not served.turns.is_busy))
        )

    def _infer_in_pool(self, served: Served, request: Request, respond: Respond) -> None:
        def finish(done: "Future[tuple[Response, str]]") -> tuple[Response, str]:
            served.in_pool -= 1
            if done.cancelled():
                return _cancelled()
            served.runs += 1
            return done.result()

        served.in_pool += 1
        self._follow(served, request, respond, served.pool.submit(self._answering.answer, served, request), finish)

    def _infer_in_batch(self, served: Served, batcher: Batcher, request: Request, respond: Respond) -> None:
        """Read on the event loop, compute with others in the batcher's thread, write on the event loop."""
        answering = self._answering
        try:
            asked = answering.read(served, request)
            future = batcher.submit(asked.inputs, asked.outputs, answering.deadline_ns(request, asked))
        except EdgeError as error:
            self._deliver(served, request, respond, failure(error), OUTCOME_BY_CODE.get(error.code, "failed"))
            return

        def finish(done: "Future[dict[str, Array]]") -> tuple[Response, str]:
            if done.cancelled():
                return _cancelled()
            return guarded(lambda: answering.write(served, request, asked, done.result()))

        self._follow(served, request, respond, future, finish)

    def _follow(
        self,
        served: Served,
        request: Request,
        respond: Respond,
        future: "Future[T]",
        finish: "Callable[[Future[T]], tuple[Response, str]]",
    ) -> None:
        """Answer when something is done in another thread, or its time is up."""
        self._waiting += 1
        request.on_gone = future.cancel  # what has not begun is not begun any more
        timer = self._loop.call_later(self._limits.request_run_ms / 1000, self._give_up, served, request, respond)

        # Request and future must not hold each other: the body's place could not be lent again before a collection.
        def conclude(done: "Future[T]") -> None:
            timer.cancel()
            self._waiting -= 1
            request.on_gone = None
            response, outcome = finish(done)
            self._deliver(served, request, respond, response, outcome)

        future.add_done_callback(lambda done: self._loop.call_soon_threadsafe(conclude, done))

    def _give_up(self, served: Served, request: Request, respond: Respond) -> None:
        detail = f"{served.member.name!r} took longer than {self._limits.request_run_ms} ms"
        self._deliver(served, request, respond, failure(EdgeError("model.timeout", detail)), "failed")
        if request.on_gone is not None:
            request.on_gone()

    def _deliver(self, served: Served, request: Request, respond: Respond, response: Response, outcome: str) -> None:
        if not respond(response):
            if not request.is_gone:
                return  # answered before, or somebody else answers it
            outcome = "cancelled"
        latency_us = (time.monotonic_ns() - request.received_ns) // 1000
        self._metrics.count(served.member.name, outcome, latency_us)


def _answer_at_once(answer: Answer, request: Request, respond: Respond) -> None:
    respond(guarded(lambda: answer(request))[0])


def _cancelled() -> tuple[Response, str]:
    return failure(EdgeError("model.timeout", "it was cancelled")), "cancelled"


def _compute_in_batch(
    batcher: Batcher, inputs: Mapping[str, Array], wanted: Sequence[str], deadline_ns: int
) -> dict[str, Array]:
    future = batcher.submit(inputs, wanted, deadline_ns)
    try:
        return future.result(max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9))
    except TimeoutError:
        future.cancel()
        raise EdgeError("model.timeout", "the request's time was up before its answer came") from None
