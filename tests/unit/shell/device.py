"""A running agent with fakes outside."""

import threading

from edge_agent.core.agent import Agent
from edge_agent.shell.clock import SystemClock
from edge_agent.shell.dispatch import Dispatcher, Ports
from edge_agent.shell.runner import Identity, Runner
from edge_contract.phases import Phase
from edge_contract.twin import ReportedModule
from tests.unit.shell.fakes import (
    PLATFORM,
    Cloud,
    FakeGauge,
    FakeHook,
    FakeJournal,
    FakeLink,
    FakeServer,
    FakeSlots,
    FakeSpool,
    FakeStore,
    FakeSupervisor,
    FakeVerifier,
    PlainReports,
)


class Device:
    """A running agent with fakes outside."""

    def __init__(self, before: "Device | None" = None) -> None:
        """A new device, or one that starts again with the disk of another."""
        self.cloud: Cloud = before.cloud if before else Cloud()
        self.store = FakeStore(self.cloud)
        self.slots = FakeSlots()
        self.server = FakeServer()
        self.journal: FakeJournal = before.journal if before else FakeJournal()
        self.link = FakeLink()
        self.spool = FakeSpool()
        self.supervisor = FakeSupervisor()
        if before:
            self.store.present, self.slots.staged = before.store.present, before.slots.staged
        self.raised: BaseException | None = None
        clock = SystemClock()
        self.gauge, self.hook = FakeGauge(), FakeHook()
        outside = Ports(
            clock, FakeVerifier(self.cloud), self.store, self.store, self.slots, self.server, self.gauge, self.hook
        )
        self.dispatcher = Dispatcher(PLATFORM, "", outside)
        record = self.journal.record
        self.runner = Runner(
            Agent("dev") if record is None else Agent.restore(record, "dev"),
            Identity("dev", "00" * 8, PLATFORM, "0"),
            self.dispatcher,
            clock,
            self.journal,
            self.link,
            self.spool,
            self.supervisor,
            PlainReports(lambda: self.link),
        )
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.runner.run()
        except BaseException as error:  # noqa: BLE001  # the test looks at it
            self.raised = error

    def end(self) -> None:
        """Stop and wait."""
        self.runner.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()

    @property
    def module(self) -> ReportedModule:
        """Module `digits` in the newest report."""
        return self.link.reports[-1].modules.get("digits") or ReportedModule(Phase.IDLE)

    @property
    def ended(self) -> tuple[str | None, str | None]:
        """(outcome, error code) of the newest reported deployment."""
        deployment = self.module.deployment
        if deployment is None or deployment.outcome is None:
            return None, None
        return str(deployment.outcome), deployment.error.code if deployment.error else None

    def deploy(self, version: int) -> None:
        """Assign a version and nudge."""
        self.link.nudge(self.cloud.assign(self.cloud.publish(version)))

    def confirm(self, version: int) -> None:
        """Bring a version through."""
        self.link.wait_for(lambda: self.link.reports)
        self.deploy(version)
        self.link.wait_for(lambda: self.module.version == version and self.ended == ("confirmed", None))
