"""Instants as the interface writes them: RFC 3339 in UTC with milliseconds. Inside they are milliseconds since 1970."""

from datetime import UTC, datetime, timedelta
from typing import Final

from edge_contract.errors import EdgeError

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TEXT_CHARS_MAX: Final = 40


def to_text(instant_ms: int) -> str:
    """For example `2026-03-01T12:00:00.250Z`."""
    moment = _EPOCH + timedelta(milliseconds=instant_ms)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{instant_ms % 1000:03d}Z"


def to_text_or_none(instant_ms: int | None) -> str | None:
    """As `to_text`, keeping none."""
    return None if instant_ms is None else to_text(instant_ms)


def from_text(text: str) -> int:
    """Read a date, or a date and time with zone; a text without a zone means UTC.

    Raises:
        EdgeError: `cloud.bad-request`.
    """
    try:
        if len(text) > _TEXT_CHARS_MAX:
            raise ValueError
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return (moment - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        hint = "Use RFC 3339, for example 2026-03-01T12:00:00Z or 2026-03-01."
        raise EdgeError("cloud.bad-request", f"{text[:_TEXT_CHARS_MAX]!r} is not a time", hint) from None
