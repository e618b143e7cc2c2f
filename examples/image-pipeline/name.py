"""After the model: scores to what people want to know."""

from typing import Any

import numpy as np

_NAMES = np.array([b"zero", b"one", b"two", b"three", b"four", b"five", b"six", b"seven", b"eight", b"nine"], object)


def run(data: dict[str, Any]) -> dict[str, Any]:
    """Name: float32 `[n, 10]` scores to the BYTES `[n]` name of the best and its float32 `[n]` share."""
    scores = data["scores"]
    return {"digit": _NAMES[scores.argmax(axis=1)], "share": scores.max(axis=1)}
