"""The documentation of the update machine is what its table gives."""

import importlib.util
from pathlib import Path
from types import ModuleType

from edge_agent.core.update import TABLE

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
