"""Bounds and periods of the agent's core. Times in milliseconds."""

from types import MappingProxyType
from typing import Final

from edge_contract.phases import Phase

_MINUTE: Final = 60_000
_HOUR: Final = 60 * _MINUTE

RETRY_MS_FIRST: Final = 1_000
RETRY_MS_MAX: Final = 300_000
HOLD_MS: Final = 60_000  # how long a condition that somebody else has to change is left alone
FINAL_ATTEMPTS_MAX: Final = 5  # attempts that fail on this device's own account before a deployment is refused
PROBATION_RESTARTS_MAX: Final = 3  # restarts of the agent within one probation before it counts as unhealthy
TRIAL_OBSERVE_MS: Final = 1_000  # how often a candidate on trial is looked at
OBSERVE_MS: Final = 500  # how often a model on probation is looked at
SERVE_FAILURES_MAX: Final = 3  # failures in a row of the live bundle to come up or stay up before the fallback is tried
SERVE_STABLE_MS: Final = 60_000  # a live worker that ends sooner after it came up has failed again
ROLLBACK_ATTEMPTS_MAX: Final = 3
QUARANTINE_MAX: Final = 64  # digests remembered as bad, newest kept
REFRESH_GAP_MS: Final = 200  # shortest time between two refreshes that nobody on the device asked for
REFRESH_MS_FIRST: Final = 1_000
"""First wait after a failed refresh of metadata."""
COMMIT_ATTEMPTS_MAX: Final = 3  # times a bundle on probation may fail to prove that it answers
HEALS_MAX: Final = 3  # times one deployment is done again because its slot was damaged on disk
POSTPONE_MS_MAX: Final = _HOUR  # a hook or a window is asked again at least this often, whatever it said
POSTPONE_MS_MIN: Final = 1_000
ATTEST_MS: Final = _HOUR  # how often a live bundle proves again that it is what answers
ATTEST_FAILURES_MAX: Final = 3  # failures in a row after which nobody claims any more to know what answers
SCRUB_MS_DEFAULT: Final = 24 * _HOUR  # how often everything on disk is read again

STEP_MS_MAX: Final = MappingProxyType(
    {
        Phase.RESOLVING: 15 * _MINUTE,
        Phase.FETCHING: 24 * _HOUR,
        Phase.VERIFYING: 4 * _HOUR,
        Phase.STAGING: 4 * _HOUR,
        Phase.TESTING: 2 * _HOUR,
        Phase.TRYING: 5 * _MINUTE,
        Phase.ACTIVATING: 30 * _MINUTE,
        Phase.PROBATION: 5 * _MINUTE,
        Phase.COMMITTING: 2 * _HOUR,
        Phase.ROLLING_BACK: 2 * _HOUR,
    }
)
"""How long one operation may take in a phase before it is given up. What carries it out has tighter bounds."""

REFRESH_MS_MAX: Final = 30 * _MINUTE  # of one refresh of metadata, before it counts as failed
SERVE_MS_MAX: Final = 2 * _HOUR  # of bringing a live bundle up
UPKEEP_MS_MAX: Final = 24 * _HOUR  # of one scrub, or of healing one slot
