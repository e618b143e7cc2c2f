"""Bounds and periods of the agent's core. Times in milliseconds."""

from typing import Final

RETRY_MS_FIRST: Final = 1_000
RETRY_MS_MAX: Final = 300_000
HOLD_MS: Final = 60_000  # how long a condition that somebody else has to change is left alone
FINAL_ATTEMPTS_MAX: Final = 5  # attempts that fail on this device's own account before a deployment is refused
PROBATION_RESTARTS_MAX: Final = 3  # restarts of the agent within one probation before it counts as unhealthy
OBSERVE_MS: Final = 500  # how often a model on probation is looked at
SERVE_FAILURES_MAX: Final = 3  # failures in a row of the live bundle to come up or stay up before the fallback is tried
SERVE_STABLE_MS: Final = 60_000  # a live worker that ends sooner after it came up has failed again
ROLLBACK_ATTEMPTS_MAX: Final = 3
QUARANTINE_MAX: Final = 64  # digests remembered as bad, newest kept
REFRESH_GAP_MS: Final = 200  # shortest time between two refreshes that nobody on the device asked for
REFRESH_MS_FIRST: Final = 1_000
"""First wait after a failed refresh of metadata."""
