"""A running hub emulator on a loopback address of its own, and Microsoft's SDK against it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from device_sim.iothub.running import Emulator

# With every lost connection the SDK leaves sockets to the garbage collector: a filter for tests that lose some.
SDK_LEAKS = "ignore:Exception ignored in. <(ssl.SSLS|socket.s)ocket:pytest.PytestUnraisableExceptionWarning"

_FIRST, _LAST = 2, 254
_ATTEMPTS_MAX = 60


@contextmanager
def running_hub(data: Path | None = None, **options: Any) -> Iterator[Emulator]:
    """An emulator on the first of 127.0.0.2 to 127.0.0.254 whose port 8883 is free; stopped at the end.

    Test processes that run beside each other begin at different addresses; the kernel lets one of them bind.
    """
    first = os.getpid() * 7 % (_LAST - _FIRST)
    for attempt in range(_ATTEMPTS_MAX):
        host = f"127.0.0.{_FIRST + (first + attempt) % (_LAST - _FIRST + 1)}"
        try:
            emulator = Emulator(host, data=data, **options).start()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        try:
            yield emulator
        finally:
            emulator.stop()
        return
    raise RuntimeError(f"none of {_ATTEMPTS_MAX} loopback addresses had port 8883 free")


def free_host() -> str:
    """A loopback address whose port 8883 was free a moment ago, for an emulator in a process of its own."""
    with running_hub() as emulator:
        return emulator.host
