"""The watch over the worker of a module's live bundle: brings it up, and again when it ends. Pure."""

from collections.abc import Callable

from edge_agent.core import commands as do
from edge_agent.core.backoff import wait_ms
from edge_agent.core.limits import RETRY_MS_FIRST, RETRY_MS_MAX, SERVE_FAILURES_MAX, SERVE_STABLE_MS
from edge_contract.digest import Digest


class LiveWatch:
    """What is known of the live worker, and when to bring it up again.

    Attributes:
        is_serving: Whether the worker is known to answer.
        op: The `ServeLive` under way, or none.
        due_at: When to bring the live bundle up, or none.
    """

    def __init__(self, device: str, module: str, new_op: Callable[[], int]) -> None:
        """Know nothing yet; `new_op` gives operation identifiers that were never used before in this process."""
        self.is_serving = False
        self.op: int | None = None
        self.due_at: int | None = None
        self._device = device
        self._module = module
        self._new_op = new_op
        self._failures = 0
        self._up_at: int | None = None

    def bring_up(self, manifest: Digest, may_overtake: bool) -> do.ServeLive:
        """Have the live bundle answer."""
        self.due_at, self.op = None, self._new_op()
        return do.ServeLive(self.op, self._module, manifest, may_overtake)

    def came_up(self, now: int) -> None:
        """What `bring_up` asked for was done."""
        self.op, self.is_serving, self._up_at = None, True, now

    def switched(self, now: int, is_serving: bool) -> None:
        """An activation or a rollback changed what is live; the failures of the one before are forgotten."""
        self.forget()
        self.is_serving, self._failures, self._up_at = is_serving, 0, now

    def forget(self) -> None:
        """Give up bringing up what is live: something else is about to take its place."""
        self.op = self.due_at = None

    def lost(self, now: int) -> bool:
        """The worker ended by itself; true when that happened too often in a row."""
        if self._up_at is None or now - self._up_at >= SERVE_STABLE_MS:
            self._failures = 0  # it is not failing again and again
        return self.failed(now)

    def failed(self, now: int) -> bool:
        """The worker ended or did not come up; true when that happened too often in a row."""
        self._failures += 1
        wait = wait_ms(RETRY_MS_FIRST, RETRY_MS_MAX, self._failures, self._device, self._module, "serve")
        # The first restart is at once: nobody is served meanwhile.
        self.op, self.is_serving, self.due_at = None, False, now if self._failures == 1 else now + wait
        return self._failures >= SERVE_FAILURES_MAX
