"""What is written is read as the same, and the same value gives the same bytes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_contract.deployment import Artifact, Assignment, Policy, director_custom, read_director_custom
from edge_contract.jsonio import dump, parse_object
from edge_contract.limits import MIB
from edge_contract.manifest import Index, Manifest
from edge_contract.runtime import Runtime
from edge_contract.signed import Envelope
from edge_contract.telemetry import Ack, Batch
from edge_contract.tensors import TensorSpec
from edge_contract.twin import Nudge, Report
from tests.unit.contract import strategies as some

few = settings(max_examples=40, deadline=None)


@few
@given(some.manifests())
def test_manifest(value: Manifest) -> None:
    assert Manifest.parse(value.to_bytes()) == value


@few
@given(some.indexes())
def test_index(value: Index) -> None:
    assert Index.parse(value.to_bytes()) == value


@few
@given(some.runtimes)
def test_runtime(value: Runtime) -> None:
    assert Runtime.parse(value.to_bytes()) == value
    assert Runtime.parse(value.to_bytes()).to_bytes() == value.to_bytes()


@few
@given(some.tensors)
def test_tensor(value: TensorSpec) -> None:
    assert TensorSpec.from_json(value.to_json()) == value


@few
@given(some.reports)
def test_report(value: Report) -> None:
    assert Report.parse(value.to_bytes()) == value


@few
@given(some.batches)
def test_batch(value: Batch) -> None:
    assert Batch.parse(value.to_bytes()) == value


@few
@given(some.acks)
def test_ack(value: Ack) -> None:
    assert Ack.parse(value.to_bytes()) == value


@few
@given(some.counts)
def test_nudge(version: int) -> None:
    assert Nudge.parse(Nudge(version).to_bytes()) == Nudge(version)


@few
@given(some.assignments)
def test_assignment(value: Assignment) -> None:
    assert Assignment.from_json(parse_object(dump(value.to_json()), "assignment", MIB)) == value
    assert read_director_custom(director_custom([value]), value.manifest, value.manifest_bytes) == (value,)


@few
@given(some.envelopes)
def test_envelope(value: Envelope) -> None:
    assert Envelope.parse(value.to_bytes()) == value


@few
@given(some.artifacts)
def test_artifact(value: Artifact) -> None:
    assert Artifact.from_json(value.to_json()) == value


@given(st.integers(0, 1_000_000))
def test_a_signed_ratio_does_not_drift_however_often_it_is_written_and_read(ppm: int) -> None:
    policy = Policy.from_json({"sampling_ppm": ppm})
    assert Policy.from_json(policy.to_custom()) == policy
    assert policy.to_custom()["sampling_ppm"] == ppm


@few
@given(some.json_objects)
def test_any_json(value: dict[str, object]) -> None:
    assert parse_object(dump(value), "document", MIB) == value
    assert dump(parse_object(dump(value), "document", MIB)) == dump(value)
