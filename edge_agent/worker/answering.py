"""Turns inference requests into answers: reads them, runs the model, judges its outputs, collects samples, writes.

Nothing here waits or admits; that is `edge_agent.worker.service`. Any thread.
"""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from edge_agent.worker.arrays import Array, invalid, is_finite
from edge_agent.worker.batching import Batcher
from edge_agent.worker.bundle import LoadedMember
from edge_agent.worker.engines import JsonEngine
from edge_agent.worker.http import BINARY_TYPE, INFERENCE_LENGTH, JSON_TYPE, BadRequestError, Request, Response
from edge_agent.worker.inflating import coding_of, inflate
from edge_agent.worker.limits import INLINE_GROWTH_MAX, REQUEST_ID_CHARS_MAX, WorkerLimits
from edge_agent.worker.metrics import Metrics
from edge_agent.worker.oip import InferRequest, read_json, read_request, write_answer, write_json
from edge_agent.worker.replies import OUTCOME_BY_CODE, failure, refusal
from edge_agent.worker.sampler import Sampler, plain_value
from edge_agent.worker.turns import Turns
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

_log = logging.getLogger(__name__)

CODING: Final = b"content-encoding"
_EWMA_SHARE: Final = 1 / 16


@dataclass(slots=True)
class Served:
    """One model and how it is run.

    Attributes:
        member: The model.
        json_engine: Its engine, where it takes any JSON.
        pool: Threads that run it.
        turns: Admission of threads that run it themselves.
        batcher: Computes requests together, or none.
        in_pool: Requests given to the pool and not yet done.
        runs: How often a thread of the pool has come to an end.
    """

    member: LoadedMember
    json_engine: JsonEngine | None
    pool: ThreadPoolExecutor
    turns: Turns
    batcher: Batcher | None = None
    in_pool: int = 0
    runs: int = 0


class Answering:
    """See the module."""

    def __init__(self, version: str, metrics: Metrics, sampler: Sampler, limits: WorkerLimits) -> None:
        """Answer for models of this version."""
        self._version = version
        self._metrics = metrics
        self._sampler = sampler
        self._limits = limits

    def answer(self, served: Served, request: Request) -> tuple[Response, str]:
        """The answer to an inference request and its outcome, as `Metrics.count` wants it."""
        answer = self._json_answer if served.json_engine else self._tensor_answer
        return guarded(lambda: answer(served, request))

    def deadline_ns(self, request: Request, asked: InferRequest) -> int:
        """Monotonic clock when the answer is of no use any more."""
        run_us = self._limits.request_run_ms * 1000
        return request.received_ns + 1000 * (min(run_us, asked.timeout_us) if asked.timeout_us else run_us)

    def read(self, served: Served, request: Request) -> InferRequest:
        """Read a request for a model that has a signature.

        Raises:
            EdgeError: `model.input-invalid`, `model.not-offered`.
            BadRequestError: The body is not of its content coding.
        """
        engine = served.member.engine
        return read_request(self._body(request), _json_bytes(request), engine.inputs, engine.outputs)

    def write(self, served: Served, request: Request, asked: InferRequest, outputs: dict[str, Array]) -> Response:
        """Judge what a model made, collect it, and write it.

        Raises:
            EdgeError: As `judge`, and `model.input-invalid` where JSON is wanted that cannot say it.
        """
        member = served.member
        self.judge(member, asked.inputs, outputs, asked)
        answer = write_answer(asked, member.name, self._version, outputs)
        if self._sampler.wants():
            latency_us = (time.monotonic_ns() - request.received_ns) // 1000
            self._sampler.offer_tensors(member.name, asked.inputs, outputs, latency_us, asked.id)
        if answer.json_bytes is None:
            return Response(HTTPStatus.OK, JSON_TYPE, answer.parts)
        headers = (f"Inference-Header-Content-Length: {answer.json_bytes}",)
        return Response(HTTPStatus.OK, BINARY_TYPE, answer.parts, headers)

    def judge(
        self,
        member: LoadedMember,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        asked: InferRequest | None = None,
    ) -> None:
        """Look whether outputs are finite, count those that are not for finite inputs, and measure drift.

        Args:
            member: Which model made them.
            inputs: What it made them of.
            outputs: Arrays by name.
            asked: The request, where its answer may have to be JSON.

        Raises:
            EdgeError: `model.output-invalid`; `model.input-invalid` when an input is not finite either.
        """
        for name, array in outputs.items():
            if is_finite(array):
                continue
            if not member.allow_nonfinite:
                for other, given in inputs.items():
                    if not is_finite(given):
                        raise invalid(
                            f"input {other!r} has NaN or infinity, and output {name!r} of {member.name!r} too"
                        )
                self._metrics.count_nonfinite(member.name)
                raise EdgeError("model.output-invalid", f"output {name!r} of {member.name!r} is NaN or infinite")
            if asked is not None and not asked.binary.get(name, asked.is_binary):
                raise invalid(f"output {name!r} has NaN or infinity, which JSON cannot say", "Ask for binary data.")
        member.drift.look(outputs, time.monotonic_ns())

    def _body(self, request: Request) -> bytes | bytearray | memoryview:
        headers = request.head.headers
        if CODING not in headers:
            return request.body
        coding = coding_of(headers)
        return inflate(request.body, coding, self._limits.body_bytes_max) if coding else request.body

    def _tensor_answer(self, served: Served, request: Request) -> Response:
        member, engine = served.member, served.member.engine
        asked = self.read(served, request)
        start = time.monotonic_ns()
        deadline_ns = self.deadline_ns(request, asked)
        if start > deadline_ns:
            raise EdgeError("model.timeout", "the request's time was up before its turn came")
        if served.batcher is not None:
            outputs = served.batcher.submit(asked.inputs, asked.outputs, deadline_ns).result()
        else:
            outputs = engine.run(asked.inputs, asked.outputs)
            run_us = (time.monotonic_ns() - start) / 1000
            if member.input_bytes:
                # A batch is not the model's usual time; without this one large request would end inline running.
                growth = max(1.0, sum(array.nbytes for array in asked.inputs.values()) / member.input_bytes)
                member.run_us += (run_us / min(growth, INLINE_GROWTH_MAX) - member.run_us) * _EWMA_SHARE
        return self.write(served, request, asked, outputs)

    def _json_answer(self, served: Served, request: Request) -> Response:
        name = served.member.name
        if _json_bytes(request) is not None:
            raise invalid(f"{name!r} declares no inputs: it takes JSON and no binary data")
        data = read_json(self._body(request))
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


def guarded(make: Callable[[], Response]) -> tuple[Response, str]:
    """Make an answer; whatever goes wrong becomes one, and its outcome."""
    try:
        return make(), "ok"
    except EdgeError as error:
        return failure(error), OUTCOME_BY_CODE.get(error.code, "failed")
    except BadRequestError as error:
        return refusal(error.status, error.detail), "invalid"
    except MemoryError:
        return failure(EdgeError("device.memory-short", "the request does not fit in memory")), "failed"
    except Exception:  # noqa: BLE001 - one request fails, not the worker
        _log.exception("an inference request met a bug")
        return failure(EdgeError("internal.bug", "the worker failed; its log says more")), "failed"


def _json_bytes(request: Request) -> int | None:
    value = request.head.headers.get(INFERENCE_LENGTH)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 12:
        raise invalid("the header Inference-Header-Content-Length has to be a whole number")
    return int(value)
