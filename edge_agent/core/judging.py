"""The part of a module's update machine that judges what is live: probation, proof, rollback. Pure."""

# ruff: noqa: ARG002  # every action has the signature that the table calls it by, whether it needs the time or the event or not

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.backoff import wait_ms
from edge_agent.core.keeping import DAMAGE
from edge_agent.core.limits import (
    COMMIT_ATTEMPTS_MAX,
    HEALS_MAX,
    OBSERVE_MS,
    RETRY_MS_FIRST,
    RETRY_MS_MAX,
    ROLLBACK_ATTEMPTS_MAX,
)
from edge_agent.core.probation import Seen, judge, quantile_us
from edge_agent.core.state import Commands
from edge_agent.core.steps import FATAL, Steps, is_blamed
from edge_agent.core.update import LiveGivenUp
from edge_contract.codes import CODES
from edge_contract.phases import Outcome, Phase, Verdict
from edge_contract.twin import ReportedHealth


class Judging(Steps):
    """From the activation to the end: the new bundle proves itself, or the one before it comes back."""

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
        record.probation_ms, record.bounds, record.before = self._next_probation_ms, self._next_bounds, event.before
        self._health = None
        record.phase, record.probation_restarts, record.error = Phase.PROBATION, 0, None
        record.is_live_proved, record.commits = False, 0
        self._is_paused, self._gap_ms = False, event.gap_ms
        self._watch.switched(now, is_serving=True)
        self._begin_window(now)
        return [do.SetSampling(self.name, record.live_sampling_ratio)]

    def _act_observe(self, now: int) -> Commands:
        self._observe_at = None
        return [do.ObserveHealth(self._begin_operation(now), self.name)]

    def _act_judge(self, now: int, event: inputs.HealthObserved) -> Commands:
        ends_at = self._ends_at if self._ends_at is not None else now
        seen = Seen(event.is_alive, event.requests, event.failures, event.nonfinite, event.latencies, event.drift)
        record = self.record
        found = judge(seen, record.bounds, record.before, is_window_over=now >= ends_at, looks=self._looks)
        if found is None:
            self._looks += 1
            self._observe_at = min(now + OBSERVE_MS, ends_at)
            return []
        verdict, detail = found
        self._health = ReportedHealth(
            event.requests,
            event.failures,
            event.nonfinite,
            quantile_us(event.latencies, 0.5),
            quantile_us(event.latencies, 0.99),
            record.before.p50_us,
            record.before.p99_us,
        )
        if verdict is Verdict.HEALTHY:
            return self._act_commit(now)
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
        if CODES[event.code].disposition in FATAL or record.commits >= COMMIT_ATTEMPTS_MAX:
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
        if not self._has_better:
            return []  # there is nothing better than to go on trying
        return self._interrupted(now) + self._begin_rollback(now, event.code, event.detail)

    def _begin_rollback(self, now: int, code: str, detail: str) -> Commands:
        """Roll back; an empty code means that a person asked, which is no fault of the bundle."""
        record = self.record
        record.error = self._error(code, detail) if code else None
        if code and is_blamed(code) and record.live is not None:
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
        target = self.record.fallback
        if target is None:
            return [do.RollBack(self._begin_operation(now), self.name, None)]
        return [do.RollBack(self._begin_operation(now), self.name, target.manifest, target.policy)]

    def _act_end_rollback(self, now: int, event: inputs.SlotRolledBack) -> Commands:
        record = self.record
        record.live, record.fallback, record.golden = record.fallback, None, event.golden
        record.sampling_ratio = record.fallback_sampling_ratio
        record.phase, record.outcome, record.is_live_proved = Phase.IDLE, Outcome.ROLLED_BACK, True
        if record.error is not None and record.error.code in DAMAGE and record.heals < HEALS_MAX:
            # The disk failed the bundle, not the bundle the device: it is fetched anew.
            record.heals += 1
            record.is_again = True
        self._watch.switched(now, is_serving=record.live is not None)
        return [do.SetSampling(self.name, record.live_sampling_ratio)] if record.live else []

    def _act_retry_rollback(self, now: int, event: inputs.CommandFailed) -> Commands:
        record = self.record
        record.rollbacks += 1
        if event.code in DAMAGE:
            self.damaged = record.fallback  # made anew while this waits; if that takes longer, a person may ask again
        if record.rollbacks < ROLLBACK_ATTEMPTS_MAX:
            self._retry_at = now + wait_ms(RETRY_MS_FIRST, RETRY_MS_MAX, record.rollbacks, self._device, self.name)
            return []
        record.error = self._error("device.rollback-failed", f"{event.code}: {event.detail}")
        record.phase, record.outcome = Phase.IDLE, Outcome.ROLLBACK_FAILED
        # What is live goes on until somebody helps, and is brought up again if it was stopped or ended.
        self._watch.go_on(now)
        return []
