"""Writes docs/update-machine.md from the table that the update machine runs by.

python scripts/update_machine_diagram.py           writes the page
python scripts/update_machine_diagram.py --check   says whether the page is what the table gives; exit code 1 if not
"""

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "update-machine.md"

sys.path.insert(0, str(ROOT))

from edge_agent.core import inputs, limits  # noqa: E402  # the tree, wherever this is run
from edge_agent.core.update import (  # noqa: E402
    INTERRUPTIBLE,
    RESUME,
    TABLE,
    AssignmentChosen,
    AssignmentWithdrawn,
    LiveGivenUp,
    Row,
)
from edge_contract.phases import Outcome, Phase  # noqa: E402

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

MEANING = {
    Phase.IDLE: "Nothing is under way; what is live answers, proves itself now and then, and is kept sound.",
    Phase.RESOLVING: "The manifest is fetched and checked, space and memory are planned, leave to download is asked; "
    "whoever waits (an error, a hold, a hook) waits here.",
    Phase.FETCHING: "Missing blobs are downloaded, resuming, verified as they come.",
    Phase.VERIFYING: "Every blob is read from disk again by other code.",
    Phase.STAGING: "The bundle is unpacked into its slot; then leave to activate is asked, and waited for here.",
    Phase.TESTING: "The candidate loads and meets its golden vectors, beside the live worker or, for want of memory, "
    "after it was stopped.",
    Phase.TRYING: "The candidate computes on inputs of the live worker, beside it, and answers nobody; its agreement "
    "is reported, and decides where the policy says so.",
    Phase.ACTIVATING: "The candidate takes the socket; the worker before it drains and ends.",
    Phase.PROBATION: "The new bundle answers and is watched; the one before it waits as the fallback.",
    Phase.COMMITTING: "The module's own socket is asked which bundle answers and what it computes just now.",
    Phase.ROLLING_BACK: "The fallback (or nothing, if there is none) is made what answers.",
}
"""What each phase means."""

INTERRUPTIONS: dict[type, str] = {
    AssignmentChosen: "a newer assignment",
    AssignmentWithdrawn: "a withdrawal",
    inputs.HoldRequested: "a hold",
    inputs.RollbackRequested: "an operator's rollback",
    LiveGivenUp: "the live bundle failing",
    inputs.WorkerExited: "its worker ending",
}
"""Who may end what is under way, by the event that says so."""

OUTCOMES = {
    Outcome.CONFIRMED: (
        "committing, or idle for what was confirmed before",
        "The bundle passed its probation and proved that it is what answers.",
    ),
    Outcome.REFUSED: (
        "any phase before activation, or activating",
        "The live bundle never changed. With an error of the bundle's own (`model.*`, `artifact.*`) its digest is "
        "quarantined: this device does not try it again.",
    ),
    Outcome.SUPERSEDED: (
        "any phase before activation, or probation",
        "Something newer took over, or it was withdrawn. The same deployment assigned again is begun again.",
    ),
    Outcome.ROLLED_BACK: ("rolling_back", "What was live before answers again."),
    Outcome.ROLLBACK_FAILED: (
        "rolling_back",
        "The fallback did not come up. What is live goes on, or is brought up again, until a person or a newer "
        "deployment helps.",
    ),
}
"""Where each outcome is reached, and what it says."""

LOOPS = (
    (
        "attempts that fail on the device's own account, or that a restart cut short while testing or activating",
        "FINAL_ATTEMPTS_MAX",
        "`failures`",
        "refused",
    ),
    (
        "attempts that somebody else has to mend (`network.*`, `cloud.*`, anything on hold)",
        "",
        "`attempt`",
        "for ever, with capped waits",
    ),
    (
        "restarts of the agent on probation",
        "PROBATION_RESTARTS_MAX",
        "`probation_restarts`",
        "rolled back, quarantined",
    ),
    ("proofs at the end of a probation", "COMMIT_ATTEMPTS_MAX", "`commits`", "rolled back"),
    ("attempts of a rollback", "ROLLBACK_ATTEMPTS_MAX", "`rollbacks`", "`rollback_failed`"),
    ("deployments done again because their slot rotted", "HEALS_MAX", "`heals`", "stays rolled back"),
    ("digests in quarantine", "QUARANTINE_MAX", "`quarantined`", "the oldest is forgotten"),
    ("failures in a row of the live bundle to come up or stay up", "SERVE_FAILURES_MAX", "memory", "the fallback"),
    ("failures in a row of the live bundle to prove itself", "ATTEST_FAILURES_MAX", "memory", "`answering` is empty"),
)
"""What repeats, the limit of it, where it is counted (a field of the record, or memory), and what comes then."""

TIMES = (
    ("RETRY_MS_FIRST", "first wait after an error; doubles, with jitter"),
    ("RETRY_MS_MAX", "longest wait after an error"),
    ("HOLD_MS", "wait for what somebody else has to change (a full disk, too little memory)"),
    ("POSTPONE_MS_MIN", "soonest that a hook or a window is asked again"),
    ("POSTPONE_MS_MAX", "latest that a hook or a window is asked again, whatever it said"),
    ("TRIAL_OBSERVE_MS", "how often a candidate on trial is looked at"),
    ("OBSERVE_MS", "how often a bundle on probation is looked at"),
    ("SERVE_STABLE_MS", "how long a worker has to stay up to count as up"),
    ("SERVE_MS_MAX", "longest that bringing up the live bundle, or a proof of it, may take"),
    ("ATTEST_MS", "how often the live bundle proves that it is what answers"),
    ("SCRUB_MS_DEFAULT", "how often everything on disk is read again"),
    ("UPKEEP_MS_MAX", "longest that reading the disk, or healing a slot, may take"),
    ("REFRESH_GAP_MS", "shortest time between two refreshes of metadata"),
    ("REFRESH_MS_FIRST", "first wait after a refresh that failed"),
    ("REFRESH_MS_MAX", "longest that a refresh of metadata may take"),
)
"""Times of the core, and what they are of."""

PHASES_TEXT = (
    "An operation that takes longer than its bound is cancelled and fails with `device.step-overdue`; what carries it",
    "out has tighter bounds of its own. Who may end a phase does so at once; everybody else waits for its end.",
)
ENDS_TEXT = (
    "`idle` says nothing of the past; the outcome does. It is empty while a deployment is under way. Before activation",
    "any doubt keeps what is live; on probation any doubt rolls back; what does not come back waits for a person.",
)
RESTART_TEXT = (
    "Power may fail at any instant. Nothing before probation changed what is live, and every finished step is found on",
    "disk and costs nothing again; what is live is brought up first.",
)

_SECOND, _MINUTE, _HOUR = 1_000, 60_000, 3_600_000


def _time(milliseconds: int) -> str:
    """A time as people say it."""
    for unit, name in ((_HOUR, "h"), (_MINUTE, "min"), (_SECOND, "s")):
        if milliseconds % unit == 0:
            return f"{milliseconds // unit} {name}"
    return f"{milliseconds} ms"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def phases() -> list[str]:
    """What each phase means, how long one operation of it may take, what comes then, and who may interrupt it."""
    rows = []
    for phase in Phase:
        deadline = limits.STEP_MS_MAX.get(phase)
        failed = TABLE.get((phase, inputs.CommandFailed))
        overdue = ", ".join(sorted(failed.next_phases)) if failed and deadline else "-"
        who = [text for event, text in INTERRUPTIONS.items() if (phase, event) in TABLE and phase is not Phase.IDLE]
        rows.append((str(phase), MEANING[phase], _time(deadline) if deadline else "-", overdue, ", ".join(who) or "-"))
    return _table(("phase", "what happens", "one operation takes at most", "overdue leads to", "who may end it"), rows)


def outcomes() -> list[str]:
    """Where each outcome is reached."""
    return _table(("outcome", "reached from", "says"), [(str(one), *OUTCOMES[one]) for one in Outcome])


def loops() -> list[str]:
    """What repeats, and how often at most."""
    rows = [
        (what, f"{getattr(limits, name)} (`{name}`)" if name else "no limit", where, then)
        for what, name, where, then in LOOPS
    ]
    return _table(("what repeats", "at most", "counted in", "then"), rows)


def times() -> list[str]:
    """The core's times."""
    return _table(("time", "of", "name"), [(_time(getattr(limits, name)), what, f"`{name}`") for name, what in TIMES])


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
        "## Phases",
        *PHASES_TEXT,
        "",
        *phases(),
        "",
        "## How a deployment ends",
        *ENDS_TEXT,
        "",
        *outcomes(),
        "",
        "## Every loop is bounded",
        "Counts are kept in the record where a restart must not begin them anew.",
        "",
        *loops(),
        "",
        *times(),
        "",
        "## Every transition",
        "| phase | event | action | leads to |",
        "|---|---|---|---|",
        *rows,
        "",
        "## After a restart",
        *RESTART_TEXT,
        "",
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
