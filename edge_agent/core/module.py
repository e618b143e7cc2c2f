"""The update machine of one module: the actions that the table in `update.py` names. Pure; driven by `agent.Agent`."""

# ruff: noqa: ARG002  # every action has the signature that the table calls it by, whether it needs the time or the event or not

from collections.abc import Callable
from typing import Final

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.backoff import wait_ms
from edge_agent.core.limits import (
    COMMIT_ATTEMPTS_MAX,
    FINAL_ATTEMPTS_MAX,
    HEALS_MAX,
    HOLD_MS,
    OBSERVE_MS,
    POSTPONE_MS_MAX,
    POSTPONE_MS_MIN,
    PROBATION_RESTARTS_MAX,
    RETRY_MS_FIRST,
    RETRY_MS_MAX,
    ROLLBACK_ATTEMPTS_MAX,
    STEP_MS_MAX,
)
from edge_agent.core.probation import judge
from edge_agent.core.record import ModuleRecord
from edge_agent.core.serving import LiveWatch
from edge_agent.core.update import INTERRUPTIBLE, RESUME, TABLE, AssignmentChosen, AssignmentWithdrawn, LiveGivenUp
from edge_contract.codes import CODES, Category, Disposition
from edge_contract.deployment import Assignment
from edge_contract.digest import Digest
from edge_contract.phases import Outcome, Phase, Verdict
from edge_contract.twin import ReportedDeployment, ReportedError, ReportedModule

Commands = list[do.Command]

# Wrong bytes on the wire say something of the wire: the digest itself is vouched for by signed metadata.
_TRANSFER_CODES: Final = frozenset({"artifact.digest-mismatch", "artifact.size-mismatch", "artifact.not-found"})
_TRANSFER_PHASES: Final = frozenset({Phase.RESOLVING, Phase.FETCHING})
_BLAMING: Final = frozenset({Disposition.QUARANTINE, Disposition.ROLL_BACK})
"""Dispositions of errors that are the bundle's own fault; its digest is not tried again."""
_DAMAGE: Final = frozenset({"device.disk-corrupt", "artifact.not-found"})
"""What a live bundle fails with when its slot is no longer what was staged."""
_UNTIMED: Final = (
    inputs.TimeReached,
    AssignmentChosen,
    AssignmentWithdrawn,
    inputs.HoldRequested,
    inputs.ResumeRequested,
)
"""Events that say nothing but that they happened."""
_SETTLED: Final = frozenset({Phase.IDLE, *INTERRUPTIBLE})
"""Phases in which what is live is neither changing nor being judged."""


class ModuleMachine:
    """One module's update machine and the watch over its live worker.

    Attributes:
        name: Name of the module.
        record: What is persisted.
        refused: What verified metadata assigned and this device must not take, or none.
        damaged: The live assignment, when its slot turned out to be damaged and nobody is healing it yet.
    """

    def __init__(
        self,
        device: str,
        name: str,
        record: ModuleRecord,
        new_op: Callable[[], int],
        is_device_held: Callable[[], bool] = lambda: False,
    ) -> None:
        """Drive `record`.

        Args:
            device: Name of the device.
            name: Name of the module.
            record: What is persisted of it.
            new_op: Gives operation identifiers that were never used before in this process.
            is_device_held: Whether an operator holds all updates of the device back.
        """
        self.name = name
        self.record = record
        self.refused: ReportedDeployment | None = None
        self.damaged: Assignment | None = None
        self._device = device
        self._new_op = new_op
        self._is_device_held = is_device_held
        self._op: int | None = None
        self._overdue_at: int | None = None
        self._retry_at: int | None = None
        self._observe_at: int | None = None
        self._ends_at: int | None = None
        self._watch = LiveWatch(device, name, new_op)
        self._next_sampling = 1.0
        self._next_probation = (0, 0.0)
        self._next_golden: Digest | None = None
        self._is_candidate_lost = False
        self._is_paused = False  # the live worker was stopped, so that the candidate has its memory
        self._gap_ms = 0

    # -- what the agent calls -------------------------------------------------------------------------------------

    def start(self, now: int) -> Commands:
        """Resume after a restart: bring the live bundle up, then go on where the record says."""
        record = self.record
        record.phase = RESUME[record.phase]
        if record.phase is Phase.ROLLING_BACK:
            return self._act_roll_back(now)
        if record.phase is Phase.PROBATION:
            record.probation_restarts += 1
            if record.probation_restarts > PROBATION_RESTARTS_MAX:
                detail = f"the agent restarted {record.probation_restarts} times during the probation"
                return self.on_event(LiveGivenUp("model.unhealthy", detail), now)
        out = self._serve(now)
        if record.phase is Phase.RESOLVING:
            out += self._go_on(now)
        elif record.phase is Phase.COMMITTING:
            out += self._act_commit(now)
        return out

    def on_event(self, event: object, now: int) -> Commands:
        """Take one event that concerns this module; completions of other operations change nothing."""
        if isinstance(event, inputs.LiveServed):
            return self._on_live_served(event, now)
        if isinstance(event, inputs.Completed):
            if event.op == self._watch.attest_op:
                return self._on_attested(event, now)
            if event.op == self._watch.op and isinstance(event, inputs.CommandFailed):
                return self._on_serve_failed(event, now)
            if event.op != self._op:
                return []
            self._op = self._overdue_at = None
        if isinstance(event, inputs.WorkerExited):
            if self.record.live is None or event.manifest != self.record.live.manifest:
                return []
            self._watch.is_serving = False
        row = TABLE.get((self.record.phase, type(event)))
        if row is None:
            return self._on_worker_lost(now) if isinstance(event, inputs.WorkerExited) else []
        action: Callable[..., Commands] = getattr(self, f"_act_{row.action}")
        out = action(now) if isinstance(event, _UNTIMED) else action(now, event)
        if self.record.phase not in row.next_phases:
            raise AssertionError(f"{row.action} led to {self.record.phase}, allowed: {sorted(row.next_phases)}")
        return out

    def on_time(self, now: int) -> Commands:
        """Do what is due."""
        out: Commands = self._end_overdue(now)
        serve_at, attest_at = self._due_to_serve(), self._due_to_attest()
        if serve_at is not None and now >= serve_at:
            out += self._serve(now)
        elif attest_at is not None and now >= attest_at:
            out.append(self._watch.attest(now))
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
            out += self.on_event(inputs.TimeReached(), now)
        if self._observe_at is not None and now >= self._observe_at and self._op is None:
            out += self.on_event(inputs.TimeReached(), now)
        return out

    def deadline(self) -> int | None:
        """When `on_time` has something to do next."""
        observe_at = self._observe_at if self._op is None else None
        times = (
            self._due_to_serve(),
            self._due_to_attest(),
            self._retry_at,
            observe_at,
            self._overdue_at,
            self._watch.overdue_at,
        )
        return min((at for at in times if at is not None), default=None)

    def reconcile(self, now: int) -> Commands:
        """Choose the desired assignment where it is not what is worked on already."""
        record = self.record
        if record.desired is None:
            return self.on_event(AssignmentWithdrawn(), now)
        if record.desired == record.deployment and not record.is_again:
            return []
        if record.phase is Phase.PROBATION and (self.is_held or record.desired.manifest in record.quarantined):
            return []  # what could not take its place does not end its probation
        is_live = record.live is not None and record.live.manifest == record.desired.manifest
        if is_live and not self._watch.is_serving and record.desired.manifest not in record.quarantined:
            # Confirmed is what answers. Whatever is under way ends; this one is chosen when the live bundle is up.
            return self.on_event(AssignmentWithdrawn(), now)
        return self.on_event(AssignmentChosen(), now)

    @property
    def is_held(self) -> bool:
        """Whether an operator holds updates of this module back."""
        return self.record.held or self._is_device_held()

    @property
    def is_spare(self) -> bool:
        """Whether the module may be forgotten: nothing is assigned to it, nothing lives, nothing is under way."""
        return self.record.desired is None and self.record.live is None and self.record.phase is Phase.IDLE

    def reported(self) -> ReportedModule:
        """The module as a report shows it."""
        record = self.record
        deployment = record.deployment
        return ReportedModule(
            phase=record.phase,
            live=record.live.manifest if record.live else None,
            model=record.live.artifact.model if record.live else "",
            version=record.live.artifact.version if record.live else 0,
            golden=record.golden,
            fallback=record.fallback.manifest if record.fallback else None,
            serving=self._watch.is_serving,
            deployment=None
            if deployment is None
            else ReportedDeployment(deployment.deployment, deployment.manifest, record.outcome, record.error),
            answering=self._watch.answering if self._watch.is_serving else None,
            held=self.is_held,
            gap_ms=self._gap_ms,
            refused=self.refused,
            error=self._watch.error,
        )

    # -- choosing --------------------------------------------------------------------------------------------------

    def _act_begin(self, now: int) -> Commands:
        record = self.record
        desired = record.desired
        if desired is None:
            raise AssertionError("an assignment was chosen, but there is none")
        record.heals = record.heals if record.is_again and record.deployment == desired else 0
        record.deployment, record.outcome, record.error, record.attempt = desired, None, None, 1
        record.is_again = False
        self._retry_at = None
        if desired.manifest in record.quarantined:
            self._refuse("artifact.quarantined", f"bundle {desired.manifest.short} failed here before")
            return []
        if record.live is not None and record.live.manifest == desired.manifest:
            record.live = desired
            if record.is_live_proved:
                record.outcome, record.phase = Outcome.CONFIRMED, Phase.IDLE
            else:
                record.phase = Phase.PROBATION  # something newer had cut its probation short
                self._begin_window(now)
            return [do.SetSampling(self.name, record.live_sampling_ratio)]
        return self._go_on(now)

    def _act_supersede_probation(self, now: int) -> Commands:
        record = self.record
        if record.live is not None and record.desired is not None and record.live.manifest == record.desired.manifest:
            record.deployment = record.live = record.desired  # the same bundle goes on being watched
            return [do.SetSampling(self.name, record.live_sampling_ratio)]
        record.outcome = Outcome.SUPERSEDED
        self._observe_at = self._ends_at = None
        return [*self._give_up_operation(), *self._act_begin(now)]

    def _act_supersede(self, now: int) -> Commands:
        return self._act_withdraw(now) + self._act_begin(now)

    def _act_withdraw(self, now: int) -> Commands:
        out = self._interrupt(now)
        self.record.phase, self.record.outcome = Phase.IDLE, Outcome.SUPERSEDED
        return out

    def _interrupt(self, now: int, is_live_wanted: bool = True) -> Commands:
        """End the step under way; the live bundle answers again where it was stopped for it."""
        out = self._give_up_operation()
        if self.record.phase in (Phase.TESTING, Phase.ACTIVATING):
            out.append(do.DiscardCandidate(self.name))
        self._retry_at = None
        return out + (self._end_pause(now) if is_live_wanted else [])

    def _give_up_operation(self) -> Commands:
        op, self._op, self._overdue_at = self._op, None, None
        return [] if op is None else [do.CancelOperation(op)]

    def _end_pause(self, now: int) -> Commands:
        """Let the live bundle answer again if it was stopped for the candidate."""
        is_paused, self._is_paused = self._is_paused, False
        return self._serve(now) if is_paused else []

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

    def _go_on(self, now: int) -> Commands:
        """Begin with the first step, or wait there while an operator holds updates back."""
        self.record.phase = Phase.RESOLVING
        return self._act_hold(now) if self.is_held else self._act_resolve(now)

    # -- the way to activation: the live slot is untouched ---------------------------------------------------------

    def _begin_operation(self, now: int) -> int:
        self._op, self._overdue_at = self._new_op(), now + STEP_MS_MAX[self.record.phase]
        return self._op

    def _end_overdue(self, now: int) -> Commands:
        """Give up what takes longer than anything may; it fails like any other step."""
        if self._overdue_at is not None and now >= self._overdue_at and (op := self._op) is not None:
            detail = f"{self.record.phase} took longer than {STEP_MS_MAX[self.record.phase]} ms"
            return [
                do.CancelOperation(op),
                *self.on_event(inputs.CommandFailed(op, "device.step-overdue", detail), now),
            ]
        watched = self._watch.overdue_at
        if watched is not None and now >= watched and (op := self._watch.op) is not None:
            detail = "bringing the live bundle up took too long"
            return [
                do.CancelOperation(op),
                *self.on_event(inputs.CommandFailed(op, "device.step-overdue", detail), now),
            ]
        return []

    def _act_resolve(self, now: int) -> Commands:
        return [do.ResolveBundle(self._begin_operation(now), self._deployment())]

    def _act_ask_to_download(self, now: int, event: inputs.BundleResolved) -> Commands:
        return [do.AskLeave(self._begin_operation(now), self._deployment(), do.Gate.DOWNLOAD)]

    def _act_ask_to_activate(self, now: int, event: inputs.SlotStaged) -> Commands:
        policy = self._deployment().policy
        window_ms = event.probation_ms if policy.probation_ms is None else policy.probation_ms
        self._next_probation = (window_ms, event.failure_ratio_max)
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
        self.record.error = None
        self._is_paused = event.stops_first and self.record.live is not None
        if self._is_paused:
            self._watch.pause()
        return self._prove(now)

    def _prove(self, now: int) -> Commands:
        self._is_candidate_lost = False
        self.record.phase = Phase.TESTING
        return [do.ProveCandidate(self._begin_operation(now), self._deployment(), self._is_paused)]

    def _act_activate(self, now: int, event: inputs.CandidateProved) -> Commands:
        if self._is_candidate_lost:
            return self._prove(now)
        self._next_golden = event.golden
        self.record.phase = Phase.ACTIVATING
        return [do.ActivateSlot(self._begin_operation(now), self._deployment())]

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
            if outside or record.attempt < FINAL_ATTEMPTS_MAX:
                record.error = self._error(event.code, event.detail)
                wait = HOLD_MS
                if disposition is not Disposition.HOLD:
                    wait = wait_ms(RETRY_MS_FIRST, RETRY_MS_MAX, record.attempt, self._device, self.name)
                record.attempt += 1
                record.phase, self._retry_at = Phase.RESOLVING, now + wait
                return out + self._end_pause(now) + (self._act_hold(now) if self.is_held else [])
        if disposition in _BLAMING:
            record.quarantine(self._deployment().manifest)
        self._refuse(event.code, event.detail)
        return out + self._end_pause(now)

    def _refuse(self, code: str, detail: str) -> None:
        self.record.error = self._error(code, detail)
        self.record.phase, self.record.outcome = Phase.IDLE, Outcome.REFUSED

    # -- probation -------------------------------------------------------------------------------------------------

    def _act_watch(self, now: int, event: inputs.SlotActivated) -> Commands:
        record, old = self.record, self.record.live
        record.live = self._deployment()
        # A live bundle that failed, and whose own fallback did not come up, is nothing to roll back to; neither is one
        # that never passed a probation: then what was to be its fallback stays.
        if old is not None and old.manifest not in record.quarantined and record.is_live_proved:
            record.fallback, record.fallback_sampling_ratio = old, record.sampling_ratio
        elif old is not None and old.manifest in record.quarantined:
            record.fallback = None
        if record.fallback is not None and record.fallback.manifest == record.live.manifest:
            record.fallback = None
        record.sampling_ratio, record.golden = self._next_sampling, self._next_golden
        record.probation_ms, record.failure_ratio_max = self._next_probation
        record.phase, record.probation_restarts, record.error = Phase.PROBATION, 0, None
        record.is_live_proved, record.commits = False, 0
        self._is_paused, self._gap_ms = False, event.gap_ms
        self._watch.switched(now, is_serving=True)
        self._begin_window(now)
        return [do.SetSampling(self.name, record.live_sampling_ratio)]

    def _begin_window(self, now: int) -> None:
        self._ends_at = now + self.record.probation_ms
        self._observe_at = now + min(OBSERVE_MS, self.record.probation_ms)

    def _act_observe(self, now: int) -> Commands:
        self._observe_at = None
        return [do.ObserveHealth(self._begin_operation(now), self.name)]

    def _act_judge(self, now: int, event: inputs.HealthObserved) -> Commands:
        ends_at = self._ends_at if self._ends_at is not None else now
        verdict = judge(
            event.is_alive, event.requests, event.failures, self.record.failure_ratio_max, is_window_over=now >= ends_at
        )
        if verdict is None:
            self._observe_at = min(now + OBSERVE_MS, ends_at)
            return []
        if verdict is Verdict.HEALTHY:
            return self._act_commit(now)
        detail = f"{event.failures} of {event.requests} requests failed" if event.is_alive else "the worker is gone"
        return self._begin_rollback(now, "model.unhealthy" if event.is_alive else "model.worker-crashed", detail)

    def _act_fail_probation(
        self, now: int, event: inputs.CommandFailed | inputs.WorkerExited | LiveGivenUp
    ) -> Commands:
        if isinstance(event, inputs.WorkerExited):
            return self._begin_rollback(now, "model.worker-crashed", "the worker ended by itself during its probation")
        return self._begin_rollback(now, event.code, event.detail)

    def _act_commit(self, now: int) -> Commands:
        self._observe_at = self._ends_at = None
        self.record.phase = Phase.COMMITTING
        return [do.CommitSlot(self._begin_operation(now), self.name)]

    def _act_confirm(self, now: int, event: inputs.SlotCommitted) -> Commands:
        record = self.record
        if record.live is None or event.manifest != record.live.manifest:
            detail = f"bundle {event.manifest.short} answers at the module's socket"
            return self._begin_rollback(now, "device.answers-otherwise", detail)
        record.phase, record.outcome, record.error = Phase.IDLE, Outcome.CONFIRMED, None
        record.golden, record.is_live_proved, record.commits = event.golden, True, 0
        self._watch.attested(now, event.manifest)
        return []

    def _act_fail_commit(self, now: int, event: inputs.CommandFailed) -> Commands:
        """Installed is not confirmed: a bundle that cannot prove that it answers is not kept."""
        record = self.record
        record.commits += 1
        if CODES[event.code].disposition in _BLAMING or record.commits >= COMMIT_ATTEMPTS_MAX:
            return self._begin_rollback(now, event.code, event.detail)
        record.error = self._error(event.code, event.detail)
        self._retry_at = now + wait_ms(RETRY_MS_FIRST, RETRY_MS_MAX, record.commits, self._device, self.name)
        return []

    # -- rolling back ----------------------------------------------------------------------------------------------

    def _act_roll_back_on_request(self, now: int, event: inputs.RollbackRequested) -> Commands:
        if self.record.fallback is None:
            self.record.error = self._error("device.no-fallback", "an operator asked for a fallback, but there is none")
            return []
        return self._interrupted(now) + self._begin_rollback(now, "", "")

    def _act_leave_live(self, now: int, event: LiveGivenUp) -> Commands:
        if self.record.fallback is None:
            return []  # there is nothing better than to go on trying
        return self._interrupted(now) + self._begin_rollback(now, event.code, event.detail)

    def _interrupted(self, now: int) -> Commands:
        """End the update under way, if there is one; it is chosen again after the rollback."""
        out: Commands = []
        if self.record.phase in INTERRUPTIBLE:
            out = self._interrupt(now, is_live_wanted=False)
            self.record.phase, self.record.outcome = Phase.IDLE, Outcome.SUPERSEDED
        return out

    def _begin_rollback(self, now: int, code: str, detail: str) -> Commands:
        """Roll back; an empty code means that a person asked, which is no fault of the bundle."""
        record = self.record
        record.error = self._error(code, detail) if code else None
        if code and CODES[code].disposition in _BLAMING and record.live is not None:
            record.quarantine(record.live.manifest)
        if (
            record.live is not None
            and record.deployment is not None
            and record.live.manifest != record.deployment.manifest
        ):
            record.deployment = record.live  # the live bundle failed long after its deployment ended
        record.phase, record.rollbacks, record.outcome = Phase.ROLLING_BACK, 0, None
        self._observe_at = self._ends_at = self._retry_at = None
        self._is_paused = False
        self._watch.forget()
        return self._act_roll_back(now)

    def _act_roll_back(self, now: int) -> Commands:
        target = self.record.fallback.manifest if self.record.fallback else None
        return [do.RollBack(self._begin_operation(now), self.name, target)]

    def _act_end_rollback(self, now: int, event: inputs.SlotRolledBack) -> Commands:
        record = self.record
        record.live, record.fallback, record.golden = record.fallback, None, event.golden
        record.sampling_ratio = record.fallback_sampling_ratio
        record.phase, record.outcome, record.is_live_proved = Phase.IDLE, Outcome.ROLLED_BACK, True
        if record.error is not None and record.error.code in _DAMAGE and record.heals < HEALS_MAX:
            # The disk failed the bundle, not the bundle the device: it is fetched anew.
            record.heals += 1
            record.is_again = True
        self._watch.switched(now, is_serving=record.live is not None)
        return [do.SetSampling(self.name, record.live_sampling_ratio)] if record.live else []

    def _act_retry_rollback(self, now: int, event: inputs.CommandFailed) -> Commands:
        record = self.record
        record.rollbacks += 1
        if record.rollbacks < ROLLBACK_ATTEMPTS_MAX:
            self._retry_at = now + wait_ms(RETRY_MS_FIRST, RETRY_MS_MAX, record.rollbacks, self._device, self.name)
            return []
        record.error = self._error("device.rollback-failed", f"{event.code}: {event.detail}")
        record.phase, record.outcome = Phase.IDLE, Outcome.ROLLBACK_FAILED
        return []

    # -- keeping the live bundle up --------------------------------------------------------------------------------

    def _due_to_serve(self) -> int | None:
        """When to bring the live bundle up again. Not behind a change of what is live, which it would take back."""
        is_changing = self._is_paused or self.record.phase in (Phase.ACTIVATING, Phase.ROLLING_BACK)
        return None if is_changing else self._watch.due_at

    def _due_to_attest(self) -> int | None:
        """When the live bundle proves again that it answers; on probation and while it changes that comes of itself."""
        return self._watch.attest_at if self.record.phase in _SETTLED and not self._is_paused else None

    def _serve(self, now: int) -> Commands:
        if self.record.live is None:
            self._watch.forget()
            return []
        # Whoever proves a bundle proves it in the place of any candidate, so the one under test goes.
        self._is_candidate_lost = self.record.phase is Phase.TESTING
        may_overtake = self.record.phase is not Phase.PROBATION
        return [self._watch.bring_up(now, self.record.live.manifest, may_overtake)]

    def heal(self, now: int) -> Commands:
        """The slot of the live bundle was made anew: a worker from the damaged one gives way."""
        self._watch.healed(now)
        due = self._due_to_serve()
        return self._serve(now) if due is not None and now >= due else []

    def find_damaged(self, manifest: Digest) -> None:
        """Reading the disk again found a slot damaged; what runs from it goes on until it is healed."""
        if self.record.live is not None and self.record.live.manifest == manifest:
            self._watch.error = self._error(
                "device.disk-corrupt", "the live slot is damaged on disk, it is fetched anew"
            )

    def _on_live_served(self, event: inputs.LiveServed, now: int) -> Commands:
        if event.op != self._watch.op:
            return []
        self._watch.came_up(now)
        self.record.golden = event.golden
        if self.record.phase is Phase.PROBATION and self._ends_at is None:
            self._begin_window(now)
        return [do.SetSampling(self.name, self.record.live_sampling_ratio)]

    def _on_serve_failed(self, event: inputs.CommandFailed, now: int) -> Commands:
        is_too_often = self._watch.failed(now)
        is_damaged = event.code in _DAMAGE
        if is_damaged:
            if self.record.fallback is None:
                self.damaged = self.record.live
            self._watch.error = self._error(event.code, event.detail)
        if is_too_often or is_damaged or self.record.phase is Phase.PROBATION:
            return self.on_event(LiveGivenUp(event.code, event.detail), now)
        return []

    def _on_worker_lost(self, now: int) -> Commands:
        if self._watch.lost(now):
            return self.on_event(LiveGivenUp("model.worker-crashed", "the live worker ended by itself"), now)
        return []

    def _on_attested(self, event: inputs.Completed, now: int) -> Commands:
        live = self.record.live
        if isinstance(event, inputs.LiveAttested) and live is not None and event.manifest == live.manifest:
            self._watch.attested(now, event.manifest)
            self.record.golden = event.golden
        elif isinstance(event, inputs.LiveAttested):
            self._watch.attested(now, event.manifest)
            detail = f"bundle {event.manifest.short} answers at the module's socket"
            self._watch.error = self._error("device.answers-otherwise", detail)
        elif isinstance(event, inputs.CommandFailed):
            self._watch.attest_failed(now, self._error(event.code, event.detail))
        return []

    # -- small helpers ---------------------------------------------------------------------------------------------

    def _deployment(self) -> Assignment:
        if self.record.deployment is None:
            raise AssertionError(f"phase {self.record.phase} without a deployment")
        return self.record.deployment

    def _error(self, code: str, detail: str) -> ReportedError:
        return ReportedError.of(code, detail, self.record.phase, self.record.attempt)
