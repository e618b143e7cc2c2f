"""A trial: a candidate computes on inputs that the live worker answered, and what both computed is compared.

The live worker shows a share of its requests over a socket that the agent made for the two of them. It never waits for
the candidate: what does not fit is not shown. The candidate computes in a thread of its own, within the processor time
that the signed policy allows, and answers nobody. Both are processes of their own, so whatever the candidate does, the
live worker only loses somebody to talk to.
"""

import contextlib
import json
import logging
import queue
import random
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import numpy as np

from edge_agent.worker.arrays import DTYPES, Array, check_shape, datatype_of, from_bytes, to_bytes
from edge_agent.worker.bundle import LoadedBundle
from edge_agent.worker.engines import Engine, JsonEngine
from edge_agent.worker.limits import (
    TRIAL_FRAME_BYTES_MAX,
    TRIAL_HEAD_BYTES_MAX,
    TRIAL_TIMES_KEPT,
    TRIAL_WAITING_MAX,
)
from edge_agent.worker.sampler import plain_value
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject, parse_object
from edge_contract.terms import PERMILLE, PPM, Agreement

_log = logging.getLogger(__name__)
_HEAD: Final = struct.Struct("<II")  # bytes of the JSON, bytes of the tensors behind it


@dataclass(frozen=True, slots=True)
class Shown:
    """One answered request.

    Attributes:
        member: Name of the model.
        inputs: Tensors by name, or any JSON.
        outputs: What the live model computed of them, likewise.
        run_us: How long that took it, microseconds.
    """

    member: str
    inputs: Any
    outputs: Any
    run_us: int


class TrialSource:
    """The live worker's side. `wants` and `offer` may be called from any thread and never wait."""

    def __init__(self, sock: socket.socket, sampling_ppm: int) -> None:
        """Show a share of the requests on a connected stream socket, which is owned from now on."""
        self.is_over = False
        self._sock = sock
        self._share = sampling_ppm / PPM
        self._random = random.Random()
        self._waiting: queue.Queue[Shown | None] = queue.Queue(TRIAL_WAITING_MAX)
        self._thread = threading.Thread(target=self._send_all, name="trial-source", daemon=True)
        self._thread.start()

    def wants(self) -> bool:
        """Whether the next request is to be shown."""
        return not self.is_over and not self._waiting.full() and self._random.random() < self._share

    def offer(self, shown: Shown) -> None:
        """Show a request, if there is room. Its arrays must not be changed any more."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(shown)

    def close(self) -> None:
        """Show nothing more."""
        self.is_over = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)

    def _send_all(self) -> None:
        try:
            while not self.is_over and (shown := self._waiting.get()) is not None:
                if (frame := _pack(shown)) is not None:
                    for part in frame:
                        self._sock.sendall(part)
        except OSError:
            pass  # the candidate is gone, or was activated: the trial is over
        finally:
            self.is_over = True
            self._sock.close()


class ShowingEngine:
    """An engine whose runs are shown to a candidate while its trial lasts. See `Engine` and `JsonEngine`."""

    def __init__(self, engine: Engine, member: str, source: TrialSource) -> None:
        """Show what `engine` computes as `member`."""
        self._engine = engine
        self._member = member
        self._source = source
        self.platform, self.inputs, self.outputs = engine.platform, engine.inputs, engine.outputs
        self.is_concurrent, self.is_quick = engine.is_concurrent, engine.is_quick

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Compute; see `Engine`."""
        if not self._source.wants():
            return self._engine.run(inputs, wanted)
        begun = time.perf_counter_ns()
        outputs = self._engine.run(inputs, wanted)
        run_us = (time.perf_counter_ns() - begun) // 1000
        self._source.offer(Shown(self._member, dict(inputs), dict(outputs), run_us))
        return outputs

    def run_json(self, data: Any) -> Any:
        """Compute from parsed JSON; see `JsonEngine`."""
        engine: Any = self._engine
        if not self._source.wants():
            return engine.run_json(data)
        begun = time.perf_counter_ns()
        result = engine.run_json(data)
        self._source.offer(Shown(self._member, data, result, (time.perf_counter_ns() - begun) // 1000))
        return result


def _pack(shown: Shown) -> list[bytes | memoryview] | None:
    """The frame of a request, or none of one that cannot be sent."""
    head: JsonObject = {"member": shown.member, "run_us": shown.run_us}
    parts: list[bytes | memoryview] = []
    try:
        if isinstance(shown.outputs, dict) and all(isinstance(item, np.ndarray) for item in shown.outputs.values()):
            for side, arrays in (("inputs", shown.inputs), ("outputs", shown.outputs)):
                head[side] = [_describe(name, array, parts) for name, array in arrays.items()]
        else:
            head |= {"data": shown.inputs, "result": shown.outputs}
        text = json.dumps(head, default=plain_value, allow_nan=False).encode("utf-8")
    except (EdgeError, TypeError, ValueError, RecursionError):
        return None
    size = sum(len(part) for part in parts)
    if len(text) > TRIAL_HEAD_BYTES_MAX or size > TRIAL_FRAME_BYTES_MAX:
        return None
    return [_HEAD.pack(len(text), size) + text, *parts]


def _describe(name: str, array: Array, parts: list[bytes | memoryview]) -> JsonObject:
    data = to_bytes(array)
    parts.append(data)
    return {"name": name, "datatype": datatype_of(array), "shape": list(array.shape), "bytes": len(data)}


class TrialRun:
    """The candidate's side: reads what it is shown, computes, compares. `agreement` may be asked from any thread."""

    def __init__(self, bundle: LoadedBundle, sock: socket.socket, cpu_permille_max: int) -> None:
        """Begin.

        Args:
            bundle: Loaded and proved.
            sock: Connected stream socket; owned from now on.
            cpu_permille_max: Processor time of this process that it may use, thousandths of a core, on average.
        """
        self._bundle = bundle
        self._sock = sock
        self._share = cpu_permille_max / PERMILLE
        self._lock = threading.Lock()
        self._compared = self._skipped = self._failed = self._same = 0
        self._distance = self._magnitude = 0.0
        self._times_us: deque[tuple[float, float]] = deque(maxlen=TRIAL_TIMES_KEPT)
        self._begun_wall = time.monotonic()
        self._begun_cpu = time.process_time()
        self._thread = threading.Thread(target=self._run_all, name="trial", daemon=True)
        self._thread.start()

    @property
    def agreement(self) -> Agreement:
        """What was found so far."""
        with self._lock:
            times = list(self._times_us)
            live_us = median(live for live, _own in times) if times else 0.0
            own_us = median(own for _live, own in times) if times else 0.0
            distance = self._distance / self._magnitude if self._magnitude > 0 else float(self._distance > 0)
            return Agreement(
                compared=self._compared,
                skipped=self._skipped,
                failed=self._failed,
                top1_ppm=PPM * self._same // self._compared if self._compared else 0,
                distance_ppm=min(round(distance * PPM), 2**52),
                latency_permille=round(PERMILLE * own_us / live_us) if live_us > 0 else 0,
            )

    def close(self) -> None:
        """End the trial: nothing more is read; what is being computed for it is finished."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    @property
    def _is_over_budget(self) -> bool:
        used_s = time.process_time() - self._begun_cpu
        return used_s > self._share * (time.monotonic() - self._begun_wall)

    def _run_all(self) -> None:
        try:
            while (shown := self._receive()) is not None:
                if shown.member not in self._bundle.members:
                    continue  # the two bundles have different models; what both have is compared
                if self._is_over_budget:
                    with self._lock:
                        self._skipped += 1
                    continue
                self._compare(shown)
        except (OSError, EdgeError, KeyError, TypeError, ValueError) as error:
            _log.warning("the trial ended: %s", error)
        finally:
            self._sock.close()

    def _receive(self) -> Shown | None:
        start = self._read(_HEAD.size)
        if start is None:
            return None
        head_bytes, size = _HEAD.unpack(start)
        if head_bytes > TRIAL_HEAD_BYTES_MAX or size > TRIAL_FRAME_BYTES_MAX:
            raise EdgeError("internal.bug", f"a shown request has {head_bytes} and {size} bytes")
        text, data = self._read(head_bytes), self._read(size)
        if text is None or data is None:
            return None
        head = parse_object(bytes(text), "shown request", TRIAL_HEAD_BYTES_MAX)
        if "inputs" not in head:
            return Shown(head["member"], head["data"], head["result"], int(head["run_us"]))
        view = memoryview(data)
        inputs, place = _unpack(head["inputs"], view, 0)
        outputs, _ = _unpack(head["outputs"], view, place)
        return Shown(head["member"], inputs, outputs, int(head["run_us"]))

    def _read(self, size: int) -> bytearray | None:
        data = bytearray(size)
        filled = 0
        while filled < size:
            count = self._sock.recv_into(memoryview(data)[filled:])
            if not count:
                return None
            filled += count
        return data

    def _compare(self, shown: Shown) -> None:
        engine = self._bundle.members[shown.member].engine
        begun = time.perf_counter_ns()
        try:
            if isinstance(shown.outputs, dict) and isinstance(shown.inputs, dict) and _are_arrays(shown.outputs):
                found: Any = engine.run(shown.inputs, sorted(shown.outputs))
            elif isinstance(engine, JsonEngine):
                found = engine.run_json(shown.inputs)
            else:
                raise EdgeError("model.input-invalid", "the candidate takes tensors, the live model takes any JSON")
            own_us = (time.perf_counter_ns() - begun) / 1000
            is_same, distance, magnitude = compare(shown.outputs, found)
        except EdgeError as error:
            _log.info("on trial, %r failed on an input that the live model answered: %s", shown.member, error)
            with self._lock:
                self._failed += 1
            return
        with self._lock:
            self._compared += 1
            self._same += is_same
            self._distance += distance
            self._magnitude += magnitude
            self._times_us.append((shown.run_us, own_us))


def _unpack(items: Any, data: memoryview, place: int) -> tuple[dict[str, Array], int]:
    arrays: dict[str, Array] = {}
    for item in items:
        name, datatype, shape = str(item["name"]), str(item["datatype"]), check_shape(str(item["name"]), item["shape"])
        if datatype not in DTYPES:
            raise EdgeError("internal.bug", f"a shown tensor has the datatype {datatype[:32]!r}")
        arrays[name] = from_bytes(name, datatype, shape, data[place : place + int(item["bytes"])])
        place += int(item["bytes"])
    return arrays, place


def _are_arrays(values: Mapping[str, Any]) -> bool:
    return bool(values) and all(isinstance(item, np.ndarray) for item in values.values())


def compare(live: Any, own: Any) -> tuple[bool, float, float]:
    """Compare what the live model and the candidate computed of one input.

    Args:
        live: Arrays by output name, or any JSON.
        own: The candidate's; further outputs are not looked at.

    Returns:
        (whether the largest element of every output is at the same place, sum of absolute differences, sum of the live
        outputs' magnitudes). NaN in the same place is no difference; in one of them it is a whole magnitude. Text and
        JSON differ or do not: 1 or 0 of 1 an element.

    Raises:
        EdgeError: `model.output-invalid` when an output is missing or has another shape.
    """
    if not (isinstance(live, dict) and _are_arrays(live)):
        plain = [json.dumps(value, default=plain_value, sort_keys=True) for value in (live, own)]
        return plain[0] == plain[1], float(plain[0] != plain[1]), 1.0
    is_same, distance, magnitude = True, 0.0, 0.0
    for name, want in live.items():
        got = own.get(name)
        if got is None or got.shape != want.shape:
            raise EdgeError(
                "model.output-invalid", f"the output {name!r} of the candidate is missing or shaped otherwise"
            )
        if want.dtype.kind in "OSU" or got.dtype.kind in "OSU":
            differs = float(np.count_nonzero(want.astype(object) != got.astype(object)))
            is_same, distance, magnitude = is_same and not differs, distance + differs, magnitude + want.size
            continue
        wide, mine = want.astype(np.float64), got.astype(np.float64)
        if wide.ndim and wide.shape[-1] > 1:
            is_same = is_same and bool(np.array_equal(np.argmax(wide, axis=-1), np.argmax(mine, axis=-1)))
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.abs(mine - wide)
        apart = np.where((wide == mine) | (np.isnan(wide) & np.isnan(mine)), 0.0, apart)
        known = np.abs(np.where(np.isfinite(wide), wide, 1.0))
        apart = np.where(np.isfinite(apart), apart, np.maximum(known, 1.0))
        distance += float(apart.sum())
        magnitude += float(known.sum())
    return is_same, distance, magnitude
