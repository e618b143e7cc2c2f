"""Telemetry: a share of the requests with their predictions, taken off the request path.

The request path draws a number and, when the request is chosen, copies the first elements of its tensors into a bounded
queue. A thread makes records of them and hands those on. (Not one of low priority: while it waits for a core it would
hold the interpreter's lock.) What does not fit is dropped and counted.
"""

import json
import math
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from edge_agent.worker.arrays import Array, datatype_of
from edge_agent.worker.limits import (
    CUT_CHARS_MAX,
    NUMBER_CHARS_MAX,
    SAMPLE_CHEAP_ELEMENTS,
    SAMPLE_CPU_BURST_S,
    SAMPLE_CPU_SHARE_MAX,
    SAMPLE_CUT_ELEMENTS,
    SAMPLE_ELEMENTS_MAX,
    SAMPLE_FLUSH_MS,
    SAMPLE_TEXT_BYTES_MAX,
    SAMPLES_PER_S_MAX,
    SAMPLES_WAITING_MAX,
)
from edge_contract.digest import Digest
from edge_contract.jsonio import JsonObject, dump
from edge_contract.limits import SAMPLE_BYTES_MAX

_DIGITS: Final = {2: ("%.4g", "%.5g"), 4: ("%.7g", "%.9g")}
"""Forms of a float by its bytes: one that is enough for most values, and one that is enough for all (IEEE 754)."""


@dataclass(slots=True)
class Cut:
    """The start of a tensor.

    Attributes:
        array: Its first elements, flat, a copy.
        datatype: Of the tensor.
        shape: Of the whole tensor.
    """

    array: Array
    datatype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: Array) -> "Cut":
        """Copy all elements of a small tensor, and the first `SAMPLE_CUT_ELEMENTS` of a large one."""
        count = array.size if array.size <= SAMPLE_ELEMENTS_MAX else SAMPLE_CUT_ELEMENTS
        return cls(array.reshape(-1)[:count].copy(), datatype_of(array), array.shape)


@dataclass(slots=True)
class Taken:
    """A chosen request, as the request path leaves it.

    Attributes:
        member: Which model of the bundle.
        inputs: Tensors by name, or any JSON.
        outputs: Tensors by name, or any JSON.
        latency_us: From the request's last byte to its answer, microseconds.
        request_id: As the client named it.
        taken_ms: Wall clock, milliseconds since 1970.
    """

    member: str
    inputs: Any
    outputs: Any
    latency_us: int
    request_id: str
    taken_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)


class Sampler:
    """Chooses requests and makes records of them. `wants` and `offer_*` may be called from any thread."""

    def __init__(
        self, module: str, model: str, version: int, manifest: Digest, deliver: Callable[[Sequence[JsonObject]], None]
    ) -> None:
        """Make a sampler that takes nothing yet.

        Args:
            module: Module that the records belong to.
            model: Name of the model.
            version: Its version.
            manifest: Digest of the bundle that computes.
            deliver: Gets finished records, on the sampler's own thread.
        """
        self.taken = 0
        self.dropped = 0
        self._about = {
            "kind": "prediction",
            "module": module,
            "model": model,
            "version": version,
            "manifest": str(manifest),
        }
        self._deliver = deliver
        self._ratio = 0.0
        self._random = random.Random()
        self._waiting: queue.Queue[Taken | threading.Event] = queue.Queue(SAMPLES_WAITING_MAX)
        self._second = 0
        self._in_second = 0
        self._budget_s = SAMPLE_CPU_BURST_S
        self._refilled = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="sampler", daemon=True)
        self._thread.start()

    def set_ratio(self, ratio: float) -> None:
        """Take this share of the requests, `0..1`."""
        self._ratio = min(1.0, max(0.0, ratio))

    def wants(self) -> bool:
        """Whether to take the next request; counts a dropped one when there are too many a second."""
        ratio = self._ratio
        if ratio <= 0 or (ratio < 1 and self._random.random() >= ratio):
            return False
        second = time.monotonic_ns() // 1_000_000_000
        if second != self._second:
            self._second, self._in_second = second, 0
        self._in_second += 1
        if self._in_second > SAMPLES_PER_S_MAX:
            self.dropped += 1
            return False
        return True

    def offer_tensors(
        self, member: str, inputs: Mapping[str, Array], outputs: Mapping[str, Array], latency_us: int, request_id: str
    ) -> None:
        """Leave a request that `wants` chose; its arrays are not kept."""
        cut_in = {name: Cut.of(array) for name, array in inputs.items()}
        cut_out = {name: Cut.of(array) for name, array in outputs.items()}
        self._offer(Taken(member, cut_in, cut_out, latency_us, request_id))

    def offer_json(self, member: str, data: Any, result: Any, latency_us: int, request_id: str) -> None:
        """Leave a request to a script that takes any JSON. Values are kept until the record is made."""
        self._offer(Taken(member, data, result, latency_us, request_id))

    def _offer(self, taken: Taken) -> None:
        try:
            self._waiting.put_nowait(taken)
        except queue.Full:
            self.dropped += 1

    def flush(self, timeout_ms: int) -> bool:
        """Wait until everything left so far has been delivered; false when that took too long."""
        done = threading.Event()
        try:
            self._waiting.put(done, timeout=timeout_ms / 1000)
        except queue.Full:
            return False
        return done.wait(timeout_ms / 1000)

    def _work(self) -> None:
        while True:
            items = [self._waiting.get()]
            # One hand-over for what comes together: each wakes the event loop.
            time.sleep(SAMPLE_FLUSH_MS / 1000)
            while True:
                try:
                    items.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            records = [record for item in items if isinstance(item, Taken) and (record := self._record(item))]
            if records:
                begun_s = time.thread_time()
                self._deliver(records)
                if not all(_is_cheap(item) for item in items if isinstance(item, Taken)):
                    self._budget_s -= time.thread_time() - begun_s
            for item in items:
                if isinstance(item, threading.Event):
                    item.set()

    def _record(self, taken: Taken) -> JsonObject | None:
        now = time.monotonic()
        earned_s = (now - self._refilled) * SAMPLE_CPU_SHARE_MAX
        self._budget_s, self._refilled = min(SAMPLE_CPU_BURST_S, self._budget_s + earned_s), now
        if _is_cheap(taken):
            return self._make(taken)
        if self._budget_s <= 0:
            self.dropped += 1
            return None
        begun_s = time.thread_time()
        record = self._make(taken)
        self._budget_s -= time.thread_time() - begun_s
        return record

    def _make(self, taken: Taken) -> JsonObject | None:
        try:
            body = make_body(taken)
        except (TypeError, ValueError, RuntimeError, RecursionError):
            # A script's own objects: not JSON, or changed by the script meanwhile.
            self.dropped += 1
            return None
        self.taken += 1
        return {**self._about, "taken_ms": taken.taken_ms, "body": body}


def _is_cheap(taken: Taken) -> bool:
    """Whether a sample is so small that the bound of samples a second is bound enough."""
    count = 0
    for side in (taken.inputs, taken.outputs):
        if not isinstance(side, dict) or not all(isinstance(cut, Cut) for cut in side.values()):
            return False
        count += sum(cut.array.size for cut in side.values())
    return count <= SAMPLE_CHEAP_ELEMENTS


def make_body(taken: Taken, bytes_max: int = SAMPLE_BYTES_MAX) -> JsonObject:
    """The body of a prediction's record, within `bytes_max` bytes of JSON.

    Tensors that were cut say so: `"truncated": true` beside their whole `shape`. JSON that does not fit is left out and
    its length given.

    Raises:
        TypeError: For values that are not JSON.
        ValueError: The same.
    """
    elements = SAMPLE_ELEMENTS_MAX
    while True:
        body: JsonObject = {
            "member": taken.member,
            "inputs": _side(taken.inputs, elements, bytes_max),
            "outputs": _side(taken.outputs, elements, bytes_max),
            "latency_us": taken.latency_us,
            "request_id": taken.request_id,
        }
        if _is_small(taken, bytes_max) or elements == 0 or len(dump(body)) <= bytes_max:
            return body
        elements //= 4


def _is_small(taken: Taken, bytes_max: int) -> bool:
    """Whether its tensors certainly fit, so that nobody has to write them down to see it."""
    cuts = 0
    for side in (taken.inputs, taken.outputs):
        if not isinstance(side, dict) or not all(isinstance(cut, Cut) for cut in side.values()):
            return False
        for name, cut in side.items():
            if cut.array.dtype.kind not in "fiub":
                return False
            cuts += cut.array.size * NUMBER_CHARS_MAX + 8 * len(name) + CUT_CHARS_MAX
    return cuts + 8 * len(taken.request_id) + CUT_CHARS_MAX <= bytes_max


def _side(value: Any, elements: int, bytes_max: int) -> JsonObject:
    if isinstance(value, dict) and value and all(isinstance(item, Cut) for item in value.values()):
        return {name: _tensor(cut, elements) for name, cut in value.items()}
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=plain_value)
    size = len(text.encode("utf-8"))
    if size > (bytes_max // 4 if elements else 0):
        return {"truncated": True, "bytes": size}
    return {"json": json.loads(text)}


def _tensor(cut: Cut, elements: int) -> JsonObject:
    kept = cut.array[:elements]
    record: JsonObject = {"datatype": cut.datatype, "shape": list(cut.shape), "data": _data(kept)}
    if kept.size < math.prod(cut.shape):
        record["truncated"] = True
    return record


def _data(array: Array) -> list[Any]:
    if array.dtype.kind in "OSU":
        return [_text(item) for item in array.tolist()]
    if array.dtype.kind != "f":
        values: list[Any] = array.tolist()
        return values
    numbers: list[Any] = array.tolist()
    digits = _DIGITS.get(array.dtype.itemsize)
    if digits is not None:
        # Few digits that read back as the same value, not those of the wider Python float.
        short = [float(digits[0] % number) for number in numbers]
        with np.errstate(over="ignore"):
            is_other = np.asarray(short, array.dtype) != array
        for place in np.flatnonzero(is_other).tolist():
            short[place] = float(digits[1] % numbers[place])
        numbers = short
    if not np.isfinite(array).all():
        return [number if math.isfinite(number) else None for number in numbers]  # JSON has no NaN
    return numbers


def _text(item: Any) -> str:
    raw = item if isinstance(item, bytes) else str(item).encode("utf-8", "replace")
    return raw[:SAMPLE_TEXT_BYTES_MAX].decode("utf-8", "replace")


def plain_value(value: Any) -> Any:
    """Turn a numpy value into what JSON knows; the `default` of `json.dumps`.

    Raises:
        TypeError: For anything else.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a value of type {type(value).__name__} is not JSON")
