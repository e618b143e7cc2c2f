"""Trials and policies on their way from a command to the workers."""

from dataclasses import replace

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.probation import Baseline
from edge_contract.deployment import Policy
from edge_contract.terms import Agreement, Resources, Trial
from tests.unit.shell.test_dispatch import Bench

TRIAL = Trial(5_000, gate=True)
POLICY = Policy(allow_pickle=True, resources=Resources(nice=3), trial=TRIAL)


def test_a_candidate_is_proved_tried_and_activated_under_its_policy() -> None:
    bench = Bench()
    live = bench.cloud.publish(1)
    bench.fetched(live)
    bench.run(do.StageSlot(1, live))
    bench.run(do.ProveCandidate(2, live))
    assert bench.run(do.ActivateSlot(3, live)) == inputs.SlotActivated(3, 0, Baseline())
    candidate = replace(bench.cloud.publish(2), policy=POLICY)
    bench.fetched(candidate)
    bench.run(do.StageSlot(4, candidate))
    bench.run(do.ProveCandidate(5, candidate))
    assert bench.server.policies["digits"] == POLICY
    assert bench.run(do.BeginTrial(6, candidate)) == inputs.TrialBegun(6)
    assert bench.server.trials == {"digits": TRIAL}
    bench.server.agreement = Agreement(40, top1_ppm=1_000_000)
    assert bench.run(do.ObserveTrial(7, "digits")) == inputs.TrialObserved(7, Agreement(40, top1_ppm=1_000_000))
    bench.server.latencies = ((100, 60), (400, 40))
    activated = bench.run(do.ActivateSlot(8, candidate))
    assert activated == inputs.SlotActivated(8, 0, Baseline(100, 100, 400))


def test_what_the_live_worker_was_like_is_known_even_where_it_stops_first() -> None:
    bench = Bench()
    first, second = bench.cloud.publish(1), bench.cloud.publish(2)
    for op, assignment in enumerate((first, second)):
        bench.fetched(assignment)
        bench.run(do.StageSlot(op, assignment))
    bench.run(do.ProveCandidate(3, first))
    bench.run(do.ActivateSlot(4, first))
    bench.server.latencies = ((50, 10),)
    bench.run(do.ProveCandidate(5, second, stops_first=True))
    assert bench.run(do.ActivateSlot(6, second)) == inputs.SlotActivated(6, 7, Baseline(10, 50, 50))


def test_what_is_brought_up_again_comes_up_under_its_policy() -> None:
    bench = Bench()
    live = bench.cloud.publish(1)
    bench.fetched(live)
    bench.run(do.StageSlot(1, live))
    for command in (do.ServeLive(2, "digits", live.manifest, policy=POLICY), do.RollBack(3, "digits", live.manifest)):
        bench.server.live.clear()
        bench.run(command)
        assert bench.server.policies["digits"] == command.policy


def test_counters_reach_the_core_whole() -> None:
    bench = Bench()
    bench.server.latencies = ((10, 1),)
    seen = bench.run(do.ObserveHealth(1, "digits"))
    assert seen == inputs.HealthObserved(1, False, 1, 0, 0, ((10, 1),), 0.0)
