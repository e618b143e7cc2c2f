"""How far a deployment is on a device, as the device's signed reports prove it (docs/twin-truth-table.md)."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from edge_contract.phases import Outcome, Phase
from edge_contract.twin import Report, ReportedDeployment, ReportedModule


class Standing(StrEnum):
    """How a deployment stands on a device, for counts and tables."""

    PENDING = "pending"  # the device has said nothing of it yet
    IN_PROGRESS = "in_progress"
    CONFIRMED = "confirmed"
    REVERTED = "reverted"  # it was confirmed, and something else is live or answers now
    REFUSED = "refused"
    ROLLED_BACK = "rolled_back"
    ROLLBACK_FAILED = "rollback_failed"
    SUPERSEDED = "superseded"  # something else took its place before it ended


TERMINAL: Final = frozenset(
    {
        Standing.CONFIRMED,
        Standing.REVERTED,
        Standing.REFUSED,
        Standing.ROLLED_BACK,
        Standing.ROLLBACK_FAILED,
        Standing.SUPERSEDED,
    }
)
"""How a deployment can have ended; as long as it is what a module should run, later reports may still change it."""

_HELD: Final = frozenset({Standing.CONFIRMED, Standing.REVERTED})
# What is live and what answers may differ for a moment (docs/adr/0016-installed-is-not-confirmed.md).
_SWAPPING: Final = frozenset({Phase.ACTIVATING, Phase.PROBATION, Phase.COMMITTING, Phase.ROLLING_BACK})
_BY_OUTCOME: Final = {
    Outcome.REFUSED: Standing.REFUSED,
    Outcome.ROLLED_BACK: Standing.ROLLED_BACK,
    Outcome.ROLLBACK_FAILED: Standing.ROLLBACK_FAILED,
    Outcome.SUPERSEDED: Standing.SUPERSEDED,
}


@dataclass(frozen=True, slots=True)
class Progress:
    """What a report says of one deployment.

    Attributes:
        standing: The summary.
        phase: Phase of the module; a plain text when it is one of a newer device, none when it reports no such module.
        outcome: How it ended by the device's own word; none while it runs.
        error_code: Code of the reported error, or none.
        error_detail: Its detail.
        golden: Digest of the outputs on the golden vectors when it was confirmed, or none; compared from then on.
    """

    standing: Standing
    phase: Phase | str | None
    outcome: Outcome | None = None
    error_code: str | None = None
    error_detail: str = ""
    golden: str | None = None


def progress_of(
    report: Report,
    module: str,
    deployment: str,
    manifest: str,
    before: Standing = Standing.PENDING,
    golden: str | None = None,
) -> Progress | None:
    """What a report says of a deployment that should make `manifest` live in `module`, or none if nothing.

    Confirmed needs more than the word: the manifest has to be what is live and what answered the device's own probe. A
    device that ran the very same manifest before has nothing to do and confirms the former deployment; that counts for
    the new one too. What was confirmed is looked at again with every report.

    Args:
        report: A report whose signature was verified.
        module: Name of the module.
        deployment: The deployment in question.
        manifest: The bundle it assigns to this device.
        before: How it stood.
        golden: What was remembered when it was confirmed.
    """
    reported = report.modules.get(module)
    if before in _HELD:
        return _look_again(reported, deployment, manifest, golden)
    if reported is None:
        return None
    if (refused := _about(reported.refused, deployment, manifest)) is not None:
        return Progress(Standing.REFUSED, reported.phase, Outcome.REFUSED, *_error(refused))
    latest = reported.deployment
    if latest is None or str(latest.manifest) != manifest:
        return None
    if latest.deployment != deployment and latest.outcome is not Outcome.CONFIRMED:
        return None
    if latest.outcome is Outcome.CONFIRMED and _holds(reported, manifest):
        return _confirmed(reported, None)
    if latest.deployment != deployment:
        return None
    if latest.outcome is None or latest.outcome is Outcome.CONFIRMED:
        return Progress(Standing.IN_PROGRESS, reported.phase, None, *_error(latest))
    return Progress(_BY_OUTCOME[latest.outcome], reported.phase, latest.outcome, *_error(latest))


def _look_again(reported: ReportedModule | None, deployment: str, manifest: str, golden: str | None) -> Progress | None:
    """Whether what was confirmed still is so."""
    if reported is None:
        return Progress(
            Standing.REVERTED, None, None, "device.answers-otherwise", "the device reports no such module", golden
        )
    latest = _about(reported.deployment, deployment, manifest)
    outcome = None if latest is None else latest.outcome
    if latest is not None and outcome in _BY_OUTCOME:
        # The device says itself that it went back: no silent revert.
        return Progress(_BY_OUTCOME[outcome], reported.phase, outcome, *_error(latest))
    if reported.phase in _SWAPPING:
        return None
    wrong = _difference(reported, manifest)
    if wrong is not None:
        return Progress(Standing.REVERTED, reported.phase, outcome, *wrong, golden)
    if not _holds(reported, manifest):
        return None  # nothing answered just now: no proof of either
    return _confirmed(reported, golden)


def _difference(reported: ReportedModule, manifest: str) -> tuple[str, str] | None:
    """Code and detail of what answers in the place of what was confirmed, or none."""
    if str(reported.live) != manifest:
        if reported.error is not None:
            return reported.error.code, reported.error.detail
        return "device.answers-otherwise", f"live is {reported.live or 'nothing'}"
    if reported.answering is not None and str(reported.answering) != manifest:
        return "device.answers-otherwise", f"{reported.answering} answers"
    return None


def _holds(reported: ReportedModule, manifest: str) -> bool:
    return str(reported.live) == manifest and str(reported.answering) == manifest


def _confirmed(reported: ReportedModule, golden: str | None) -> Progress:
    """The same bundle answers. That its outputs differ, within their tolerance, shows and is no revert."""
    now = None if reported.golden is None else str(reported.golden)
    if golden is not None and now is not None and now != golden:
        detail = f"the golden vectors give {now}, when it was confirmed {golden}"
        return Progress(
            Standing.CONFIRMED, reported.phase, Outcome.CONFIRMED, "model.outputs-changed", detail, golden=golden
        )
    return Progress(Standing.CONFIRMED, reported.phase, Outcome.CONFIRMED, golden=golden or now)


def _about(item: ReportedDeployment | None, deployment: str, manifest: str) -> ReportedDeployment | None:
    is_it = item is not None and item.deployment == deployment and str(item.manifest) == manifest
    return item if is_it else None


def _error(item: ReportedDeployment) -> tuple[str | None, str]:
    return (None, "") if item.error is None else (item.error.code, item.error.detail)
