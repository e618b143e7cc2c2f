"""Writes docs/update-machine.md from the table that the update machine runs by.

python scripts/update_machine_diagram.py           writes the page
python scripts/update_machine_diagram.py --check   says whether the page is what the table gives; exit code 1 if not
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "update-machine.md"

sys.path.insert(0, str(ROOT))

from edge_agent.core.update import INTERRUPTIBLE, RESUME, TABLE, Row  # noqa: E402  # the tree, wherever this is run
from edge_contract.phases import Phase  # noqa: E402

GROUP = "before_activation"

HEAD = """# The update machine of a module

One machine for each module of a device. It is driven by one table, `TABLE` in `edge_agent/core/update.py`; this page is
written from it (`python scripts/update_machine_diagram.py`), and a test compares the two. An event without a row
changes nothing in that phase.

Until a bundle is activated the live one is untouched, so a newer assignment takes over at once. `AssignmentChosen` and
`AssignmentWithdrawn` come from comparing what is desired with what is worked on after every event; `LiveGivenUp` says
that the live bundle did not come up, or stay up, as often as is tolerated. All other events are facts that the shell
reports.
"""


def _edges() -> list[tuple[str, str, list[str]]]:
    """(from, to, events), what all interruptible phases have in common drawn from the group around them."""
    common = {
        event: row
        for (phase, event), row in TABLE.items()
        if phase is INTERRUPTIBLE[0] and all(_same(event, other, row) for other in INTERRUPTIBLE)
    }
    events: dict[tuple[str, str], list[str]] = {}
    for event, row in common.items():
        for target in sorted(row.next_phases - {INTERRUPTIBLE[0]} if _may_stay(event) else row.next_phases):
            events.setdefault((GROUP, str(target)), []).append(event.__name__)
    for (phase, event), row in TABLE.items():
        if phase in INTERRUPTIBLE and event in common:
            continue
        for target in sorted(row.next_phases):
            events.setdefault((str(phase), str(target)), []).append(event.__name__)
    return [(source, target, names) for (source, target), names in events.items()]


def _may_stay(event: type) -> bool:
    """Whether each interruptible phase may stay as it is at this event."""
    return all(phase in TABLE[phase, event].next_phases for phase in INTERRUPTIBLE)


def _same(event: type, phase: Phase, row: Row) -> bool:
    """Whether a phase has the same row, but for staying in itself."""
    other = TABLE.get((phase, event))
    return other is not None and (
        other == row
        or (other.action == row.action and other.next_phases - {phase} == row.next_phases - {INTERRUPTIBLE[0]})
    )


def diagram() -> str:
    """The machine as a mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> idle", f"    state {GROUP} {{"]
    inner = {str(phase) for phase in INTERRUPTIBLE}
    edges = _edges()
    for is_inner in (True, False):
        for source, target, names in edges:
            if (source in inner and target in inner) is is_inner:
                lines.append(f"    {'    ' if is_inner else ''}{source} --> {target}: {', '.join(names)}")
        if is_inner:
            lines.append("    }")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    rows = [
        f"| {phase} | `{event.__name__}` | `{row.action}` | {', '.join(sorted(row.next_phases))} |"
        for (phase, event), row in sorted(TABLE.items(), key=lambda item: list(Phase).index(item[0][0]))
    ]
    resume = [f"| {phase} | {RESUME[phase]} |" for phase in Phase]
    parts = [
        HEAD,
        "```mermaid",
        diagram(),
        "```",
        "",
        "## Every transition",
        "| phase | event | action | leads to |",
        "|---|---|---|---|",
        *rows,
        "",
        "## After a restart",
        "| persisted phase | goes on in |",
        "|---|---|",
        *resume,
        "",
    ]
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    """Write the page, or compare it."""
    if arguments == ["--check"]:
        is_same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
        if not is_same:
            print(f"error: {PAGE} is not what the table gives; run python scripts/update_machine_diagram.py")
        return 0 if is_same else 1
    if arguments:
        print(__doc__)
        return 2
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
