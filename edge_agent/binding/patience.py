"""Whether a message that got no prediction is tried again. A function of what is known, without a clock."""

from typing import Final

from edge_agent.binding.limits import ASK_MS, CRASHES_MAX, RETRY_MS_FIRST, RETRY_MS_MAX

_CRASHES: Final = ("model.worker-crashed", "network.cut")
_LATER: Final = ("model.overloaded", "model.not-serving", "network.unreachable", "network.timeout")


def wait_ms(code: str, failures: int, crashes: int, passed_ms: int) -> int | None:
    """How long to wait before a message is tried again, or none to give it up.

    Inference is pure, so asking twice does no harm; but a message that kills its worker must not do so for ever.

    Args:
        code: Of the failure.
        failures: How many there were, this one included.
        crashes: How many of them were the worker's end.
        passed_ms: Since the first try.
    """
    if code in _CRASHES:
        if crashes >= CRASHES_MAX:
            return None
    elif code not in _LATER:
        return None
    if passed_ms >= ASK_MS:
        return None
    return min(RETRY_MS_MAX, RETRY_MS_FIRST << min(failures - 1, 16))


def is_crash(code: str) -> bool:
    """Whether a failure may be the message's own doing."""
    return code in _CRASHES
