"""Whatever comes in, what goes out is bounded: refreshes, modules, records."""

from collections.abc import Callable
from typing import Any

import pytest

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.agent import Agent
from edge_agent.core.limits import REFRESH_GAP_MS
from edge_contract.errors import EdgeError
from edge_contract.limits import MODULES_MAX
from tests.core.bench import Bench, assignment
from tests.core.test_update import on


def test_a_broker_that_nudges_without_end_causes_few_refreshes() -> None:
    bench = on(1)
    before, begin = bench.trace.count("RefreshMetadata"), bench.now
    for number in range(1_000):
        bench.tell(inputs.NudgeReceived(2**50 + number))
        bench.settle(10)
    seconds = (bench.now - begin) / 1000
    assert bench.trace.count("RefreshMetadata") - before <= seconds * 1000 / REFRESH_GAP_MS + 1


def test_a_nudge_that_a_refresh_under_way_answers_causes_no_second_one() -> None:
    bench = on(1)
    before = bench.trace.count("RefreshMetadata")
    bench.assign(assignment(2))
    bench.tell(inputs.NudgeReceived(bench.director_version))
    bench.settle()
    assert bench.trace.count("RefreshMetadata") == before + 1


def test_a_nudge_that_comes_too_late_for_the_refresh_under_way_causes_another() -> None:
    bench = on(1)
    bench.assign(assignment(2))
    refresh = bench.waiting.pop(0)
    answer = bench.answer(refresh)  # what the cloud said before
    bench.assign(assignment(3))
    bench.tell(answer)
    bench.settle()
    assert bench.module["version"] == 3


def test_a_link_that_comes_up_during_a_refresh_causes_another_because_nudges_may_be_lost() -> None:
    bench = on(1)
    bench.tell(inputs.RefreshRequested())
    answer = bench.answer(bench.waiting.pop(0))
    bench.desired = (assignment(2),)
    bench.director_version += 1
    bench.tell(inputs.LinkChanged(is_online=True))
    bench.tell(answer)
    bench.settle()
    assert bench.module["version"] == 2


def test_a_link_that_flaps_causes_few_refreshes() -> None:
    bench = on(1)
    before, begin = bench.trace.count("RefreshMetadata"), bench.now
    for _ in range(200):
        bench.tell(inputs.LinkChanged(is_online=False))
        bench.tell(inputs.LinkChanged(is_online=True))
        bench.settle(10)
    assert bench.trace.count("RefreshMetadata") - before <= (bench.now - begin) / REFRESH_GAP_MS + 1


def test_modules_beyond_what_a_device_holds_are_not_dropped_in_silence() -> None:
    bench = Bench()
    bench.settle(0)
    bench.assign(*(assignment(1, module=f"m{n:02}") for n in range(MODULES_MAX + 1)))
    bench.settle()
    assert len(bench.core.reported_modules()) == MODULES_MAX
    assert bench.error_code() == "device.too-many-modules"
    bench.assign(assignment(1, module="m00"))
    bench.settle()
    assert bench.error_code() is None


def test_modules_that_run_nothing_make_room_for_new_ones() -> None:
    bench = Bench()
    bench.settle(0)
    bench.fail = {do.ResolveBundle: ("artifact.platform-mismatch", "no")}
    bench.assign(*(assignment(1, module=f"m{n:02}") for n in range(MODULES_MAX)))
    bench.settle()
    bench.fail = {}
    bench.assign(assignment(1, module="new"), assignment(1, module="m03"))
    bench.settle()
    modules = bench.core.reported_modules()
    assert modules["new"].serving
    assert "m03" in modules
    assert len(modules) == MODULES_MAX


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(phase="probation", live=None),
        lambda m: m.update(phase="committing", live=None),
        lambda m: m.update(phase="rolling_back", live=None),
        lambda m: m.update(phase="fetching", deployment=None),
        lambda m: m.update(live=None, fallback=m["deployment"]),
        lambda m: m.update(outcome=[]),
        lambda m: m.update(outcome={}),
        lambda m: m.update(attempt=True),
        lambda m: m.update(sampling_ratio=2),
        lambda m: m.update(quarantined=["sha256:" + "0" * 64] * 65),
        lambda m: m.update(error={"code": "x", "detail": "y" * 501, "phase": "idle", "attempt": 1}),
    ],
)
def test_a_record_that_no_core_wrote_is_refused_before_anything_follows_from_it(
    change: Callable[[dict[str, Any]], None],
) -> None:
    record = on(1).core.snapshot()
    change(record["modules"]["digits"])
    with pytest.raises(EdgeError):
        Agent.restore(record, "dev")


def test_a_record_names_modules_that_can_be_reported() -> None:
    record = on(1).core.snapshot()
    record["modules"]["../x"] = record["modules"].pop("digits")
    with pytest.raises(EdgeError):
        Agent.restore(record, "dev")


def test_two_modules_may_run_versions_of_one_model_that_differ() -> None:
    bench = Bench()
    bench.settle(0)
    bench.assign(assignment(2), assignment(1, module="sound"))
    bench.settle()
    assert bench.core.release_counters == {("digits", "digits"): 2, ("sound", "digits"): 1}


def test_periods_that_were_set_hold_at_once_and_none_brings_back_the_devices_own() -> None:
    bench = on(1)

    def reports_within(ms: int) -> int:
        before = bench.trace.count("SendReport")
        for _ in range(ms // 500):
            bench.settle(500)
        return bench.trace.count("SendReport") - before

    bench.tell(inputs.PeriodsChanged(report_ms=1_000))
    assert reports_within(10_000) >= 9
    bench.tell(inputs.PeriodsChanged())
    assert reports_within(10_000) <= 2


def test_a_report_that_is_asked_for_is_sent() -> None:
    bench = on(1)
    before = bench.trace.count("SendReport")
    bench.tell(inputs.ReportRequested())
    assert bench.trace.count("SendReport") == before + 1
