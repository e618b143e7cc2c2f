"""Scenarios that are the same in many phases: whatever may interrupt, at every step that it may interrupt."""

from collections.abc import Iterator
from typing import Final

from edge_agent.core import commands as do
from tests.core.script import (
    HOUR_MS,
    TOLD,
    WAY,
    Row,
    assigns,
    at,
    dies,
    ends_late,
    hangs,
    holds,
    is_given_up,
    is_sick,
    loses_power,
    resumes,
    rolls_back,
    stays_down,
    waits,
    withdraws,
)

NAMES: Final = WAY.split()
INTERRUPTIBLE: Final = NAMES[: NAMES.index("activate")]
PHASES: Final = dict(
    zip(
        NAMES,
        [
            "resolving",
            "resolving",
            "fetching",
            "verifying",
            "staging",
            "staging",
            "testing",
            "activating",
            "probation",
            "committing",
        ],
        strict=True,
    )
)
KINDS: Final[dict[str, type[do.Command]]] = {
    "resolve": do.ResolveBundle,
    "fetch": do.FetchBlobs,
    "verify": do.VerifyBlobs,
    "stage": do.StageSlot,
    "prove": do.ProveCandidate,
    "activate": do.ActivateSlot,
    "observe": do.ObserveHealth,
}

MEANWHILE: Final = {"fetch": " attest scrub attest", "verify": " attest", "stage": " attest", "prove": " attest"}
"""What is live proves itself again, and the disk is read again, while something hangs for hours."""


def _until(name: str) -> str:
    """The chain of an update up to a command."""
    return " ".join(NAMES[: NAMES.index(name) + 1])


def _given_up(name: str) -> str:
    """The chain of an update that is given up while a command is carried out."""
    return f"{_until(name)} cancel{' discard' if name in ('prove', 'activate') else ''}"


def _told(name: str, old: str = "1|0", new: str = "2|1") -> str:
    """What is reported of an update up to a command."""
    phases = dict.fromkeys(PHASES[found] for found in NAMES[: NAMES.index(name) + 1])
    return ", ".join(f"{phase} {new if phase in ('probation', 'committing') else old}" for phase in phases)


def _told_all(old: str, new: str, first: str = "resolving") -> str:
    """What is reported of an update that is told of from a phase on."""
    phases = list(dict.fromkeys(PHASES.values()))
    rest = [f"{p} {new if p in ('probation', 'committing') else old}" for p in phases[phases.index(first) :]]
    return ", ".join([*rest, f"idle:confirmed {new}"])


def _held() -> Iterator[Row]:
    for name in INTERRUPTIBLE:
        # A candidate that is tested is ended, so the worker that is live is not touched: nothing has to be brought up.
        held = f"{_told(name)}, resolving(device.held) 1|0"
        yield Row(
            f"held at {name}, then resumed",
            given=(1,),
            steps=(assigns(2), at(name), holds, waits(HOUR_MS // 2), resumes),
            chain=f"{_given_up(name)} {WAY}",
            reports=f"{held}, {TOLD}",
            ends="confirmed 2|1",
        )
        yield Row(
            f"held at {name}, restarted while held, then resumed",
            given=(1,),
            steps=(assigns(2), at(name), holds, loses_power, waits(HOUR_MS // 2), resumes),
            chain=f"{_given_up(name)} serve attest {WAY}",
            reports=f"{held}, resolving(device.held) 1*|0, resolving(device.held) 1|0, {TOLD}",
            ends="confirmed 2|1",
        )


def _superseded() -> Iterator[Row]:
    for name in INTERRUPTIBLE:
        is_resolving = PHASES[name] == "resolving"
        yield Row(
            f"superseded at {name}",
            given=(1,),
            steps=(assigns(2), at(name), assigns(3)),
            chain=f"{_given_up(name)} {WAY}",
            reports=f"{_told(name)}, {_told_all('1|0', '3|1', 'fetching' if is_resolving else 'resolving')}",
            ends="confirmed 3|1",
        )
        yield Row(
            f"withdrawn at {name}",
            given=(1,),
            steps=(assigns(2), at(name), withdraws),
            chain=_given_up(name),
            reports=f"{_told(name)}, idle:superseded 1|0",
            ends="superseded 1|0",
        )


def _rolled_back() -> Iterator[Row]:
    for name in INTERRUPTIBLE:
        yield Row(
            f"an operator rolls back at {name}; the update is chosen again afterwards",
            given=(1, 2),
            steps=(assigns(3), at(name), rolls_back),
            chain=f"{_given_up(name)} back {WAY}",
            reports=f"{_told(name, '2|1')}, rolling_back 2|1, {_told_all('1|0', '3|1')}",
            ends="confirmed 3|1",
        )
        yield Row(
            f"what is live gives way at {name}; the update is chosen again afterwards",
            given=(1, 2),
            steps=(assigns(3), at(name), dies(), stays_down),
            chain=f"{_until(name)} serve{_given_up(name).removeprefix(_until(name))} back {WAY}",
            reports=f"{_told(name, '2|1')}, {PHASES[name]} 2*|1, rolling_back(model.load-failed) 2*|1, "
            f"{_told_all('1|0', '3|1')}",
            ends="confirmed 3|1",
            quarantined=(2,),
        )


def _overdue() -> Iterator[Row]:
    for name, kind in KINDS.items():
        if name == "observe":
            continue
        # An activation that hangs may still have happened: what is live has to be what answers, before all else.
        served = " serve attest" if name == "activate" else ""
        yield Row(
            f"{name} hangs, is given up, and ends late",
            given=(1,),
            steps=(hangs(kind), assigns(2), at(name), is_given_up, ends_late),
            chain=f"{_until(name)}{MEANWHILE.get(name, '')}{_given_up(name).removeprefix(_until(name))}{served} {WAY}",
            reports=f"{_told(name)}, resolving(device.step-overdue) 1|0, {_told_all('1|0', '2|1', 'fetching')}",
            ends="confirmed 2|1",
        )


def _cut() -> Iterator[Row]:
    for name in NAMES:
        is_live_new = PHASES[name] in ("probation", "committing")
        again = {"probation": "serve observe commit", "committing": "serve commit"}.get(PHASES[name], f"serve {WAY}")
        after = {
            "probation": "probation 2*|1, probation 2|1, committing 2|1, idle:confirmed 2|1",
            "committing": "committing 2*|1, committing 2|1, idle:confirmed 2|1",
        }.get(PHASES[name], f"resolving 1*|0, {TOLD}")
        yield Row(
            f"a power cut at {name}",
            given=(1,),
            steps=(assigns(2), at(name), loses_power),
            chain=f"{_until(name)} {again}",
            reports=f"{_told(name)}, {after}",
            ends="confirmed 2|1",
        )
        assert is_live_new is (again != f"serve {WAY}")


LATER: Final = (
    Row(
        "reading health hangs: the bundle is not kept, and not blamed",
        given=(1,),
        steps=(hangs(do.ObserveHealth), assigns(2), at("observe"), waits(HOUR_MS // 2), ends_late),
        chain=f"{_until('observe')} cancel back attest",
        reports=f"{_told('observe')}, rolling_back(device.step-overdue) 2|1, idle:rolled_back(device.step-overdue) 1|0",
        ends="rolled_back 1|0",
    ),
    Row(
        "the proof hangs once",
        given=(1,),
        steps=(hangs(do.CommitSlot), assigns(2), at("commit"), waits(3 * HOUR_MS), ends_late),
        chain=f"{WAY} cancel commit attest",
        reports=f"{_told('commit')}, committing(device.step-overdue) 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "the proof hangs as often as is tolerated",
        given=(1,),
        steps=(hangs(do.CommitSlot, 3), assigns(2), at("commit"), waits(7 * HOUR_MS)),
        chain=f"{WAY} cancel commit cancel commit cancel back attest",
        reports=f"{_told('commit')}, committing(device.step-overdue) 2|1, rolling_back(device.step-overdue) 2|1, "
        "idle:rolled_back(device.step-overdue) 1|0",
        ends="rolled_back 1|0",
    ),
    Row(
        "the rollback hangs once",
        given=(1,),
        steps=(hangs(do.RollBack), is_sick, assigns(2), at("back"), waits(3 * HOUR_MS), ends_late),
        chain=f"{_until('observe')} back cancel back attest",
        reports=f"{_told('observe')}, rolling_back(model.unhealthy) 2|1, idle:rolled_back(model.unhealthy) 1|0",
        ends="rolled_back 1|0",
        quarantined=(2,),
    ),
    Row(
        "the rollback hangs as often as is tolerated",
        given=(1,),
        steps=(hangs(do.RollBack, 3), is_sick, assigns(2), at("back"), waits(7 * HOUR_MS)),
        chain=f"{_until('observe')} back cancel back cancel back cancel attest",
        reports=f"{_told('observe')}, rolling_back(model.unhealthy) 2|1, "
        "idle:rollback_failed(device.rollback-failed) 2|1",
        ends="rollback_failed 2|1",
        quarantined=(2,),
    ),
)

ROWS: Final = (*_held(), *_superseded(), *_rolled_back(), *_overdue(), *_cut(), *LATER)
