"""Blobs by deltas, as the shell gets them: chosen by what is here, and the whole blob behind everything that fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.limits import DELTA_FETCH_FAILURES_MAX
from edge_agent.shell.dispatch import Dispatcher
from edge_contract.delta import Delta
from edge_contract.deployment import Assignment
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.manifest import Descriptor, Manifest, Role
from tests.unit.shell.device import Device
from tests.unit.shell.fakes import PLATFORM, FakeMaker

GOOD, SMALL = b"the delta", b"small"


class Bench:
    """A device that holds version 1, and version 2 with two deltas from it."""

    def __init__(self) -> None:
        device = Device()
        self.cloud, self.store, self.gauge = device.cloud, device.store, device.gauge
        self.maker = FakeMaker(self.cloud, self.store)
        self.outside = replace(device.dispatcher._out, maker=self.maker)
        self.dispatcher = Dispatcher(PLATFORM, "", self.outside)
        self.first = self.cloud.publish(1, padding_bytes=1_000)
        self.run(do.ResolveBundle, self.first)
        self.run(do.FetchBlobs, self.first)
        second = self.cloud.publish(2, padding_bytes=1_000)
        self.base, self.new = self.weights(self.first), self.weights(second)
        self.good, self.small = self.delta(GOOD), self.delta(SMALL)
        self.second = replace(second, deltas=(self.good, self.small))
        self.store.fetched.clear()
        self.before = self.dispatcher.network_bytes

    def weights(self, assignment: Assignment) -> Digest:
        """The file of the model."""
        return Manifest.parse(self.cloud.blobs[assignment.manifest]).with_role(Role.MODEL)[0].digest

    def delta(self, data: bytes) -> Delta:
        """One from version 1's file to version 2's, in the cloud."""
        self.cloud.blobs[Digest.of(data)] = data
        lengths = [len(self.cloud.blobs[digest]) for digest in (self.base, self.new)]
        return Delta(self.base, lengths[0], self.new, lengths[1], Digest.of(data), len(data), 1_000)

    def run(self, kind: type[do.BundleCommand], assignment: Assignment, is_cancelled: bool = False) -> inputs.Event:
        """Carry out one command."""
        event = self.dispatcher.execute(kind(1, assignment), lambda: is_cancelled)  # type: ignore[arg-type]
        assert event is not None
        return event

    def update(self, assignment: Assignment | None = None) -> inputs.Event:
        """Resolve and fetch version 2."""
        chosen = assignment or self.second
        assert isinstance(self.run(do.ResolveBundle, chosen), inputs.BundleResolved)
        return self.run(do.FetchBlobs, chosen)

    @property
    def came(self) -> int:
        """Bytes over the network for version 2, its two small documents left out."""
        manifest = Manifest.parse(self.cloud.blobs[self.second.manifest])
        small = {self.second.manifest, *(blob.digest for blob in manifest.blobs)} - {self.new}
        documents = [blob for blob in self.store.fetched if blob in small]
        return self.dispatcher.network_bytes - self.before - sum(len(self.cloud.blobs[blob]) for blob in documents)

    @property
    def size(self) -> int:
        """Length of what is to be made."""
        return len(self.cloud.blobs[self.new])


def test_the_smallest_delta_makes_the_blob_and_is_dropped() -> None:
    bench = Bench()
    assert isinstance(bench.update(), inputs.BlobsFetched)
    assert bench.maker.made == [bench.small.digest]
    assert bench.came == len(SMALL)
    assert bench.dispatcher.saved_bytes == bench.size - len(SMALL)
    assert bench.store.present[bench.new] == bench.cloud.blobs[bench.new]
    assert bench.small.digest not in bench.store.present


def test_a_delta_that_fails_is_replaced_by_the_next_one_and_then_by_the_whole_blob() -> None:
    bench = Bench()
    bench.maker.bad[bench.small.digest] = EdgeError("artifact.delta-invalid", "nonsense")
    assert isinstance(bench.update(), inputs.BlobsFetched)
    assert bench.maker.made == [bench.good.digest]
    bench = Bench()
    for delta in (bench.good, bench.small):
        bench.maker.bad[delta.digest] = EdgeError("internal.bug", "it crashed")
    assert isinstance(bench.update(), inputs.BlobsFetched)
    assert bench.came == len(SMALL) + len(GOOD) + bench.size
    assert bench.dispatcher.saved_bytes == 0
    assert not {bench.good.digest, bench.small.digest} & set(bench.store.present)


def test_only_so_many_deltas_are_tried_for_one_blob() -> None:
    bench = Bench()
    many = tuple(bench.delta(b"x" * size) for size in range(1, 10))
    for delta in many:
        bench.maker.bad[delta.digest] = EdgeError("artifact.delta-invalid", "nonsense")
    assert isinstance(bench.update(replace(bench.second, deltas=many)), inputs.BlobsFetched)
    assert bench.came == 1 + 2 + bench.size


def test_what_a_failed_delta_made_is_not_fetched_again() -> None:
    bench = Bench()
    for delta in (bench.good, bench.small):
        bench.maker.bad[delta.digest] = EdgeError("artifact.delta-invalid", "nonsense")
    bench.maker.vouched[bench.new] = 700
    bench.update()
    assert bench.came == len(SMALL) + len(GOOD) + bench.size - 700


@pytest.mark.parametrize(
    "code", ["artifact.not-found", "artifact.digest-mismatch", "network.refused", "cloud.bad-request"]
)
def test_a_delta_that_the_registry_does_not_give_is_done_without(code: str) -> None:
    bench = Bench()
    for delta in (bench.good, bench.small):
        bench.store.fail_for[delta.digest] = EdgeError(code, "no")
    assert isinstance(bench.update(), inputs.BlobsFetched)
    assert bench.came == bench.size


def test_a_bad_line_is_waited_for_and_a_delta_of_which_nothing_ever_comes_is_not() -> None:
    bench = Bench()
    bench.second = replace(bench.second, deltas=(bench.good,))
    bench.store.fail_for[bench.good.digest] = EdgeError("network.cut", "the connection ended")
    for come in range(1, 6):
        bench.store.partial[bench.good.digest] = come
        event = bench.update()
        assert isinstance(event, inputs.CommandFailed)
        assert event.code == "network.cut"
    for _ in range(DELTA_FETCH_FAILURES_MAX - 2):
        assert isinstance(bench.update(), inputs.CommandFailed)
    assert isinstance(bench.update(), inputs.BlobsFetched)
    assert bench.came == bench.size
    assert bench.store.partial_bytes(bench.good.digest) == 0


@pytest.mark.parametrize("code", ["network.unreachable", "network.refused"])
def test_while_nothing_comes_at_all_what_came_of_a_delta_stays(code: str) -> None:
    bench = Bench()
    bench.second = replace(bench.second, deltas=(bench.good,))
    bench.store.partial[bench.good.digest] = 5
    bench.store.fail_for = {digest: EdgeError(code, "no line") for digest in (bench.good.digest, bench.new)}
    for _ in range(DELTA_FETCH_FAILURES_MAX + 2):
        assert isinstance(bench.update(), inputs.CommandFailed)
    bench.store.fail_for.clear()
    assert isinstance(bench.update(), inputs.BlobsFetched)
    assert bench.maker.made == [bench.good.digest]
    assert bench.came == len(GOOD) - 5


def test_what_came_of_a_delta_stays_only_where_the_blob_has_room_beside_it() -> None:
    bench = Bench()
    bench.second = replace(bench.second, deltas=(bench.good,))
    bench.store.partial[bench.good.digest] = 5
    bench.store.fail_for = {digest: EdgeError("network.refused", "no") for digest in (bench.good.digest, bench.new)}
    fetch = bench.store.fetch

    def filling(repository: str, blob: Descriptor, is_cancelled: Callable[[], bool]) -> int:
        if blob.digest == bench.good.digest:
            bench.store.room_bytes = 0
        return fetch(repository, blob, is_cancelled)

    bench.store.fetch = filling  # type: ignore[method-assign]
    assert isinstance(bench.update(), inputs.CommandFailed)
    assert bench.store.partial_bytes(bench.good.digest) == 0


def test_bytes_that_came_before_the_line_broke_off_are_counted() -> None:
    bench = Bench()
    bench.second = replace(bench.second, deltas=())
    fetch = bench.store.fetch

    def breaking(repository: str, blob: Descriptor, is_cancelled: Callable[[], bool]) -> int:
        if blob.digest == bench.new and not bench.store.partial.get(blob.digest):
            bench.store.partial[blob.digest] = 600
            raise EdgeError("network.cut", "the connection ended")
        return fetch(repository, blob, is_cancelled)

    bench.store.fetch = breaking  # type: ignore[method-assign]
    assert isinstance(bench.update(), inputs.CommandFailed)
    assert isinstance(bench.update(), inputs.BlobsFetched)
    assert bench.came == bench.size


def test_what_was_fetched_of_a_delta_is_not_fetched_again() -> None:
    bench = Bench()
    bench.store.partial[bench.small.digest] = 3
    bench.update()
    assert bench.came == len(SMALL) - 3


def test_a_cancelled_download_tries_nothing_else() -> None:
    bench = Bench()
    bench.run(do.ResolveBundle, bench.second)
    made = list(bench.store.fetched)
    event = bench.run(do.FetchBlobs, bench.second, is_cancelled=True)
    assert isinstance(event, inputs.CommandFailed)
    assert event.code == "network.cut"
    assert bench.store.fetched == made


def test_a_decoding_that_is_cancelled_is_not_replaced() -> None:
    bench = Bench()
    bench.run(do.ResolveBundle, bench.second)
    wanted = [True]
    bench.maker.bad[bench.small.digest] = EdgeError("network.cut", "making it was cancelled")
    fetch = bench.store.fetch

    def cancelling(*asked: object) -> int:
        wanted.clear()
        return fetch(*asked)  # type: ignore[arg-type]

    bench.store.fetch = cancelling  # type: ignore[method-assign, assignment]
    ways = bench.dispatcher._fetching.plan(
        Manifest.parse(bench.cloud.blobs[bench.second.manifest]).with_role(Role.MODEL), bench.second.deltas, 0
    )
    with pytest.raises(EdgeError, match="cancelled"):
        bench.dispatcher._fetching.get("bundles/digits", ways[0], bench.second.deltas, lambda: not wanted)
    assert bench.new not in bench.store.present
    assert bench.small.digest in bench.store.present


def test_memory_for_the_model_alone_means_no_delta() -> None:
    bench = Bench()
    bench.gauge.free_bytes = 30_000_000
    bench.update()
    assert bench.maker.made == []
    assert bench.came == bench.size


def test_a_device_that_cannot_decode_fetches_the_whole_blob_and_nothing_before() -> None:
    bench = Bench()
    bench.maker.unable |= {bench.good.digest, bench.small.digest}
    bench.update()
    assert bench.came == bench.size
    bench = Bench()
    bench.dispatcher = Dispatcher(PLATFORM, "", replace(bench.outside, maker=None))
    bench.update()
    assert bench.maker.made == []


def test_a_disk_with_room_for_the_blob_alone_gets_the_blob_alone() -> None:
    """What was begun by deltas makes room, and what they vouched for is kept."""
    bench = Bench()
    manifest = Manifest.parse(bench.cloud.blobs[bench.second.manifest])
    other = sum(
        blob.size for blob in manifest.blobs if blob.digest != bench.new and blob.digest not in bench.store.present
    )
    bench.store.room_bytes = bench.size + other + bench.outside.slots.bytes_needed(manifest)
    bench.store.partial[bench.good.digest] = 5
    bench.maker.vouched[bench.new] = 400
    event = bench.run(do.ResolveBundle, bench.second)
    assert isinstance(event, inputs.BundleResolved)
    assert bench.store.partial_bytes(bench.good.digest) == 0
    assert bench.store.partial_bytes(bench.new) == 400
    bench.run(do.FetchBlobs, bench.second)
    assert bench.maker.made == []
    assert bench.came == bench.size - 400


def test_what_is_needed_on_the_disk_is_told() -> None:
    bench = Bench()
    without = bench.run(do.ResolveBundle, replace(bench.second, deltas=()))
    with_delta = bench.run(do.ResolveBundle, bench.second)
    assert isinstance(without, inputs.BundleResolved)
    assert isinstance(with_delta, inputs.BundleResolved)
    assert with_delta.plan_bytes == without.plan_bytes + len(SMALL) + bench.size


def test_content_beside_the_agent_wins_over_every_delta() -> None:
    bench = Bench()
    bench.store.near.add(bench.new)
    bench.update()
    assert bench.maker.made == []


def test_a_damaged_slot_is_healed_by_a_delta_too() -> None:
    bench = Bench()
    bench.update()
    bench.run(do.StageSlot, bench.second)
    bench.store.present.pop(bench.new)
    assert isinstance(bench.run(do.HealSlot, bench.second), inputs.SlotHealed)
    assert bench.maker.made == [bench.small.digest] * 2


def test_deltas_of_a_download_under_way_are_no_garbage() -> None:
    bench = Bench()
    bench.store.present[bench.good.digest] = GOOD
    bench.dispatcher.execute(do.CollectGarbage(frozenset({bench.first.manifest}), frozenset({bench.good.digest})))
    assert bench.good.digest in bench.store.present
    bench.dispatcher.execute(do.CollectGarbage(frozenset({bench.first.manifest})))
    assert bench.good.digest not in bench.store.present
