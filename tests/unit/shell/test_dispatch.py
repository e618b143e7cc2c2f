"""One command, the port calls it stands for, and the event that completes it."""

from dataclasses import replace

import pytest

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.shell.dispatch import Dispatcher, Ports, lane_of
from edge_contract.deployment import Assignment
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.manifest import DATASET_RAW, Manifest, Role
from edge_contract.runtime import Golden, Member, Runtime
from tests.unit.shell.device import Device
from tests.unit.shell.fakes import PLATFORM, Cloud


class Bench:
    """A dispatcher with fakes."""

    def __init__(self, hardware_id: str = "") -> None:
        device = Device()
        self.cloud, self.store, self.slots, self.server = device.cloud, device.store, device.slots, device.server
        self.out: Ports = device.dispatcher._out
        self.dispatcher = Dispatcher(PLATFORM, hardware_id, self.out)

    def run(self, command: do.Command) -> inputs.Event | None:
        return self.dispatcher.execute(command)

    def fetched(self, assignment: Assignment) -> None:
        """Everything up to staging."""
        for kind in (do.ResolveBundle, do.FetchBlobs, do.VerifyBlobs):
            assert not isinstance(self.run(kind(1, assignment)), inputs.CommandFailed)


def _repacked(cloud: Cloud, assignment: Assignment, has_layer: bool, says_golden: bool) -> Assignment:
    """The same bundle with or without golden vectors, which its runtime descriptor names or not."""
    manifest = Manifest.parse(cloud.blobs[assignment.manifest])
    golden = cloud._blob(DATASET_RAW, b"vectors", Role.GOLDEN, Golden().path)
    runtime = Runtime("digits", 1, (Member("digits", "onnx", "model.onnx"),), Golden() if says_golden else None)
    data = runtime.to_bytes()
    cloud.blobs[Digest.of(data)] = data
    layers = [
        replace(layer, digest=Digest.of(data), size=len(data)) if layer.role == Role.RUNTIME else layer
        for layer in manifest.layers
    ]
    packed = Manifest(manifest.config, (*layers, golden) if has_layer else tuple(layers)).to_bytes()
    cloud.blobs[Digest.of(packed)] = packed
    return replace(assignment, manifest=Digest.of(packed), manifest_bytes=len(packed))


@pytest.mark.parametrize(("has_layer", "says_golden"), [(True, False), (False, True)])
def test_golden_vectors_that_nobody_would_look_at_are_refused(has_layer: bool, says_golden: bool) -> None:
    """A bundle that carries golden vectors its descriptor does not name would go live unproved."""
    bench = Bench()
    assignment = _repacked(bench.cloud, bench.cloud.publish(1), has_layer, says_golden)
    bench.fetched(assignment)
    event = bench.run(do.StageSlot(1, assignment))
    assert isinstance(event, inputs.CommandFailed)
    assert event.code == "artifact.runtime-invalid"
    assert not bench.slots.staged


@pytest.mark.parametrize("both", [True, False])
def test_golden_vectors_that_are_named_are_staged(both: bool) -> None:
    bench = Bench()
    assignment = _repacked(bench.cloud, bench.cloud.publish(1), both, both)
    bench.fetched(assignment)
    assert isinstance(bench.run(do.StageSlot(1, assignment)), inputs.SlotStaged)


@pytest.mark.parametrize("kind", [do.FetchBlobs, do.VerifyBlobs])
def test_work_that_nobody_wants_any_more_ends_at_the_next_blob(kind: type[do.BundleCommand]) -> None:
    bench = Bench()
    assignment = bench.cloud.publish(1)
    bench.fetched(assignment)
    seen: list[Digest] = []
    verify = bench.store.verify

    def watched(digest: Digest, size: int) -> None:
        seen.append(digest)
        verify(digest, size)

    bench.store.verify = watched  # type: ignore[method-assign]
    event = bench.dispatcher.execute(kind(1, assignment), lambda: True)  # type: ignore[arg-type]
    assert isinstance(event, inputs.CommandFailed)
    assert event.code == "network.cut"
    assert len(seen) <= 1


@pytest.mark.parametrize(("hardware_id", "is_fit"), [("jetson", True), ("pi", False), ("", False)])
def test_hardware_that_an_artifact_is_not_for_is_refused(hardware_id: str, is_fit: bool) -> None:
    bench = Bench(hardware_id)
    assignment = bench.cloud.publish(1)
    assignment = replace(assignment, artifact=replace(assignment.artifact, hardware_ids=("jetson", "orin")))
    event = bench.run(do.ResolveBundle(1, assignment))
    assert isinstance(event, inputs.BundleResolved) is is_fit


def test_garbage_is_everything_that_no_bundle_to_keep_mentions() -> None:
    bench = Bench()
    first, second = bench.cloud.publish(1), bench.cloud.publish(2)
    for assignment in (first, second):
        bench.fetched(assignment)
        bench.run(do.StageSlot(1, assignment))
    assert bench.run(do.CollectGarbage(frozenset({second.manifest}))) is None
    assert bench.slots.staged == {second.manifest}
    kept = Manifest.parse(bench.store.present[second.manifest])
    assert set(bench.store.present) == {second.manifest, *(blob.digest for blob in kept.blobs)}


def test_nothing_is_swept_when_a_manifest_cannot_be_read() -> None:
    bench = Bench()
    assignment = bench.cloud.publish(1)
    bench.fetched(assignment)
    before = dict(bench.store.present)
    bench.store.present[assignment.manifest] = b"{}"
    assert bench.run(do.CollectGarbage(frozenset({assignment.manifest}))) is None
    assert set(bench.store.present) == set(before)


@pytest.mark.parametrize(
    "command", [do.DiscardCandidate("digits"), do.SetSampling("digits", 0.5), do.CollectGarbage(frozenset())]
)
def test_housekeeping_that_fails_is_no_reason_to_end(command: do.Command) -> None:
    bench = Bench()

    def broken(*_: object) -> None:
        raise EdgeError("device.disk-error", "no")

    bench.server.discard = bench.server.set_sampling = broken  # type: ignore[method-assign,assignment]
    bench.slots.collect = broken  # type: ignore[method-assign,assignment]
    assert bench.run(command) is None


def test_an_operating_error_completes_the_command_and_a_bug_passes_through() -> None:
    bench = Bench()
    event = bench.run(do.VerifyBlobs(7, bench.cloud.publish(1)))
    assert event == inputs.CommandFailed(7, "artifact.not-found", event.detail)  # type: ignore[union-attr]

    def broken(module: str) -> None:
        raise ZeroDivisionError

    bench.server.health = broken  # type: ignore[method-assign,assignment]
    with pytest.raises(ZeroDivisionError):
        bench.run(do.ObserveHealth(1, "digits"))


def test_what_the_loop_does_itself_has_no_lane() -> None:
    for command in (do.Persist({}), do.SendReport(), do.CancelOperation(1)):
        with pytest.raises(KeyError):
            lane_of(command)
        with pytest.raises(AssertionError):
            Bench().run(command)
