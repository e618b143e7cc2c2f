"""How far a deployment is, as reports prove it."""

from __future__ import annotations

import pytest

from cloud_registry.core.progress import Progress, Standing, progress_of
from edge_contract.digest import Digest
from edge_contract.phases import Outcome, Phase
from edge_contract.twin import Report, ReportedDeployment, ReportedError, ReportedModule

WANTED = Digest.of(b"wanted")
OTHER = Digest.of(b"other")


def report(module: ReportedModule | None) -> Report:
    return Report("cam-1", "ab", 1, 0, "linux/arm64", "1", modules={} if module is None else {"digits": module})


def found(module: ReportedModule | None, deployment: str = "d1") -> Progress | None:
    return progress_of(report(module), "digits", deployment, str(WANTED))


def test_a_report_that_does_not_know_the_module_says_nothing() -> None:
    assert found(None) is None


def test_a_report_about_another_deployment_says_nothing() -> None:
    assert found(ReportedModule(Phase.FETCHING, deployment=ReportedDeployment("d0", WANTED))) is None


def test_a_report_about_the_same_deployment_s_former_manifest_says_nothing() -> None:
    latest = ReportedDeployment("d1", OTHER, Outcome.CONFIRMED)
    assert found(ReportedModule(Phase.IDLE, live=OTHER, deployment=latest)) is None


def test_a_running_deployment_is_in_progress_with_what_it_waits_for() -> None:
    error = ReportedError("device.disk-full", "12 bytes are missing", Phase.FETCHING, 1)
    got = found(ReportedModule(Phase.FETCHING, deployment=ReportedDeployment("d1", WANTED, None, error)))
    assert got == Progress(Standing.IN_PROGRESS, Phase.FETCHING, None, "device.disk-full", "12 bytes are missing")


def test_confirmed_needs_the_manifest_to_be_live() -> None:
    latest = ReportedDeployment("d1", WANTED, Outcome.CONFIRMED)
    confirmed = found(ReportedModule(Phase.IDLE, live=WANTED, serving=True, deployment=latest))
    claimed = found(ReportedModule(Phase.IDLE, live=OTHER, serving=True, deployment=latest))
    assert confirmed is not None
    assert claimed is not None
    assert (confirmed.standing, claimed.standing) == (Standing.CONFIRMED, Standing.IN_PROGRESS)


def test_a_device_that_ran_the_manifest_already_confirms_the_new_deployment() -> None:
    module = ReportedModule(Phase.IDLE, live=WANTED, deployment=ReportedDeployment("d0", WANTED, Outcome.CONFIRMED))
    assert found(module) == Progress(Standing.CONFIRMED, Phase.IDLE, Outcome.CONFIRMED)


@pytest.mark.parametrize(
    ("outcome", "standing"),
    [
        (Outcome.REFUSED, Standing.REFUSED),
        (Outcome.ROLLED_BACK, Standing.ROLLED_BACK),
        (Outcome.ROLLBACK_FAILED, Standing.ROLLBACK_FAILED),
        (Outcome.SUPERSEDED, Standing.SUPERSEDED),
    ],
)
def test_every_other_end_is_taken_as_told(outcome: Outcome, standing: Standing) -> None:
    error = ReportedError("model.golden-mismatch", "off by 3", Phase.TESTING, 1)
    latest = ReportedDeployment("d1", WANTED, outcome, error)
    got = found(ReportedModule(Phase.IDLE, live=OTHER, deployment=latest))
    assert got == Progress(standing, Phase.IDLE, outcome, "model.golden-mismatch", "off by 3")
