"""The part of a module's update machine that keeps the live bundle up, sound and proved. Pure."""

from typing import Final

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.limits import SERVE_MS_MAX
from edge_agent.core.state import Commands, ModuleState
from edge_agent.core.update import INTERRUPTIBLE, LiveGivenUp
from edge_contract.digest import Digest
from edge_contract.phases import Outcome, Phase

DAMAGE: Final = frozenset({"device.disk-corrupt", "artifact.not-found"})
"""What a live bundle fails with when its slot is no longer what was staged."""
_SETTLED: Final = frozenset({Phase.IDLE, *INTERRUPTIBLE})
"""Phases in which what is live is neither changing nor being judged."""


class Keeping(ModuleState):
    """Brings the live bundle up and up again, lets it prove that it answers, and notices damage."""

    def _due_to_serve(self) -> int | None:
        """When to bring the live bundle up again. Not behind a change of what is live, which it would take back."""
        is_changing = self._is_paused or self.record.phase in (Phase.ACTIVATING, Phase.ROLLING_BACK)
        return None if is_changing else self._watch.due_at

    @property
    def _has_better(self) -> bool:
        """Whether there is a fallback that may come up: one that did not is left to a person."""
        return self.record.fallback is not None and self.record.outcome is not Outcome.ROLLBACK_FAILED

    def _due_to_attest(self) -> int | None:
        """When the live bundle proves again that it answers; on probation and while it changes that comes of itself."""
        return self._watch.attest_at if self.record.phase in _SETTLED and not self._is_paused else None

    def _serve(self, now: int) -> Commands:
        if self.record.live is None:
            self._watch.forget()
            return []
        # Whoever proves a bundle proves it in the place of any candidate, so the one under test goes.
        self._is_candidate_lost = self.record.phase in (Phase.TESTING, Phase.TRYING)
        may_overtake = self.record.phase not in (Phase.PROBATION, Phase.COMMITTING)
        return [self._watch.bring_up(now, self.record.live, may_overtake)]

    def _end_pause(self, now: int) -> Commands:
        """Let the live bundle answer again if it was stopped for the candidate."""
        is_paused, self._is_paused = self._is_paused, False
        return self._serve(now) if is_paused else []

    def heal(self, now: int) -> Commands:
        """The slot of the live bundle was made anew: a worker from the damaged one gives way."""
        self._watch.healed(now)
        due = self._due_to_serve()
        return self._serve(now) if due is not None and now >= due else []

    def find_damaged(self, manifest: Digest) -> None:
        """Reading the disk again found a slot damaged; what runs from it goes on until it is healed."""
        if self.record.live is not None and self.record.live.manifest == manifest:
            self._watch.damage = self._error(
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
        is_damaged = event.code in DAMAGE
        if is_damaged:
            if not self._has_better:
                self.damaged = self.record.live
            self._watch.damage = self._error(event.code, event.detail)
        if is_too_often or is_damaged or self.record.phase is Phase.PROBATION:
            return self.on_event(LiveGivenUp(event.code, event.detail), now)
        return []

    def _on_worker_lost(self, now: int) -> Commands:
        if self._watch.lost(now):
            return self.on_event(LiveGivenUp("model.worker-crashed", "the live worker ended by itself"), now)
        return []

    def _attest(self, now: int) -> Commands:
        """Ask for the next proof, or give up the one that should be there by now."""
        if (op := self._watch.attest_op) is None:
            return [self._watch.attest(now)]
        error = self._error("device.step-overdue", f"there was no proof of what answers within {SERVE_MS_MAX} ms")
        self._watch.attest_failed(now, error)
        return [do.CancelOperation(op)]

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
            failures = self._watch.attest_failed(now, self._error(event.code, event.detail))
            if event.code in DAMAGE and failures == 1:
                self.damaged = live  # what runs goes on; its slot need not wait for the next scrub
        return []
