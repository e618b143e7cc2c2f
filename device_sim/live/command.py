"""`device-sim run`: a fleet until a signal comes, with a line of status whenever something changed."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import Callable
from typing import Final

from device_sim.live.fleet import Fleet, FleetOptions, FleetStatus
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

_FILES_PER_DEVICE: Final = 6  # broker, three kept connections to the registry, what is being read and written
_FILES_BESIDE: Final = 200


def run_fleet(options: FleetOptions, show: Callable[[str], None]) -> JsonObject:
    """Run a fleet until SIGINT or SIGTERM.

    Args:
        options: What to simulate.
        show: Gets lines for people.

    Returns:
        How the fleet stood at the end.

    Raises:
        EdgeError: When a device cannot be enrolled, or the options are not possible.
    """
    options.check()
    _allow_files(options.devices * _FILES_PER_DEVICE + _FILES_BESIDE)
    try:
        return asyncio.run(_run(options, show)).to_json()
    except* EdgeError as group:
        # Of many devices that met the same trouble, one says it.
        raise _first(group) from None


def _allow_files(count: int) -> None:
    """Raise this process's limit of open files as far as it may, because the usual 1,024 hold 200 devices.

    Raises:
        EdgeError: `config.invalid` when the fleet needs more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        detail = f"{count} files have to be open at once, this process may have {hard}"
        raise EdgeError("config.invalid", detail, "Raise the limit (ulimit -Hn), or simulate fewer devices.")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def _first(group: BaseExceptionGroup[EdgeError]) -> EdgeError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, EdgeError):
        raise error
    return error


async def _run(options: FleetOptions, show: Callable[[str], None]) -> FleetStatus:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    last = ""

    def changed(status: FleetStatus) -> None:
        nonlocal last
        live = ", ".join(f"{name} on {count}" for name, count in status.live.items()) or "nothing yet"
        line = f"{status.online} of {status.devices} online; live: {live}"
        if line != last:
            last = line
            show(f"{line}; {status.requests} requests answered, {status.waiting} samples waiting")

    show(f"enrolling {options.devices} devices at {options.url}")
    return await Fleet(options).run(stop, changed)
