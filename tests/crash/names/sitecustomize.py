"""Temporary names that are the same in every run, so that a call of a recorded run is found in the next one.

And checkpoints of a decoder behind every chunk, so that a small file has some. Python imports this module by its name
when the folder is on its path.
"""

import contextlib
import hashlib
import itertools
import secrets
import threading
from collections import defaultdict

_CHECKPOINT_BYTES = 256 * 1024
_numbers: "defaultdict[str, itertools.count[int]]" = defaultdict(itertools.count)


def _token_hex(nbytes: int | None = None) -> str:
    name = threading.current_thread().name
    drawn = hashlib.sha256(f"{name} {next(_numbers[name])}".encode()).hexdigest()
    return drawn[: 2 * (nbytes or 32)]


secrets.token_hex = _token_hex


def _checkpoint_often() -> None:
    with contextlib.suppress(ImportError):
        from edge_delta import limits

        limits.CHECKPOINT_BYTES = _CHECKPOINT_BYTES  # type: ignore[misc]


_checkpoint_often()
