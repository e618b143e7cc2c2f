"""When to send the next batch of telemetry: one at a time, repeated until the collector acknowledges it. Pure."""

from typing import Final

LINGER_MS: Final = 200  # records wait this long for company, so that a busy device does not send one message each
RESEND_MS: Final = 5_000  # a batch without acknowledgement is sent again after this time, doubling up to the bound
RESEND_MS_MAX: Final = 60_000


class Delivery:
    """Stop-and-wait delivery. One thread."""

    def __init__(self) -> None:
        """Nothing is waiting or under way."""
        self._waiting_since: int | None = None
        self._sent_at: int | None = None
        self._repeats = 0

    def record_waits(self, now: int) -> None:
        """There are unacknowledged records."""
        if self._waiting_since is None:
            self._waiting_since = now

    def batch_sent(self, now: int) -> None:
        """A batch went to the broker."""
        self._repeats = self._repeats + 1 if self._sent_at is not None else 0
        self._sent_at = now

    def batch_acknowledged(self, now: int, has_more: bool) -> None:
        """The collector has it; the next one may go at once."""
        self._sent_at, self._repeats = None, 0
        self._waiting_since = now - LINGER_MS if has_more else None

    def link_changed(self) -> None:
        """What was under way may be lost; send again without waiting for the time-out."""
        self._sent_at = None

    def deadline(self, is_online: bool) -> int | None:
        """When the next batch is due, or none while there is nothing to send or nobody to send it to."""
        if self._waiting_since is None or not is_online:
            return None
        if self._sent_at is not None:
            return self._sent_at + min(RESEND_MS_MAX, RESEND_MS << min(self._repeats, 10))
        return self._waiting_since + LINGER_MS
