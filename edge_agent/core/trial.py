"""Whether a candidate's trial is over, and how it ended. Pure."""

from edge_contract.terms import Agreement, Trial


def weigh(agreement: Agreement, trial: Trial, is_window_over: bool) -> tuple[str | None, str]:
    """Conclude from what a trial found so far.

    A trial that gates fails as soon as enough predictions were compared and something speaks against the candidate:
    more of them would cost processor time and could at best argue a fault away.

    Args:
        agreement: What it found.
        trial: Its terms.
        is_window_over: Whether its longest time has passed.

    Returns:
        (none, "") while it goes on; ("", "") when the candidate may be activated; else an error code and its detail.
    """
    is_enough = agreement.compared + agreement.failed >= trial.predictions_min
    is_over = is_window_over or agreement.compared + agreement.failed >= trial.predictions_max
    if trial.gate and is_enough and (objections := agreement.objections(trial)):
        return "model.trial-failed", "; ".join(objections)
    if not is_over:
        return None, ""
    if trial.gate and not is_enough:
        detail = (
            f"{agreement.compared} predictions were compared in {trial.window_ms} ms, {trial.predictions_min} needed"
        )
        return "model.trial-inconclusive", detail
    return "", ""
