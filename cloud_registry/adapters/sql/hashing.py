"""Tokens: made from the system's randomness, kept as hashes only.

A token has 256 bits of randomness, so one round of SHA-256 is enough: there is nothing to guess.
"""

import hashlib
import secrets
from typing import Final

from cloud_registry.limits import TOKEN_CHARS_MAX

OPERATOR_PREFIX: Final = "lmo_"
ENROLMENT_PREFIX: Final = "lme_"


def new_token(prefix: str) -> str:
    """A fresh token; the prefix lets people and secret scanners see what it is."""
    return prefix + secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    """What is kept of a token; texts that are too long to be one have a hash that is nobody's."""
    if len(token) > TOKEN_CHARS_MAX:
        return ""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
