"""Maintenance windows as people write them: `mon-fri 02:00-05:00`, in UTC."""

import re
from typing import Final

from edge_contract.deployment import DAY_MINUTES, Window
from edge_contract.errors import EdgeError

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FORM: Final = re.compile(r"(?:(?P<days>[a-z,-]+) +)?(?P<start>\d{2}:\d{2})-(?P<end>\d{2}:\d{2})")
_HINT: Final = "Write for example 'mon-fri 02:00-05:00', 'sat,sun 22:00-04:00' or '01:00-03:00' for every day; in UTC."
_TEXT_CHARS_MAX: Final = 80


def parse_window(text: str) -> Window:
    """Read a weekly window.

    Args:
        text: `[DAYS ]HH:MM-HH:MM`. Days are a list of days and ranges (`mon,wed-fri`), on which it opens; none or
            `daily` means every day. An end that is not after the start is on the next day; `24:00` is the end of a day.

    Raises:
        EdgeError: `config.invalid`.
    """
    found = _FORM.fullmatch(text.strip().lower()) if len(text) <= _TEXT_CHARS_MAX else None
    if found is None:
        raise EdgeError("config.invalid", f"{text[:_TEXT_CHARS_MAX]!r} is no maintenance window", _HINT)
    start, end = _minute(found["start"], text), _minute(found["end"], text)
    if start in (end, DAY_MINUTES):
        raise EdgeError("config.invalid", f"the maintenance window {text!r} has no length", _HINT)
    length = end - start if end > start else end - start + DAY_MINUTES
    days = found["days"]
    return Window(start, length, () if days in (None, "daily") else _days(days, text))


def _minute(clock: str, text: str) -> int:
    hours, minutes = int(clock[:2]), int(clock[3:])
    if minutes > 59 or hours * 60 + minutes > DAY_MINUTES:
        raise EdgeError("config.invalid", f"{clock} is no time of day, in {text!r}", _HINT)
    return hours * 60 + minutes


def _days(listed: str, text: str) -> tuple[int, ...]:
    days: set[int] = set()
    for part in listed.split(","):
        first, dash, last = part.partition("-")
        if first not in _DAYS or (dash and last not in _DAYS):
            raise EdgeError("config.invalid", f"{part!r} is no day and no range of days, in {text!r}", _HINT)
        begin = _DAYS.index(first)
        count = (_DAYS.index(last) - begin) % len(_DAYS) if dash else 0
        days |= {(begin + step) % len(_DAYS) + 1 for step in range(count + 1)}
    return tuple(sorted(days))
