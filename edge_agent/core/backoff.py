"""Capped exponential backoff; its jitter is drawn from names, not a random generator, so that the core stays pure."""

import hashlib


def spread(*key: object) -> float:
    """A number in `0..1`, the same for the same key and unrelated between keys."""
    digest = hashlib.sha256("\x00".join(str(part) for part in key).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def wait_ms(first_ms: int, max_ms: int, attempt: int, *key: object) -> int:
    """How long to wait before the next attempt.

    Args:
        first_ms: Wait after the first failure.
        max_ms: Upper bound.
        attempt: Failures so far, from 1.
        key: What to draw the jitter from; a device's name keeps a fleet from retrying in step.

    Returns:
        Half of the capped exponential plus a jittered other half, in milliseconds.
    """
    full = min(max_ms, first_ms * 2 ** min(max(attempt - 1, 0), 30))
    return int(full / 2 + full / 2 * spread(*key, attempt))
