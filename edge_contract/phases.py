"""Phases of a deployment on a device, outcomes, and roles of slots (wire words)."""

from enum import StrEnum


class Phase(StrEnum):
    """Where the update machine of a module is."""

    IDLE = "idle"
    RESOLVING = "resolving"  # metadata and manifest
    FETCHING = "fetching"
    VERIFYING = "verifying"
    STAGING = "staging"  # unpacking into a slot
    TESTING = "testing"  # the candidate loads and proves itself on the golden vectors
    TRYING = "trying"  # the candidate computes beside the live worker, on its inputs, and answers nobody
    ACTIVATING = "activating"
    PROBATION = "probation"
    COMMITTING = "committing"
    ROLLING_BACK = "rolling_back"


class Outcome(StrEnum):
    """How a deployment ended on a device."""

    CONFIRMED = "confirmed"  # the digest answers predictions and passed probation
    REFUSED = "refused"  # the live model never changed
    ROLLED_BACK = "rolled_back"
    ROLLBACK_FAILED = "rollback_failed"
    SUPERSEDED = "superseded"


class SlotRole(StrEnum):
    """The role of an unpacked bundle."""

    LIVE = "live"
    CANDIDATE = "candidate"
    FALLBACK = "fallback"
    BAD = "bad"


class Verdict(StrEnum):
    """What probation concluded."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
