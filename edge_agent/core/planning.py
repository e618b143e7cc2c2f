"""When and how a candidate may take the live bundle's place: maintenance windows and memory. Pure."""

from typing import Final

from edge_contract.deployment import DAY_MINUTES, ActivationMode, Window
from edge_contract.errors import EdgeError

MEMORY_SHARE_MAX: Final = 0.9
"""Share of the free memory that a candidate may need while it loads."""

_MINUTE_MS: Final = 60_000
_EPOCH_WEEKDAY: Final = 3  # 1970-01-01 was a Thursday; Monday is 0
_WEEK_DAYS: Final = 7


def window_wait_ms(windows: tuple[Window, ...], wall_ms: int) -> int:
    """How long until a maintenance window is open.

    Args:
        windows: Of the signed policy; none means that it is always open.
        wall_ms: The time, milliseconds since 1970 (UTC).

    Returns:
        0 when one is open, else milliseconds until the next one opens.
    """
    return min((_wait_ms(window, wall_ms) for window in windows), default=0)


def _wait_ms(window: Window, wall_ms: int) -> int:
    """One window opens at most once a day, and none is longer than a day: yesterday's may still be open."""
    day, in_day_ms = divmod(wall_ms, DAY_MINUTES * _MINUTE_MS)
    for ahead in range(-1, _WEEK_DAYS + 1):
        weekday = (day + ahead + _EPOCH_WEEKDAY) % _WEEK_DAYS + 1
        if window.days and weekday not in window.days:
            continue
        opens_ms = (ahead * DAY_MINUTES + window.start_minute) * _MINUTE_MS - in_day_ms
        if opens_ms > 0:
            return opens_ms
        if opens_ms + window.length_minutes * _MINUTE_MS > 0:
            return 0
    raise AssertionError(f"a week without the weekdays {window.days}")


def stops_first(mode: ActivationMode, peak_bytes: int, live_bytes: int, available_bytes: int | None) -> bool:
    """Whether the live worker has to end before the candidate loads.

    Args:
        mode: What the signed policy asks for.
        peak_bytes: Memory that the candidate needs while loading, as its author measured; 0 when unknown.
        live_bytes: Memory that ending the live worker gives back; 0 when nothing is live.
        available_bytes: Memory that a new process may use now; none when nobody can tell.

    Returns:
        False to let both run beside each other, true to stop the live one first.

    Raises:
        EdgeError: `device.memory-short` when the candidate fits in neither way that the policy allows.
    """
    if mode is ActivationMode.STOP_FIRST and live_bytes > 0:
        is_stopped, room = True, available_bytes
    else:
        fits = available_bytes is None or peak_bytes <= available_bytes * MEMORY_SHARE_MAX
        is_stopped = mode is ActivationMode.AUTO and not fits and live_bytes > 0
        room = available_bytes
    if room is None:
        return is_stopped
    usable = int((room + (live_bytes if is_stopped else 0)) * MEMORY_SHARE_MAX)
    if peak_bytes > usable:
        beside = "" if is_stopped or live_bytes == 0 else " beside the live one"
        raise EdgeError(
            "device.memory-short",
            f"loading the candidate{beside} needs {peak_bytes} bytes of memory, {usable} can be used",
            "Stop other programs, allow activation with a gap (stop_first), or deploy a smaller model.",
        )
    return is_stopped
