"""Has devices nudged after their assignments changed, behind the back of the request that changed them.

Only a hint is at stake: a device that is never nudged finds out when it polls, because the director compares the stored
assignments with its metadata every time it is asked.
"""

import logging
import threading
from collections.abc import Iterable
from typing import Final

from cloud_registry.limits import NUDGES_WAITING_MAX, STOP_TIMEOUT_S
from cloud_registry.ports import Director, Nudger
from edge_contract.errors import EdgeError

_log: Final = logging.getLogger(__name__)


class ChangeNotifier:
    """A queue of device names, each at most once, and one thread that works it off. Methods may be called anywhere."""

    def __init__(self, director: Director, nudger: Nudger) -> None:
        """Start with nothing to do; the thread starts with the first change."""
        self._director = director
        self._nudger = nudger
        self._waiting: dict[str, None] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def devices_changed(self, devices: Iterable[str]) -> None:
        """Nudge these devices soon; beyond `NUDGES_WAITING_MAX` waiting ones the rest is left to polling."""
        with self._changed:
            for device in devices:
                if self._is_closed or len(self._waiting) >= NUDGES_WAITING_MAX:
                    return
                self._waiting[device] = None
            if self._waiting and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="nudges", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Forget what is waiting and end the thread."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return
                device = next(iter(self._waiting))
                del self._waiting[device]
            try:
                self._director.invalidate(device)
                version = self._director.version(device)
                if version:
                    self._nudger.nudge(device, version)
            except EdgeError as error:
                _log.warning("device %s was not nudged: %s", device, error)
