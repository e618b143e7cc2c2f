"""How each missing blob gets here: whole, or made by a delta out of a blob that is here already. Pure (ADR 0038).

Nothing here is a matter of trust: a delta that was chosen wrongly costs bytes and time, and what it makes is compared
with the same signed digest as a blob that came whole.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from edge_agent.core.planning import MEMORY_SHARE_MAX
from edge_agent.limits import DELTA_FLOOR_BYTES, DELTA_RECORD_BYTES
from edge_contract.delta import FORMAT, Delta
from edge_contract.digest import Digest
from edge_contract.manifest import Descriptor


def _never(_: object) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Holding:
    """What is on this device, as far as a choice depends on it. Each question is asked of blobs and deltas alike.

    Attributes:
        has: Whether a blob is whole in the store.
        partial_bytes: How much has come of one that is not.
        is_near: Whether a blob can be had without the network.
        can_make: Whether a delta may be decoded here: the device has what it takes, and it never failed here.
        made_bytes: How much of its output an interrupted decoding left.
        available_bytes: Memory that a new process may use; none when nobody can tell.
    """

    has: Callable[[Digest], bool]
    partial_bytes: Callable[[Digest], int]
    is_near: Callable[[Descriptor], bool] = _never
    can_make: Callable[[Delta], bool] = _never
    made_bytes: Callable[[Delta], int] = field(default=lambda _: 0)
    available_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Way:
    """How one missing blob gets here.

    Attributes:
        blob: What is missing.
        delta: Makes it, or none: it comes whole.
        network_bytes: What has to come over the network for that.
        whole_bytes: What would have to come without a delta.
        disk_bytes: What is going to be written on the disk.
    """

    blob: Descriptor
    delta: Delta | None
    network_bytes: int
    whole_bytes: int
    disk_bytes: int


def choose_ways(
    blobs: Iterable[Descriptor],
    deltas: Sequence[Delta],
    holding: Holding,
    barred: Collection[Digest] = frozenset(),
) -> tuple[Way, ...]:
    """Choose for every blob that is missing the way that brings fewest bytes over the network.

    A blob that lies beside the agent, or of which less is missing than a delta is long, comes whole.

    Args:
        blobs: Of the bundle; those that are here are left out, and none is named twice.
        deltas: That signed metadata list for it; of unknown formats and for other blobs as well.
        holding: What is here.
        barred: Digests of deltas that are not to be used now.
    """
    ways: dict[Digest, Way] = {}
    for blob in blobs:
        if blob.digest not in ways and not holding.has(blob.digest):
            ways[blob.digest] = _choose(blob, deltas, holding, barred)
    return tuple(ways.values())


def whole(way: Way) -> Way:
    """The same blob without a delta."""
    return Way(way.blob, None, way.whole_bytes, way.whole_bytes, way.whole_bytes)


def fits_memory(delta: Delta, available_bytes: int | None) -> bool:
    """Whether there is memory for the process that decodes a delta."""
    if available_bytes is None:
        return True
    return delta.peak_bytes + DELTA_FLOOR_BYTES <= available_bytes * MEMORY_SHARE_MAX


def _choose(blob: Descriptor, deltas: Sequence[Delta], holding: Holding, barred: Collection[Digest]) -> Way:
    missing = blob.size - min(blob.size, holding.partial_bytes(blob.digest))
    best = Way(blob, None, missing, missing, missing)
    if missing == 0 or holding.is_near(blob):
        return best
    for delta in deltas:
        if not _is_usable(delta, blob, holding) or delta.digest in barred:
            continue
        comes = 0 if holding.has(delta.digest) else delta.bytes - min(delta.bytes, holding.partial_bytes(delta.digest))
        if comes >= best.network_bytes or not holding.can_make(delta):
            continue
        is_made = blob.size - min(blob.size, holding.made_bytes(delta))
        best = Way(blob, delta, comes, missing, comes + is_made + min(blob.size, DELTA_RECORD_BYTES))
    return best


def _is_usable(delta: Delta, blob: Descriptor, holding: Holding) -> bool:
    return (
        delta.format == FORMAT
        and delta.new == blob.digest
        and delta.new_bytes == blob.size
        and fits_memory(delta, holding.available_bytes)
        and holding.has(delta.base)
    )
