"""How far a deployment is, as reports prove it. Every combination is in docs/twin-truth-table.md, and checked there."""

from __future__ import annotations

import pytest

from cloud_registry.core.progress import Progress, Standing, progress_of
from edge_contract.digest import Digest
from edge_contract.phases import Outcome, Phase
from edge_contract.twin import Report, ReportedDeployment, ReportedError, ReportedModule

WANTED = Digest.of(b"wanted")
OTHER = Digest.of(b"other")
GOLDEN = Digest.of(b"outputs")


def report(module: ReportedModule | None) -> Report:
    return Report("cam-1", "ab", 1, 0, "linux/arm64", "1", modules={} if module is None else {"digits": module})


def found(
    module: ReportedModule | None,
    deployment: str = "d1",
    before: Standing = Standing.PENDING,
    golden: str | None = None,
) -> Progress | None:
    return progress_of(report(module), "digits", deployment, str(WANTED), before, golden)


def test_a_running_deployment_is_in_progress_with_what_it_waits_for() -> None:
    error = ReportedError("device.disk-full", "12 bytes are missing", Phase.FETCHING, 1)
    got = found(ReportedModule(Phase.FETCHING, deployment=ReportedDeployment("d1", WANTED, None, error)))
    assert got == Progress(Standing.IN_PROGRESS, Phase.FETCHING, None, "device.disk-full", "12 bytes are missing")


def test_confirmed_needs_the_manifest_to_be_live_and_to_answer() -> None:
    latest = ReportedDeployment("d1", WANTED, Outcome.CONFIRMED)
    good = ReportedModule(Phase.IDLE, live=WANTED, answering=WANTED, golden=GOLDEN, serving=True, deployment=latest)
    assert found(good) == Progress(Standing.CONFIRMED, Phase.IDLE, Outcome.CONFIRMED, golden=str(GOLDEN))
    for live, answering in ((WANTED, None), (WANTED, OTHER), (OTHER, WANTED), (OTHER, OTHER), (None, None)):
        claimed = found(ReportedModule(Phase.IDLE, live=live, answering=answering, serving=True, deployment=latest))
        assert claimed == Progress(Standing.IN_PROGRESS, Phase.IDLE), (live, answering)


def test_a_device_that_ran_the_manifest_already_confirms_the_new_deployment() -> None:
    latest = ReportedDeployment("d0", WANTED, Outcome.CONFIRMED)
    module = ReportedModule(Phase.IDLE, live=WANTED, answering=WANTED, deployment=latest)
    assert found(module) == Progress(Standing.CONFIRMED, Phase.IDLE, Outcome.CONFIRMED)
    assert found(ReportedModule(Phase.IDLE, live=WANTED, deployment=latest)) is None


@pytest.mark.parametrize(
    ("outcome", "standing"),
    [
        (Outcome.REFUSED, Standing.REFUSED),
        (Outcome.ROLLED_BACK, Standing.ROLLED_BACK),
        (Outcome.ROLLBACK_FAILED, Standing.ROLLBACK_FAILED),
        (Outcome.SUPERSEDED, Standing.SUPERSEDED),
    ],
)
@pytest.mark.parametrize("before", [Standing.IN_PROGRESS, Standing.CONFIRMED, Standing.REVERTED])
def test_every_other_end_is_taken_as_told(outcome: Outcome, standing: Standing, before: Standing) -> None:
    error = ReportedError("model.golden-mismatch", "off by 3", Phase.TESTING, 1)
    latest = ReportedDeployment("d1", WANTED, outcome, error)
    got = found(ReportedModule(Phase.IDLE, live=OTHER, deployment=latest), before=before)
    assert got == Progress(standing, Phase.IDLE, outcome, "model.golden-mismatch", "off by 3")


def test_the_first_golden_outputs_are_remembered_and_the_later_ones_compared() -> None:
    latest = ReportedDeployment("d1", WANTED, Outcome.CONFIRMED)
    bare = ReportedModule(Phase.IDLE, live=WANTED, answering=WANTED, deployment=latest)
    with_outputs = ReportedModule(Phase.IDLE, live=WANTED, answering=WANTED, golden=GOLDEN, deployment=latest)
    known = found(bare, before=Standing.CONFIRMED, golden=str(GOLDEN))
    assert known is not None
    assert known.golden == str(GOLDEN), "a report without outputs forgets nothing"
    learnt = found(with_outputs, before=Standing.CONFIRMED)
    assert learnt is not None
    assert (learnt.standing, learnt.golden) == (Standing.CONFIRMED, str(GOLDEN))
    changed = found(with_outputs, before=Standing.CONFIRMED, golden=str(OTHER))
    assert changed is not None
    assert (changed.standing, changed.error_code, changed.golden) == (
        Standing.CONFIRMED,
        "model.outputs-changed",
        str(OTHER),
    )


def test_what_the_device_says_of_its_live_bundle_explains_a_revert() -> None:
    error = ReportedError("device.disk-corrupt", "slot 3 is damaged", Phase.IDLE, 1)
    latest = ReportedDeployment("d1", WANTED, Outcome.CONFIRMED)
    got = found(ReportedModule(Phase.IDLE, live=OTHER, deployment=latest, error=error), before=Standing.CONFIRMED)
    assert got == Progress(Standing.REVERTED, Phase.IDLE, Outcome.CONFIRMED, "device.disk-corrupt", "slot 3 is damaged")
