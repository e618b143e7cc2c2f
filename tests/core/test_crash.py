"""A power cut after every single step of an update, a refusal and a rollback.

The next start finds old or new, and goes on.
"""

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.update import INTERRUPTIBLE, RESUME, TABLE
from edge_contract.phases import Phase
from tests.core.bench import Bench, assignment

V1, V2 = assignment(1), assignment(2)


def _prepared(kind: str) -> Bench:
    bench = Bench()
    bench.settle(0)
    bench.assign(V1)
    bench.settle()
    if kind == "refused":
        bench.fail = {do.ProveCandidate: ("model.golden-mismatch", "bad")}
    if kind == "rolled_back":
        bench.health = (True, 20, 20)
    bench.assign(V2)
    return bench


def _run(kind: str, steps: int) -> tuple[Bench, bool]:
    """Run so many steps (completions, or waits when nothing completes); true when the update was over before."""
    bench = _prepared(kind)
    for _ in range(steps):
        if not bench.step():
            if bench.module["deployment"]["deployment"] == "d2" and bench.module["deployment"]["outcome"]:
                return bench, True
            deadline = bench.core.deadline()
            assert deadline is not None
            bench.now = max(bench.now, deadline)
            bench.tell(inputs.TimeReached())
    return bench, False


def test_any_crash_point_of_any_ending_leads_to_the_same_ending() -> None:
    points = 0
    for kind, outcome, live in (
        ("confirmed", "confirmed", V2),
        ("refused", "refused", V1),
        ("rolled_back", "rolled_back", V1),
    ):
        for steps in range(100):
            bench, is_over = _run(kind, steps)
            bench.boot()
            bench.settle(0)
            assert bench.answering in (V1.manifest, V2.manifest), f"{kind}: nothing answers after crash point {steps}"
            bench.settle(120_000)
            report = bench.module
            assert (report["deployment"]["outcome"], report["live"]) == (outcome, str(live.manifest)), (kind, steps)
            assert report["live"] == str(bench.answering)
            points += 1
            if is_over:
                break
        else:
            raise AssertionError(f"{kind} never ends")
    assert points > 20


def test_every_persisted_phase_has_a_phase_to_resume_in() -> None:
    assert set(RESUME) == set(Phase)
    assert all(RESUME[phase] in (phase, Phase.RESOLVING) for phase in Phase)


def test_every_phase_with_an_operation_says_what_its_failure_means() -> None:
    for phase in Phase:
        if phase is not Phase.IDLE:
            assert (phase, inputs.CommandFailed) in TABLE
    assert all((phase, inputs.SlotActivated) not in TABLE for phase in INTERRUPTIBLE)


def test_every_action_of_the_table_exists() -> None:
    from edge_agent.core.module import ModuleMachine

    for row in TABLE.values():
        assert callable(getattr(ModuleMachine, f"_act_{row.action}"))
