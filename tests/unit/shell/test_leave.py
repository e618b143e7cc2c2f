"""Who may say "not now": windows, the device's hook, and memory."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.shell.dispatch import Dispatcher
from edge_contract.deployment import ActivationMode, Assignment, Policy, Window
from edge_contract.errors import EdgeError
from tests.unit.shell.device import Device
from tests.unit.shell.fakes import LIVE_BYTES, PLATFORM

HOUR_MS = 3_600_000
NOON = int(datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp() * 1000)


class FixedClock:
    """Stands still."""

    def __init__(self, wall_ms: int) -> None:
        self.now_ms = wall_ms

    def monotonic_ms(self) -> int:
        return 0

    def wall_ms(self) -> int:
        return self.now_ms


class Bench:
    """A dispatcher with fakes and a clock that stands still."""

    def __init__(self, wall_ms: int = NOON, floor_ms: int = 0) -> None:
        self.device = Device()
        self.outside = replace(self.device.dispatcher._out, clock=FixedClock(wall_ms), floor_ms=lambda: floor_ms)
        self.dispatcher = Dispatcher(PLATFORM, "", self.outside)

    def publish(self, policy: Policy | None = None, peak: int = 0) -> Assignment:
        made = self.device.cloud.publish(2, load_peak_bytes=peak)
        return replace(made, policy=policy or Policy())

    def ask(self, gate: do.Gate, assignment: Assignment) -> inputs.Event | None:
        self.dispatcher.execute(do.ResolveBundle(1, assignment))
        return self.dispatcher.execute(do.AskLeave(2, assignment, gate))


def test_nothing_speaks_against_going_on_by_default() -> None:
    bench = Bench()
    assert bench.ask(do.Gate.DOWNLOAD, bench.publish()) == inputs.LeaveGiven(2)
    assert bench.ask(do.Gate.ACTIVATE, bench.publish()) == inputs.LeaveGiven(2)
    assert bench.device.hook.asked == ["download", "activate"]


def test_a_closed_window_keeps_a_candidate_from_loading_and_not_from_being_downloaded() -> None:
    bench = Bench()
    assignment = bench.publish(Policy(windows=(Window(13 * 60, 60),)))
    assert bench.ask(do.Gate.DOWNLOAD, assignment) == inputs.LeaveGiven(2)
    answer = bench.ask(do.Gate.ACTIVATE, assignment)
    assert isinstance(answer, inputs.LeavePostponed)
    assert (answer.wait_ms, answer.code) == (HOUR_MS, "device.outside-window")
    assert bench.device.hook.asked == ["download"]  # nobody bothers the owner before the window is open


def test_a_window_is_judged_by_what_is_known_of_the_time_when_the_clock_is_behind_it() -> None:
    bench = Bench(wall_ms=HOUR_MS, floor_ms=NOON)
    assignment = bench.publish(Policy(windows=(Window(11 * 60 + 30, 60),)))
    bench.dispatcher.execute(do.RefreshMetadata(0))
    assert bench.ask(do.Gate.ACTIVATE, assignment) == inputs.LeaveGiven(2)


@pytest.mark.parametrize("gate", list(do.Gate))
def test_the_owner_of_the_device_may_ask_to_wait(gate: do.Gate) -> None:
    bench = Bench()
    bench.device.hook.wait_ms[str(gate)] = 30_000
    answer = bench.ask(gate, bench.publish())
    assert isinstance(answer, inputs.LeavePostponed)
    assert (answer.wait_ms, answer.code) == (30_000, "device.postponed")
    assert str(gate) in answer.detail


def test_a_hook_that_cannot_be_run_is_an_error_that_waits() -> None:
    class Broken:
        def ask(self, gate: str, assignment: Assignment) -> int:
            raise EdgeError("device.hook-failed", "exit code 1")

    bench = Bench()
    bench.dispatcher = Dispatcher(PLATFORM, "", replace(bench.outside, hook=Broken()))
    answer = bench.ask(do.Gate.ACTIVATE, bench.publish())
    assert answer == inputs.CommandFailed(2, "device.hook-failed", "exit code 1")


def test_memory_for_both_lets_them_overlap_and_less_stops_the_live_one_first() -> None:
    bench = Bench()
    live = bench.device.cloud.publish(1)
    bench.device.server.live["digits"] = live.manifest
    bench.device.gauge.free_bytes = 2 * LIVE_BYTES
    assert bench.ask(do.Gate.ACTIVATE, bench.publish(peak=LIVE_BYTES)) == inputs.LeaveGiven(2, stops_first=False)
    bench.device.gauge.free_bytes = LIVE_BYTES // 2
    assert bench.ask(do.Gate.ACTIVATE, bench.publish(peak=LIVE_BYTES)) == inputs.LeaveGiven(2, stops_first=True)
    only_overlap = bench.publish(Policy(activation=ActivationMode.OVERLAP), peak=LIVE_BYTES)
    answer = bench.ask(do.Gate.ACTIVATE, only_overlap)
    assert isinstance(answer, inputs.CommandFailed)
    assert answer.code == "device.memory-short"


def test_a_model_that_fits_in_no_way_is_refused_before_its_first_byte_is_fetched() -> None:
    bench = Bench()
    bench.device.gauge.free_bytes = LIVE_BYTES
    assignment = bench.publish(peak=3 * LIVE_BYTES)
    answer = bench.dispatcher.execute(do.ResolveBundle(1, assignment))
    assert isinstance(answer, inputs.CommandFailed)
    assert answer.code == "device.memory-short"
    weights = [digest for digest, data in bench.device.store.present.items() if data.startswith(b"weights")]
    assert weights == []


def test_stopping_first_pauses_the_live_worker_and_says_how_long_nobody_answered() -> None:
    device = Device()
    device.gauge.free_bytes = 10 * LIVE_BYTES
    device.thread.start()
    try:
        device.confirm(1)
        device.gauge.free_bytes = LIVE_BYTES // 2
        device.link.nudge(device.cloud.assign(device.cloud.publish(2, load_peak_bytes=LIVE_BYTES)))
        device.link.wait_for(lambda: device.module.version == 2 and device.ended == ("confirmed", None))
        assert device.module.gap_ms == 7
    finally:
        device.end()
