"""`ports.ModelServer`: real worker processes, and what stands in for them on a simulated device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from device_sim.live.models import ModelRoom
from device_sim.live.server import RoomServer
from edge_agent.ports import Attestation, ModelServer
from edge_agent.serving.supervisor import WorkerSupervisor
from edge_contract.deployment import Policy
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.runtime import Member
from edge_contract.terms import Trial
from tests.integration.serving import PATIENT
from tests.support.slots import adder, adder_golden, adder_slot, write_slot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

IMPLEMENTATIONS = ("workers", "room")
LEFT, RIGHT = "left", "right"
TRIAL = Trial(60_000)

Bundle = tuple[Digest, Path]


@dataclass
class Rig:
    """A server under test and bundles for it.

    Attributes:
        server: The implementation.
        one: A good bundle.
        two: Another one.
        bad: One whose outputs are not what its golden vectors say.
    """

    server: ModelServer
    one: Bundle
    two: Bundle
    bad: Bundle
    slots: Path


@pytest.fixture(params=IMPLEMENTATIONS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    run_dir, slots = tmp_path / "run", tmp_path / "slots"
    run_dir.mkdir()
    server: ModelServer
    if request.param == "workers":
        server = WorkerSupervisor(run_dir, lambda *_: None, lambda *_: None, limits=PATIENT)
    else:
        server = RoomServer(ModelRoom())
    bad = write_slot(
        slots, [Member("digits", "onnx", "model.onnx")], {"model.onnx": adder(7)}, version=3, golden=adder_golden(8)
    )
    try:
        yield Rig(server, adder_slot(slots, 1.0), adder_slot(slots, 2.0, version=2), bad, slots)
    finally:
        server.close()


def _code(caught: pytest.ExceptionInfo[EdgeError]) -> str:
    return caught.value.code


def test_nothing_is_served_before_something_was_activated(rig: Rig) -> None:
    assert not rig.server.health(LEFT).is_alive
    assert rig.server.memory_bytes(LEFT) == 0
    with pytest.raises(EdgeError) as caught:
        rig.server.attest(LEFT)
    assert _code(caught) == "model.not-serving"
    rig.server.prove(LEFT, *rig.one)
    assert not rig.server.health(LEFT).is_alive
    with pytest.raises(EdgeError) as caught:
        rig.server.attest(LEFT)
    assert _code(caught) == "model.not-serving"


def test_what_was_proved_is_what_is_attested(rig: Rig) -> None:
    golden = rig.server.prove(LEFT, *rig.one)
    assert golden is not None
    assert rig.server.activate(LEFT, rig.one[0]) == 0
    assert rig.server.health(LEFT).is_alive
    assert rig.server.memory_bytes(LEFT) > 0
    for _ in range(3):
        assert rig.server.attest(LEFT) == Attestation(rig.one[0], golden)


def test_a_bundle_without_golden_vectors_is_attested_without_a_digest(rig: Rig) -> None:
    plain = adder_slot(rig.slots, 5.0, version=5, golden=False)
    assert rig.server.ensure(LEFT, *plain) is None
    assert rig.server.attest(LEFT) == Attestation(plain[0], None)


def test_only_a_proved_candidate_can_be_activated(rig: Rig) -> None:
    rig.server.ensure(LEFT, *rig.one)
    with pytest.raises(EdgeError) as caught:
        rig.server.activate(LEFT, rig.two[0])
    assert _code(caught) == "model.worker-crashed"
    rig.server.prove(LEFT, *rig.two)
    rig.server.discard(LEFT)
    with pytest.raises(EdgeError):
        rig.server.activate(LEFT, rig.two[0])
    assert rig.server.activate(LEFT, rig.one[0]) == 0, "what is live already stays"
    assert rig.server.attest(LEFT).manifest == rig.one[0]


def test_a_refused_candidate_leaves_the_live_bundle_alone(rig: Rig) -> None:
    golden = rig.server.ensure(LEFT, *rig.one)
    with pytest.raises(EdgeError) as caught:
        rig.server.prove(LEFT, *rig.bad)
    assert _code(caught) == "model.golden-mismatch"
    assert rig.server.attest(LEFT) == Attestation(rig.one[0], golden)
    assert rig.server.health(LEFT).is_alive


def test_ensuring_what_serves_changes_nothing_and_another_swaps(rig: Rig) -> None:
    first = rig.server.ensure(LEFT, *rig.one)
    assert rig.server.ensure(LEFT, *rig.one) == first
    second = rig.server.ensure(LEFT, *rig.two)
    assert second != first
    assert rig.server.attest(LEFT) == Attestation(rig.two[0], second)


def test_workers_that_overlap_leave_no_gap(rig: Rig) -> None:
    rig.server.ensure(LEFT, *rig.one)
    rig.server.prove(LEFT, *rig.two)
    assert rig.server.activate(LEFT, rig.two[0]) == 0


def test_a_restart_serves_the_same_bundle_from_a_fresh_worker(rig: Rig) -> None:
    golden = rig.server.ensure(LEFT, *rig.one)
    assert rig.server.restart(LEFT, *rig.one) == golden
    assert rig.server.attest(LEFT) == Attestation(rig.one[0], golden)
    health = rig.server.health(LEFT)
    assert (health.is_alive, health.requests, health.failures) == (True, 0, 0)


def test_a_restart_starts_what_does_not_run(rig: Rig) -> None:
    rig.server.restart(LEFT, *rig.one)
    assert rig.server.attest(LEFT).manifest == rig.one[0]


def test_a_pause_ends_the_live_worker_and_the_next_one_follows(rig: Rig) -> None:
    rig.server.ensure(LEFT, *rig.one)
    rig.server.pause(LEFT)
    assert not rig.server.health(LEFT).is_alive
    assert rig.server.memory_bytes(LEFT) == 0
    with pytest.raises(EdgeError) as caught:
        rig.server.attest(LEFT)
    assert _code(caught) == "model.not-serving"
    rig.server.pause(LEFT)  # once more is the same
    golden = rig.server.prove(LEFT, *rig.two)
    gap_ms = rig.server.activate(LEFT, rig.two[0])
    assert isinstance(gap_ms, int)
    assert 0 <= gap_ms < 60_000
    assert rig.server.attest(LEFT) == Attestation(rig.two[0], golden)
    rig.server.prove(LEFT, *rig.one)
    assert rig.server.activate(LEFT, rig.one[0]) == 0, "the gap is over"


def test_a_pause_of_nothing_is_nothing(rig: Rig) -> None:
    rig.server.pause(LEFT)
    rig.server.prove(LEFT, *rig.one)
    assert rig.server.activate(LEFT, rig.one[0]) == 0


def test_after_a_pause_the_old_bundle_comes_back_when_the_new_one_is_refused(rig: Rig) -> None:
    golden = rig.server.ensure(LEFT, *rig.one)
    rig.server.pause(LEFT)
    with pytest.raises(EdgeError):
        rig.server.prove(LEFT, *rig.bad)
    assert rig.server.ensure(LEFT, *rig.one) == golden
    assert rig.server.attest(LEFT) == Attestation(rig.one[0], golden)


def test_a_stopped_module_serves_again_when_told(rig: Rig) -> None:
    rig.server.ensure(LEFT, *rig.one)
    rig.server.prove(LEFT, *rig.two)
    rig.server.stop(LEFT)
    assert not rig.server.health(LEFT).is_alive
    with pytest.raises(EdgeError):
        rig.server.activate(LEFT, rig.two[0])
    rig.server.prove(LEFT, *rig.one)
    assert rig.server.activate(LEFT, rig.one[0]) == 0, "a module that was stopped owes its clients nothing"


def test_modules_do_not_meddle_with_each_other(rig: Rig) -> None:
    rig.server.ensure(LEFT, *rig.one)
    rig.server.ensure(RIGHT, *rig.one)
    rig.server.ensure(RIGHT, *rig.two)
    rig.server.pause(LEFT)
    assert rig.server.health(RIGHT).is_alive
    assert rig.server.attest(RIGHT).manifest == rig.two[0]
    rig.server.stop(RIGHT)
    rig.server.ensure(LEFT, *rig.one)
    assert rig.server.attest(LEFT).manifest == rig.one[0]


def test_closing_ends_everything(rig: Rig) -> None:
    rig.server.ensure(LEFT, *rig.one)
    rig.server.prove(RIGHT, *rig.two)
    rig.server.close()
    assert not rig.server.health(LEFT).is_alive
    assert rig.server.memory_bytes(LEFT) == 0


def test_a_trial_needs_a_live_worker_and_a_candidate(rig: Rig) -> None:
    with pytest.raises(EdgeError) as caught:
        rig.server.begin_trial(LEFT, TRIAL)
    assert _code(caught) == "model.worker-crashed"
    rig.server.ensure(LEFT, *rig.one)
    with pytest.raises(EdgeError) as caught:
        rig.server.begin_trial(LEFT, TRIAL)
    assert _code(caught) == "model.worker-crashed"
    with pytest.raises(EdgeError) as caught:
        rig.server.trial(LEFT)
    assert _code(caught) == "model.worker-crashed"


def test_a_trial_leaves_what_is_live_and_what_is_proved_alone(rig: Rig) -> None:
    golden = rig.server.ensure(LEFT, *rig.one)
    rig.server.prove(LEFT, *rig.two, Policy(trial=TRIAL))
    rig.server.begin_trial(LEFT, TRIAL)
    rig.server.begin_trial(LEFT, TRIAL)
    assert rig.server.trial(LEFT).compared == 0, "nobody was asked anything"
    assert rig.server.attest(LEFT) == Attestation(rig.one[0], golden)
    assert rig.server.activate(LEFT, rig.two[0]) == 0
    with pytest.raises(EdgeError):
        rig.server.trial(LEFT)
