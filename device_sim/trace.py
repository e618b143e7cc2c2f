"""What happened in a world: readable lines, the last ones kept, all of them under one digest."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Final

from edge_contract.deployment import Assignment
from edge_contract.digest import Digest

LINES_KEPT: Final = 4_000
_TEXT_CHARS_MAX: Final = 60


class Trace:
    """Collects lines. The digest of two runs of one seed is the same, or something draws from outside the seed."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        """Stamp lines with this clock."""
        self._now_ms = now_ms
        self._lines: deque[tuple[str, str]] = deque(maxlen=LINES_KEPT)
        self._hash = hashlib.sha256()

    def add(self, who: str, text: str) -> None:
        """Add what `who` did or met."""
        line = f"{self._now_ms() / 1000:10.3f} s  {who:<12} {text}"
        self._hash.update(line.encode())
        self._lines.append((who, line))

    @property
    def digest(self) -> Digest:
        """Digest of every line so far."""
        return Digest.from_hex(self._hash.hexdigest())

    def last(self, count: int, who: str = "") -> list[str]:
        """The last lines, oldest first; of one device, its cloud and its faults when `who` is given."""
        chosen = [line for name, line in self._lines if not who or name in (who, "cloud", "world")]
        return chosen[-count:]


def describe(value: object) -> str:
    """An event or command in one short line."""
    if isinstance(value, Digest):
        return value.short
    if isinstance(value, Assignment):
        return f"{value.module}={value.artifact.model}:{value.artifact.version}@{value.manifest.short}"
    if isinstance(value, tuple | frozenset | list):
        return "[" + ", ".join(sorted(describe(item) for item in value)) + "]"
    if isinstance(value, dict):
        return "{...}"
    if is_dataclass(value) and not isinstance(value, type):
        inner = ", ".join(f"{item.name}={describe(getattr(value, item.name))}" for item in fields(value))
        return f"{type(value).__name__}({inner})"
    return str(value)[:_TEXT_CHARS_MAX]
