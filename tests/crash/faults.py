"""What may happen to a device at one point of its update, and what is required of it then."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from tests.crash.calls import Point, describe, killed_threads, read_calls
from tests.crash.device import WAIT_S, Answer, BrokenError, CrashDevice
from tests.crash.filesystem import SmallDisk
from tests.crash.sweep import SETTLE_S, Bench, is_tidied
from tests.support.net import wait_until

ERRORS = ("ENOSPC", "EIO", "EROFS")
_PATIENCE_S = 2.5  # with an agent that met an error, before it is started again


def kill_at(found: Bench, device: CrashDevice, point: Point) -> Answer | None:
    """Kill the agent at a point, start it again, and require that it goes on well.

    Returns:
        The first prediction after the restart, or none when the run never came to that point.

    Raises:
        BrokenError: See `_require_recovery`.
    """
    device.fill(found.base)
    return require_recovery(found, device) if _kill(found, device, point) else None


def cut_power_at(found: Bench, disk: SmallDisk, device: CrashDevice, point: Point) -> Answer | None:
    """The same with a real file system that loses what was not synced."""
    device.fill(found.base)
    disk.sync()
    was_there = _kill(found, device, point)
    disk.cut_power()
    return require_recovery(found, device) if was_there else None


def fail_at(found: Bench, device: CrashDevice, point: Point, error: str) -> Answer | None:
    """Let one call fail, and require that the device answers all the same and ends up well, if need be by a restart.

    Returns:
        As `kill_at`; the prediction is one that was made before the restart, if there was one.

    Raises:
        BrokenError: It answered with neither model, died of a bug, or did not recover.
    """
    device.fill(found.base)
    device.log.unlink(missing_ok=True)
    device.start_traced(f"error={error}", point)
    answer = None
    try:
        wait_for_fault(found, device, _is_injected)
        if not _is_injected(device):
            return None
        answer = _go_on(found, device)
    finally:
        device.kill()
    _require_hit(device, point)
    after = require_recovery(found, device)
    return answer or after


def fill_at(found: Bench, disk: SmallDisk, device: CrashDevice, point: Point) -> Answer | None:
    """Have the disk full to the last byte from one call on; there is room again when the agent is restarted."""
    device.fill(found.base)
    try:
        answer = _change_at(found, device, point, disk.fill)
    finally:
        disk.free()
    if answer is None:
        return None
    after = require_recovery(found, device)
    return answer[0] or after


def die_at(found: Bench, disk: SmallDisk, device: CrashDevice, point: Point) -> Answer | None:
    """Have every access to the disk fail from one call on; restarted, the device has what was synced before."""
    device.fill(found.base)
    disk.sync()
    try:
        answer = _change_at(found, device, point, disk.stop_dead)
    finally:
        disk.remount()
    if answer is None:
        return None
    after = require_recovery(found, device)
    return answer[0] or after


def require_recovery(found: Bench, device: CrashDevice) -> Answer:
    """Start the agent without faults and require that all is well with it.

    Returns:
        Its first prediction.

    Raises:
        BrokenError: Its journal cannot be read, it answers with neither model, does not come to an end with its
            update, or its disk is untidy.
    """
    device.require_journal()
    device.start()
    try:
        answer = device.wait_for_answer()
        if not found.is_either(answer):
            raise BrokenError(f"{answer} answers")
        device.wait(lambda: device.is_confirmed(found.new), "update after the restart")
        last = device.wait_for_answer()
        if last.manifest != str(found.new.manifest):
            raise BrokenError(f"{last} answers behind the update")
        device.wait(lambda: is_tidied(found, device), "garbage collection", SETTLE_S)
    finally:
        device.stop()
    device.require_tidy(found.old, found.new)
    return answer


def _kill(found: Bench, device: CrashDevice, point: Point) -> bool:
    """Start the agent and kill it at a point; says whether it came there."""
    device.start_traced("signal=KILL", point)
    try:
        wait_for_fault(found, device, is_killed)
    finally:
        device.kill()
    if is_killed(device):
        _require_hit(device, point)
        return True
    return False


def _change_at(
    found: Bench, device: CrashDevice, point: Point, change: Callable[[], None]
) -> tuple[Answer | None] | None:
    """Stop the agent at a point, change its world, and let it go on.

    Returns:
        None when it never came to that point, else the prediction it made then, if it made any.
    """
    device.log.unlink(missing_ok=True)
    device.start_traced("signal=STOP", point)
    try:
        wait_for_fault(found, device, _is_stopped)
        if not _is_stopped(device):
            return None
        _require_hit(device, point)
        change()
        for thread in {call.thread for call in read_calls(device.trace, device.data)}:
            with suppress(ProcessLookupError):
                os.kill(thread, signal.SIGCONT)
        return (_go_on(found, device),)
    finally:
        device.kill()


def wait_for_fault(found: Bench, device: CrashDevice, is_struck: Callable[[CrashDevice], bool]) -> None:
    """Wait for the fault; when the update is over without it, let the agent tidy up and end."""

    def is_over() -> bool:
        return not device.is_running or is_struck(device)

    wait_until(lambda: is_over() or device.is_confirmed(found.new), WAIT_S, what="the fault or the end of the update")
    if not is_over():
        with suppress(AssertionError):
            wait_until(lambda: is_over() or is_tidied(found, device), SETTLE_S)
        device.ask_to_end()
        wait_until(is_over, WAIT_S, what="the fault or the end of the agent")


def _go_on(found: Bench, device: CrashDevice) -> Answer | None:
    """Let the agent live with an error until its update is done or waits.

    Returns:
        A prediction it makes then; none when it has ended, or has no model up.

    Raises:
        BrokenError: Neither the old nor the new model answered, or the agent died of a bug.
    """
    end = time.monotonic() + _PATIENCE_S
    answer = None
    while device.is_running and time.monotonic() < end:
        answer = device.predict() or answer
        if answer is not None and (device.is_confirmed(found.new) or _is_waiting(device)):
            break
        time.sleep(0.02)
    if answer is not None and not found.is_either(answer):
        raise BrokenError(f"{answer} answers")
    if "Traceback" in (said := device.tail()):
        raise BrokenError(f"the agent died of a bug: {said}")
    return answer


def _is_waiting(device: CrashDevice) -> bool:
    return bool((device.status().get("deployment") or {}).get("error"))


def is_killed(device: CrashDevice) -> bool:
    """Whether strace has seen a thread of it killed."""
    return device.trace.exists() and bool(killed_threads(device.trace))


def _is_injected(device: CrashDevice) -> bool:
    return device.trace.exists() and b"(INJECTED)" in device.trace.read_bytes()


def _is_stopped(device: CrashDevice) -> bool:
    return device.trace.exists() and b"--- stopped by SIGSTOP ---" in device.trace.read_bytes()


def _require_hit(device: CrashDevice, point: Point) -> None:
    """Require that the fault struck where it should have."""
    hit = [describe(call) for call in read_calls(device.trace, device.data)]
    if point.what not in hit:
        raise BrokenError(f"the fault struck at {hit[-3:]} instead of {point.what}")
