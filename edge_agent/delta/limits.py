"""Bounds of decoding a delta. Sizes in bytes, times in milliseconds unless the name says otherwise."""

from typing import Final

from edge_contract.limits import KIB, MIB

STATE_BYTES_MAX: Final = 1 * MIB
"""A decoder's own state at a checkpoint."""

RECORD_BYTES_MAX: Final = STATE_BYTES_MAX + 64 * KIB
"""The file that remembers a decoding: that state, and a few lines about each delta of the blob."""

STALL_MS_MAX: Final = 10 * 60_000
"""Between two checkpoints, and until the first: a device that makes less than 7 KB/s had better fetch the blob."""

CPU_S_FIRST: Final = 120
CPU_BYTES_PER_S_MIN: Final = 64 * KIB
"""Processor time that decoding may take: so many seconds, and one more for so much output."""

CPU_S_LAST: Final = 5
"""Between the signal that says that this time is up and the kill that would look like a lack of memory."""

DATA_SLACK_BYTES: Final = 48 * MIB
"""Added to the memory that a delta says it takes, because an allocator holds more than is used."""

HEAP_STEP_BYTES: Final = 4 * MIB
"""By which a decoder's heap grows; no memory before it is used."""

LOCK_MS_MAX: Final = 5_000
"""For a decoder that outlived its agent to notice and end."""

POLL_MS: Final = 100
"""How often is looked whether a decoding is still wanted."""

END_MS_MAX: Final = 10_000
"""For a process that said its last word to end."""

READ_BYTES: Final = 64 * KIB
"""Read from the process at once."""

LOWEST_PRIORITY: Final = 19
"""Predictions come first; see `nice(2)`."""

BUSY_SHARE: Final = 0.4
"""Where others take so much of all processors' time, decoding rests in between."""

DUTY_BESIDE_OTHERS: Final = 0.15
"""The part of the time that decoding then runs, on one processor."""

BURST_S: Final = 0.15
"""Between two rests, or two looks at the load. Shorter ones cost others more: each time, their threads lose places."""

PAUSE_S_MAX: Final = 1.0
"""Rested at once."""
