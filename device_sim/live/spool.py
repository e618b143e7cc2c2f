"""Telemetry of one simulated device, in memory: the same numbering, batches and acknowledgements as on a disk."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Final

from edge_contract.errors import ContractError
from edge_contract.jsonio import JsonObject, dump
from edge_contract.limits import BATCH_BYTES_MAX, BATCH_SAMPLES_MAX, KIB, MIB, SAMPLE_BYTES_MAX
from edge_contract.telemetry import Ack, Batch, Sample

BYTES_MAX_DEFAULT: Final = 4 * MIB
_ENVELOPE_BYTES: Final = 1 * KIB


class MemorySpool:
    """Implements `edge_agent.ports.Spool`. Any thread. A simulated device that restarts begins a new boot."""

    def __init__(self, device: str, boot: str, bytes_max: int = BYTES_MAX_DEFAULT) -> None:
        """Begin a boot.

        Args:
            device: Name of the device.
            boot: Identifier of this boot.
            bytes_max: Budget above which the oldest records are dropped.
        """
        self._device = device
        self._boot = boot
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._records: deque[tuple[Sample, int]] = deque()
        self._bytes = 0
        self._last = 0
        self._dropped = 0

    def append(self, records: Sequence[JsonObject]) -> None:
        """See `ports.Spool.append`. What is no sample, or too long for one, is dropped and counted."""
        with self._lock:
            for record in records:
                try:
                    sample = Sample.from_json({**record, "seq": self._last + 1})
                except ContractError:
                    self._dropped += 1
                    continue
                size = len(dump(sample.to_json()))
                if size > SAMPLE_BYTES_MAX + _ENVELOPE_BYTES:
                    self._dropped += 1
                    continue
                self._last += 1
                self._records.append((sample, size))
                self._bytes += size
            while self._bytes > self._bytes_max:
                self._bytes -= self._records.popleft()[1]
                self._dropped += 1

    def next_batch(self) -> Batch | None:
        """See `ports.Spool.next_batch`."""
        with self._lock:
            left = BATCH_BYTES_MAX - _ENVELOPE_BYTES
            samples: list[Sample] = []
            for sample, size in self._records:
                left -= size + 1
                if left < 0 or len(samples) == BATCH_SAMPLES_MAX:
                    break
                samples.append(sample)
            return Batch(self._device, self._boot, tuple(samples), self._dropped) if samples else None

    def acknowledge(self, ack: Ack) -> int:
        """See `ports.Spool.acknowledge`."""
        upto = ack.upto.get(self._boot, 0)
        count = 0
        with self._lock:
            while self._records and self._records[0][0].seq <= upto:
                self._bytes -= self._records.popleft()[1]
                count += 1
        return count

    def backlog(self) -> tuple[int, int, int]:
        """See `ports.Spool.backlog`."""
        with self._lock:
            return len(self._records), self._bytes, self._dropped
