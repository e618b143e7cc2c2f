"""Trials as the agent sees them, and what a worker says of its health."""

import socket

from edge_agent.ports import Health
from edge_agent.serving.limits import TRIAL_MS
from edge_agent.serving.worker_process import WorkerProcess
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.terms import Agreement, Trial


def begin_trial(live: WorkerProcess | None, candidate: WorkerProcess | None, trial: Trial) -> None:
    """Connect both by a socket of their own, so that no request of a client passes through the agent.

    Raises:
        EdgeError: `model.worker-crashed`, `model.timeout`.
    """
    if candidate is None or candidate.has_ended or live is None or live.has_ended:
        raise EdgeError("model.worker-crashed", "a trial needs a live worker and a proved candidate")
    showing, watching = socket.socketpair()
    with showing, watching:
        candidate.command("trial", [watching.fileno()], cpu_permille_max=trial.cpu_permille_max)
        candidate.expect("trial", TRIAL_MS, "to begin its trial")
        live.command("trial-source", [showing.fileno()], sampling_ppm=trial.sampling_ppm)


def ask_trial(candidate: WorkerProcess | None) -> Agreement:
    """What the candidate found so far.

    Raises:
        EdgeError: `model.worker-crashed`, `model.timeout`.
    """
    if candidate is None:
        raise EdgeError("model.worker-crashed", "there is no candidate on trial")
    candidate.command("agreement")
    return Agreement.from_json(candidate.expect("agreement", TRIAL_MS, "to say how its trial goes"))


def health_of(stats: JsonObject) -> Health:
    """A worker's answer to the question about its counters."""
    latencies = stats.get("latencies") or []
    return Health(
        is_alive=True,
        requests=int(stats["requests"]),
        failures=int(stats["failures"]),
        nonfinite=int(stats.get("nonfinite", 0)),
        latencies=tuple((int(lower_us), int(count)) for lower_us, count in latencies),
        drift=float(stats.get("drift", 0.0)),
    )
