"""Entry script: `init()` once, `run(data)` for every request."""

import os
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from iris_tools.units import to_centimetres

_loaded: dict[str, Any] = {}


def init() -> None:
    """Load the model that lies beside this script."""
    _loaded["model"] = joblib.load(Path(__file__).with_name("model.joblib"))
    _loaded["unit"] = os.environ.get("IRIS_UNIT", "cm")


def run(data: dict[str, Any]) -> dict[str, Any]:
    """Classify flowers: float32 `[n, 4]` measures to int64 `[n]` species and float32 `[n, 3]` probabilities."""
    measures = to_centimetres(np.asarray(data["measures"]), _loaded["unit"])
    probabilities = _loaded["model"].predict_proba(measures)
    return {"species": probabilities.argmax(axis=1), "probabilities": probabilities.astype(np.float32)}
