"""How far a deployment is on a device, as the device's reports prove it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from edge_contract.phases import Outcome, Phase
from edge_contract.twin import Report


class Standing(StrEnum):
    """How a deployment stands on a device, for counts and tables."""

    PENDING = "pending"  # the device has said nothing of it yet
    IN_PROGRESS = "in_progress"
    CONFIRMED = "confirmed"
    REFUSED = "refused"
    ROLLED_BACK = "rolled_back"
    ROLLBACK_FAILED = "rollback_failed"
    SUPERSEDED = "superseded"  # something else took its place before it ended


TERMINAL: Final = frozenset(
    {Standing.CONFIRMED, Standing.REFUSED, Standing.ROLLED_BACK, Standing.ROLLBACK_FAILED, Standing.SUPERSEDED}
)
_BY_OUTCOME: Final = {
    Outcome.CONFIRMED: Standing.CONFIRMED,
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
        phase: Phase of the module; a plain text when it is one of a newer device.
        outcome: How it ended; none while it runs.
        error_code: Code of the reported error, or none.
        error_detail: Its detail.
    """

    standing: Standing
    phase: Phase | str
    outcome: Outcome | None = None
    error_code: str | None = None
    error_detail: str = ""


def progress_of(report: Report, module: str, deployment: str, manifest: str) -> Progress | None:
    """What a report says of a deployment that should make `manifest` live in `module`, or none if nothing.

    Confirmed needs more than the word: the manifest has to be what the report names as live. A device that ran the very
    same manifest before has nothing to do and confirms the former deployment; that counts for the new one too.
    """
    reported = report.modules.get(module)
    if reported is None:
        return None
    is_live = reported.live is not None and str(reported.live) == manifest
    latest = reported.deployment
    if latest is None or str(latest.manifest) != manifest:
        return None
    if latest.deployment != deployment:
        if is_live and latest.outcome is Outcome.CONFIRMED:
            return Progress(Standing.CONFIRMED, reported.phase, Outcome.CONFIRMED)
        return None
    code = None if latest.error is None else latest.error.code
    detail = "" if latest.error is None else latest.error.detail
    if latest.outcome is None or (latest.outcome is Outcome.CONFIRMED and not is_live):
        return Progress(Standing.IN_PROGRESS, reported.phase, None, code, detail)
    return Progress(_BY_OUTCOME[latest.outcome], reported.phase, latest.outcome, code, detail)
