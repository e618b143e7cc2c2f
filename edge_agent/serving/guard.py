"""What the agent does about one worker that may crash, hang or want too much; see ADR 0023.

Puts together the connections that are kept, the watch for beats, and the bounds on what the worker may use.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Final

from edge_agent.serving.channel import close_fds
from edge_agent.serving.handle import Process
from edge_agent.serving.keeping import Keeping
from edge_agent.serving.limits import ServingLimits
from edge_agent.serving.parking import Connection
from edge_agent.serving.resources import Confinement, Limiter
from edge_agent.serving.watch import LOOKS, Watch
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.terms import Resources

_log = logging.getLogger(__name__)
_BEATS_A_LOOK: Final = 2


class Guard:
    """Of one worker. `hear`, `wait_s` and `verdict` are for the thread that listens to it, the rest for any.

    Attributes:
        keeping: Duplicates of its connections.
        confinement: What bounds it, once somebody has bounded it.
        reason: Why the agent ended it, or empty.
    """

    def __init__(self, module: str, limits: ServingLimits) -> None:
        """Guard a worker that has just been started or found.

        Args:
            module: Name of the module, for logs.
            limits: Bounds of time.
        """
        self.keeping = Keeping(module)
        self.confinement: Confinement | None = None
        self.reason = ""
        self._module = module
        self._limits = limits
        self._watch = Watch(self.keeping, limits.stuck_ms)
        self._sending = threading.Lock()  # connections have to be noted in the order in which they are sent
        self._was_short = False

    @property
    def beat_ms(self) -> int:
        """How often the worker is to beat."""
        return max(1, self._limits.stuck_ms // (LOOKS * _BEATS_A_LOOK))

    @property
    def resources(self) -> Resources:
        """What the worker may use, as it was told last."""
        return Resources() if self.confinement is None else self.confinement.resources

    def bound(self, limiter: Limiter, pid: int, resources: Resources) -> None:
        """Bound a worker that serves already: one that an agent before this one started, or another policy came."""
        if self.confinement is None:
            self.confinement = limiter.confine(self._module, pid, resources)
        elif self.confinement.resources != resources:
            self.confinement.change(resources)
        else:
            return
        self.confinement.settle()

    def hear(self, message: JsonObject, fds: Sequence[int]) -> bool:
        """Take an event and own its descriptors, if it is for the guard; see that it serves. On its listener's thread.

        Returns:
            Whether it was.
        """
        is_ours = self.keeping.take(message, fds)
        name = message.get("event")
        # One that an agent before this one let serve has begun to beat long ago.
        if name == "serving" or (name == "ledger" and self.keeping.beat()):
            self._watch.begin()
            if self.confinement is not None:
                self.confinement.settle()
        return is_ours

    def send(self, connection: Connection, send: Callable[[Connection], None]) -> None:
        """Send a connection to the worker, and keep it until the worker is seen to have it.

        Raises:
            EdgeError: As `send`; the descriptors are the caller's then.
        """
        with self._sending:
            is_kept = self.keeping.arriving(connection)
            try:
                send(connection)
            except EdgeError:
                if is_kept and not self.keeping.not_sent(connection):
                    return  # whoever salvaged it sees to it
                raise
            if not is_kept:
                close_fds(connection[1])

    @property
    def wait_s(self) -> float | None:
        """Seconds until `verdict` is to be asked for; none before it serves."""
        return self._watch.wait_s

    def verdict(self) -> str:
        """Why the worker has to be ended now, or empty. Looks only when it is time to."""
        if not self.reason and self._watch.is_due():
            if self._watch.look():
                self.reason = f"did not move for {self._limits.stuck_ms} ms"
            elif self.confinement is not None and self.confinement.is_over:
                self.reason = "has more memory resident than the policy lets it have"
        return self.reason

    def end_with_traces(self, process: Process) -> None:
        """End a stuck worker so that its log says where every thread was: that is what it does on SIGABRT."""
        _log.error("module %s: its worker (process %d) %s; it is ended", self._module, process.pid, self.reason)
        with contextlib.suppress(OSError):
            if process.end_fd is None:
                process.kill()
            else:
                signal.pidfd_send_signal(process.end_fd, signal.SIGABRT)

    def ended(self) -> None:
        """The process is gone: end what it has left behind."""
        if self.confinement is not None:
            self._was_short = self.confinement.was_short
            self.confinement.end()

    @property
    def was_short(self) -> bool:
        """Whether it ended because it reached the bound on its memory."""
        return self._was_short or (self.confinement is not None and self.confinement.was_short)

    def to_json(self) -> JsonObject:
        """What bounds the worker, for `edge-agent status`."""
        return {} if self.confinement is None else self.confinement.to_json()
