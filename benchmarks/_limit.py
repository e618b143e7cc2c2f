"""The limit: ONNX Runtime in this very process, one thread, nothing around it.

    python -m benchmarks._limit MODEL SHAPE SECONDS

Prints one JSON object: median time of `session.run` in microseconds, processor time of a run, count.
"""

import json
import statistics
import sys
import time

import numpy as np
import onnxruntime


def main(model: str, shape: str, seconds: str) -> None:
    """Measure; see the module."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.full([int(size) for size in shape.split(",")], 0.5, np.float32)}
    names = [session.get_outputs()[0].name]
    for _ in range(5):
        session.run(names, feed)
    times, cpu, end = [], time.process_time_ns(), time.perf_counter() + float(seconds)
    while time.perf_counter() < end:
        begun = time.perf_counter_ns()
        session.run(names, feed)
        times.append(time.perf_counter_ns() - begun)
    cpu = time.process_time_ns() - cpu
    found = {"p50_us": statistics.median(times) / 1000, "cpu_us": cpu / len(times) / 1000, "count": len(times)}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
