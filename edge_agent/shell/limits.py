"""Bounds and periods of the agent's shell. Times in milliseconds."""

from typing import Final

EVENTS_MAX: Final = 10_000  # events waiting for the loop
SAMPLES_MAX: Final = 20_000  # samples waiting to be written; above it the newest are dropped and counted
FLUSH_MS: Final = 100  # samples are written to the spool at most this often
IDLE_MS_MAX: Final = 10_000  # the loop turns at least this often, for the watchdog
PERSIST_RETRY_MS: Final = 2_000
JOIN_MS: Final = 10_000  # how long a lane may take to end
CONTROL_MS: Final = 5_000  # how long a local request may take
CONTROL_BYTES_MAX: Final = 64 * 1024
CONTROL_BACKLOG: Final = 8
