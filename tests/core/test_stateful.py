"""Anything may happen in any order: what answers is what the record says, and a good bundle gets through in the end."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.shell.dispatch import Lane
from edge_contract.limits import DETAIL_CHARS_MAX
from edge_contract.phases import Outcome, Phase
from edge_contract.twin import ReportedDeployment, ReportedError
from tests.core.bench import assignment
from tests.core.device import SCRUB_MS, Device

MODULES = ("digits", "sound")
BAD_OUTPUTS, SICK, NEVER_TRIED = 3, 4, 9
DISTURBANCES = ("power", "withdrawal", "refusal", "nudge", "link", "rollback", "otherwise")
Place = tuple[str, int | None, float | None, Phase]
places: st.SearchStrategy[Place] = st.tuples(
    st.sampled_from(MODULES),
    st.sampled_from([None, 1, 2, 5, BAD_OUTPUTS, SICK, SICK]),
    st.sampled_from([None, 0.25]),
    st.sampled_from([phase for phase in Phase if phase is not Phase.IDLE]),
)
failures = st.sampled_from(
    [
        "network.unreachable", "network.cut", "cloud.unavailable", "network.refused", "device.disk-full",
        "device.disk-error", "device.disk-corrupt", "device.memory-short", "artifact.digest-mismatch",
        "artifact.manifest-invalid", "artifact.platform-mismatch", "artifact.not-found", "model.load-failed",
        "model.timeout", "model.worker-crashed", "trust.signature-invalid", "internal.bug", "device.hook-failed",
        "device.answers-otherwise", "device.step-overdue", "model.golden-mismatch", "model.not-serving",
    ]
)  # fmt: skip


class AnyOrder(RuleBasedStateMachine):
    """Everything that the outside can do to a core."""

    def __init__(self) -> None:
        super().__init__()
        self.device = Device()
        self.device.golden_fails = {assignment(BAD_OUTPUTS, module=name).manifest for name in MODULES}
        self.device.sick = {assignment(SICK, module=name).manifest for name in MODULES}
        self.wanted: dict[str, int] = {}
        self.deployments = 0

    @initialize(versions=st.sampled_from([(), (1,), (1, 2)]))
    def run_some_versions(self, versions: tuple[int, ...]) -> None:
        for version in versions:
            self.wanted = dict.fromkeys(MODULES, version)
            self._publish()
            self.device.handle(inputs.RefreshRequested())
            self.device.settle(5_000)

    def _publish(self, sampling_ratio: float | None = None) -> None:
        self.deployments += 1
        self.device.desired = tuple(
            assignment(version, name, f"{name}-{version}-{self.deployments // 3}", sampling_ratio=sampling_ratio)
            for name, version in sorted(self.wanted.items())
        )
        self.device.director_version += 1

    # Hypothesis leaves about half of the rules out of each run, so every rule is able to get somewhere by itself.

    def _get_to(self, place: Place) -> str:
        """Assign a version and stop somewhere on its way, or stay where things are; returns the module."""
        module, version, ratio, phase = place
        if version is not None:
            self.wanted[module] = version
            self._publish(ratio)
            self.device.inbox.append(inputs.RefreshRequested())
            self.device.run_until(module, phase)
        return module

    @rule(place=places)
    def update(self, place: Place) -> None:
        self._get_to(place)

    @rule(place=places, code=failures, count=st.integers(1, 3))
    def fail(self, place: Place, code: str, count: int) -> None:
        """Let something fail, perhaps again and again."""
        self._get_to(place)
        for _ in range(count):
            busy = [lane for lane in (Lane.SERVING, Lane.STORE, Lane.METADATA) if self.device.lanes[lane]]
            if busy:
                self.device.work(busy[0], (code, "x" * DETAIL_CHARS_MAX))
            self.device.deliver()
            self.device.pass_time(700)

    @rule(place=places, count=st.integers(1, 4))
    def lose_workers(self, place: Place, count: int) -> None:
        module = self._get_to(place)
        for _ in range(count):
            self.device.end_worker(module)
            self.device.deliver()
            self.device.pass_time(0)
            self.device.work(Lane.SERVING)

    @rule(place=places, number=st.integers(0, 2**53 - 1), what=st.sampled_from(DISTURBANCES))
    def disturb(self, place: Place, number: int, what: str) -> None:
        module = self._get_to(place)
        if what == "power":
            self.device.boot()
        elif what == "withdrawal":
            self.wanted.pop(module, None)
            self._publish()
            self.device.inbox.append(inputs.RefreshRequested())
            self.device.deliver()
            self.device.work(Lane.METADATA)
        elif what == "refusal":
            self._refuse(module)
        elif what == "otherwise":
            self.device.otherwise[module] = assignment(5, module=module).manifest
        elif what == "nudge":
            self.device.inbox.append(inputs.NudgeReceived(number))
        elif what == "link":
            self.device.inbox.append(inputs.LinkChanged(is_online=bool(number % 2)))
        else:
            self.device.inbox.append(inputs.RollbackRequested(module))
        self.device.deliver()

    def _refuse(self, module: str) -> None:
        """Signed metadata assigns something that the device must not take."""
        wrong = assignment(1, module=module)
        error = ReportedError.of("trust.release-rollback", "the counter falls", Phase.IDLE)
        self.wanted.pop(module, None)
        self.device.refused = {module: ReportedDeployment(wrong.deployment, wrong.manifest, Outcome.REFUSED, error)}
        self._publish()
        self.device.inbox.append(inputs.RefreshRequested())
        self.device.deliver()
        self.device.work(Lane.METADATA)
        self.device.deliver()
        self.device.refused = {}

    @rule(place=places, is_held=st.booleans(), is_whole=st.booleans())
    def hold(self, place: Place, is_held: bool, is_whole: bool) -> None:
        module = self._get_to(place)
        name = "" if is_whole else module
        self.device.handle(inputs.HoldRequested(name) if is_held else inputs.ResumeRequested(name))

    @rule(gate=st.sampled_from(do.Gate), wait_ms=st.sampled_from([0, 0, 1, 5_000, 10**12]))
    def postpone(self, gate: do.Gate, wait_ms: int) -> None:
        """A window opens or closes, or the hook changes its mind."""
        self.device.postponed[str(gate)] = wait_ms

    @rule(is_short=st.booleans())
    def change_memory(self, is_short: bool) -> None:
        self.device.is_memory_short = is_short

    @rule(place=places, is_read=st.booleans())
    def rot(self, place: Place, is_read: bool) -> None:
        """A slot that is needed is damaged on disk, and perhaps the disk is read."""
        module = self._get_to(place)
        found = self.device.core.reported_modules().get(module)
        self.device.damaged |= {item for item in (found and found.live, found and found.fallback) if item}
        if is_read:
            self.device.pass_time(2 * SCRUB_MS)

    @rule(place=places, lane=st.sampled_from(Lane))
    def hang(self, place: Place, lane: Lane) -> None:
        self._get_to(place)
        self.device.hang(lane)

    @rule(is_writable=st.sampled_from([True, True, False]), count=st.integers(1, 20))
    def change_disk(self, is_writable: bool, count: int) -> None:
        self.device.is_disk_writable = is_writable
        self.device.carry_out()
        self.go_on(count)

    @rule(lane=st.sampled_from(Lane), count=st.integers(1, 4))
    def work_ahead(self, lane: Lane, count: int) -> None:
        """Let one lane finish things that the loop has not heard of."""
        for _ in range(count):
            self.device.work(lane)

    @rule(count=st.integers(1, 12))
    def go_on(self, count: int) -> None:
        for _ in range(count):
            self.device.step(self.device.now)

    @rule(milliseconds=st.sampled_from([0, 1, 499, 500, 1_000, 5_000, 60_000, 600_000]))
    def pass_time(self, milliseconds: int) -> None:
        """Time passes while every lane is busy."""
        self.device.pass_time(milliseconds)

    @rule(milliseconds=st.sampled_from([0, 2_000, 60_000]))
    def settle(self, milliseconds: int) -> None:
        self.device.settle(milliseconds)

    # -- what always holds (beside what the device itself looks at) ------------------------------------------------

    @invariant()
    def what_is_said_to_answer_answers(self) -> None:
        if not self.device.is_at_rest:
            return
        for name, module in self.device.core.reported_modules().items():
            if module.serving:
                assert self.device.live.get(name) == module.live

    def teardown(self) -> None:
        """Whatever happened before: when all is well again, what is live answers, and a good bundle gets through."""
        self.device.is_disk_writable = True
        self.device.postponed, self.device.otherwise, self.device.is_memory_short = {}, {}, False
        self.device.carry_out()
        self.device.handle(inputs.ResumeRequested())
        self.device.settle(400_000)
        for module in self.device.core.reported_modules().values():
            assert module.serving or module.live is None
        self.wanted = dict.fromkeys(MODULES, NEVER_TRIED)
        self.deployments += 3
        self._publish()
        self.device.handle(inputs.LinkChanged(is_online=True))
        self.device.settle(60_000)
        for name, module in self.device.core.reported_modules().items():
            good = assignment(NEVER_TRIED, module=name).manifest
            assert module.phase is Phase.IDLE
            assert module.serving
            assert module.deployment is not None
            assert module.deployment.outcome is Outcome.CONFIRMED
            assert module.live == good == self.device.live[name]


AnyOrder.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAnyOrder = pytest.mark.timeout(600)(AnyOrder.TestCase)
