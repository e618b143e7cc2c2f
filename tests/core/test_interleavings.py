"""What happens at the same time as an update: workers that end, people who ask, disks that fill."""

import copy

import pytest

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.agent import Agent
from edge_agent.core.limits import ATTEST_MS, SERVE_FAILURES_MAX, SERVE_MS_MAX
from edge_contract.limits import DETAIL_CHARS_MAX
from edge_contract.phases import Phase
from edge_contract.twin import Report
from tests.core import script
from tests.core.bench import Bench, assignment
from tests.core.test_update import on

V1, V2, V3 = assignment(1), assignment(2), assignment(3)
OFFLINE = ("network.unreachable", "no route")


def on_two() -> Bench:
    """A device that runs version 2 and could roll back to version 1."""
    bench = on(1)
    bench.assign(V2)
    bench.settle()
    assert (bench.module["live"], bench.module["fallback"]) == (str(V2.manifest), str(V1.manifest))
    return bench


def ratios(bench: Bench) -> list[float]:
    """Every sampling ratio that was set, in order."""
    return [command.ratio for command in bench.sent if isinstance(command, do.SetSampling)]


# -- a worker that ends --------------------------------------------------------------------------------------------


def test_a_live_worker_that_ends_while_a_candidate_is_tested_costs_the_candidate_nothing() -> None:
    """Bringing the live bundle up takes the candidate's place, so the candidate has to be proved again."""
    bench = on(1)
    bench.assign(V2)
    bench.until(do.ProveCandidate)
    bench.end_worker()
    bench.settle(0)
    assert bench.module["serving"] is True
    bench.settle()
    assert (bench.module["deployment"]["outcome"], bench.module["live"]) == ("confirmed", str(V2.manifest))
    assert bench.trace.count("ActivateSlot") == 2  # once for each version


def test_a_worker_that_ends_before_it_was_heard_of_is_brought_up_again() -> None:
    bench = on(1)
    bench.boot()
    bench.tell(inputs.WorkerExited("digits", V1.manifest))
    bench.settle()
    assert bench.module["serving"] is True


def test_health_that_was_asked_for_before_the_worker_ended_changes_nothing_afterwards() -> None:
    bench = on(1)
    bench.assign(V2)
    while bench.module["phase"] != "probation":
        assert bench.step()
    bench.now += 2_000
    bench.tell(inputs.TimeReached())
    late = bench.waiting.pop(0)
    assert isinstance(late, do.ObserveHealth)
    bench.end_worker()
    bench.tell(inputs.HealthObserved(late.op, True, 100, 0))
    assert bench.module["phase"] == "rolling_back"
    bench.settle()
    assert bench.module["live"] == str(V1.manifest) == str(bench.answering)


def test_a_live_bundle_that_cannot_come_up_gives_way_also_while_an_update_waits_for_the_network() -> None:
    bench = on_two()
    bench.fail = {do.ResolveBundle: OFFLINE, do.ServeLive: ("model.load-failed", "no")}
    bench.assign(V3)
    bench.settle(0)
    bench.end_worker()
    bench.settle(120_000)
    assert bench.module["live"] == str(V1.manifest) == str(bench.answering)
    bench.fail = {}
    bench.settle(600_000)
    assert bench.module["live"] == str(V3.manifest) == str(bench.answering)


@pytest.mark.parametrize(("code", "is_blamed"), [("device.memory-short", False), ("model.load-failed", True)])
def test_a_bundle_is_only_blamed_for_its_own_failures(code: str, is_blamed: bool) -> None:
    bench = on_two()
    bench.fail = {do.ServeLive: (code, "no")}
    bench.end_worker()
    bench.settle(120_000)
    assert bench.module["live"] == str(V1.manifest)
    record = bench.core.snapshot()["modules"]["digits"]
    assert (str(V2.manifest) in record["quarantined"]) is is_blamed


# -- a person who asks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [do.ResolveBundle, do.FetchBlobs, do.VerifyBlobs, do.StageSlot, do.ProveCandidate])
def test_an_operator_rolls_back_whatever_the_update_is_at(phase: type[do.Command]) -> None:
    bench = on_two()
    bench.assign(V3)
    bench.until(phase)
    bench.tell(inputs.RollbackRequested("digits"))
    while bench.module["phase"] == "rolling_back":
        assert bench.step()
    assert bench.module["live"] == str(V1.manifest) == str(bench.answering)
    bench.settle()
    assert bench.module["live"] == str(V3.manifest) == str(bench.answering)


def test_an_operator_rolls_back_while_an_update_waits_for_the_network() -> None:
    bench = on_two()
    bench.fail = {do.FetchBlobs: OFFLINE}
    bench.assign(V3)
    bench.settle()
    bench.tell(inputs.RollbackRequested("digits"))
    bench.settle()
    assert bench.module["live"] == str(V1.manifest) == str(bench.answering)


def test_an_operator_who_asks_for_a_fallback_that_is_not_there_does_not_stop_the_update() -> None:
    bench = on(1)
    bench.assign(V2)
    bench.until(do.FetchBlobs)
    bench.tell(inputs.RollbackRequested("digits"))
    assert bench.module["deployment"]["error"]["code"] == "device.no-fallback"
    bench.settle()
    assert bench.module["live"] == str(V2.manifest)


# -- the same bundle again -----------------------------------------------------------------------------------------


def test_a_bundle_that_is_live_but_does_not_answer_is_not_confirmed_before_it_does() -> None:
    bench = on(1)
    bench.fail = {do.ServeLive: ("device.memory-short", "later")}
    bench.end_worker()
    bench.assign(assignment(1, deployment="again"))
    bench.settle(1_000)
    assert (bench.module["deployment"]["deployment"], bench.module["serving"]) == ("d1", False)
    bench.fail = {}
    bench.settle(600_000)
    assert bench.module["deployment"] | {"error": None} == {
        "deployment": "again", "manifest": str(V1.manifest), "outcome": "confirmed", "error": None,
    }  # fmt: skip


def test_going_back_to_what_is_live_ends_the_update_also_when_it_does_not_answer() -> None:
    bench = on(1)
    bench.fail = {do.ServeLive: ("device.memory-short", "later"), do.FetchBlobs: OFFLINE}
    bench.assign(V2)
    bench.settle(0)
    bench.end_worker()
    bench.assign(assignment(1, deployment="back"))
    bench.settle(2_000)
    assert (bench.module["phase"], bench.module["deployment"]["outcome"]) == ("idle", "superseded")


def test_a_bundle_that_failed_here_is_refused_even_if_nothing_else_could_be_made_live() -> None:
    bench = on(1)
    bench.health = (True, 20, 20)
    bench.fail = {do.RollBack: ("model.load-failed", "no")}
    bench.assign(V2)
    bench.settle(60_000)
    assert bench.module["deployment"]["outcome"] == "rollback_failed"
    bench.assign(assignment(2, deployment="again"))
    bench.settle()
    assert bench.module["deployment"]["outcome"] == "refused"
    assert bench.module["deployment"]["error"]["code"] == "artifact.quarantined"


# -- sampling ------------------------------------------------------------------------------------------------------


def test_a_bundle_that_is_rolled_back_to_is_sampled_as_it_asks() -> None:
    bench = Bench()
    bench.sampling_ratio = 0.0
    bench.settle(0)
    bench.assign(V1)
    bench.settle()
    bench.sampling_ratio = 1.0
    bench.assign(V2)
    bench.settle()
    bench.tell(inputs.RollbackRequested("digits"))
    bench.settle()
    assert ratios(bench)[-1] == 0.0
    bench.boot()
    bench.settle()
    assert ratios(bench)[-1] == 0.0


def test_an_override_of_sampling_ends_with_the_policy_that_made_it() -> None:
    bench = Bench()
    bench.sampling_ratio = 0.5
    bench.settle(0)
    bench.assign(V1)
    bench.settle()
    bench.assign(assignment(1, deployment="less", sampling_ratio=0.125))
    bench.settle()
    assert ratios(bench)[-1] == 0.125
    bench.boot()
    bench.settle()
    assert ratios(bench)[-1] == 0.125
    bench.assign(assignment(1, deployment="as it was"))
    bench.settle()
    assert ratios(bench)[-1] == 0.5


# -- a disk that fills or fails ------------------------------------------------------------------------------------


def test_a_full_disk_is_cleared_of_what_nobody_needs_before_the_next_attempt() -> None:
    bench = on(1)
    bench.fail = {do.ResolveBundle: ("device.disk-full", "no space")}
    before = bench.trace.count("CollectGarbage")
    bench.assign(V2)
    bench.settle(0)
    assert bench.trace.count("CollectGarbage") == before + 1
    (kept,) = [command.keep for command in bench.sent if isinstance(command, do.CollectGarbage)][-1:]
    assert kept == {V1.manifest, V2.manifest}


def test_the_live_bundle_comes_up_without_waiting_for_the_record_unless_it_is_on_probation() -> None:
    bench = on(1)
    bench.assign(V2)
    bench.until(do.FetchBlobs)
    bench.boot()
    (serve,) = [command for command in bench.waiting if isinstance(command, do.ServeLive)]
    assert serve.may_overtake
    bench.settle(0)
    while bench.module["phase"] != "probation":
        assert bench.step()
    bench.boot()
    (serve,) = [command for command in bench.waiting if isinstance(command, do.ServeLive)]
    assert not serve.may_overtake  # a bundle that takes the device down has to be counted first


def test_the_longest_error_can_be_persisted_reported_and_read_again() -> None:
    bench = on(1)
    bench.health = (True, 20, 20)
    bench.fail = {do.RollBack: ("model.load-failed", "x" * DETAIL_CHARS_MAX)}
    bench.assign(V2)
    bench.settle(60_000)
    assert bench.module["deployment"]["error"]["code"] == "device.rollback-failed"
    record = bench.core.snapshot()
    assert Agent.restore(copy.deepcopy(record), "dev").snapshot() == record
    report = Report("dev", "00" * 8, 1, 1, "linux/amd64", "1", modules=bench.core.reported_modules())
    assert Report.parse(report.to_bytes()).modules["digits"].phase is Phase.IDLE
    assert bench.trace.count("ServeLive") <= SERVE_FAILURES_MAX


# -- what hangs ----------------------------------------------------------------------------------------------------


def test_a_proof_and_a_start_that_hang_together_are_given_up_at_one_wake_up() -> None:
    bench = on(1)
    bench.assign(V2)
    script.at("commit")(bench)
    bench.hangs = {do.CommitSlot: 1, do.ServeLive: 1}
    bench.boot()
    while len(bench.hung) < 2:
        assert bench.step()
    overdue_at = bench.now + SERVE_MS_MAX
    while bench.now < overdue_at:
        while bench.step():
            pass
        deadline = bench.core.deadline()
        assert deadline is not None
        bench.now = deadline
        bench.tell(inputs.TimeReached())
        following = bench.core.deadline()
        assert following is None or following > bench.now, "the core would be woken again and again"
    cancelled = {command.op for command in bench.sent if isinstance(command, do.CancelOperation)}
    assert cancelled >= {getattr(command, "op", None) for command in bench.hung}
    bench.settle()
    assert (bench.module["deployment"]["outcome"], bench.module["live"]) == ("confirmed", str(V2.manifest))


def test_a_damaged_bundle_that_cannot_come_up_is_healed_before_the_disk_is_read_to_its_end() -> None:
    bench = Bench(poll_ms=6 * script.HOUR_MS, report_ms=6 * script.HOUR_MS)
    bench.settle(0)
    bench.assign(V1)
    script.at("scrub")(bench)
    scrub = bench.waiting.pop(0)
    assert isinstance(scrub, do.ScrubStore)
    bench.damaged.add(V1.manifest)
    bench.end_worker()
    bench.settle(0)
    assert do.CancelOperation(scrub.op) in bench.sent
    assert bench.module["serving"] is True
    bench.tell(bench.answer(scrub))
    before = bench.trace.count("ScrubStore")
    bench.settle()
    assert bench.trace.count("ScrubStore") == before
    assert bench.trace[bench.trace.index("HealSlot") :].count("ScrubStore") == 1, "it is read again afterwards"
    assert bench.module["error"] is None


# -- damage that a proof comes upon --------------------------------------------------------------------------------


def test_golden_vectors_that_rotted_on_disk_are_healed_without_waiting_for_the_next_scrub() -> None:
    bench = on(1)
    bench.fail = {do.AttestLive: ("device.disk-corrupt", "the golden vectors are no longer what was staged")}
    bench.settle(2 * ATTEST_MS)
    assert (bench.trace.count("HealSlot"), bench.trace.count("RestartLive")) == (1, 1)  # once, whatever becomes of it
    assert bench.module["live"] == str(V1.manifest) == str(bench.answering)
    bench.fail = {}
    bench.settle(2 * ATTEST_MS)
    assert (bench.module["answering"], bench.module["error"]) == (str(V1.manifest), None)
