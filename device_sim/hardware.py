"""Workers of a simulated device: which bundle answers, which candidate was proved, and how they behave."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from edge_contract.digest import Digest


class Flaw(StrEnum):
    """What is wrong with a bundle."""

    NONE = "none"
    INVALID = "invalid"  # its manifest cannot be read
    BYTES = "bytes"  # the registry gives other bytes than the manifest names
    OUTPUTS = "outputs"  # its outputs differ from the golden vectors
    SICK = "sick"  # it proves itself, then fails on real requests
    CRASHING = "crashing"  # it proves itself, then its worker ends


UNFIT = frozenset({Flaw.INVALID, Flaw.BYTES, Flaw.OUTPUTS})
"""Flaws that a device has to find before it activates a bundle."""

_REQUESTS_PER_S = 20


@dataclass(slots=True)
class Workers:
    """Volatile: gone after a restart.

    Attributes:
        live: What answers, by module.
        candidate: What was proved and waits, by module.
        live_since_ms: When what answers began to, by module.
    """

    live: dict[str, Digest] = field(default_factory=dict)
    candidate: dict[str, Digest] = field(default_factory=dict)
    live_since_ms: dict[str, int] = field(default_factory=dict)

    def serve(self, module: str, manifest: Digest, now_ms: int) -> None:
        """Let a bundle answer."""
        if self.live.get(module) != manifest:
            self.live[module], self.live_since_ms[module] = manifest, now_ms
        if self.candidate.get(module) == manifest:
            del self.candidate[module]

    def end(self, module: str) -> None:
        """Let nothing answer."""
        self.live.pop(module, None)

    def health(self, module: str, flaw: Flaw, now_ms: int) -> tuple[bool, int, int]:
        """(is alive, requests, failures) of what answers, under a steady load."""
        if module not in self.live:
            return False, 0, 0
        requests = (now_ms - self.live_since_ms[module]) * _REQUESTS_PER_S // 1000
        return True, requests, requests // 2 if flaw is Flaw.SICK else 0


def golden_of(manifest: Digest) -> Digest:
    """Digest of the outputs that a bundle gives on its golden vectors."""
    return Digest.of(b"golden " + manifest.value.encode())
