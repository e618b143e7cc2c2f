"""Samples of all workers on their way to whoever keeps them, on a thread of their own and within a bound."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable

from edge_agent.serving.limits import SAMPLES_WAITING_MAX
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

_log = logging.getLogger(__name__)

OnSample = Callable[[str, JsonObject], None]
"""Gets (module, record): a sample's JSON without `seq`. Called on the deliverer's own thread."""


class SampleDeliverer:
    """Passes samples on, so that who keeps them holds no worker up. `take` from any thread.

    Attributes:
        dropped: Samples dropped because the callback was slower than the workers, or failed.
    """

    def __init__(self, on_sample: OnSample) -> None:
        """Deliver to this callback."""
        self.dropped = 0
        self._on_sample = on_sample
        self._samples: queue.Queue[tuple[str, JsonObject] | None] = queue.Queue(SAMPLES_WAITING_MAX)
        self._thread = threading.Thread(target=self._deliver, name="samples", daemon=True)
        self._thread.start()

    def take(self, module: str, record: JsonObject) -> None:
        """Deliver a sample soon; never waits."""
        try:
            self._samples.put_nowait((module, record))
        except queue.Full:
            self.dropped += 1

    def close(self, timeout_s: float) -> None:
        """Deliver what waits, for so long at most."""
        with contextlib.suppress(queue.Full):
            self._samples.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)

    def _deliver(self) -> None:
        while (item := self._samples.get()) is not None:
            try:
                self._on_sample(*item)
            except EdgeError as error:  # a full disk, for example; telemetry gives way
                self.dropped += 1
                _log.warning("a sample of module %s was dropped: %s", item[0], error)
            except Exception:  # noqa: BLE001 - what one worker made up must not end the samples of all modules
                self.dropped += 1
                _log.exception("a sample of module %s was dropped", item[0])
