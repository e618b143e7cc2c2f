"""Bounds and periods of the agent's shell. Times in milliseconds."""

from typing import Final

LANE_COMMANDS_MAX: Final = 10_000  # commands waiting in one lane; nothing but a bug makes so many
ACKED_BOOTS_MAX: Final = 256  # boots in acknowledgements that wait for the loop
SAMPLES_MAX: Final = 20_000  # samples waiting to be written; above it the newest are dropped and counted
SAMPLES_BYTES_MAX: Final = 16 * 1024 * 1024  # of memory that they may take, about
FLUSH_MS: Final = 100  # samples are written to the spool at most this often
IDLE_MS_MAX: Final = 10_000  # the loop turns at least this often, for the watchdog
PERSIST_RETRY_MS: Final = 2_000
JOIN_MS: Final = 10_000  # how long a lane may take to end
CONTROL_MS: Final = 5_000  # how long a local request may take
CONTROL_BYTES_MAX: Final = 64 * 1024
CONTROL_BACKLOG: Final = 8
CONTROL_ASKERS_MAX: Final = 8  # answered at the same time; the next one waits in the backlog
CONTROL_PAUSE_MS: Final = 100  # after a connection could not be accepted, for want of file descriptors for example
LOG_LINES_KEPT: Final = 500  # of the agent's own log, in memory
LOG_LINE_CHARS_MAX: Final = 500
LOG_TAIL_BYTES: Final = 64 * 1024
LOG_ANSWER_CHARS_MAX: Final = 60_000  # of logs in one answer; the hub takes 128 KiB, and JSON may double a text
LOG_SOURCES_MAX: Final = 8
