"""Every single power cut and every pair of them: what answers is old or new, and it ends as if there had been none."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import pytest

from edge_agent.core import inputs
from edge_contract.phases import Outcome, Phase
from edge_contract.terms import Trial
from tests.core.power import Act, Explorer, Plan, World

pytestmark = pytest.mark.slow

SINGLES_MIN: Final = 5_000
PAIRS_MIN: Final = 350_000
DISK_PAIRS_MIN: Final = 100_000


def always(world: World) -> bool:
    """At once."""
    return True


def is_idle(world: World) -> bool:
    """Everything has ended and answers."""
    told = world.core.reported_modules()
    return world.is_at_rest and bool(told) and all(one.phase is Phase.IDLE and one.serving for one in told.values())


def is_held(world: World) -> bool:
    """Nothing goes on because of a hold."""
    found = world.core.reported_modules().get("digits")
    return world.is_at_rest and found is not None and found.held and found.phase is Phase.RESOLVING


def reaches(phase: Phase, version: int = 2) -> Callable[[World], bool]:
    """The update of module `digits` to a version is in a phase."""

    def is_there(world: World) -> bool:
        module = world.modules.get("digits")
        is_meant = module is not None and module.deployment is not None and module.outcome is None
        return is_meant and module is not None and module.phase is phase and _version(module.deployment) == version

    return is_there


def _version(assigned: object) -> int:
    return getattr(getattr(assigned, "artifact", None), "version", 0)


def to(version: int, when: Callable[[World], bool] = always, modules: tuple[str, ...] = ("digits",)) -> Act:
    """The cloud assigns a version."""
    return Act(when, assigns=dict.fromkeys(modules, version))


BOTH: Final = ("digits", "sound")
HOLD, RESUME, BACK = inputs.HoldRequested(), inputs.ResumeRequested(), inputs.RollbackRequested("digits")
HOLD_ONE, RESUME_ONE = inputs.HoldRequested("digits"), inputs.ResumeRequested("digits")

TRIAL: Final = Trial(5_000, top1_ppm_min=990_000, gate=True)

IN_ORDER: Final = (
    Plan("a first bundle", (), (to(1),)),
    Plan("an update", (1,), (to(2),)),
    Plan("a refused update", (1,), (to(2),), bad=frozenset({2})),
    Plan("a rollback by probation", (1,), (to(2),), sick=frozenset({2})),
    Plan("a rollback to nothing", (), (to(1),), sick=frozenset({1})),
    Plan("a rollback by an operator", (1, 2), (Act(is_idle, tells=BACK),)),
    Plan("a rollback by an operator on probation", (1,), (to(2), Act(reaches(Phase.PROBATION), tells=BACK))),
    Plan("a rollback by an operator during an update", (1, 2), (to(3), Act(reaches(Phase.STAGING, 3), tells=BACK))),
    *(
        Plan(f"superseded while {phase}", (1,), (to(2), to(3, reaches(phase))))
        for phase in (Phase.RESOLVING, Phase.FETCHING, Phase.VERIFYING, Phase.STAGING, Phase.TESTING, Phase.PROBATION)
    ),
    Plan("superseded by what is live", (1,), (to(2), to(1, reaches(Phase.TESTING)))),
    Plan("stopped first", (1,), (to(2),), is_memory_short=True),
    Plan("stopped first and refused", (1,), (to(2),), bad=frozenset({2}), is_memory_short=True),
    Plan("stopped first and rolled back", (1,), (to(2),), sick=frozenset({2}), is_memory_short=True),
    Plan("stopped first and superseded", (1,), (to(2), to(3, reaches(Phase.TESTING))), is_memory_short=True),
    Plan("a trial that is passed", (1,), (to(2),), trial=TRIAL),
    Plan("a trial that is failed", (1,), (to(2),), trial=TRIAL, odd=frozenset({2})),
    Plan("superseded while trying", (1,), (to(2), to(3, reaches(Phase.TRYING))), trial=TRIAL),
    Plan(
        "held while trying",
        (1,),
        (to(2), Act(reaches(Phase.TRYING), tells=HOLD), Act(is_held, tells=RESUME)),
        trial=TRIAL,
    ),
    Plan("damage without a fallback", (1,), (Act(is_idle, rots=1, ends_worker=True),)),
    Plan("damage with a fallback", (1, 2), (Act(is_idle, rots=2, ends_worker=True),)),
    Plan("damage found by reading", (1,), (Act(is_idle, rots=1),), scrub_ms=10_000),
    Plan("damage of the fallback found by reading", (1, 2), (Act(is_idle, rots=1),), scrub_ms=10_000),
    *(
        Plan(f"held while {phase}", (1,), (to(2), Act(reaches(phase), tells=HOLD), Act(is_held, tells=RESUME)))
        for phase in (Phase.RESOLVING, Phase.FETCHING, Phase.VERIFYING, Phase.STAGING, Phase.TESTING)
    ),
    Plan(
        "a module held while it is tested alone",
        (1,),
        (to(2), Act(reaches(Phase.TESTING), tells=HOLD_ONE), Act(is_held, tells=RESUME_ONE)),
        is_memory_short=True,
    ),
    Plan("two modules at once", (1,), (to(2, modules=BOTH),), BOTH),
    Plan("two modules at once, both rolled back", (1,), (to(2, modules=BOTH),), BOTH, sick=frozenset({2})),
    Plan("two modules at once, superseded", (1,), (to(2, modules=BOTH), to(3, reaches(Phase.FETCHING), BOTH)), BOTH),
)
PLANS: Final = (
    *IN_ORDER,
    *(replace(plan, name=f"{plan.name}, workers first", is_serving_first=True) for plan in IN_ORDER),
)
ENDS: Final = {
    "a rollback by probation": (Outcome.ROLLED_BACK, 1),
    "a rollback to nothing": (Outcome.ROLLED_BACK, 0),
    "a rollback by an operator": (Outcome.ROLLED_BACK, 1),
    "a rollback by an operator on probation": (Outcome.ROLLED_BACK, 1),
    "a rollback by an operator during an update": (Outcome.CONFIRMED, 3),
    "a trial that is failed": (Outcome.REFUSED, 1),
    "a refused update": (Outcome.REFUSED, 1),
    "stopped first and refused": (Outcome.REFUSED, 1),
    "stopped first and rolled back": (Outcome.ROLLED_BACK, 1),
    "two modules at once, both rolled back": (Outcome.ROLLED_BACK, 1),
}
"""How plans end that do not end with their last version confirmed."""


@pytest.fixture(scope="module")
def explorers() -> dict[str, Explorer]:
    """Every plan explored, or about to be."""
    return {plan.name: Explorer(plan) for plan in PLANS}


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_a_plan_ends_the_same_with_any_one_and_any_two_cuts(plan: Plan, explorers: dict[str, Explorer]) -> None:
    explorer = explorers[plan.name]
    tally = explorer.explore()
    assert tally.singles == len(explorer.smooth.points)
    assert tally.pairs > tally.singles


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_a_plan_without_a_cut_ends_as_it_is_meant(plan: Plan, explorers: dict[str, Explorer]) -> None:
    world = World(plan, plan.first)
    world.run()
    last = [*plan.given, *(max(act.assigns.values()) for act in plan.acts if act.assigns)][-1]
    name = plan.name.removesuffix(", workers first")
    if name == "superseded by what is live":
        last = 1
    outcome, version = ENDS.get(name, (Outcome.CONFIRMED, last))
    for module in world.modules.values():
        assert (module.phase, module.outcome, _version(module.live)) == (Phase.IDLE, outcome, version)
    assert not world.state.damaged


def test_many_points_were_tried(explorers: dict[str, Explorer], capsys: pytest.CaptureFixture[str]) -> None:
    tallies = [explorer.tally for explorer in explorers.values()]
    if not all(tally.singles for tally in tallies):
        pytest.skip("only some of the plans were explored in this run")
    singles, pairs = sum(tally.singles for tally in tallies), sum(tally.pairs for tally in tallies)
    disk_pairs = sum(tally.disk_pairs for tally in tallies)
    with capsys.disabled():
        print(  # noqa: T201  # people want to see it
            f"\npower cuts in {len(PLANS)} plans: {singles} single points, {pairs} pairs, "
            f"{disk_pairs} pairs with a disk that refuses the record; all survived"
        )
    assert singles >= SINGLES_MIN
    assert pairs >= PAIRS_MIN
    assert disk_pairs >= DISK_PAIRS_MIN
