"""Content on a simulated device: the ports that the agent's own way of getting blobs works with, over a simulated disk.

The choice between a delta and the whole blob, and what follows a delta that fails, is the code that ships.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from device_sim.cloud import Bundle, Cloud, DeltaFlaw
from device_sim.faults import Faults
from device_sim.hardware import Flaw
from device_sim.storage import Storage
from edge_agent.delta.record import Point, Record
from edge_agent.shell.fetching import Fetching
from edge_contract.delta import DELTA_BLOB_TYPE, Delta
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import GIB
from edge_contract.manifest import Descriptor

_FREE_BYTES: Final = 1 * GIB
_SHORT_BYTES: Final = 16 * 1024 * 1024
"""Room for no decoder."""


class PowerLostError(Exception):
    """A delta took the device down."""


class _RuleBrokenError(Exception):
    """Carries a broken rule past code that goes on behind operating errors."""

    def __init__(self, error: EdgeError) -> None:
        super().__init__(error)
        self.error = error


class SimContent:
    """Implements `BundleFetcher`, `MemoryGauge`, `DeltaMaker`, and what `Fetching` needs of a `BlobStore`."""

    def __init__(
        self,
        storage: Storage,
        cloud: Cloud,
        draw: random.Random,
        faults: Callable[[], Faults],
        saw_decoding: Callable[[Delta], None],
    ) -> None:
        """Work on a device's disk, for as long as it has power.

        Args:
            storage: The disk.
            cloud: Where content comes from.
            draw: Draws what happens.
            faults: How often.
            saw_decoding: Told of every decoding that begins; raises when a rule is broken.
        """
        self._storage = storage
        self._cloud = cloud
        self._draw = draw
        self._faults = faults
        self._saw_decoding = saw_decoding
        self._bundle: Bundle | None = None
        self.fetching = Fetching(self, self, self, self)

    def get(self, bundle: Bundle, deltas: tuple[Delta, ...]) -> int:
        """Bring a bundle here; gives the bytes that came over the network.

        Raises:
            EdgeError: `network.cut`, `artifact.*`; or what `saw_decoding` raised.
            PowerLostError: A delta took the device down.
        """
        self._bundle = bundle
        came = 0
        try:
            for way in self.fetching.plan([bundle.blob], deltas, 0):
                came += self.fetching.get("bundles/any", way, deltas, lambda: False)
        except _RuleBrokenError as broken:
            raise broken.error from None
        return came

    def expected_bytes(self, bundle: Bundle, deltas: tuple[Delta, ...]) -> int:
        """How many bytes are going to come for it."""
        return sum(way.network_bytes for way in self.fetching.plan([bundle.blob], deltas, 0))

    def leave_behind(self, bundle: Bundle, deltas: tuple[Delta, ...]) -> None:
        """What an interrupted download may have finished, or come to, without anybody hearing of it."""
        for way in self.fetching.plan([bundle.blob], deltas, 0):
            what = way.blob if way.delta is None else way.delta.descriptor
            before = self._storage.partial.get(what.digest, 0)
            if way.delta is not None or bundle.flaw is Flaw.BYTES or self._draw.random() < 0.5:
                if before < what.size:
                    self._storage.partial[what.digest] = self._draw.randint(before, what.size - 1)
            else:
                self._make_whole(bundle)

    # -- BlobStore -------------------------------------------------------------------------------------------------

    def has(self, digest: Digest) -> bool:
        """Whether a bundle's blob, or a delta, is whole."""
        storage = self._storage
        if any(self._cloud.bundles[manifest].blob.digest == digest for manifest in storage.blobs):
            return True
        size = self._delta_bytes(digest)
        return size is not None and storage.partial.get(digest, 0) == size

    def partial_bytes(self, digest: Digest) -> int:
        """What has come of one that is not whole."""
        return 0 if self.has(digest) else self._storage.partial.get(digest, 0)

    def remove(self, digest: Digest) -> None:
        """Forget a delta."""
        self._storage.partial.pop(digest, None)

    def require_space(self, bytes_needed: int) -> None:
        """Sometimes there is room for the blob alone."""
        if self._draw.random() < self._faults().disk_full:
            raise EdgeError("device.disk-full", f"{bytes_needed} bytes are needed")

    def _delta_bytes(self, digest: Digest) -> int | None:
        sizes = (delta.bytes for deltas in self._cloud.deltas.values() for delta in deltas if delta.digest == digest)
        return next(sizes, None)

    # -- BundleFetcher ---------------------------------------------------------------------------------------------

    def fetch(self, repository: str, blob: Descriptor, is_cancelled: Callable[[], bool]) -> int:
        """Bring it here, or a part of it before the line breaks."""
        del repository, is_cancelled
        if self.has(blob.digest):
            return 0
        storage, bundle = self._storage, self._bundle
        assert bundle is not None
        before = storage.partial.get(blob.digest, 0)
        if self._cloud.delta_flaws.get(blob.digest) is DeltaFlaw.MISSING:
            raise EdgeError("artifact.not-found", "the registry does not have it")
        if self._draw.random() < self._faults().cut:
            storage.partial[blob.digest] = self._draw.randint(before, blob.size - 1)
            raise EdgeError("network.cut", "the download broke off")
        if blob.media_type == DELTA_BLOB_TYPE:
            storage.partial[blob.digest] = blob.size
        elif bundle.flaw is Flaw.BYTES:
            storage.partial.pop(blob.digest, None)
            raise EdgeError("artifact.digest-mismatch", "other bytes came")
        else:
            self._make_whole(bundle)
        return blob.size - before

    def is_near(self, blob: Descriptor) -> bool:
        """Nothing lies beside a simulated device."""
        del blob
        return False

    # -- MemoryGauge -----------------------------------------------------------------------------------------------

    def available_bytes(self) -> int | None:
        """Sometimes there is none for a decoder."""
        return _SHORT_BYTES if self._draw.random() < self._faults().memory_short / 4 else _FREE_BYTES

    # -- DeltaMaker ------------------------------------------------------------------------------------------------

    def can_make(self, delta: Delta) -> bool:
        """As the record says."""
        return not self._storage.decoding(delta.new).of(delta.digest).is_hopeless

    def made_bytes(self, delta: Delta) -> int:
        """As the record says."""
        point = self._storage.decoding(delta.new).point_of(delta.digest)
        return 0 if point is None else point.output_bytes

    def make(self, delta: Delta, is_cancelled: Callable[[], bool]) -> None:
        """Decode, as its flaw lets it."""
        del is_cancelled
        assert self._bundle is not None
        try:
            self._saw_decoding(delta)
        except EdgeError as error:
            raise _RuleBrokenError(error) from error
        record = self._save(delta, self._storage.decoding(delta.new).begun(delta.digest))
        flaw = self._cloud.delta_flaws[delta.digest]
        place = self.made_bytes(delta)
        if self._draw.random() < 0.5 and place < delta.new_bytes - 1:
            place = self._draw.randint(place, delta.new_bytes - 1)
            record = self._save(delta, record.came_to(Point(delta.digest, place, place, b"")))
        if flaw is DeltaFlaw.KILLING:
            raise PowerLostError
        if flaw in (DeltaFlaw.REFUSED, DeltaFlaw.WRONG):
            code = "artifact.delta-invalid" if flaw is DeltaFlaw.REFUSED else "artifact.digest-mismatch"
            if flaw is DeltaFlaw.WRONG:
                record = Record(record.tried)  # nothing of what it made is believed
            self._save(delta, record.failed(delta.digest, code))
            raise EdgeError(code, "the delta is no good")
        self._make_whole(self._bundle)

    def hand_over(self, blob: Descriptor) -> int:
        """What was made counts as fetched, where it is more."""
        storage, record = self._storage, self._storage.decoding(blob.digest)
        made = 0 if record.point is None else record.point.verified_bytes
        here = max(made, storage.partial.get(blob.digest, 0))
        if here:
            storage.partial[blob.digest] = here
        if record.point is not None:
            storage.decodings[blob.digest] = Record(record.tried).to_bytes()
        return here

    def _save(self, delta: Delta, record: Record) -> Record:
        self._storage.decodings[delta.new] = record.to_bytes()
        return record

    def _make_whole(self, bundle: Bundle) -> None:
        storage = self._storage
        storage.blobs.add(bundle.manifest)
        storage.partial.pop(bundle.blob.digest, None)
        storage.decodings.pop(bundle.blob.digest, None)
