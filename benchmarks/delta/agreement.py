"""How far a snapped model answers as the one it was made from.

    python -m benchmarks.delta.agreement BASE TRAINED SNAPPED

Prints a JSON object. Runs in the benchmark's own environment: onnxruntime, and the digits of scikit-learn.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.delta import domains

_VIEWS = 8
_SEED = 40


def samples() -> domains.Split:
    """Digits that no model learnt from, each as several worn cameras see it."""
    clean = domains.unseen_digits()
    x = np.concatenate([domains.worn(clean.x, _SEED + view) for view in range(_VIEWS)])
    return domains.Split(x, np.tile(clean.y, _VIEWS))


def _scores(path: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"x": x[start : start + 256]})[0] for start in range(0, len(x), 256)]
    found: NDArray[np.float32] = np.concatenate(parts)
    return found


def compare(base: Path, trained: Path, snapped: Path) -> dict[str, Any]:
    """Share of equal answers, accuracy of both, and the error beside what the update itself changes."""
    data = samples()
    before, wanted, found = (_scores(path, data.x) for path in (base, trained, snapped))
    return {
        "samples": len(data.x),
        "agreement": float((wanted.argmax(1) == found.argmax(1)).mean()),
        "accuracy_base": float((before.argmax(1) == data.y).mean()),
        "accuracy_trained": float((wanted.argmax(1) == data.y).mean()),
        "accuracy_snapped": float((found.argmax(1) == data.y).mean()),
        "error_of_update": float(np.abs(found - wanted).mean() / np.abs(wanted - before).mean()),
    }


if __name__ == "__main__":
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    sys.stdout.write(json.dumps(compare(*map(Path, sys.argv[1:]))) + "\n")
