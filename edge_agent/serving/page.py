"""The page that a worker shares with the agent: how each of its connections stands, and that its event loop turns.

The worker makes it (memfd_create(2)) and writes plain bytes into it: that costs a request less than a microsecond, and
what was written outlives a worker that is killed. The agent reads it with pread(2) and never maps it: a page that a
worker makes shorter is then a short read and not a signal that ends the agent.
"""

import os
import struct
from typing import Final

BEAT_AT: Final = 0
BEAT: Final = struct.Struct("<I")
"""Counts up while the event loop turns."""
STATES_AT: Final = 64
"""From here on a byte for each descriptor number."""
SLOTS_MAX: Final = 4_096
"""Connections with higher descriptor numbers are not kept; the byte behind the last is for them."""
PAGE_BYTES: Final = STATES_AT + SLOTS_MAX + 1

# How a connection stands.
IDLE: Final = 0
"""Nothing was received that is not answered."""
BUSY: Final = 1
"""A request is being received or computed. Written before anything is received."""
WRITING: Final = 2
"""A part of an answer may be on its way."""
CLOSED: Final = 3
"""It is closed, or no longer this worker's."""
FRAMES: Final = 4
"""Added to the others for a connection that speaks frames."""


def read_beat(fd: int) -> int:
    """The worker's count of turns; 0 when the page is not what it should be."""
    data = _read(fd, BEAT_AT, BEAT.size)
    return int(BEAT.unpack(data)[0]) if len(data) == BEAT.size else 0


def read_states(fd: int) -> bytes:
    """The states of all connections, by descriptor number; those that are missing count as closed."""
    return _read(fd, STATES_AT, SLOTS_MAX).ljust(SLOTS_MAX, bytes((CLOSED,)))


def _read(fd: int, offset: int, size: int) -> bytes:
    try:
        return os.pread(fd, size, offset)
    except OSError:
        return b""
