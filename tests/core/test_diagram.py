"""The documentation of the update machine is what its table gives."""

import importlib.util
from pathlib import Path
from types import ModuleType

from edge_agent.core import inputs, limits
from edge_agent.core.update import INTERRUPTIBLE, TABLE, AssignmentChosen, AssignmentWithdrawn, LiveGivenUp
from edge_contract.phases import Outcome, Phase

ROOT = Path(__file__).resolve().parent.parent.parent


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("diagram", ROOT / "scripts" / "update_machine_diagram.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_table_gives() -> None:
    script = _script()
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run python scripts/update_machine_diagram.py"
    assert script.main(["--check"]) == 0


def test_the_diagram_shows_every_way_that_leads_elsewhere() -> None:
    script = _script()
    inner = {str(phase) for phase in script.INTERRUPTIBLE}
    drawn = {(source, target, name) for source, target, names in script._edges() for name in names}
    for (phase, event), row in TABLE.items():
        for target in row.next_phases - {phase}:
            ways = {(str(phase), str(target), event.__name__)}
            if str(phase) in inner:
                ways.add((script.GROUP, str(target), event.__name__))
            assert ways & drawn, (phase, event, target)


def test_every_phase_every_outcome_and_every_limit_is_explained() -> None:
    script = _script()
    assert set(script.MEANING) == set(Phase)
    assert set(script.OUTCOMES) == set(Outcome)
    named = {name for _, name, _, _ in script.LOOPS} | {name for name, _ in script.TIMES} | {"STEP_MS_MAX", ""}
    assert named == {name for name in vars(limits) if name.isupper() and not name.startswith("_")} | {""}


def test_deadlines_and_limits_on_the_page_are_those_of_the_code() -> None:
    text = _script().page()
    assert (
        "| fetching | Missing blobs are downloaded, resuming, verified as they come. | 24 h | idle, resolving |" in text
    )
    for name, value in vars(limits).items():
        if name.endswith("_MAX") and isinstance(value, int) and "MS" not in name:
            assert f"{value} (`{name}`)" in text


def test_who_may_interrupt_is_what_the_table_says() -> None:
    script = _script()
    assert set(script.INTERRUPTIONS) >= {AssignmentChosen, AssignmentWithdrawn, LiveGivenUp, inputs.HoldRequested}
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in script.phases()[2:]}
    assert set(rows) == set(map(str, Phase))
    for phase in INTERRUPTIBLE:
        assert rows[phase].endswith(
            "| a newer assignment, a withdrawal, a hold, an operator's rollback, the live bundle failing |"
        )
    assert rows[Phase.ACTIVATING].endswith("| - |")
    assert rows[Phase.ROLLING_BACK].endswith("| - |")
