"""The agent's core: four members, no I/O.

    handle(event, now) -> commands        deadline() -> instant or none        snapshot() -> record
    restore(record, …)

Rules it keeps: whatever changes the record is persisted before any command that follows from the change; one
completion an operation; metadata is refreshed on a nudge, when the link comes up, and by polling, so a lost nudge
costs time and nothing else. Time is monotonic milliseconds, passed in.
"""

from collections.abc import Mapping

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.backoff import spread, wait_ms
from edge_agent.core.limits import REFRESH_GAP_MS, REFRESH_MS_FIRST, REFRESH_MS_MAX, SCRUB_MS_DEFAULT
from edge_agent.core.module import ModuleMachine
from edge_agent.core.record import ModuleRecord, Record
from edge_agent.core.state import Commands
from edge_agent.core.upkeep import Upkeep
from edge_contract.deployment import Assignment
from edge_contract.digest import Digest
from edge_contract.jsonio import JsonObject
from edge_contract.limits import MODULES_MAX, POLL_MS_DEFAULT, REPORT_MS_DEFAULT
from edge_contract.phases import Phase
from edge_contract.twin import ReportedDeployment, ReportedError, ReportedModule


class Agent:
    """The machine. One thread at a time."""

    def __init__(
        self,
        device: str,
        poll_ms: int = POLL_MS_DEFAULT,
        report_ms: int = REPORT_MS_DEFAULT,
        record: Record | None = None,
        scrub_ms: int = SCRUB_MS_DEFAULT,
    ) -> None:
        """Make an agent that waits for `Started`.

        Args:
            device: Name of the device; spreads a fleet's polls and retries.
            poll_ms: Mean time between refreshes of metadata without a nudge.
            report_ms: Longest time between reports.
            record: What was persisted, or none on a new device.
            scrub_ms: Mean time between two readings of everything on disk.
        """
        self._device = device
        self._configured = (poll_ms, report_ms)
        self._poll_ms, self._report_ms = self._configured
        self._record = record or Record()
        self._ops = 0
        self._modules = {
            name: ModuleMachine(device, name, module, self._new_op, self._is_held)
            for name, module in self._record.modules.items()
        }
        self._upkeep = Upkeep(device, self._new_op, scrub_ms)
        self._refresh_op: int | None = None
        self._refresh_overdue_at: int | None = None
        self._is_clock_trusted = True
        self._refresh_again = False
        self._hinted_version = 0
        self._refreshed_at: int | None = None
        self._refresh_failures = 0
        self._refresh_at: int | None = None
        self._polls = 0
        self._report_at: int | None = None
        self._error: ReportedError | None = None

    @classmethod
    def restore(
        cls,
        record: JsonObject,
        device: str,
        poll_ms: int = POLL_MS_DEFAULT,
        report_ms: int = REPORT_MS_DEFAULT,
        scrub_ms: int = SCRUB_MS_DEFAULT,
    ) -> "Agent":
        """Make an agent that goes on from a persisted record.

        Raises:
            ContractError: `internal.record-invalid` or the code of the part that is wrong.
        """
        return cls(device, poll_ms, report_ms, Record.from_json(record), scrub_ms)

    def snapshot(self) -> JsonObject:
        """The record as it is now."""
        return self._record.to_json()

    def deadline(self) -> int | None:
        """When a `TimeReached` is due; none before `Started`."""
        refresh_at = self._refresh_at if self._refresh_op is None else self._refresh_overdue_at
        times = [
            refresh_at,
            self._report_at,
            self._upkeep.deadline(),
            *(module.deadline() for module in self._modules.values()),
        ]
        return min((at for at in times if at is not None), default=None)

    def handle(self, event: inputs.Event, now: int) -> Commands:
        """Take one event and give the commands that follow, in order.

        Args:
            event: What happened.
            now: Monotonic milliseconds, never less than in an earlier call.
        """
        before, error_before = self._record.to_json(), self._error
        reported_before = self.reported_modules()
        out = self._dispatch(event, now)
        for module in self._modules.values():
            out += module.reconcile(now)
            if module.damaged is not None:
                damaged, module.damaged = module.damaged, None
                out += self._upkeep.take_damaged(damaged, now, self._kept())
        after = self._record.to_json()
        if after != before:
            out.insert(0, do.Persist(after))
        # Without anything to keep there may be a lost record, and what is on disk is worth a download.
        if _is_time_to_clean(event, out) and (keep := self._keep()):
            out.append(do.CollectGarbage(keep, self._deltas()))
        if reported_before != self.reported_modules() or error_before != self._error:
            out += self._report(now)
        return out

    def reported_modules(self) -> dict[str, ReportedModule]:
        """All modules as a report shows them."""
        return {name: module.reported() for name, module in self._modules.items()}

    @property
    def director_version(self) -> int:
        """Newest verified director targets version."""
        return self._record.director_version

    @property
    def error(self) -> ReportedError | None:
        """The error that belongs to no module, if there is one."""
        return self._error

    @property
    def is_clock_trusted(self) -> bool:
        """Whether the clock was not behind a time known to have passed when metadata was last verified."""
        return self._is_clock_trusted

    @property
    def is_held(self) -> bool:
        """Whether an operator holds all updates of this device back."""
        return self._record.held

    @property
    def release_counters(self) -> dict[tuple[str, str], int]:
        """Release counter of what is live, by module and model.

        Counters of two models do not compare, and two modules may run versions of one model that differ.
        """
        return {
            (name, live.artifact.model): live.artifact.release_counter
            for name, module in self._modules.items()
            if (live := module.record.live) is not None
        }

    # -- events ----------------------------------------------------------------------------------------------------

    def _dispatch(self, event: inputs.Event, now: int) -> Commands:
        if isinstance(event, inputs.Started):
            return self._on_started(now)
        if isinstance(event, inputs.TimeReached):
            return self._on_time(now)
        if isinstance(event, inputs.NudgeReceived):
            if event.director_version <= self._record.director_version:
                return []
            if self._refresh_op is not None:
                self._hinted_version = max(self._hinted_version, event.director_version)
                return []
            return self._refresh_soon(now)
        if isinstance(event, inputs.RefreshRequested):
            return self._refresh(now)
        if isinstance(event, inputs.LinkChanged):
            # Nudges and reports of the time in between are lost.
            return [*self._report(now), *self._refresh_soon(now)] if event.is_online else []
        if isinstance(event, inputs.HoldRequested | inputs.ResumeRequested):
            return self._on_hold(event, now)
        if isinstance(event, inputs.PeriodsChanged | inputs.ReportRequested):
            return self._on_report_wish(event, now)
        if isinstance(event, inputs.RollbackRequested | inputs.WorkerExited):
            module = self._modules.get(event.module)
            return module.on_event(event, now) if module else []
        if event.op == self._refresh_op and isinstance(event, inputs.MetadataRefreshed | inputs.CommandFailed):
            return self._on_refreshed(event, now)
        if self._upkeep.is_mine(event):
            return self._on_upkeep(event, now)
        out: Commands = []
        for machine in self._modules.values():
            out += machine.on_event(event, now)
        return out

    def _on_started(self, now: int) -> Commands:
        out: Commands = []
        self._upkeep.started(now)
        for module in self._modules.values():
            out += module.start(now)
        return [*out, *self._refresh(now), *self._report(now)]

    def _on_time(self, now: int) -> Commands:
        out: Commands = []
        for module in self._modules.values():
            out += module.on_time(now)
        out += self._upkeep.on_time(now, self._kept())
        if (op := self._refresh_op) is not None and now >= (self._refresh_overdue_at or now):
            detail = f"verifying metadata took longer than {REFRESH_MS_MAX} ms"
            late = inputs.CommandFailed(op, "device.step-overdue", detail)
            out += [do.CancelOperation(op), *self._on_refreshed(late, now)]
        if self._refresh_at is not None and now >= self._refresh_at:
            out += self._refresh(now)
        if self._report_at is not None and now >= self._report_at:
            out += self._report(now)
        return out

    # -- metadata --------------------------------------------------------------------------------------------------

    def _refresh_soon(self, now: int) -> Commands:
        """Refresh now, or a little later: a broker or a link gone wild must not drive a device and its registry."""
        at = now if self._refreshed_at is None else max(now, self._refreshed_at + REFRESH_GAP_MS)
        if self._refresh_op is not None or at <= now:
            return self._refresh(now)
        self._refresh_at = at if self._refresh_at is None else min(self._refresh_at, at)
        return []

    def _refresh(self, now: int) -> Commands:
        if self._refresh_op is not None:
            self._refresh_again = True
            return []
        self._refresh_op, self._refresh_at, self._refresh_overdue_at = self._new_op(), None, now + REFRESH_MS_MAX
        return [do.RefreshMetadata(self._refresh_op)]

    def _on_refreshed(self, event: inputs.MetadataRefreshed | inputs.CommandFailed, now: int) -> Commands:
        self._refresh_op, self._refresh_overdue_at, self._refreshed_at = None, None, now
        if isinstance(event, inputs.MetadataRefreshed):
            self._refresh_failures, self._error = 0, event.warning
            self._is_clock_trusted = event.is_clock_trusted
            if not event.is_clock_trusted:
                detail = "the clock is behind a time that has certainly passed; metadata is judged by that time"
                self._error = ReportedError.of("device.clock-untrusted", detail, Phase.IDLE)
            self._polls += 1
            self._refresh_at = now + int(self._poll_ms * (0.75 + 0.5 * spread(self._device, "poll", self._polls)))
            self._record.director_version = event.director_version
            self._assign(event.assignments, event.refused)
        else:
            self._refresh_failures += 1
            self._error = ReportedError.of(event.code, event.detail, Phase.IDLE)
            first = min(REFRESH_MS_FIRST, self._poll_ms)
            self._refresh_at = now + wait_ms(first, self._poll_ms, self._refresh_failures, self._device, "refresh")
        is_stale = self._refresh_again or self._hinted_version > self._record.director_version
        self._refresh_again, self._hinted_version = False, 0
        return self._refresh_soon(now) if is_stale and isinstance(event, inputs.MetadataRefreshed) else []

    def _assign(self, assignments: tuple[Assignment, ...], refused: Mapping[str, ReportedDeployment]) -> None:
        assigned = {assignment.module for assignment in assignments}
        for name in refused:
            self._modules.get(name) or self._new_module(name)
        for name, module in self._modules.items():
            module.refused = refused.get(name)
            if name not in assigned and name not in refused:
                module.record.desired = None  # what runs keeps running; nothing new is chosen
        for assignment in assignments:
            machine = self._modules.get(assignment.module) or self._new_module(assignment.module)
            if machine is not None:
                machine.record.assign(assignment)
            else:
                detail = f"there is no room for module {assignment.module!r}: a device holds {MODULES_MAX} modules"
                self._error = ReportedError.of("device.too-many-modules", detail, Phase.IDLE)

    def _new_module(self, name: str) -> ModuleMachine | None:
        """A machine for a module that was unknown so far, or none when there is no room for it."""
        if len(self._modules) >= MODULES_MAX:
            spare = next((old for old, module in self._modules.items() if module.is_spare), None)
            if spare is None:
                return None
            del self._modules[spare], self._record.modules[spare]
        record = self._record.modules[name] = ModuleRecord()
        self._modules[name] = ModuleMachine(self._device, name, record, self._new_op, self._is_held)
        return self._modules[name]

    # -- holding back ----------------------------------------------------------------------------------------------

    def _on_hold(self, event: inputs.HoldRequested | inputs.ResumeRequested, now: int) -> Commands:
        chosen = [machine for machine in self._modules.values() if event.module in ("", machine.name)]
        is_held = isinstance(event, inputs.HoldRequested)
        if not event.module:
            self._record.held = is_held
        for machine in chosen:
            # A hold of the whole device leaves the modules' own marks alone; the end of it ends them all.
            if event.module or not is_held:
                machine.record.held = is_held
        out: Commands = []
        for machine in chosen:
            out += machine.hold(now) if is_held else machine.resume(now)
        return out

    def _is_held(self) -> bool:
        return self._record.held

    # -- what is on disk -------------------------------------------------------------------------------------------

    def _kept(self) -> dict[Digest, Assignment]:
        """What is live or a fallback, by manifest."""
        records = [module.record for module in self._modules.values()]
        return {item.manifest: item for record in records for item in (record.live, record.fallback) if item}

    def _on_upkeep(self, event: inputs.Completed, now: int) -> Commands:
        found, healed, out = self._upkeep.completed(event, now, self._kept())
        for module in self._modules.values():
            for manifest in found:
                module.find_damaged(manifest)
            live = module.record.live
            if healed is not None and live is not None and live.manifest == healed:
                out += module.heal(now)
        return out

    # -- how often -------------------------------------------------------------------------------------------------

    def _on_report_wish(self, event: inputs.PeriodsChanged | inputs.ReportRequested, now: int) -> Commands:
        """What waits by a longer period than the new one comes earlier; the rest of the waits end as they were."""
        if isinstance(event, inputs.ReportRequested):
            return self._report(now)
        poll_ms, report_ms = self._configured
        self._poll_ms, self._report_ms = event.poll_ms or poll_ms, event.report_ms or report_ms
        if self._report_at is not None:
            self._report_at = min(self._report_at, now + self._report_ms)
        if self._refresh_at is not None:
            self._refresh_at = min(self._refresh_at, now + self._poll_ms)
        return []

    # -- small helpers ---------------------------------------------------------------------------------------------

    def _report(self, now: int) -> Commands:
        self._report_at = now + self._report_ms
        return [do.SendReport()]

    def _keep(self) -> frozenset[Digest]:
        kept = set()
        for module in self._modules.values():
            record = module.record
            under_way = record.deployment if record.outcome is None else None
            kept |= {item.manifest for item in (record.live, record.fallback, under_way) if item}
        return frozenset(kept)

    def _deltas(self) -> frozenset[Digest]:
        """Deltas that a download under way may use, or go on with."""
        under_way = [module.record.deployment for module in self._modules.values() if module.record.is_getting]
        return frozenset(delta.digest for item in under_way if item for delta in item.deltas)

    def _new_op(self) -> int:
        self._ops += 1
        return self._ops


def _is_time_to_clean(event: inputs.Event, out: Commands) -> bool:
    """At the start, when a bundle is committed, and when a download found no room."""
    if isinstance(event, inputs.CommandFailed):
        return event.code == "device.disk-full"
    return isinstance(event, inputs.Started) or any(isinstance(command, do.CommitSlot) for command in out)
