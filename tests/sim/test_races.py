"""Races that worlds found, each as the few events it takes: what answers is what the record says, always."""

from __future__ import annotations

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.agent import Agent
from edge_agent.core.limits import PROBATION_RESTARTS_MAX, SERVE_FAILURES_MAX
from edge_agent.core.state import Commands
from edge_contract.deployment import Artifact, Assignment, Policy
from edge_contract.digest import Digest
from edge_contract.phases import Outcome, Phase
from edge_contract.twin import ReportedModule

MODULE = "digits"


def _assignment(version: int) -> Assignment:
    artifact = Artifact("digits", version, "linux/amd64", version, "bundles/digits")
    return Assignment(MODULE, f"dep-{version}", Digest.of(bytes([version])), 100, artifact, Policy(probation_ms=1_000))


class Driver:
    """Feeds a core the answers of a device on which everything works, until told to stop before a command."""

    def __init__(self, agent: Agent | None = None) -> None:
        self.agent = agent or Agent("dev-1")
        self.now = 0
        self.desired: tuple[Assignment, ...] = ()

    def feed(self, event: inputs.Event, until: type | None = None) -> Commands:
        """Handle an event and everything that follows; returns the commands of the last step, or that up to `until`."""
        waiting = [event]
        commands: Commands = []
        while waiting:
            commands = self.agent.handle(waiting.pop(0), self.now)
            if until is not None and any(isinstance(command, until) for command in commands):
                return commands
            waiting += [answer for command in commands if (answer := self._answer(command)) is not None]
        return commands

    def assign(self, version: int, until: type | None = None) -> Commands:
        self.desired = (_assignment(version),)
        return self.feed(inputs.RefreshRequested(), until)

    def confirm(self, version: int) -> None:
        """Bring a version through its probation."""
        self.assign(version)
        for _ in range(5):
            self.now += 1_000
            self.feed(inputs.TimeReached())
        assert self.module.live == _assignment(version).manifest
        assert self.module.phase is Phase.IDLE

    @property
    def module(self) -> ReportedModule:
        return self.agent.reported_modules()[MODULE]

    def _answer(self, command: do.Command) -> inputs.Event | None:
        match command:
            case do.RefreshMetadata(op):
                return inputs.MetadataRefreshed(op, 1, self.desired)
            case do.ResolveBundle(op):
                return inputs.BundleResolved(op, 10)
            case do.FetchBlobs(op):
                return inputs.BlobsFetched(op, 10)
            case do.VerifyBlobs(op):
                return inputs.BlobsVerified(op)
            case do.StageSlot(op):
                return inputs.SlotStaged(op, 1_000, 0.05, 1.0)
            case do.ProveCandidate(op):
                return inputs.CandidateProved(op, None)
            case do.ActivateSlot(op):
                return inputs.SlotActivated(op)
            case do.ObserveHealth(op):
                return inputs.HealthObserved(op, True, 10, 0)
            case do.AskLeave(op):
                return inputs.LeaveGiven(op)
            case do.CommitSlot(op):
                live = self.module.live
                assert live is not None
                return inputs.SlotCommitted(op, live, None)
            case do.RollBack(op):
                return inputs.SlotRolledBack(op, None)
            case do.ServeLive(op):
                return inputs.LiveServed(op, None)
        return None


def _ops(commands: Commands, kind: type[do.Command]) -> list[do.Command]:
    return [command for command in commands if isinstance(command, kind)]


def test_a_worker_lost_during_an_activation_is_not_brought_up_behind_it() -> None:
    driver = Driver()
    driver.confirm(1)
    (activate,) = _ops(driver.assign(2, until=do.ActivateSlot), do.ActivateSlot)
    lost = driver.agent.handle(inputs.WorkerExited(MODULE, _assignment(1).manifest), driver.now)
    assert not _ops(lost, do.ServeLive)
    driver.now += 100
    assert not _ops(driver.agent.handle(inputs.TimeReached(), driver.now), do.ServeLive)
    assert isinstance(activate, do.ActivateSlot)
    driver.feed(inputs.SlotActivated(activate.op))
    assert driver.module.live == _assignment(2).manifest
    assert driver.module.serving


def test_a_worker_lost_during_an_activation_that_fails_comes_up_again() -> None:
    driver = Driver()
    driver.confirm(1)
    (activate,) = _ops(driver.assign(2, until=do.ActivateSlot), do.ActivateSlot)
    driver.agent.handle(inputs.WorkerExited(MODULE, _assignment(1).manifest), driver.now)
    assert isinstance(activate, do.ActivateSlot)
    failed = inputs.CommandFailed(activate.op, "model.worker-crashed", "it ended")
    serve = _ops(driver.feed(failed, until=do.ServeLive), do.ServeLive)
    assert [command.manifest for command in serve if isinstance(command, do.ServeLive)] == [_assignment(1).manifest]


def test_a_worker_lost_during_a_rollback_is_not_brought_up_behind_it() -> None:
    driver = Driver()
    driver.confirm(1)
    driver.confirm(2)
    driver.feed(inputs.RollbackRequested(MODULE), until=do.RollBack)
    lost = driver.agent.handle(inputs.WorkerExited(MODULE, _assignment(2).manifest), driver.now)
    assert not _ops(lost, do.ServeLive)
    assert not _ops(driver.agent.handle(inputs.TimeReached(), driver.now + 1), do.ServeLive)


def test_a_bundle_that_comes_up_and_ends_again_and_again_is_rolled_back() -> None:
    driver = Driver()
    driver.confirm(1)
    driver.confirm(2)
    driver.now += 3_600_000
    for _ in range(SERVE_FAILURES_MAX):
        driver.feed(inputs.WorkerExited(MODULE, _assignment(2).manifest))
        driver.now += 5_000
        driver.feed(inputs.TimeReached())
    assert driver.module.live == _assignment(1).manifest
    assert driver.module.deployment is not None
    assert driver.module.deployment.outcome is Outcome.ROLLED_BACK


def test_a_worker_lost_now_and_then_is_only_started_again() -> None:
    driver = Driver()
    driver.confirm(1)
    driver.confirm(2)
    for _ in range(3 * SERVE_FAILURES_MAX):
        driver.now += 3_600_000
        driver.feed(inputs.WorkerExited(MODULE, _assignment(2).manifest))
        driver.feed(inputs.TimeReached())
    assert driver.module.live == _assignment(2).manifest
    assert driver.module.serving


def test_too_many_restarts_in_a_probation_roll_back_without_serving_the_bundle_first() -> None:
    driver = Driver()
    driver.confirm(1)
    driver.assign(2)
    assert driver.module.phase is Phase.PROBATION
    record = driver.agent.snapshot()
    for _ in range(PROBATION_RESTARTS_MAX):
        agent = Agent.restore(record, "dev-1")
        assert _ops(agent.handle(inputs.Started(), 0), do.ServeLive)
        record = agent.snapshot()
    commands = Agent.restore(record, "dev-1").handle(inputs.Started(), 0)
    assert not _ops(commands, do.ServeLive)
    assert [command.manifest for command in commands if isinstance(command, do.RollBack)] == [_assignment(1).manifest]


def test_asking_for_a_fallback_in_the_first_probation_changes_nothing() -> None:
    driver = Driver()
    driver.assign(1)
    assert driver.module.phase is Phase.PROBATION
    commands = driver.agent.handle(inputs.RollbackRequested(MODULE), driver.now)
    assert not _ops(commands, do.RollBack)
    assert driver.module.phase is Phase.PROBATION
    deployment = driver.module.deployment
    assert deployment is not None
    assert deployment.error is not None
    assert deployment.error.code == "device.no-fallback"


def test_a_fallback_that_fails_when_it_is_deployed_again_is_no_fallback_any_more() -> None:
    driver = Driver()
    driver.confirm(1)
    driver.confirm(2)
    assert driver.module.fallback == _assignment(1).manifest
    (activate,) = _ops(driver.assign(1, until=do.ActivateSlot), do.ActivateSlot)
    assert isinstance(activate, do.ActivateSlot)
    driver.feed(inputs.CommandFailed(activate.op, "model.worker-crashed", "it ended"))
    assert driver.module.live == _assignment(2).manifest
    assert driver.module.fallback is None
