"""Gets the blobs of a bundle: whole, or made by deltas, with the whole blob behind every delta that fails (ADR 0038).

Used by the store lane alone.
"""

import contextlib
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

from edge_agent import ports
from edge_agent.core.choosing import Holding, Way, choose_ways, whole
from edge_agent.limits import DELTA_FETCH_FAILURES_MAX, DELTA_TRIES_MAX
from edge_contract.codes import CODES, Category, Disposition
from edge_contract.delta import Delta
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.manifest import Descriptor

_log = logging.getLogger("edge_agent")
_OF_THE_WAY: Final = (Category.NETWORK, Category.CLOUD)


class Shelf(Protocol):
    """What of `ports.BlobStore` is needed here."""

    def has(self, digest: Digest) -> bool:
        """See there."""
        ...

    def partial_bytes(self, digest: Digest) -> int:
        """See there."""
        ...

    def remove(self, digest: Digest) -> None:
        """See there."""
        ...

    def require_space(self, bytes_needed: int) -> None:
        """See there."""
        ...


class Fetching:
    """Brings blobs into the store.

    Attributes:
        network_bytes: Bytes of blobs and deltas that came over the network since the process began.
        saved_bytes: Bytes that needed not come because deltas made them.
    """

    def __init__(
        self,
        fetcher: ports.BundleFetcher,
        blobs: Shelf,
        gauge: ports.MemoryGauge,
        maker: ports.DeltaMaker | None,
    ) -> None:
        """Use these ports.

        Args:
            fetcher: Brings content over the network.
            blobs: Where it goes.
            gauge: Says whether there is memory for decoding.
            maker: Decodes deltas; none where nobody wants that.
        """
        self._fetcher = fetcher
        self._blobs = blobs
        self._gauge = gauge
        self._maker = maker
        self._stalls: dict[Digest, tuple[int, int]] = {}  # delta: bytes of it that had come, failures since then
        self.network_bytes = 0
        self.saved_bytes = 0

    def plan(self, wanted: Sequence[Descriptor], deltas: Sequence[Delta], slot_bytes: int) -> tuple[Way, ...]:
        """How every blob that is missing gets here.

        Args:
            wanted: Blobs of the bundle.
            deltas: What signed metadata list for it.
            slot_bytes: What unpacking will write; deltas are done without where the disk has no room for them as well.
        """
        ways = self._choose(wanted, deltas, frozenset())
        if all(way.delta is None for way in ways):
            return ways
        try:
            self._blobs.require_space(disk_bytes(ways) + slot_bytes)
        except EdgeError as error:
            _log.info("deltas are done without: %s", error.detail)
            for way in ways:
                self._tidy(way.blob, deltas)
            return self._choose(wanted, (), frozenset())
        return ways

    def fetch(self, repository: str, blob: Descriptor, is_cancelled: Callable[[], bool]) -> int:
        """Bring one blob here as it is; returns the bytes that came over the network.

        Raises:
            EdgeError: As `ports.BundleFetcher.fetch`.
        """
        before = self._blobs.partial_bytes(blob.digest)
        try:
            count = self._fetcher.fetch(repository, blob, is_cancelled)
        except EdgeError:
            # What came before the line broke off came over the network too.
            if not self._fetcher.is_near(blob):
                self.network_bytes += max(0, self._blobs.partial_bytes(blob.digest) - before)
            raise
        self.network_bytes += count
        return count

    def get(self, repository: str, way: Way, deltas: Sequence[Delta], is_cancelled: Callable[[], bool]) -> int:
        """Bring one blob here in the way that was chosen; a delta that fails is replaced, in the end by the whole blob.

        Args:
            repository: OCI repository.
            way: As `plan` chose it.
            deltas: What signed metadata list.
            is_cancelled: Asked during long work.

        Returns:
            Bytes that came over the network.

        Raises:
            EdgeError: As `ports.BundleFetcher.fetch`.
        """
        barred, spared = set[Digest](), set[Digest]()
        for _ in range(DELTA_TRIES_MAX):
            delta = way.delta
            if delta is None:
                break
            try:
                return self._make(repository, way, delta, is_cancelled)
            except EdgeError as error:
                if is_cancelled() or self._is_worth_waiting(delta, error):
                    raise
                _log.warning("the delta %s is done without: %s", delta.digest, error)
                if not self._blobs.has(delta.digest) and CODES[error.code].category in _OF_THE_WAY:
                    # Nothing is wrong with what has come of it, and the blob may not come either: then it goes on.
                    spared.add(delta.digest)
            barred.add(delta.digest)
            self._hand_over(way.blob, delta, delta.digest in spared)
            (way,) = self._choose((way.blob,), deltas, barred) or (whole(way),)
        if spared and not self._has_room(way):
            spared.clear()
        self._tidy(way.blob, deltas, spared)
        count = self.fetch(repository, way.blob, is_cancelled)
        self._drop([delta for delta in deltas if delta.digest in spared])
        return count

    # -- deltas ----------------------------------------------------------------------------------------------------

    def _choose(
        self, wanted: Sequence[Descriptor], deltas: Sequence[Delta], barred: Collection[Digest]
    ) -> tuple[Way, ...]:
        maker = self._maker
        if maker is None or not deltas:
            return choose_ways(wanted, (), Holding(self._blobs.has, self._blobs.partial_bytes))
        holding = Holding(
            self._blobs.has,
            self._blobs.partial_bytes,
            self._fetcher.is_near,
            maker.can_make,
            maker.made_bytes,
            self._gauge.available_bytes(),
        )
        return choose_ways(wanted, deltas, holding, barred)

    def _make(self, repository: str, way: Way, delta: Delta, is_cancelled: Callable[[], bool]) -> int:
        assert self._maker is not None
        count = self.fetch(repository, delta.descriptor, is_cancelled)
        self._stalls.pop(delta.digest, None)
        self._maker.make(delta, is_cancelled)
        self.saved_bytes += max(0, way.whole_bytes - delta.bytes)
        self._forget(delta)
        return count

    def _is_worth_waiting(self, delta: Delta, error: EdgeError) -> bool:
        """Whether the way to the registry is at fault, which the whole blob would have to come as well.

        Only as long as some of the delta comes now and then: one that never does is no delta to wait for.
        """
        code = CODES[error.code]
        if self._blobs.has(delta.digest) or code.category not in _OF_THE_WAY or code.disposition is Disposition.HOLD:
            return False
        here = self._blobs.partial_bytes(delta.digest)
        before, failures = self._stalls.get(delta.digest, (here, 0))
        failures = failures + 1 if here <= before else 1
        self._stalls[delta.digest] = (here, failures)
        return failures < DELTA_FETCH_FAILURES_MAX

    def _has_room(self, way: Way) -> bool:
        try:
            self._blobs.require_space(way.whole_bytes)
        except EdgeError:
            return False
        return True

    def _hand_over(self, blob: Descriptor, delta: Delta, is_spared: bool) -> None:
        """Keep what the failed delta made, if that is more than what had been fetched, and drop the delta."""
        assert self._maker is not None
        with contextlib.suppress(EdgeError):  # the disk says more with the next blob
            here = self._maker.hand_over(blob)
            _log.info("%d bytes of %s are here without the delta", here, blob.digest)
        if not is_spared:
            self._forget(delta)

    def _tidy(self, blob: Descriptor, deltas: Sequence[Delta], spared: Collection[Digest] = frozenset()) -> None:
        """The blob comes whole: what was begun by deltas counts as fetched, and they make room but for some."""
        if self._maker is None:
            return
        self._drop([delta for delta in deltas if delta.new == blob.digest and delta.digest not in spared])
        with contextlib.suppress(EdgeError):
            self._maker.hand_over(blob)

    def _drop(self, deltas: Sequence[Delta]) -> None:
        """Forget those of which something is here."""
        for delta in deltas:
            if self._blobs.has(delta.digest) or self._blobs.partial_bytes(delta.digest):
                self._forget(delta)

    def _forget(self, delta: Delta) -> None:
        self._stalls.pop(delta.digest, None)
        with contextlib.suppress(EdgeError):  # garbage collection comes by
            self._blobs.remove(delta.digest)


def disk_bytes(ways: Sequence[Way]) -> int:
    """What getting the blobs writes on the disk."""
    return sum(way.disk_bytes for way in ways)
