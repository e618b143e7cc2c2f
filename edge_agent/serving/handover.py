"""Ends workers without losing what their clients have begun: by letting them finish, or by moving connections over."""

import contextlib
import logging
from collections.abc import Sequence

from edge_agent.serving.limits import ServingLimits
from edge_agent.serving.parking import Adopter
from edge_agent.serving.worker_process import WorkerProcess
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError

_log = logging.getLogger(__name__)


def drain(workers: Sequence[WorkerProcess], limits: ServingLimits, is_handed_over: bool) -> None:
    """Let workers finish what they have begun, and end them."""
    for worker in workers:
        worker.is_expected_to_end = True
        with contextlib.suppress(EdgeError):
            worker.command("drain", deadline_ms=limits.drain_ms, hand_over=is_handed_over)
    for worker in workers:
        try:
            worker.expect("drained", limits.drained_ms, "to finish")
        except EdgeError as error:
            _log.warning("module %s: %s", worker.module, error)
            if is_handed_over and worker.successor is not None:
                rescue_into(worker, worker.successor)
        worker.stop()


def rescue_into(worker: WorkerProcess, adopter: Adopter) -> None:
    """Let somebody else go on with the connections of a worker that failed; it is ended if it is still there."""
    left = worker.rescue()
    while left:
        try:
            adopter.adopt(left[0])
        except EdgeError as error:
            _log.error("module %s: %s", worker.module, error)
            break
        left.pop(0)
    worker.undelivered += left


def replace(live: WorkerProcess, candidate: WorkerProcess, limits: ServingLimits) -> None:
    """Move every connection from one worker to another, which accepts already, and end the first.

    Raises:
        EdgeError: `model.worker-crashed` when the candidate died or got stuck. It is gone then; the live worker serves
            on, or has ended, in which case `is_expected_to_end` is false.
    """
    live.is_expected_to_end = True
    live.successor = candidate
    try:
        live.command("drain", deadline_ms=limits.drain_ms, hand_over=True)
        live.expect("drained", limits.drained_ms, "to finish what it had begun")
    except EdgeError as error:
        _log.warning("module %s: the worker that is replaced: %s", live.module, error)
        if not candidate.has_ended:
            rescue_into(live, candidate)
    if candidate.has_ended or live.undelivered:
        candidate.fail()
        _restore(live, limits)
        raise EdgeError(
            "model.worker-crashed",
            f"the new worker of {live.module!r} ended, or got stuck, while it took over the connections",
        )
    live.stop()


def settle(workers: Sequence[WorkerProcess], manifest: Digest | None, limits: ServingLimits) -> WorkerProcess:
    """Of several workers of a module that all serve keep one, and move the clients of the others to it.

    Args:
        workers: At least one; the newest first.
        manifest: The bundle that is wanted; the newest worker stays when none has it.
        limits: Bounds.

    Returns:
        The one that stays. It may have ended.
    """
    chosen = next((worker for worker in workers if worker.manifest == manifest), workers[0])
    for worker in workers:
        if worker is not chosen:
            try:
                replace(worker, chosen, limits)
            except EdgeError as error:
                _log.error("module %s: %s", worker.module, error)
                chosen = worker  # it serves on, or has ended; what comes next finds out
    return chosen


def _restore(live: WorkerProcess, limits: ServingLimits) -> None:
    """Let the worker that was to be replaced go on."""
    live.successor = None
    connections, live.undelivered = live.undelivered, []
    try:
        live.command("serve", beat_ms=live.guard.beat_ms)
        live.expect("serving", limits.serve_ms, "to go on serving")
        while connections:
            live.adopt(connections[0])
            connections.pop(0)
    except EdgeError as error:
        _log.error("module %s: %s", live.module, error)
        live.fail()
    live.is_expected_to_end = False
    live.undelivered = connections  # for whoever rescues what it leaves behind
