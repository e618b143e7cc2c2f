"""Our codec, one step a process, as the packager and the agent run it.

    python -m benchmarks.delta.ours encode BASE NEW DELTA
    python -m benchmarks.delta.ours decode BASE DELTA OUTPUT
    python -m benchmarks.delta.ours part BASE DELTA OUTPUT STATE UNTIL
    python -m benchmarks.delta.ours inspect DELTA
    python -m benchmarks.delta.ours snap BASE NEW OUTPUT KAPPA
    python -m benchmarks.delta.ours floor

Each prints a JSON object. Decoding imports what the agent's decoding process imports, and nothing more.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def encode(base: Path, new: Path, delta: Path) -> dict[str, Any]:
    """Make a delta."""
    from packager.delta.encode import encode as make

    started = time.process_time()
    made = make(base, new, delta)
    return {"cpu_s": time.process_time() - started, "peak_bytes": made.peak_bytes, "kinds": made.kinds}


def decode(base: Path, delta: Path, output: Path) -> dict[str, Any]:
    """Make the output; processor seconds without Python's start."""
    from edge_delta.decode import decode as make
    from edge_delta.decode import inspect

    with base.open("rb") as held, delta.open("rb") as read, output.open("w+b") as written:
        info = inspect(read)
        read.seek(0)
        started = time.process_time()
        checkpoints = sum(1 for _ in make(held, read, written, base_bytes=info.base_bytes, new_bytes=info.new_bytes))
        return {"cpu_s": time.process_time() - started, "checkpoints": checkpoints, "peak_bytes": info.peak_bytes}


def part(base: Path, delta: Path, output: Path, state: Path, until: int) -> dict[str, Any]:
    """Go on from the checkpoint in ``state``, if there is one, until at least ``until`` bytes are there; then stop."""
    from edge_delta.decode import decode as make
    from edge_delta.decode import inspect

    output.touch()
    resume = state.read_bytes() if state.exists() else None
    with base.open("rb") as held, delta.open("rb") as read, output.open("r+b") as written:
        info = inspect(read)
        read.seek(0)
        running = make(held, read, written, base_bytes=info.base_bytes, new_bytes=info.new_bytes, resume=resume)
        for checkpoint in running:
            if checkpoint.output_bytes >= min(until, info.new_bytes):
                state.write_bytes(checkpoint.data)
                return {"output_bytes": checkpoint.output_bytes, "state_bytes": len(checkpoint.data)}
    raise ValueError(f"decoding ended before {until} bytes")


def look(delta: Path) -> dict[str, Any]:
    """What the delta says of itself."""
    from edge_delta.decode import inspect

    with delta.open("rb") as read:
        info = inspect(read)
    return {"new_bytes": info.new_bytes, "peak_bytes": info.peak_bytes, "operations": info.operations}


def snap(base: Path, new: Path, output: Path, kappa: float) -> dict[str, Any]:
    """Snap the new weights to the grid around the base."""
    from packager.delta.snap import snap_file

    started = time.process_time()
    snap_file(base, new, output, kappa)
    return {"cpu_s": time.process_time() - started}


def floor() -> dict[str, Any]:
    """Import what decoding needs from others, and nothing else: the memory below every decoder in Python."""
    import numpy
    import zstandard

    return {"numpy": numpy.__version__, "zstandard": zstandard.__version__}


def main(arguments: list[str]) -> dict[str, Any]:
    """Run the step that was asked for."""
    step, rest = arguments[0], arguments[1:]
    if step == "encode":
        return encode(*map(Path, rest))
    if step == "decode":
        return decode(*map(Path, rest))
    if step == "part":
        return part(Path(rest[0]), Path(rest[1]), Path(rest[2]), Path(rest[3]), int(rest[4]))
    if step == "inspect":
        return look(Path(rest[0]))
    if step == "snap":
        return snap(Path(rest[0]), Path(rest[1]), Path(rest[2]), float(rest[3]))
    return floor()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1:])) + "\n")
