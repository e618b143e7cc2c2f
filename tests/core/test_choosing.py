"""How a blob gets here: by whatever brings fewest bytes over the network, among what this device can do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.choosing import Holding, Way, choose_ways, fits_memory, whole
from edge_agent.limits import DELTA_FLOOR_BYTES, DELTA_RECORD_BYTES
from edge_contract.delta import Delta
from edge_contract.digest import Digest
from edge_contract.limits import MIB
from edge_contract.manifest import WEIGHT_RAW, Descriptor

NEW = Descriptor(WEIGHT_RAW, Digest.of(b"new"), 10_000)
OTHER = Descriptor(WEIGHT_RAW, Digest.of(b"other"), 500)
LIVE, FALLBACK = Digest.of(b"live"), Digest.of(b"fallback")


def delta(size: int, base: Digest = LIVE, new: Descriptor = NEW) -> Delta:
    return Delta(base, 9_000, new.digest, new.size, Digest.of(f"{base} {size}".encode()), size, 1_000)


@dataclass
class Disk:
    """What is on a device."""

    whole: set[Digest] = field(default_factory=lambda: {LIVE, FALLBACK})
    partial: dict[Digest, int] = field(default_factory=dict)
    near: set[Digest] = field(default_factory=set)
    unable: set[Digest] = field(default_factory=set)
    made: dict[Digest, int] = field(default_factory=dict)
    free_bytes: int | None = None

    @property
    def holding(self) -> Holding:
        """As a choice sees it."""
        return Holding(
            self.whole.__contains__,
            lambda digest: self.partial.get(digest, 0),
            lambda blob: blob.digest in self.near,
            lambda item: item.digest not in self.unable,
            lambda item: self.made.get(item.digest, 0),
            self.free_bytes,
        )

    def choose(self, *deltas: Delta, barred: frozenset[Digest] = frozenset()) -> Way:
        """How `NEW` gets here."""
        (way,) = choose_ways([NEW], deltas, self.holding, barred)
        return way


def test_without_deltas_what_is_missing_comes_whole() -> None:
    disk = Disk(partial={NEW.digest: 4_000})
    assert disk.choose() == Way(NEW, None, 6_000, 6_000, 6_000)


def test_what_is_here_needs_no_way_and_what_is_named_twice_needs_one() -> None:
    disk = Disk(whole={NEW.digest})
    assert [way.blob for way in choose_ways([NEW, OTHER, OTHER], (), disk.holding)] == [OTHER]


def test_the_smallest_delta_from_anything_that_is_here_wins() -> None:
    small, smaller, smallest = delta(3_000), delta(2_000, FALLBACK), delta(1_000, Digest.of(b"not here"))
    way = Disk().choose(small, smaller, smallest)
    assert (way.delta, way.network_bytes, way.whole_bytes) == (smaller, 2_000, 10_000)


def test_space_is_counted_for_the_delta_its_output_and_its_record() -> None:
    assert Disk().choose(delta(3_000)).disk_bytes == 3_000 + 10_000 + 10_000
    begun = Disk(made={delta(3_000).digest: 4_000}, partial={delta(3_000).digest: 1_000})
    assert begun.choose(delta(3_000)).disk_bytes == 2_000 + 6_000 + 10_000
    large = replace(NEW, size=100 * MIB)
    (way,) = choose_ways([large], [replace(delta(3_000), new_bytes=large.size)], Disk().holding)
    assert way.disk_bytes == 3_000 + 100 * MIB + DELTA_RECORD_BYTES


def test_a_download_of_which_less_is_missing_goes_on() -> None:
    found = delta(3_000)
    assert Disk(partial={NEW.digest: 6_999}).choose(found).delta == found
    assert Disk(partial={NEW.digest: 7_000}).choose(found).delta is None
    assert Disk(partial={NEW.digest: 8_000, found.digest: 1_500}).choose(found).delta == found


def test_a_delta_that_is_here_already_costs_nothing() -> None:
    found, smaller = delta(9_000), delta(1, FALLBACK)
    way = Disk(whole={LIVE, FALLBACK, found.digest}).choose(smaller, found)
    assert (way.delta, way.network_bytes) == (found, 0)


def test_a_download_that_lacks_nothing_but_its_name_needs_no_delta() -> None:
    found = delta(1)
    way = Disk(whole={LIVE, found.digest}, partial={NEW.digest: NEW.size}).choose(found)
    assert (way.delta, way.network_bytes) == (None, 0)


def test_what_lies_beside_the_agent_wins_over_every_delta() -> None:
    assert Disk(near={NEW.digest}).choose(delta(1)).delta is None


def test_deltas_that_cannot_be_used_here_are_left_alone() -> None:
    good = delta(3_000)
    assert Disk(unable={good.digest}).choose(good).delta is None
    assert Disk().choose(good, barred=frozenset({good.digest})).delta is None
    assert Disk().choose(replace(good, format="lmd2")).delta is None
    assert Disk().choose(replace(good, new_bytes=9_999)).delta is None
    assert Disk().choose(delta(3_000, new=OTHER)).delta is None
    assert Disk(whole=set()).choose(good).delta is None


def test_memory_that_is_short_means_no_delta() -> None:
    found = replace(delta(3_000), peak_bytes=10 * MIB)
    needed = (10 * MIB + DELTA_FLOOR_BYTES) / 0.9
    assert fits_memory(found, None)
    assert fits_memory(found, int(needed) + 1)
    assert not fits_memory(found, int(needed) - 1)
    assert Disk(free_bytes=int(needed) - 1).choose(found).delta is None
    assert Disk(free_bytes=int(needed) + 1).choose(found).delta == found


def test_a_way_without_its_delta_is_the_whole_blob() -> None:
    assert whole(Disk(partial={NEW.digest: 1_000}).choose(delta(3_000))) == Way(NEW, None, 9_000, 9_000, 9_000)


@given(
    st.lists(st.tuples(st.integers(1, 9_999), st.sampled_from([LIVE, FALLBACK, Digest.of(b"gone")])), max_size=8),
    st.integers(0, 12_000),
    st.integers(0, 9_999),
)
def test_no_choice_costs_more_than_the_whole_blob_and_none_would_cost_less(
    made: list[tuple[int, Digest]], come: int, of_delta: int
) -> None:
    deltas = [delta(size, base) for size, base in made]
    disk = Disk(partial={NEW.digest: come, **{item.digest: of_delta for item in deltas}})
    way = disk.choose(*deltas)
    possible = [max(0, item.bytes - of_delta) for item in deltas if item.base in disk.whole]
    assert way.network_bytes == min([max(0, NEW.size - come), *possible])
    assert way.disk_bytes >= way.network_bytes >= 0
    assert way == disk.choose(*deltas)
