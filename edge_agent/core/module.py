"""The update machine of one module: which assignment is worked on, and what each event means by the table. Pure.

Driven by `agent.Agent`. The actions that `update.TABLE` names are here and in the classes that this one builds on.
"""

from collections.abc import Callable
from typing import Final

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.judging import Judging
from edge_agent.core.limits import FINAL_ATTEMPTS_MAX, PROBATION_RESTARTS_MAX
from edge_agent.core.state import Commands
from edge_agent.core.update import RESUME, TABLE, AssignmentChosen, AssignmentWithdrawn, LiveGivenUp
from edge_contract.phases import Outcome, Phase
from edge_contract.twin import ReportedDeployment, ReportedModule

_RISKY: Final = (Phase.TESTING, Phase.TRYING, Phase.ACTIVATING)
"""Phases in which a bundle runs that never proved itself on this device."""
_UNTIMED: Final = (
    inputs.TimeReached,
    AssignmentChosen,
    AssignmentWithdrawn,
    inputs.HoldRequested,
    inputs.ResumeRequested,
)
"""Events that say nothing but that they happened."""


class ModuleMachine(Judging):
    """One module's update machine and the watch over its live worker. One thread at a time."""

    # -- what the agent calls -------------------------------------------------------------------------------------

    def start(self, now: int) -> Commands:
        """Resume after a restart: bring the live bundle up, then go on where the record says."""
        record, interrupted = self.record, self.record.phase
        record.phase = RESUME[interrupted]
        if record.phase is Phase.ROLLING_BACK:
            return self._act_roll_back(now)
        if interrupted in _RISKY:
            record.failures += 1  # a candidate that takes the device down must not do so for ever
            if record.failures >= FINAL_ATTEMPTS_MAX:
                self._refuse("device.restarted", f"the agent restarted again and again while {interrupted}")
        if record.phase in (Phase.PROBATION, Phase.COMMITTING):
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
            if event.op != self._op or (self.record.phase, type(event)) not in TABLE:
                return []  # of an operation that was given up, or nothing that could complete this one
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
            out += self._attest(now)
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
        if record.desired == record.deployment and not record.is_again and record.outcome is not Outcome.SUPERSEDED:
            return []
        if record.phase is Phase.PROBATION and (self.is_held or record.desired.manifest in record.quarantined):
            return []  # what could not take its place does not end its probation
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
            answering=self._watch.answering if self._watch.is_serving else None,
            held=self.is_held,
            gap_ms=self._gap_ms,
            refused=self.refused,
            error=self._watch.damage or self._watch.error,
            health=self._health,
            trial=record.trial,
        )

    # -- choosing --------------------------------------------------------------------------------------------------

    def _act_begin(self, now: int) -> Commands:
        record = self.record
        desired = record.desired
        if desired is None:
            raise AssertionError("an assignment was chosen, but there is none")
        record.heals = record.heals if record.is_again and record.deployment == desired else 0
        record.deployment, record.outcome, record.error, record.attempt = desired, None, None, 1
        record.is_again, record.failures, record.trial = False, 0, None
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
