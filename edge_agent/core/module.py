"""The update machine of one module: the actions that the table in `update.py` names. Pure; driven by `agent.Agent`."""

# ruff: noqa: ARG002  # every action has the signature that the table calls it by, whether it needs the time or the event or not

from collections.abc import Callable
from typing import Final

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.backoff import wait_ms
from edge_agent.core.limits import (
    FINAL_ATTEMPTS_MAX,
    HOLD_MS,
    OBSERVE_MS,
    PROBATION_RESTARTS_MAX,
    RETRY_MS_FIRST,
    RETRY_MS_MAX,
    ROLLBACK_ATTEMPTS_MAX,
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


class ModuleMachine:
    """One module's update machine and the watch over its live worker.

    Attributes:
        name: Name of the module.
        record: What is persisted.
    """

    def __init__(self, device: str, name: str, record: ModuleRecord, new_op: Callable[[], int]) -> None:
        """Drive `record`; `new_op` gives operation identifiers that were never used before in this process."""
        self.name = name
        self.record = record
        self._device = device
        self._new_op = new_op
        self._op: int | None = None
        self._retry_at: int | None = None
        self._observe_at: int | None = None
        self._ends_at: int | None = None
        self._watch = LiveWatch(device, name, new_op)
        self._next_sampling = 1.0
        self._next_golden: Digest | None = None
        self._is_candidate_lost = False

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
        out = self._serve()
        if record.phase is Phase.RESOLVING:
            out += self._act_resolve(now)
        elif record.phase is Phase.COMMITTING:
            out += self._begin_commit()
        return out

    def on_event(self, event: object, now: int) -> Commands:
        """Take one event that concerns this module; completions of other operations change nothing."""
        if isinstance(event, inputs.LiveServed):
            return self._on_live_served(event, now)
        if isinstance(event, inputs.Completed):
            if event.op == self._watch.op and isinstance(event, inputs.CommandFailed):
                return self._on_serve_failed(event, now)
            if event.op != self._op:
                return []
            self._op = None
        if isinstance(event, inputs.WorkerExited):
            if self.record.live is None or event.manifest != self.record.live.manifest:
                return []
            self._watch.is_serving = False
        row = TABLE.get((self.record.phase, type(event)))
        if row is None:
            return self._on_worker_lost(now) if isinstance(event, inputs.WorkerExited) else []
        action: Callable[..., Commands] = getattr(self, f"_act_{row.action}")
        out = (
            action(now)
            if isinstance(event, inputs.TimeReached | AssignmentChosen | AssignmentWithdrawn)
            else action(now, event)
        )
        if self.record.phase not in row.next_phases:
            raise AssertionError(f"{row.action} led to {self.record.phase}, allowed: {sorted(row.next_phases)}")
        return out

    def on_time(self, now: int) -> Commands:
        """Do what is due."""
        out: Commands = []
        serve_at = self._due_to_serve()
        if serve_at is not None and now >= serve_at:
            out += self._serve()
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
            out += self.on_event(inputs.TimeReached(), now)
        if self._observe_at is not None and now >= self._observe_at and self._op is None:
            out += self.on_event(inputs.TimeReached(), now)
        return out

    def deadline(self) -> int | None:
        """When `on_time` has something to do next."""
        observe_at = self._observe_at if self._op is None else None
        times = (self._due_to_serve(), self._retry_at, observe_at)
        return min((at for at in times if at is not None), default=None)

    def reconcile(self, now: int) -> Commands:
        """Choose the desired assignment where it is not what is worked on already."""
        record = self.record
        if record.desired is None:
            return self.on_event(AssignmentWithdrawn(), now)
        if record.desired == record.deployment:
            return []
        is_live = record.live is not None and record.live.manifest == record.desired.manifest
        if is_live and not self._watch.is_serving and record.desired.manifest not in record.quarantined:
            # Confirmed is what answers. Whatever is under way ends; this one is chosen when the live bundle is up.
            return self.on_event(AssignmentWithdrawn(), now)
        return self.on_event(AssignmentChosen(), now)

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
        )

    # -- choosing --------------------------------------------------------------------------------------------------

    def _act_begin(self, now: int) -> Commands:
        record = self.record
        desired = record.desired
        if desired is None:
            raise AssertionError("an assignment was chosen, but there is none")
        record.deployment, record.outcome, record.error, record.attempt = desired, None, None, 1
        self._retry_at = None
        if desired.manifest in record.quarantined:
            self._refuse("artifact.quarantined", f"bundle {desired.manifest.short} failed here before")
            return []
        if record.live is not None and record.live.manifest == desired.manifest:
            record.live, record.outcome, record.phase = desired, Outcome.CONFIRMED, Phase.IDLE
            return [do.SetSampling(self.name, record.live_sampling_ratio)]
        record.phase = Phase.RESOLVING
        return self._act_resolve(now)

    def _act_supersede(self, now: int) -> Commands:
        return self._act_withdraw(now) + self._act_begin(now)

    def _act_withdraw(self, now: int) -> Commands:
        out: Commands = [] if self._op is None else [do.CancelOperation(self._op)]
        if self.record.phase is Phase.TESTING:
            out.append(do.DiscardCandidate(self.name))
        self._op = self._retry_at = None
        self.record.phase, self.record.outcome = Phase.IDLE, Outcome.SUPERSEDED
        return out

    # -- the way to activation: the live slot is untouched ---------------------------------------------------------

    def _step(self, phase: Phase, command: type[do.BundleCommand]) -> Commands:
        if self.record.deployment is None:
            raise AssertionError(f"{phase} without a deployment")
        self.record.phase = phase
        self._op = self._new_op()
        return [command(self._op, self.record.deployment)]  # type: ignore[list-item]  # only concrete steps are passed

    def _act_resolve(self, now: int) -> Commands:
        return self._step(Phase.RESOLVING, do.ResolveBundle)

    def _act_fetch(self, now: int, event: inputs.BundleResolved) -> Commands:
        return self._step(Phase.FETCHING, do.FetchBlobs)

    def _act_verify(self, now: int, event: inputs.BlobsFetched) -> Commands:
        return self._step(Phase.VERIFYING, do.VerifyBlobs)

    def _act_stage(self, now: int, event: inputs.BlobsVerified) -> Commands:
        return self._step(Phase.STAGING, do.StageSlot)

    def _act_prove(self, now: int, event: inputs.SlotStaged) -> Commands:
        record = self.record
        policy = self._deployment().policy
        record.probation_ms = event.probation_ms if policy.probation_ms is None else policy.probation_ms
        record.failure_ratio_max = event.failure_ratio_max
        self._next_sampling = event.sampling_ratio
        return self._prove()

    def _prove(self) -> Commands:
        self._is_candidate_lost = False
        return self._step(Phase.TESTING, do.ProveCandidate)

    def _act_activate(self, now: int, event: inputs.CandidateProved) -> Commands:
        if self._is_candidate_lost:
            return self._prove()
        self._next_golden = event.golden
        return self._step(Phase.ACTIVATING, do.ActivateSlot)

    def _act_fail(self, now: int, event: inputs.CommandFailed) -> Commands:
        record = self.record
        out: Commands = []
        if record.phase in (Phase.TESTING, Phase.ACTIVATING):
            out.append(do.DiscardCandidate(self.name))
        disposition = CODES[event.code].disposition
        if event.code in _TRANSFER_CODES and record.phase in _TRANSFER_PHASES:
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
                return out
        if disposition in _BLAMING:
            record.quarantine(self._deployment().manifest)
        self._refuse(event.code, event.detail)
        return out

    def _refuse(self, code: str, detail: str) -> None:
        self.record.error = self._error(code, detail)
        self.record.phase, self.record.outcome = Phase.IDLE, Outcome.REFUSED

    # -- probation -------------------------------------------------------------------------------------------------

    def _act_watch(self, now: int, event: inputs.SlotActivated) -> Commands:
        record = self.record
        # A live bundle that failed, and whose own fallback did not come up, is nothing to roll back to.
        is_fit = record.live is not None and record.live.manifest not in record.quarantined
        record.fallback, record.live = record.live if is_fit else None, self._deployment()
        record.fallback_sampling_ratio, record.sampling_ratio = record.sampling_ratio, self._next_sampling
        record.golden = self._next_golden
        record.phase, record.probation_restarts, record.error = Phase.PROBATION, 0, None
        self._watch.switched(now, is_serving=True)
        self._begin_window(now)
        return [do.SetSampling(self.name, record.live_sampling_ratio)]

    def _begin_window(self, now: int) -> None:
        self._ends_at = now + self.record.probation_ms
        self._observe_at = now + min(OBSERVE_MS, self.record.probation_ms)

    def _act_observe(self, now: int) -> Commands:
        self._op, self._observe_at = self._new_op(), None
        return [do.ObserveHealth(self._op, self.name)]

    def _act_judge(self, now: int, event: inputs.HealthObserved) -> Commands:
        ends_at = self._ends_at if self._ends_at is not None else now
        verdict = judge(
            event.is_alive, event.requests, event.failures, self.record.failure_ratio_max, is_window_over=now >= ends_at
        )
        if verdict is None:
            self._observe_at = min(now + OBSERVE_MS, ends_at)
            return []
        if verdict is Verdict.HEALTHY:
            return self._begin_commit()
        detail = f"{event.failures} of {event.requests} requests failed" if event.is_alive else "the worker is gone"
        return self._begin_rollback(now, "model.unhealthy" if event.is_alive else "model.worker-crashed", detail)

    def _act_fail_probation(
        self, now: int, event: inputs.CommandFailed | inputs.WorkerExited | LiveGivenUp
    ) -> Commands:
        if isinstance(event, inputs.WorkerExited):
            return self._begin_rollback(now, "model.worker-crashed", "the worker ended by itself during its probation")
        return self._begin_rollback(now, event.code, event.detail)

    def _begin_commit(self) -> Commands:
        self._observe_at = self._ends_at = None
        self.record.phase = Phase.COMMITTING
        self._op = self._new_op()
        return [do.CommitSlot(self._op, self.name)]

    def _act_confirm(self, now: int, event: object) -> Commands:
        # Housekeeping that failed is done again after the next deployment; the model itself is proved.
        self.record.phase, self.record.outcome, self.record.error = Phase.IDLE, Outcome.CONFIRMED, None
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
        return self._act_withdraw(now) if self.record.phase in INTERRUPTIBLE else []

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
        self._observe_at = self._ends_at = None
        self._watch.forget()
        return self._act_roll_back(now)

    def _act_roll_back(self, now: int) -> Commands:
        self._op = self._new_op()
        target = self.record.fallback.manifest if self.record.fallback else None
        return [do.RollBack(self._op, self.name, target)]

    def _act_end_rollback(self, now: int, event: inputs.SlotRolledBack) -> Commands:
        record = self.record
        record.live, record.fallback, record.golden = record.fallback, None, event.golden
        record.sampling_ratio = record.fallback_sampling_ratio
        record.phase, record.outcome = Phase.IDLE, Outcome.ROLLED_BACK
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
        return None if self.record.phase in (Phase.ACTIVATING, Phase.ROLLING_BACK) else self._watch.due_at

    def _serve(self) -> Commands:
        if self.record.live is None:
            self._watch.forget()
            return []
        # Whoever proves a bundle proves it in the place of any candidate, so the one under test goes.
        self._is_candidate_lost = self.record.phase is Phase.TESTING
        may_overtake = self.record.phase is not Phase.PROBATION
        return [self._watch.bring_up(self.record.live.manifest, may_overtake)]

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
        if is_too_often or self.record.phase is Phase.PROBATION:
            return self.on_event(LiveGivenUp(event.code, event.detail), now)
        return []

    def _on_worker_lost(self, now: int) -> Commands:
        if self._watch.lost(now):
            return self.on_event(LiveGivenUp("model.worker-crashed", "the live worker ended by itself"), now)
        return []

    # -- small helpers ---------------------------------------------------------------------------------------------

    def _deployment(self) -> Assignment:
        if self.record.deployment is None:
            raise AssertionError(f"phase {self.record.phase} without a deployment")
        return self.record.deployment

    def _error(self, code: str, detail: str) -> ReportedError:
        return ReportedError.of(code, detail, self.record.phase, self.record.attempt)
