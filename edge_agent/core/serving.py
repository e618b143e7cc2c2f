"""The watch over the live bundle of a module: brings it up, up again when it ends, and lets it prove itself. Pure."""

from collections.abc import Callable

from edge_agent.core import commands as do
from edge_agent.core.backoff import spread, wait_ms
from edge_agent.core.limits import (
    ATTEST_FAILURES_MAX,
    ATTEST_MS,
    RETRY_MS_FIRST,
    RETRY_MS_MAX,
    SERVE_FAILURES_MAX,
    SERVE_MS_MAX,
    SERVE_STABLE_MS,
)
from edge_contract.deployment import Assignment
from edge_contract.digest import Digest
from edge_contract.twin import ReportedError


class LiveWatch:
    """What is known of the live worker, and when to do something about it.

    Attributes:
        is_serving: Whether the worker is known to answer.
        answering: What the module's own socket said when it was last asked, or none.
        op: The `ServeLive` or `RestartLive` under way, or none.
        attest_op: The `AttestLive` under way, or none.
        due_at: When to bring the live bundle up, or none.
        error: What is wrong with its proof, or none.
        damage: What is wrong with its slot on disk, until a worker runs from a sound one; or none.
        is_fresh_wanted: Whether a worker that runs has to give way to a fresh one from a healed slot.
    """

    def __init__(self, device: str, module: str, new_op: Callable[[], int]) -> None:
        """Know nothing yet; `new_op` gives operation identifiers that were never used before in this process."""
        self.is_serving = False
        self.answering: Digest | None = None
        self.op: int | None = None
        self.attest_op: int | None = None
        self.due_at: int | None = None
        self.error: ReportedError | None = None
        self.damage: ReportedError | None = None
        self.is_fresh_wanted = False
        self._device = device
        self._module = module
        self._new_op = new_op
        self._failures = 0
        self._up_at: int | None = None
        self._overdue_at: int | None = None
        self._attest_at: int | None = None
        self._attest_overdue_at: int | None = None
        self._attest_failures = 0
        self._attestations = 0

    # -- bringing it up --------------------------------------------------------------------------------------------

    def bring_up(self, now: int, live: Assignment, may_overtake: bool) -> do.Command:
        """Have the live bundle answer."""
        self.due_at, self.op, self._overdue_at = None, self._new_op(), now + SERVE_MS_MAX
        self._give_up_attesting()
        if self.is_fresh_wanted:
            self.is_fresh_wanted = False
            return do.RestartLive(self.op, self._module, live.manifest, live.policy)
        return do.ServeLive(self.op, self._module, live.manifest, may_overtake, live.policy)

    def came_up(self, now: int) -> None:
        """What `bring_up` asked for was done."""
        self.op = self._overdue_at = None
        self.is_serving, self._up_at, self._attest_at = True, now, now
        self.error = self.damage = None

    def switched(self, now: int, is_serving: bool) -> None:
        """An activation or a rollback changed what is live; what is known of the one before is forgotten."""
        self.forget()
        self.is_serving, self._failures, self._up_at = is_serving, 0, now
        self.answering, self.is_fresh_wanted = None, False
        self.error = self.damage = None
        self._attest_failures, self._attest_at = 0, now if is_serving else None

    def forget(self) -> None:
        """Give up bringing up what is live: something else is about to take its place."""
        self.op = self.due_at = self._overdue_at = None
        self._give_up_attesting()

    def pause(self) -> None:
        """The live worker ends so that a candidate can load; nobody answers until it is brought up or replaced."""
        self.forget()
        self.is_serving, self._attest_at = False, None

    def lost(self, now: int) -> bool:
        """The worker ended by itself; true when that happened too often in a row."""
        if self._up_at is None or now - self._up_at >= SERVE_STABLE_MS:
            self._failures = 0  # it is not failing again and again
        return self.failed(now)

    def failed(self, now: int) -> bool:
        """The worker ended or did not come up; true when that happened too often in a row."""
        self._failures += 1
        self.forget()
        # The first restart is at once: nobody is served meanwhile.
        self.is_serving, self.due_at = False, now if self._failures == 1 else now + self._wait_ms()
        self.answering, self._attest_at = None, None
        return self._failures >= SERVE_FAILURES_MAX

    def go_on(self, now: int) -> None:
        """Nothing takes its place after all: if it does not answer, it is brought up again."""
        if not self.is_serving and self.due_at is None:
            self.due_at = now + (self._wait_ms() if self._failures else 0)

    def _wait_ms(self) -> int:
        return wait_ms(RETRY_MS_FIRST, RETRY_MS_MAX, self._failures, self._device, self._module, "serve")

    def healed(self, now: int) -> None:
        """The slot of the live bundle was made anew: a worker from the damaged one gives way as soon as it may."""
        self.is_fresh_wanted, self.due_at = True, now

    @property
    def overdue_at(self) -> int | None:
        """When bringing it up counts as failed."""
        return self._overdue_at

    # -- proving what answers --------------------------------------------------------------------------------------

    @property
    def attest_at(self) -> int | None:
        """When it should prove itself next, or the proof under way counts as failed; none when it cannot."""
        if self.attest_op is not None:
            return self._attest_overdue_at
        return self._attest_at if self.is_serving and self.op is None else None

    def attest(self, now: int) -> do.AttestLive:
        """Let the live bundle prove that it is what answers."""
        self.attest_op, self._attest_at, self._attest_overdue_at = self._new_op(), None, now + SERVE_MS_MAX
        return do.AttestLive(self.attest_op, self._module)

    def attested(self, now: int, manifest: Digest) -> None:
        """It was asked, and this bundle answered."""
        self._give_up_attesting()
        self._attestations += 1
        self.answering, self._attest_failures, self.error = manifest, 0, None
        share = 0.75 + 0.5 * spread(self._device, self._module, "attest", self._attestations)
        self._attest_at = now + int(ATTEST_MS * share)

    def attest_failed(self, now: int, error: ReportedError) -> int:
        """It was asked, and there was no proof; after a few times nobody claims any more to know what answers.

        Returns:
            How often in a row.
        """
        self._give_up_attesting()
        self._attest_failures += 1
        self.error = error
        if self._attest_failures >= ATTEST_FAILURES_MAX:
            self.answering = None
        self._attest_at = now + wait_ms(
            RETRY_MS_FIRST, RETRY_MS_MAX, self._attest_failures, self._device, self._module, "attest"
        )
        return self._attest_failures

    def _give_up_attesting(self) -> None:
        if self.attest_op is not None:
            self._attest_at = None if self._attest_overdue_at is None else self._attest_overdue_at - SERVE_MS_MAX
        self.attest_op = self._attest_overdue_at = None
