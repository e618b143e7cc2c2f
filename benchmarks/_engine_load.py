"""Loads one bundle the way a worker does and runs its model: `python -m benchmarks._engine_load SLOT RUNS COMPILED`.

Prints one JSON object: CPU and wall time of loading, of a run, memory beyond the imported runtime, and a digest of the
outputs. COMPILED is the folder of compiled models, or empty.
"""

import hashlib
import json
import statistics
import sys
import time
from pathlib import Path

from edge_agent.worker.bundle import load_bundle, made_up_inputs, prove_bundle
from edge_agent.worker.engines import Allowance
from edge_agent.worker.engines import onnx as _onnx  # noqa: F401  # the import is no part of what is measured
from edge_contract.limits import KIB, MIB

_SPIN_WAIT_S = 0.1


def _memory_mb() -> tuple[float, float]:
    """Resident and anonymous memory of this process."""
    found = {}
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name in ("VmRSS", "RssAnon"):
            found[name] = int(rest.split()[0]) * KIB / MIB
    return found["VmRSS"], found["RssAnon"]


def main(slot: str, runs: str, compiled: str) -> None:
    """Measure; see the module."""
    resident, anonymous = _memory_mb()
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    bundle = load_bundle(Path(slot), Allowance(compiled=Path(compiled) if compiled else None))
    load_cpu_ms, load_ms = (time.process_time_ns() - cpu) / 1e6, (time.perf_counter_ns() - wall) / 1e6
    prove_bundle(bundle)
    engine = next(iter(bundle.members.values())).engine
    if getattr(engine, "is_compiled", False) != bool(compiled):
        raise SystemExit("the compiled form was not used as it should be")
    inputs = made_up_inputs(engine)
    outputs = engine.run(inputs, ())
    times, cpu = [], time.process_time_ns()
    for _ in range(int(runs)):
        wall = time.perf_counter_ns()
        engine.run(inputs, ())
        times.append((time.perf_counter_ns() - wall) / 1e6)
    run_cpu_ms = (time.process_time_ns() - cpu) / 1e6 / int(runs)
    cpu = time.process_time_ns()
    time.sleep(_SPIN_WAIT_S)  # threads that spin go on doing so after a run
    after_ms = (time.process_time_ns() - cpu) / 1e6
    resident_after, anonymous_after = _memory_mb()
    digest = hashlib.sha256(b"".join(array.tobytes() for array in outputs.values())).hexdigest()
    found = {
        "load_cpu_ms": load_cpu_ms,
        "load_ms": load_ms,
        "run_p50_ms": statistics.median(times),
        "run_best_ms": min(times),
        "run_cpu_ms": run_cpu_ms,
        "idle_cpu_after_ms": after_ms,
        "memory_mb": resident_after - resident,
        "anonymous_mb": anonymous_after - anonymous,
        "outputs": digest,
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
