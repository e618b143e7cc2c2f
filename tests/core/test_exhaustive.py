"""Every event in every place a machine can be in: it is a row of the table, or it changes nothing. Late ones too."""

import typing
from collections.abc import Callable
from typing import Any, Final

import pytest

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.update import TABLE, AssignmentChosen, AssignmentWithdrawn, LiveGivenUp
from edge_contract.digest import Digest
from edge_contract.phases import Phase
from edge_contract.terms import Agreement
from tests.core import script
from tests.core.bench import GOLDEN, Bench, assignment
from tests.core.script import (
    Step,
    agrees,
    assigns,
    at,
    dies,
    fails,
    holds,
    is_sick,
    loses_power,
    postpones,
    runs_short,
    steps_once,
    tries,
    waits,
)

NO: Final = ("network.unreachable", "no route")
V1: Final = assignment(1).manifest

SAMPLES: Final[dict[type, Callable[[int], Any]]] = {
    inputs.Started: lambda op: inputs.Started(),
    inputs.TimeReached: lambda op: inputs.TimeReached(),
    inputs.NudgeReceived: lambda op: inputs.NudgeReceived(0),
    inputs.PeriodsChanged: lambda op: inputs.PeriodsChanged(2_000, 3_000),
    inputs.ReportRequested: lambda op: inputs.ReportRequested(),
    inputs.RefreshRequested: lambda op: inputs.RefreshRequested(),
    inputs.RollbackRequested: lambda op: inputs.RollbackRequested(script.MODULE),
    inputs.HoldRequested: lambda op: inputs.HoldRequested(script.MODULE),
    inputs.ResumeRequested: lambda op: inputs.ResumeRequested(script.MODULE),
    inputs.WorkerExited: lambda op: inputs.WorkerExited(script.MODULE, Digest.of(b"of another bundle")),
    inputs.LinkChanged: lambda op: inputs.LinkChanged(is_online=False),
    inputs.CommandFailed: lambda op: inputs.CommandFailed(op, *NO),
    inputs.MetadataRefreshed: lambda op: inputs.MetadataRefreshed(op, 99, ()),
    inputs.BundleResolved: lambda op: inputs.BundleResolved(op, 1),
    inputs.LeaveGiven: lambda op: inputs.LeaveGiven(op),
    inputs.LeavePostponed: lambda op: inputs.LeavePostponed(op, 1_000, "device.postponed", "later"),
    inputs.BlobsFetched: lambda op: inputs.BlobsFetched(op, 1),
    inputs.BlobsVerified: inputs.BlobsVerified,
    inputs.SlotStaged: lambda op: inputs.SlotStaged(op, 1_000, 0.05, 1.0),
    inputs.CandidateProved: lambda op: inputs.CandidateProved(op, GOLDEN),
    inputs.TrialBegun: inputs.TrialBegun,
    inputs.TrialObserved: lambda op: inputs.TrialObserved(op, Agreement(5)),
    inputs.SlotActivated: lambda op: inputs.SlotActivated(op),
    inputs.HealthObserved: lambda op: inputs.HealthObserved(op, True, 1, 0),
    inputs.SlotCommitted: lambda op: inputs.SlotCommitted(op, V1, GOLDEN),
    inputs.SlotRolledBack: lambda op: inputs.SlotRolledBack(op, GOLDEN),
    inputs.LiveServed: lambda op: inputs.LiveServed(op, GOLDEN),
    inputs.LiveAttested: lambda op: inputs.LiveAttested(op, V1, GOLDEN),
    inputs.StoreScrubbed: lambda op: inputs.StoreScrubbed(op, frozenset({V1})),
    inputs.SlotHealed: lambda op: inputs.SlotHealed(op, V1),
}
"""One event of each class; completions of operation `op`."""

COMPLETIONS: Final = [kind for kind in SAMPLES if issubclass(kind, inputs.Completed)]
INTERNAL: Final = (AssignmentChosen(), AssignmentWithdrawn(), LiveGivenUp("model.load-failed", "no"))

PLACES: Final[dict[str, tuple[Phase, tuple[Step, ...]]]] = {
    "idle, resting": (Phase.IDLE, ()),
    "idle, refreshing": (Phase.IDLE, (lambda bench: bench.tell(inputs.RefreshRequested()),)),
    "idle, bringing up": (Phase.IDLE, (loses_power, at("serve"))),
    "idle, proving what answers": (Phase.IDLE, (at("attest"),)),
    "idle, reading the disk": (Phase.IDLE, (at("scrub"),)),
    "resolving": (Phase.RESOLVING, (assigns(2), at("resolve"))),
    "resolving, asking": (Phase.RESOLVING, (assigns(2), at("ask-download"))),
    "resolving, waiting": (Phase.RESOLVING, (fails(do.ResolveBundle, *NO[:1]), assigns(2), waits(0))),
    "resolving, held": (Phase.RESOLVING, (holds, assigns(2), waits(0))),
    "fetching": (Phase.FETCHING, (assigns(2), at("fetch"))),
    "verifying": (Phase.VERIFYING, (assigns(2), at("verify"))),
    "staging": (Phase.STAGING, (assigns(2), at("stage"))),
    "staging, asking": (Phase.STAGING, (assigns(2), at("ask-activate"))),
    "staging, waiting": (Phase.STAGING, (postpones(do.Gate.ACTIVATE, 5_000), assigns(2), waits(0))),
    "testing": (Phase.TESTING, (assigns(2), at("prove"))),
    "testing, alone": (Phase.TESTING, (runs_short, assigns(2), at("prove-alone"))),
    "trying, beginning": (Phase.TRYING, (tries(2), at("try"))),
    "trying": (Phase.TRYING, (tries(2), at("look"))),
    "trying, waiting": (Phase.TRYING, (agrees(0), tries(2, gate=False), at("look"), steps_once)),
    "activating": (Phase.ACTIVATING, (assigns(2), at("activate"))),
    "probation": (Phase.PROBATION, (assigns(2), at("observe"))),
    "probation, waiting": (Phase.PROBATION, (assigns(2), at("activate"), waits(0))),
    "probation, bringing up": (Phase.PROBATION, (assigns(2), at("observe"), loses_power, at("serve"))),
    "committing": (Phase.COMMITTING, (assigns(2), at("commit"))),
    "committing, waiting": (Phase.COMMITTING, (fails(do.CommitSlot, *NO[:1]), assigns(2), at("commit"), waits(0))),
    "committing, bringing up": (Phase.COMMITTING, (assigns(2), at("commit"), dies(), at("serve"))),
    "rolling back": (Phase.ROLLING_BACK, (is_sick, assigns(2), at("back"))),
    "rolling back, waiting": (
        Phase.ROLLING_BACK,
        (is_sick, fails(do.RollBack, *NO[:1]), assigns(2), at("back"), waits(0)),
    ),
}


def reach(place: str) -> Bench:
    """A device that ran version 1 and is in this place."""
    phase, steps = PLACES[place]
    bench = Bench(poll_ms=6 * script.HOUR_MS, report_ms=6 * script.HOUR_MS)
    bench.settle(0)
    bench.assign(assignment(1))
    bench.settle()
    for step in steps:
        step(bench)
    assert bench.module["phase"] == phase
    return bench


def all_ops(bench: Bench) -> set[int]:
    """Every operation that was ever begun."""
    return {command.op for command in bench.sent if hasattr(command, "op")}


def under_way(bench: Bench) -> dict[int, do.Command]:
    """Operations that a completion may still come of."""
    return {command.op: command for command in bench.waiting if hasattr(command, "op")}


def test_every_class_of_events_is_fed() -> None:
    assert set(SAMPLES) == set(typing.get_args(inputs.Event))
    assert {phase for phase, _ in PLACES.values()} == set(Phase)
    known = {event for _, event in TABLE}
    assert known <= {*SAMPLES, *map(type, INTERNAL)}


@pytest.mark.parametrize("place", PLACES)
def test_a_completion_of_an_operation_that_is_over_changes_nothing(place: str) -> None:
    bench = reach(place)
    before, trace = bench.core.snapshot(), list(bench.sent)
    late = all_ops(bench) - set(under_way(bench))
    assert late
    for op in [*late, 10**9]:
        for kind in COMPLETIONS:
            assert bench.core.handle(SAMPLES[kind](op), bench.now) == []
    assert bench.core.snapshot() == before
    assert bench.sent == trace


@pytest.mark.parametrize("kind", COMPLETIONS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("place", PLACES)
def test_a_completion_of_what_is_under_way_is_a_row_or_changes_nothing(place: str, kind: type) -> None:
    phase, _ = PLACES[place]
    for op, command in under_way(reach(place)).items():
        bench = reach(place)
        before = bench.core.snapshot()
        commands = bench.core.handle(SAMPLES[kind](op), bench.now)
        module = bench.core.snapshot()["modules"][script.MODULE]
        if is_step(command) and (row := TABLE.get((phase, kind))):
            after = [phase, *row.next_phases] if kind is inputs.CommandFailed else row.next_phases
            assert module["phase"] in after
        elif not is_answer(command, kind):
            assert commands == [], (command, kind)
            assert bench.core.snapshot() == before
            bench.settle(60_000)  # and it still waits for the right one
            assert bench.module["phase"] == Phase.IDLE or bench.module["held"]
        else:
            assert module["phase"] == phase or (phase, LiveGivenUp) in TABLE


def is_step(command: do.Command) -> bool:
    """Whether it is an operation of the update machine, not of what keeps the live bundle and the disk."""
    kinds = (do.RefreshMetadata, do.ScrubStore, do.HealSlot, do.AttestLive, do.ServeLive, do.RestartLive)
    return not isinstance(command, kinds)


def is_answer(command: do.Command, kind: type) -> bool:
    """Whether an event is what this operation, beside the update machine, may complete with."""
    right = {
        do.RefreshMetadata: inputs.MetadataRefreshed,
        do.ScrubStore: inputs.StoreScrubbed,
        do.HealSlot: inputs.SlotHealed,
        do.AttestLive: inputs.LiveAttested,
        do.ServeLive: inputs.LiveServed,
        do.RestartLive: inputs.LiveServed,
    }
    return kind is inputs.CommandFailed or kind is right.get(type(command))


@pytest.mark.parametrize(
    "kind", [kind for kind in SAMPLES if kind not in (*COMPLETIONS, inputs.Started)], ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize("place", PLACES)
def test_what_people_and_the_cloud_say_is_a_row_or_changes_nothing(place: str, kind: type) -> None:
    phase, _ = PLACES[place]
    bench = reach(place)
    before = bench.core.snapshot()["modules"][script.MODULE]
    live = before["live"] and Digest(before["live"]["manifest"])
    if kind is inputs.WorkerExited:
        bench.tell(SAMPLES[kind](0))
        assert bench.core.snapshot()["modules"][script.MODULE] == before, "it was not the live bundle's worker"
        bench.answers.pop(script.MODULE, None)
        bench.tell(inputs.WorkerExited(script.MODULE, live))
    else:
        bench.tell(SAMPLES[kind](0))
    after = bench.core.snapshot()["modules"][script.MODULE]
    row = TABLE.get((phase, kind))
    if row is not None:
        assert after["phase"] in row.next_phases
    else:
        is_mark = kind in (inputs.HoldRequested, inputs.ResumeRequested)
        assert after == (before | {"held": after["held"]} if is_mark else before)
    bench.postponed = {}
    bench.tell(inputs.ResumeRequested())
    bench.settle(60_000)
    assert bench.module["phase"] == Phase.IDLE, "whatever was said, it comes to an end"
    assert bench.module["serving"]


@pytest.mark.parametrize("event", INTERNAL, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("place", PLACES)
def test_what_the_core_says_to_itself_is_a_row_or_changes_nothing(place: str, event: object) -> None:
    phase, _ = PLACES[place]
    bench = reach(place)
    machine = bench.core._modules[script.MODULE]
    before = machine.record.to_json()
    commands = machine.on_event(event, bench.now)
    row = TABLE.get((phase, type(event)))
    if row is None:
        assert commands == []
        assert machine.record.to_json() == before
    else:
        assert machine.record.phase in row.next_phases
