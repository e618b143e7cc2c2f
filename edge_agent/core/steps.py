"""The part of a module's update machine that leads to activation: the live slot is untouched. Pure."""

# ruff: noqa: ARG002  # every action has the signature that the table calls it by, whether it needs the time or the event or not

from typing import Final

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.backoff import wait_ms
from edge_agent.core.keeping import Keeping
from edge_agent.core.limits import (
    FINAL_ATTEMPTS_MAX,
    HOLD_MS,
    POSTPONE_MS_MAX,
    POSTPONE_MS_MIN,
    RETRY_MS_FIRST,
    RETRY_MS_MAX,
    SERVE_MS_MAX,
    STEP_MS_MAX,
    TRIAL_OBSERVE_MS,
)
from edge_agent.core.probation import Bounds
from edge_agent.core.state import Commands
from edge_agent.core.trial import weigh
from edge_agent.core.update import INTERRUPTIBLE
from edge_contract.codes import CODES, Category, Disposition
from edge_contract.phases import Outcome, Phase
from edge_contract.terms import PERMILLE, Trial

# Wrong bytes on the wire say something of the wire: the digest itself is vouched for by signed metadata.
_TRANSFER_CODES: Final = frozenset({"artifact.digest-mismatch", "artifact.size-mismatch", "artifact.not-found"})
_TRANSFER_PHASES: Final = frozenset({Phase.RESOLVING, Phase.FETCHING})
FATAL: Final = frozenset({Disposition.QUARANTINE, Disposition.ROLL_BACK})
"""Dispositions of errors that trying again does not mend."""
_OF_BUNDLES: Final = frozenset({Category.ARTIFACT, Category.MODEL})


def is_blamed(code: str) -> bool:
    """Whether an error is the bundle's own fault, so that its digest is not tried again on this device."""
    return CODES[code].disposition in FATAL and CODES[code].category in _OF_BUNDLES


class Steps(Keeping):
    """From the first step to the activation: going on, waiting, being interrupted, failing."""

    def _go_on(self, now: int) -> Commands:
        """Begin with the first step, or wait there while an operator holds updates back."""
        self.record.phase = Phase.RESOLVING
        return self._act_hold(now) if self.is_held else self._act_resolve(now)

    def _act_resolve(self, now: int) -> Commands:
        return [do.ResolveBundle(self._begin_operation(now), self._deployment())]

    def _act_ask_to_download(self, now: int, event: inputs.BundleResolved) -> Commands:
        return [do.AskLeave(self._begin_operation(now), self._deployment(), do.Gate.DOWNLOAD)]

    def _act_ask_to_activate(self, now: int, event: inputs.SlotStaged) -> Commands:
        policy = self._deployment().policy
        window_ms = event.probation_ms if policy.probation_ms is None else policy.probation_ms
        self._next_probation_ms = window_ms
        latency = event.latency_ratio_max
        if policy.latency_permille_max is not None:
            latency = policy.latency_permille_max / PERMILLE
        self._next_bounds = Bounds(event.failure_ratio_max, event.nonfinite_ratio_max, latency, event.drift_max)
        self._next_sampling = event.sampling_ratio
        return self._act_ask_again(now)

    def _act_ask_again(self, now: int) -> Commands:
        return [do.AskLeave(self._begin_operation(now), self._deployment(), do.Gate.ACTIVATE)]

    def _act_postpone(self, now: int, event: inputs.LeavePostponed) -> Commands:
        self.record.error = self._error(event.code, event.detail)
        self._retry_at = now + min(max(event.wait_ms, POSTPONE_MS_MIN), POSTPONE_MS_MAX)
        return []

    def _act_fetch(self, now: int, event: inputs.LeaveGiven) -> Commands:
        self.record.phase, self.record.error = Phase.FETCHING, None
        return [do.FetchBlobs(self._begin_operation(now), self._deployment())]

    def _act_verify(self, now: int, event: inputs.BlobsFetched) -> Commands:
        self.record.phase = Phase.VERIFYING
        return [do.VerifyBlobs(self._begin_operation(now), self._deployment())]

    def _act_stage(self, now: int, event: inputs.BlobsVerified) -> Commands:
        self.record.phase = Phase.STAGING
        return [do.StageSlot(self._begin_operation(now), self._deployment())]

    def _act_prove(self, now: int, event: inputs.LeaveGiven) -> Commands:
        trial = self._deployment().policy.trial
        if event.stops_first and self.record.live is not None and trial is not None and trial.gate:
            self.record.error = self._error("device.memory-short", "the trial needs the live model and the candidate")
            self._retry_at = now + HOLD_MS
            return []
        self.record.error = None
        self._is_paused = event.stops_first and self.record.live is not None
        if self._is_paused:
            self._watch.pause()
        return self._prove(now)

    def _prove(self, now: int) -> Commands:
        self._is_candidate_lost = False
        self.record.phase = Phase.TESTING
        return [do.ProveCandidate(self._begin_operation(now), self._deployment(), self._is_paused)]

    def _act_try_or_activate(self, now: int, event: inputs.CandidateProved) -> Commands:
        if self._is_candidate_lost:
            return self._prove(now)
        self._next_golden = event.golden
        is_compared = self.record.live is not None and not self._is_paused
        if self._deployment().policy.trial is None or not is_compared:
            return self._activate(now)
        self.record.phase, self.record.trial = Phase.TRYING, None
        return [do.BeginTrial(self._begin_operation(now), self._deployment())]

    def _activate(self, now: int) -> Commands:
        self._observe_at = self._ends_at = None
        self.record.phase = Phase.ACTIVATING
        return [do.ActivateSlot(self._begin_operation(now), self._deployment())]

    # -- the trial -------------------------------------------------------------------------------------------------

    def _act_watch_trial(self, now: int, event: inputs.TrialBegun) -> Commands:
        if self._is_candidate_lost:
            return self._prove(now)
        self._ends_at = now + self._trial().window_ms
        self._observe_at = min(now + TRIAL_OBSERVE_MS, self._ends_at)
        return []

    def _act_observe_trial(self, now: int) -> Commands:
        self._observe_at = None
        if self._is_candidate_lost:
            return self._prove(now)
        return [do.ObserveTrial(self._begin_operation(now), self.name)]

    def _act_weigh(self, now: int, event: inputs.TrialObserved) -> Commands:
        if self._is_candidate_lost:
            return self._prove(now)
        ends_at = self._ends_at if self._ends_at is not None else now
        code, detail = weigh(event.agreement, self._trial(), is_window_over=now >= ends_at)
        if code is None:
            self._observe_at = min(now + TRIAL_OBSERVE_MS, ends_at)
            return []
        self.record.trial = event.agreement
        if not code:
            return self._activate(now)
        return self._act_fail(now, inputs.CommandFailed(event.op, code, detail))

    def _act_fail_trial(self, now: int, event: inputs.CommandFailed) -> Commands:
        # Bringing the live worker up again takes the candidate's place: that is no fault of the candidate.
        return self._prove(now) if self._is_candidate_lost else self._act_fail(now, event)

    def _trial(self) -> Trial:
        trial = self._deployment().policy.trial
        if trial is None:
            raise AssertionError("a trial without its terms")
        return trial

    # -- holding back ----------------------------------------------------------------------------------------------

    def hold(self, now: int) -> Commands:
        """An operator holds this module back, or the whole device."""
        return self.on_event(inputs.HoldRequested(self.name), now)

    def resume(self, now: int) -> Commands:
        """An operator ended a hold; whether none is left is asked here."""
        return [] if self.is_held else self.on_event(inputs.ResumeRequested(self.name), now)

    def _act_hold(self, now: int) -> Commands:
        out = self._interrupt(now)
        self.record.phase = Phase.RESOLVING
        self.record.error = self._error("device.held", "an operator holds updates back on this device")
        return out

    def _act_resume(self, now: int) -> Commands:
        if self._op is not None or self._retry_at is not None:
            return []  # it was not waiting for this
        self.record.error = None
        return self._act_resolve(now)

    # -- being interrupted -----------------------------------------------------------------------------------------

    def _act_withdraw(self, now: int) -> Commands:
        out = self._interrupt(now)
        self.record.phase, self.record.outcome = Phase.IDLE, Outcome.SUPERSEDED
        return out

    def _interrupt(self, now: int, is_live_wanted: bool = True) -> Commands:
        """End the step under way; the live bundle answers again where it was stopped for it."""
        out = self._give_up_operation()
        if self.record.phase in (Phase.TESTING, Phase.TRYING, Phase.ACTIVATING):
            out.append(do.DiscardCandidate(self.name))
        self._retry_at = self._observe_at = self._ends_at = None
        return out + (self._end_pause(now) if is_live_wanted else [])

    def _interrupted(self, now: int) -> Commands:
        """End the update under way, if there is one; it is chosen again after the rollback."""
        out: Commands = []
        if self.record.phase in INTERRUPTIBLE:
            out = self._interrupt(now, is_live_wanted=False)
            self.record.phase, self.record.outcome = Phase.IDLE, Outcome.SUPERSEDED
        return out

    # -- failing ---------------------------------------------------------------------------------------------------

    def _end_overdue(self, now: int) -> Commands:
        """Give up what takes longer than anything may; it fails like any other step."""
        out: Commands = []
        if self._overdue_at is not None and now >= self._overdue_at and (op := self._op) is not None:
            detail = f"{self.record.phase} took longer than {STEP_MS_MAX[self.record.phase]} ms"
            out.append(do.CancelOperation(op))
            out += self.on_event(inputs.CommandFailed(op, "device.step-overdue", detail), now)
        watched = self._watch.overdue_at
        if watched is not None and now >= watched and (op := self._watch.op) is not None:
            detail = f"bringing the live bundle up took longer than {SERVE_MS_MAX} ms"
            out.append(do.CancelOperation(op))
            out += self.on_event(inputs.CommandFailed(op, "device.step-overdue", detail), now)
        return out

    def _act_fail(self, now: int, event: inputs.CommandFailed) -> Commands:
        record = self.record
        # An activation that hangs may still happen: whatever it does, the live bundle is what answers in the end.
        self._is_paused = self._is_paused or record.phase is Phase.ACTIVATING
        phase, out = record.phase, self._interrupt(now, is_live_wanted=False)
        disposition = CODES[event.code].disposition
        if event.code in _TRANSFER_CODES and phase in _TRANSFER_PHASES:
            disposition = Disposition.RETRY
        if disposition in (Disposition.RETRY, Disposition.RESTART, Disposition.HOLD):
            outside = (
                CODES[event.code].category in (Category.NETWORK, Category.CLOUD) or disposition is Disposition.HOLD
            )
            record.failures += not outside
            if outside or record.failures < FINAL_ATTEMPTS_MAX:
                record.error = self._error(event.code, event.detail)
                wait = HOLD_MS
                if disposition is not Disposition.HOLD:
                    wait = wait_ms(RETRY_MS_FIRST, RETRY_MS_MAX, record.attempt, self._device, self.name)
                record.attempt += 1
                record.phase, self._retry_at = Phase.RESOLVING, now + wait
                return out + self._end_pause(now) + (self._act_hold(now) if self.is_held else [])
        if disposition in FATAL and is_blamed(event.code):
            record.quarantine(self._deployment().manifest)
        self._refuse(event.code, event.detail)
        return out + self._end_pause(now)

    def _refuse(self, code: str, detail: str) -> None:
        self.record.error = self._error(code, detail)
        self.record.phase, self.record.outcome = Phase.IDLE, Outcome.REFUSED
