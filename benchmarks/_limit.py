"""The limit: ONNX Runtime in this very process, one thread, nothing around it.

    python -m benchmarks._limit MODEL SHAPE SECONDS

Prints one JSON object: median time of a run in microseconds with input and output bound beforehand (the least that the
runtime can do), the same of `session.run`, processor time of a `session.run`, count.
"""

import json
import statistics
import sys
import time
from typing import Any, Final

import numpy as np
import onnxruntime

_WARM: Final = 5
_BOUND_S: Final = 0.3


def main(model: str, shape: str, seconds: str) -> None:
    """Measure; see the module."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.full([int(size) for size in shape.split(",")], 0.5, np.float32)}
    names = [session.get_outputs()[0].name]
    for _ in range(_WARM):
        session.run(names, feed)
    times, cpu, end = [], time.process_time_ns(), time.perf_counter() + float(seconds)
    while time.perf_counter() < end:
        begun = time.perf_counter_ns()
        session.run(names, feed)
        times.append(time.perf_counter_ns() - begun)
    cpu = time.process_time_ns() - cpu
    bound = _bound_p50_ns(session, feed, min(float(seconds), _BOUND_S)) / 1000
    found = {"bound_p50_us": bound, "p50_us": statistics.median(times) / 1000, "cpu_us": cpu / len(times) / 1000}
    found["count"] = len(times)
    sys.stdout.write(json.dumps(found) + "\n")


def _bound_p50_ns(session: Any, feed: dict[str, Any], seconds: float) -> float:
    """The call below the public wrapper, which for a small model costs more than the model."""
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output(session.get_outputs()[0].name)
    inner, bound = session._sess, binding._iobinding
    for _ in range(_WARM):
        inner.run_with_iobinding(bound, None)
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter_ns()
        inner.run_with_iobinding(bound, None)
        times.append(time.perf_counter_ns() - begun)
    return statistics.median(times)


if __name__ == "__main__":
    main(*sys.argv[1:])
