"""The system's clocks behind the port."""

import time


class SystemClock:
    """`edge_agent.ports.Clock` from the operating system. Any thread."""

    def monotonic_ms(self) -> int:
        """Milliseconds of the monotonic clock."""
        return time.monotonic_ns() // 1_000_000

    def wall_ms(self) -> int:
        """Milliseconds since 1970."""
        return time.time_ns() // 1_000_000
