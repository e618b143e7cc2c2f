"""What of a simulated device survives a power cut: the record, the blobs and the slots."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from edge_agent.delta.record import Record
from edge_contract.digest import Digest
from edge_contract.jsonio import JsonObject, dump, parse_object
from edge_contract.limits import MIB

_RECORD_BYTES_MAX = 1 * MIB


@dataclass(slots=True)
class Storage:
    """A disk that tears nothing: what has begun to be written is there whole after a power cut, or not at all.

    Attributes:
        record: The bytes of the newest durable record.
        being_written: The record that a `Persist` under way is writing.
        blobs: Bundles, by digest of the manifest, whose blobs are all present.
        slots: Bundles that are unpacked completely.
        verified: Bundles whose blobs were read again and found genuine since they were fetched.
        rotten: Bundles whose slot is no longer what was staged.
        partial: Bytes that have come of blobs and deltas, by digest; a delta that is whole has all of its own.
        decodings: What is remembered of the deltas of a blob, as it is written.
    """

    record: bytes | None = None
    being_written: bytes | None = None
    blobs: set[Digest] = field(default_factory=set)
    slots: set[Digest] = field(default_factory=set)
    verified: set[Digest] = field(default_factory=set)
    rotten: set[Digest] = field(default_factory=set)
    partial: dict[Digest, int] = field(default_factory=dict)
    decodings: dict[Digest, bytes] = field(default_factory=dict)

    def begin_write(self, record: JsonObject) -> None:
        """Begin to write a record; it is JSON from here on, as on a disk."""
        self.being_written = dump(record)

    def end_write(self) -> None:
        """The record is durable."""
        self.record, self.being_written = self.being_written, None

    def cut_power(self, draw: random.Random) -> None:
        """A record under way is there or not, as chance has it."""
        if self.being_written is not None and draw.random() < 0.5:
            self.record = self.being_written
        self.being_written = None

    def load(self) -> JsonObject | None:
        """The durable record, read as a device reads it; none on a new device."""
        return None if self.record is None else parse_object(self.record, "record", _RECORD_BYTES_MAX)

    def decoding(self, blob: Digest) -> Record:
        """What is remembered of the deltas of a blob, read as a device reads it."""
        data = self.decodings.get(blob)
        return Record() if data is None else Record.parse(data)

    def collect(self, keep: Iterable[Digest], blobs: Iterable[Digest]) -> None:
        """Remove everything that is not to be kept.

        Args:
            keep: Manifests of bundles.
            blobs: Blobs that are not whole, and deltas, of which what has come is to stay.
        """
        kept, begun = set(keep), set(blobs)
        self.partial = {digest: count for digest, count in self.partial.items() if digest in begun}
        self.decodings = {digest: data for digest, data in self.decodings.items() if digest in begun}
        self.blobs &= kept
        self.slots &= kept
        self.verified &= kept
        self.rotten &= kept
