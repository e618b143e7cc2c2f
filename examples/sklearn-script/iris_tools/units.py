"""Units of length."""

from typing import Any

import numpy as np

_CENTIMETRES = {"cm": 1.0, "mm": 0.1, "in": 2.54}


def to_centimetres(lengths: Any, unit: str) -> Any:
    """Lengths in a unit as centimetres, float32 of the same shape."""
    return (np.asarray(lengths, dtype=np.float32) * np.float32(_CENTIMETRES[unit])).astype(np.float32)
