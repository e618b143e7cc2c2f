"""The update machine of a module as a table: which event means what in which phase, and where it may lead.

The code in `module.py` and its bases, the exhaustiveness test and the diagram in the documentation read this same
table. An event that has no row in a phase changes nothing there; completions of operations that were given up never
reach the table.
"""

from dataclasses import dataclass
from typing import Final

from edge_agent.core import inputs
from edge_contract.phases import Phase


@dataclass(frozen=True, slots=True)
class AssignmentChosen:
    """Internal event: reconciling found that the desired bundle is not the one worked on or live."""


@dataclass(frozen=True, slots=True)
class AssignmentWithdrawn:
    """Internal event: verified metadata no longer assigns anything to the module."""


@dataclass(frozen=True, slots=True)
class LiveGivenUp:
    """Internal event: the live bundle did not come up, or stay up, as often as is tolerated."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Row:
    """One transition.

    Attributes:
        action: Name of the method of `ModuleMachine` that carries it out, without `_act_`.
        next_phases: Where it may lead.
    """

    action: str
    next_phases: frozenset[Phase]


def _row(action: str, *next_phases: Phase) -> Row:
    return Row(action, frozenset(next_phases))


INTERRUPTIBLE: Final = (Phase.RESOLVING, Phase.FETCHING, Phase.VERIFYING, Phase.STAGING, Phase.TESTING, Phase.TRYING)
"""Phases in which a newer assignment takes over at once; the live slot is untouched in all of them."""

_P = Phase
TABLE: Final[dict[tuple[Phase, type], Row]] = {
    (_P.IDLE, AssignmentChosen): _row("begin", _P.RESOLVING, _P.IDLE, _P.PROBATION),
    **{
        (phase, inputs.RollbackRequested): _row("roll_back_on_request", _P.ROLLING_BACK, phase)
        for phase in (_P.IDLE, *INTERRUPTIBLE, _P.PROBATION)
    },
    **{(phase, LiveGivenUp): _row("leave_live", _P.ROLLING_BACK, phase) for phase in (_P.IDLE, *INTERRUPTIBLE)},
    (_P.RESOLVING, inputs.TimeReached): _row("resolve", _P.RESOLVING),
    (_P.RESOLVING, inputs.BundleResolved): _row("ask_to_download", _P.RESOLVING),
    (_P.RESOLVING, inputs.LeavePostponed): _row("postpone", _P.RESOLVING),
    (_P.RESOLVING, inputs.LeaveGiven): _row("fetch", _P.FETCHING),
    (_P.RESOLVING, inputs.ResumeRequested): _row("resume", _P.RESOLVING),
    (_P.FETCHING, inputs.BlobsFetched): _row("verify", _P.VERIFYING),
    (_P.VERIFYING, inputs.BlobsVerified): _row("stage", _P.STAGING),
    (_P.STAGING, inputs.SlotStaged): _row("ask_to_activate", _P.STAGING),
    (_P.STAGING, inputs.LeavePostponed): _row("postpone", _P.STAGING),
    (_P.STAGING, inputs.TimeReached): _row("ask_again", _P.STAGING),
    (_P.STAGING, inputs.LeaveGiven): _row("prove", _P.TESTING, _P.STAGING),
    (_P.TESTING, inputs.CandidateProved): _row("try_or_activate", _P.ACTIVATING, _P.TRYING, _P.TESTING),
    (_P.TRYING, inputs.TrialBegun): _row("watch_trial", _P.TRYING, _P.TESTING),
    (_P.TRYING, inputs.TimeReached): _row("observe_trial", _P.TRYING, _P.TESTING),
    (_P.TRYING, inputs.TrialObserved): _row("weigh", _P.TRYING, _P.TESTING, _P.ACTIVATING, _P.RESOLVING, _P.IDLE),
    **{(phase, AssignmentChosen): _row("supersede", _P.RESOLVING, _P.IDLE, _P.PROBATION) for phase in INTERRUPTIBLE},
    **{(phase, inputs.HoldRequested): _row("hold", _P.RESOLVING) for phase in INTERRUPTIBLE},
    # The bundle before it has proved itself, the one on probation has not: the newer one need not wait for the verdict.
    (_P.PROBATION, AssignmentChosen): _row("supersede_probation", _P.PROBATION, _P.RESOLVING),
    **{(phase, AssignmentWithdrawn): _row("withdraw", _P.IDLE) for phase in INTERRUPTIBLE},
    **{
        (phase, inputs.CommandFailed): _row("fail", _P.RESOLVING, _P.IDLE)
        for phase in (*INTERRUPTIBLE, _P.ACTIVATING)
        if phase is not _P.TRYING
    },
    (_P.TRYING, inputs.CommandFailed): _row("fail_trial", _P.RESOLVING, _P.IDLE, _P.TESTING),
    (_P.ACTIVATING, inputs.SlotActivated): _row("watch", _P.PROBATION),
    (_P.PROBATION, inputs.TimeReached): _row("observe", _P.PROBATION),
    (_P.PROBATION, inputs.HealthObserved): _row("judge", _P.PROBATION, _P.COMMITTING, _P.ROLLING_BACK),
    (_P.PROBATION, inputs.CommandFailed): _row("fail_probation", _P.ROLLING_BACK),
    (_P.PROBATION, inputs.WorkerExited): _row("fail_probation", _P.ROLLING_BACK),
    (_P.PROBATION, LiveGivenUp): _row("fail_probation", _P.ROLLING_BACK),
    (_P.COMMITTING, inputs.SlotCommitted): _row("confirm", _P.IDLE, _P.ROLLING_BACK),
    (_P.COMMITTING, inputs.CommandFailed): _row("fail_commit", _P.COMMITTING, _P.ROLLING_BACK),
    (_P.COMMITTING, inputs.TimeReached): _row("commit", _P.COMMITTING),
    (_P.COMMITTING, LiveGivenUp): _row("fail_probation", _P.ROLLING_BACK),
    (_P.ROLLING_BACK, inputs.SlotRolledBack): _row("end_rollback", _P.IDLE),
    (_P.ROLLING_BACK, inputs.CommandFailed): _row("retry_rollback", _P.ROLLING_BACK, _P.IDLE),
    (_P.ROLLING_BACK, inputs.TimeReached): _row("roll_back", _P.ROLLING_BACK),
}

RESUME: Final[dict[Phase, Phase]] = {
    Phase.IDLE: Phase.IDLE,
    # Nothing before probation changed what is live, and every finished step is found on disk and costs nothing again.
    Phase.RESOLVING: Phase.RESOLVING,
    Phase.FETCHING: Phase.RESOLVING,
    Phase.VERIFYING: Phase.RESOLVING,
    Phase.STAGING: Phase.RESOLVING,
    Phase.TESTING: Phase.RESOLVING,
    Phase.TRYING: Phase.RESOLVING,
    # The record still names the old bundle as live, so that is what serves until the candidate has proved itself again.
    Phase.ACTIVATING: Phase.RESOLVING,
    Phase.PROBATION: Phase.PROBATION,
    Phase.COMMITTING: Phase.COMMITTING,
    Phase.ROLLING_BACK: Phase.ROLLING_BACK,
}
"""The phase to resume in after a restart, by the phase that was persisted."""
