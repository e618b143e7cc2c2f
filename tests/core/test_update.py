"""What the update machine does with good bundles, bad bundles, bad networks and impatient operators."""

import pytest

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.limits import FINAL_ATTEMPTS_MAX, PROBATION_RESTARTS_MAX, ROLLBACK_ATTEMPTS_MAX, SERVE_FAILURES_MAX
from edge_contract.digest import Digest
from tests.core.bench import GOLDEN, Bench, assignment

V1, V2, V3 = assignment(1), assignment(2), assignment(3)
STEPS = ["ResolveBundle", "FetchBlobs", "VerifyBlobs", "StageSlot", "ProveCandidate", "ActivateSlot"]


def on(version: int) -> Bench:
    """A device that runs version N confirmed."""
    bench = Bench()
    bench.settle(0)
    bench.assign(assignment(version))
    bench.settle()
    assert bench.module["deployment"]["outcome"] == "confirmed"
    return bench


def test_a_good_bundle_goes_through_every_step_in_order_and_is_confirmed_after_probation() -> None:
    bench = on(1)
    assert [name for name in bench.trace if name in STEPS] == STEPS
    assert bench.trace.index("ActivateSlot") < bench.trace.index("ObserveHealth") < bench.trace.index("CommitSlot")
    assert bench.module["live"] == str(V1.manifest) == str(bench.answering)
    assert bench.module["golden"] == str(GOLDEN)
    assert bench.module["serving"] is True


def test_every_change_of_the_record_is_durable_before_the_step_that_follows_from_it() -> None:
    bench = Bench()
    bench.settle(0)
    bench.assign(V1)
    bench.settle()
    phases = {
        "ResolveBundle": "resolving",
        "FetchBlobs": "fetching",
        "VerifyBlobs": "verifying",
        "StageSlot": "staging",
        "ProveCandidate": "testing",
        "ActivateSlot": "activating",
        "CommitSlot": "committing",
    }  #
    durable = ""
    for command in bench.sent:
        if isinstance(command, do.Persist):
            durable = command.record["modules"]["digits"]["phase"]
        elif (name := type(command).__name__) in phases:
            assert durable == phases[name]


def test_the_fallback_is_what_was_live_before() -> None:
    bench = on(1)
    bench.assign(V2)
    bench.settle()
    assert (bench.module["live"], bench.module["fallback"]) == (str(V2.manifest), str(V1.manifest))


@pytest.mark.parametrize(
    "code", ["model.golden-mismatch", "model.load-failed", "artifact.archive-bomb", "model.timeout"]
)
def test_a_bundle_that_fails_its_test_is_refused_quarantined_and_never_touches_the_live_one(code: str) -> None:
    bench = on(1)
    bench.fail = {do.ProveCandidate: (code, "bad")}
    bench.assign(V2)
    bench.settle()
    report = bench.module["deployment"]
    assert (report["outcome"], report["error"]["code"], report["error"]["phase"]) == ("refused", code, "testing")
    assert bench.module["live"] == str(V1.manifest) == str(bench.answering)
    bench.fail, before = {}, bench.trace.count("ResolveBundle")
    bench.assign(assignment(2, deployment="again"))
    bench.settle()
    assert bench.module["deployment"]["error"]["code"] == "artifact.quarantined"
    assert bench.trace.count("ResolveBundle") == before


def test_a_refused_deployment_is_not_tried_again_however_often_metadata_repeats_it() -> None:
    bench = on(1)
    bench.fail = {do.ResolveBundle: ("artifact.platform-mismatch", "wrong platform")}
    bench.assign(V2)
    bench.settle(600_000)
    assert bench.trace.count("ResolveBundle") == 2  # once for version 1, once for version 2


@pytest.mark.parametrize("code", ["network.unreachable", "network.cut", "cloud.unavailable", "device.disk-full"])
def test_what_others_have_to_mend_is_retried_for_ever_with_growing_waits(code: str) -> None:
    bench = on(1)
    bench.fail = {do.FetchBlobs: (code, "no")}
    bench.assign(V2)
    bench.settle(3_600_000)
    tries = bench.trace.count("FetchBlobs") - 1
    assert FINAL_ATTEMPTS_MAX < tries < 100
    assert bench.module["deployment"]["error"]["code"] == code
    bench.fail = {}
    bench.settle(600_000)
    assert bench.module["deployment"]["outcome"] == "confirmed"


def test_wrong_bytes_on_the_wire_are_retried_a_bounded_number_of_times_and_do_not_quarantine_the_digest() -> None:
    bench = on(1)
    bench.fail = {do.FetchBlobs: ("artifact.digest-mismatch", "wrong bytes")}
    bench.assign(V2)
    bench.settle(3_600_000)
    assert bench.trace.count("FetchBlobs") - 1 == FINAL_ATTEMPTS_MAX
    assert bench.module["deployment"]["outcome"] == "refused"
    bench.fail = {}
    bench.assign(assignment(2, deployment="again"))
    bench.settle()
    assert bench.module["deployment"]["outcome"] == "confirmed"


def test_a_newer_assignment_takes_over_while_the_older_one_is_fetched() -> None:
    bench = on(1)
    bench.assign(V2)
    while not isinstance(bench.waiting[0] if bench.waiting else None, do.FetchBlobs):
        bench.step()
    late = bench.waiting.pop(0)
    bench.assign(V3)
    bench.settle()
    assert isinstance(late, do.FetchBlobs)
    assert do.CancelOperation(late.op) in bench.sent
    bench.tell(bench.answer(late))  # the late completion of the older one
    bench.settle()
    assert bench.module["live"] == str(V3.manifest) == str(bench.answering)


def test_a_withdrawn_assignment_stops_the_download_and_leaves_the_live_bundle() -> None:
    bench = on(1)
    bench.assign(V2)
    while not isinstance(bench.waiting[0] if bench.waiting else None, do.FetchBlobs):
        bench.step()
    bench.waiting.pop(0)
    bench.assign()
    bench.settle()
    assert bench.module["phase"] == "idle"
    assert bench.module["deployment"]["outcome"] == "superseded"
    assert str(bench.answering) == str(V1.manifest)


@pytest.mark.parametrize(
    ("health", "code"), [((True, 20, 10), "model.unhealthy"), ((False, 0, 0), "model.worker-crashed")]
)
def test_a_model_that_fails_its_probation_is_rolled_back_and_quarantined(
    health: tuple[bool, int, int], code: str
) -> None:
    bench = on(1)
    bench.health = health
    bench.assign(V2)
    bench.settle()
    report = bench.module["deployment"]
    assert (report["outcome"], report["error"]["code"]) == ("rolled_back", code)
    assert bench.module["live"] == str(V1.manifest) == str(bench.answering)
    assert bench.module["fallback"] is None


def test_a_first_bundle_that_fails_its_probation_leaves_nothing_serving() -> None:
    bench = Bench()
    bench.health = (True, 20, 20)
    bench.settle(0)
    bench.assign(V1)
    bench.settle()
    assert bench.module["live"] is None
    assert bench.answering is None
    assert bench.module["deployment"]["outcome"] == "rolled_back"


def test_a_rollback_that_fails_again_and_again_is_an_outcome_of_its_own() -> None:
    bench = on(1)
    bench.health = (True, 20, 20)
    bench.fail = {do.RollBack: ("model.load-failed", "no")}
    bench.assign(V2)
    bench.settle(3_600_000)
    assert bench.trace.count("RollBack") == ROLLBACK_ATTEMPTS_MAX
    report = bench.module["deployment"]
    assert (report["outcome"], report["error"]["code"]) == ("rollback_failed", "device.rollback-failed")


def test_an_operator_rolls_back_without_blaming_the_bundle() -> None:
    bench = on(1)
    bench.assign(V2)
    bench.settle()
    bench.tell(inputs.RollbackRequested("digits"))
    bench.settle()
    assert bench.module["live"] == str(V1.manifest) == str(bench.answering)
    assert bench.module["deployment"]["outcome"] == "rolled_back"
    assert bench.module["deployment"]["error"] is None
    bench.assign(assignment(2, deployment="again"))
    bench.settle()
    assert bench.module["live"] == str(V2.manifest)


def test_an_operator_without_a_fallback_is_told_so() -> None:
    bench = on(1)
    bench.tell(inputs.RollbackRequested("digits"))
    bench.settle()
    assert bench.module["deployment"]["error"]["code"] == "device.no-fallback"
    assert str(bench.answering) == str(V1.manifest)


def test_a_live_worker_that_dies_is_started_again_at_once() -> None:
    bench = on(1)
    bench.tell(inputs.WorkerExited("digits", V1.manifest))
    assert bench.module["serving"] is False
    bench.settle(0)
    assert bench.module["serving"] is True


def test_the_exit_of_a_worker_that_is_no_longer_live_means_nothing() -> None:
    bench = on(1)
    bench.tell(inputs.WorkerExited("digits", Digest.of(b"another")))
    assert bench.module["serving"] is True


def test_a_live_bundle_that_cannot_come_up_any_more_gives_way_to_the_fallback() -> None:
    bench = on(1)
    bench.assign(V2)
    bench.settle()
    bench.fail = {do.ServeLive: ("model.load-failed", "no")}
    bench.tell(inputs.WorkerExited("digits", V2.manifest))
    bench.settle(600_000)
    assert bench.trace.count("ServeLive") <= SERVE_FAILURES_MAX
    assert bench.module["live"] == str(V1.manifest) == str(bench.answering)


def test_the_same_bundle_in_a_new_deployment_is_confirmed_without_work() -> None:
    bench = on(1)
    before = bench.trace.count("ResolveBundle")
    bench.assign(assignment(1, deployment="other", sampling_ratio=0.25))
    bench.settle()
    assert bench.trace.count("ResolveBundle") == before
    assert bench.module["deployment"] | {"error": None} == {
        "deployment": "other", "manifest": str(V1.manifest), "outcome": "confirmed", "error": None,
    }  # fmt: skip
    assert do.SetSampling("digits", 0.25) in bench.sent


def test_two_modules_are_updated_independently() -> None:
    bench = Bench()
    bench.settle(0)
    bench.assign(V1, assignment(1, module="sound"))
    bench.settle()
    modules = bench.core.reported_modules()
    assert {name: module.deployment and module.deployment.outcome for name, module in modules.items()} == {
        "digits": "confirmed",
        "sound": "confirmed",
    }


def test_bad_metadata_changes_nothing_and_is_reported() -> None:
    bench = on(1)
    bench.fail = {do.RefreshMetadata: ("trust.signature-invalid", "forged")}
    bench.assign(V2)
    bench.settle()
    assert bench.error_code() == "trust.signature-invalid"
    assert str(bench.answering) == str(V1.manifest)
    bench.fail = {}
    bench.settle(120_000)
    assert bench.error_code() is None
    assert bench.module["live"] == str(V2.manifest)


def test_nudges_that_say_nothing_new_cause_no_traffic() -> None:
    bench = on(1)
    before = bench.trace.count("RefreshMetadata")
    bench.tell(inputs.NudgeReceived(bench.director_version))
    assert bench.trace.count("RefreshMetadata") == before


def test_restarts_within_one_probation_are_bounded() -> None:
    bench = on(1)
    bench.assign(V2)
    while bench.disk is None or bench.disk["modules"]["digits"]["phase"] != "probation":
        assert bench.step()
    for _ in range(PROBATION_RESTARTS_MAX):
        bench.boot()
        bench.step()
        assert bench.module["phase"] == "probation"
    bench.boot()
    bench.settle()
    assert bench.module["deployment"]["error"]["code"] == "model.unhealthy"
    assert str(bench.answering) == str(V1.manifest)
