"""The Python client over a module's unix socket: `python -m benchmarks._python_client SOCKET SECONDS`."""

import json
import statistics
import sys
import time
from pathlib import Path

from benchmarks._bundles import MEMBER, TINY
from edge_agent.inference import InferenceClient


def main(path: str, seconds: str) -> None:
    """Ask as fast as answers come; prints one JSON object."""
    times = []
    with InferenceClient(Path(path)) as client:
        feed = {"x": TINY.array}
        for _ in range(20):
            client.infer_arrays(feed, MEMBER)
        begun = time.perf_counter()
        end = begun + float(seconds)
        while time.perf_counter() < end:
            start = time.perf_counter_ns()
            client.infer_arrays(feed, MEMBER)
            times.append(time.perf_counter_ns() - start)
    rate = len(times) / (time.perf_counter() - begun)
    sys.stdout.write(json.dumps({"p50_us": statistics.median(times) / 1000, "rate": rate}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
