"""When a freshly activated model is good enough to commit. Pure."""

from edge_contract.phases import Verdict


def judge(
    is_alive: bool, requests: int, failures: int, failure_ratio_max: float, is_window_over: bool
) -> Verdict | None:
    """Conclude from a worker's counters since it went live.

    A dead worker is unhealthy at once. The failure ratio is judged when the window is over, and before that as soon
    as the failures seen could not be outweighed by as many good answers again, so that a broken model does not answer
    for long.

    Args:
        is_alive: Whether the worker runs and answers.
        requests: Requests answered, good or bad.
        failures: Those that failed by the model's fault.
        failure_ratio_max: Highest tolerable ratio, `0..1`.
        is_window_over: Whether the probation window has passed.

    Returns:
        The verdict, or none while it is open. A model that nobody asked anything is healthy at the end of its window.
    """
    if not is_alive:
        return Verdict.UNHEALTHY
    if requests > 0:
        ratio = failures / requests
        if is_window_over:
            return Verdict.UNHEALTHY if ratio > failure_ratio_max else Verdict.HEALTHY
        if failures >= 10 and ratio > min(1.0, 2 * failure_ratio_max):
            return Verdict.UNHEALTHY
    return Verdict.HEALTHY if is_window_over else None
