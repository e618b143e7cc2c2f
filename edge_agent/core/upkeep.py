"""Keeps what is on disk sound: reads it again now and then, and has damaged slots made anew. Pure."""

from collections.abc import Callable, Mapping

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.backoff import spread, wait_ms
from edge_agent.core.limits import RETRY_MS_FIRST, RETRY_MS_MAX, SCRUB_MS_DEFAULT, UPKEEP_MS_MAX
from edge_agent.core.state import Commands
from edge_contract.deployment import Assignment
from edge_contract.digest import Digest


class Upkeep:
    """One scrub or one healing at a time. Nothing of it is persisted: a restart looks at the disk anew."""

    def __init__(self, device: str, new_op: Callable[[], int], scrub_ms: int = SCRUB_MS_DEFAULT) -> None:
        """Wait for `started`.

        Args:
            device: Name of the device; spreads the scrubs of a fleet.
            new_op: Gives operation identifiers that were never used before in this process.
            scrub_ms: Mean time between two scrubs.
        """
        self._device = device
        self._new_op = new_op
        self._scrub_ms = scrub_ms
        self._scrub_at: int | None = None
        self._scrubs = 0
        self._op: int | None = None
        self._answer: type[inputs.Completed] = inputs.StoreScrubbed
        self._overdue_at: int | None = None
        self._damaged: dict[Digest, Assignment] = {}
        self._heal_at = 0
        self._heal_failures = 0

    def started(self, now: int) -> None:
        """The agent began. What is served is read at the start anyhow."""
        self._plan_scrub(now)

    def deadline(self) -> int | None:
        """When `on_time` has something to do next."""
        if self._op is not None:
            return self._overdue_at
        return self._heal_at if self._damaged else self._scrub_at

    def take_damaged(self, assignment: Assignment, now: int, kept: Mapping[Digest, Assignment]) -> Commands:
        """A slot that is needed now is damaged; it is made anew before the disk is read to its end."""
        self._damaged.setdefault(assignment.manifest, assignment)
        out: Commands = []
        if self._op is not None and self._answer is inputs.StoreScrubbed:
            out.append(do.CancelOperation(self._op))
            self._op, self._overdue_at, self._scrub_at = None, None, now
        return out + self._next(now, kept)

    def on_time(self, now: int, kept: Mapping[Digest, Assignment]) -> Commands:
        """Do what is due.

        Args:
            now: Monotonic milliseconds.
            kept: What is live or a fallback, by manifest; nothing else is worth reading or healing.
        """
        out: Commands = []
        if self._op is not None and self._overdue_at is not None and now >= self._overdue_at:
            out.append(do.CancelOperation(self._op))
            self._failed(now)
        return out + self._next(now, kept)

    def is_mine(self, event: inputs.Completed) -> bool:
        """Whether an event completes the operation under way."""
        return event.op == self._op and isinstance(event, self._answer | inputs.CommandFailed)

    def completed(
        self, event: inputs.Completed, now: int, kept: Mapping[Digest, Assignment]
    ) -> tuple[frozenset[Digest], Digest | None, Commands]:
        """Take the completion of the operation under way.

        Returns:
            What was found damaged, what was healed, and the commands that follow.
        """
        found: frozenset[Digest] = frozenset()
        healed: Digest | None = None
        if isinstance(event, inputs.StoreScrubbed):
            found = event.damaged & kept.keys()
            self._damaged.update({digest: kept[digest] for digest in found})
        elif isinstance(event, inputs.SlotHealed):
            healed = event.manifest
            self._damaged.pop(event.manifest, None)
            self._heal_failures = 0
        if isinstance(event, inputs.CommandFailed):
            self._failed(now)
        else:
            self._op = self._overdue_at = None
        return found, healed, self._next(now, kept)

    def _failed(self, now: int) -> None:
        self._op = self._overdue_at = None
        if self._damaged:
            self._heal_failures += 1
            self._heal_at = now + wait_ms(RETRY_MS_FIRST, RETRY_MS_MAX, self._heal_failures, self._device, "heal")

    def _next(self, now: int, kept: Mapping[Digest, Assignment]) -> Commands:
        """Heal first, then read; what nobody keeps any more is forgotten."""
        self._damaged = {digest: item for digest, item in self._damaged.items() if digest in kept}
        if self._op is not None:
            return []
        if self._damaged:
            return self._heal(now) if now >= self._heal_at else []
        if self._scrub_at is not None and now >= self._scrub_at:
            self._plan_scrub(now)
            if kept:
                return [do.ScrubStore(self._begin(now, inputs.StoreScrubbed), frozenset(kept))]
        return []

    def _heal(self, now: int) -> Commands:
        assignment = next(iter(self._damaged.values()))
        return [do.HealSlot(self._begin(now, inputs.SlotHealed), assignment)]

    def _begin(self, now: int, answer: type[inputs.Completed]) -> int:
        self._answer = answer
        self._op, self._overdue_at = self._new_op(), now + UPKEEP_MS_MAX
        return self._op

    def _plan_scrub(self, now: int) -> None:
        self._scrubs += 1
        self._scrub_at = now + int(self._scrub_ms * (0.75 + 0.5 * spread(self._device, "scrub", self._scrubs)))
