"""Bounds of `edge-agent serve`. Times in milliseconds, sizes in bytes."""

from typing import Final

from edge_contract.limits import KIB

DRAIN_S_DEFAULT: Final = 10
DRAIN_S_MAX: Final = 3_600
LINGER_S_MAX: Final = 600
HURRY_MS: Final = 500
"""A second signal that comes so soon is the first one, told twice."""

RESTART_MS_FIRST: Final = 500
"""Before the second restart of a worker in a row; the first comes at once. Doubles from there."""
RESTART_MS_MAX: Final = 30_000
RESTARTS_MAX: Final = 8
"""Restarts in a row after which the service gives up and leaves the rest to who started it."""
STEADY_MS: Final = 60_000
"""A worker that has served so long begins a new row."""

STALE_FOLDERS_MAX: Final = 64
"""Folders of services that were killed, removed at one start."""
TOKEN_FILE_BYTES_MAX: Final = 16 * KIB
