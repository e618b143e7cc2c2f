"""Path patterns for the tables: ``*`` stays inside a folder, ``**`` goes into the folders below."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache


def matches_any(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path with forward slashes fits one of the patterns."""
    return any(_compiled(pattern).fullmatch(path) for pattern in patterns)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = []
    for piece in re.split(r"(\*\*/|\*\*|\*)", pattern):
        parts.append({"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}.get(piece, re.escape(piece)))
    return re.compile("".join(parts))
