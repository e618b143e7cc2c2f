"""Which inputs of an IoT Edge module wait, go to the binding process, and are dropped. No clock, sockets or threads."""

from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from edge_agent.binding.carrier import INPUTS
from edge_agent.binding.limits import RELAY_BYTES_MAX, RELAY_INPUTS_MAX, RELAY_PARKED_MS_MAX
from edge_contract.bindings import topic_matches

_NAMES_COUNTED_MAX: Final = 64


@dataclass(slots=True)
class Kept:
    """An input that nobody has answered yet.

    Attributes:
        number: Of its arrival, ascending.
        name: Of the input.
        hops: Predictions that led to it, as its sender says.
        correlation: What its sender wants back, or none.
        content: The message.
        came_ms: Monotonic clock at its arrival.
        is_sent: Whether the binding process has it.
        is_again: Whether a former binding process had it.
    """

    number: int
    name: str
    hops: str
    correlation: str | None
    content: bytes
    came_ms: int
    is_sent: bool = False
    is_again: bool = False


class Inputs:
    """The unanswered inputs in order of arrival, bounded in number, bytes and, where no model is bound, age.

    The hub considers them delivered, so they are kept until the binding process says that it is done with them, and go
    to the next process when one ends. What no model is bound to waits for one: at the start of a container messages
    come before models are up. One thread at a time.
    """

    def __init__(
        self,
        count_max: int = RELAY_INPUTS_MAX,
        bytes_max: int = RELAY_BYTES_MAX,
        parked_ms_max: int = RELAY_PARKED_MS_MAX,
    ) -> None:
        """Begin with none, and nothing bound."""
        self._count_max, self._bytes_max, self._parked_ms_max = count_max, bytes_max, parked_ms_max
        self._kept: dict[int, Kept] = {}
        self._ready: deque[int] = deque()
        self._filters: frozenset[str] = frozenset()
        self._matches: dict[str, bool] = {}
        self._bytes = 0
        self.dropped: Counter[str] = Counter()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._kept)

    @property
    def parked(self) -> int:
        """How many wait for a model that is bound to their input."""
        return sum(not self._is_bound(kept) for kept in self._kept.values())

    def offer(self, kept: Kept) -> int:
        """Keep an input; gives how many were dropped for it, or because they waited too long, itself included."""
        gone = self._expire(kept.came_ms)
        while len(self._kept) >= self._count_max or self._bytes + len(kept.content) > self._bytes_max:
            weakest = self._weakest()
            if weakest is None or len(kept.content) > self._bytes_max:
                self._count(kept)
                return gone + 1
            self._drop(weakest)
            gone += 1
        self._kept[kept.number] = kept
        self._bytes += len(kept.content)
        if self._is_bound(kept):
            self._ready.append(kept.number)
        return gone

    def bind(self, filters: Collection[str], now_ms: int | None = None) -> int:
        """From now on the binding process takes inputs whose topics match one of these.

        Args:
            filters: Of topics.
            now_ms: What waited too long by now is dropped first; none drops nothing.

        Returns:
            How many were dropped.
        """
        gone = 0 if now_ms is None else self._expire(now_ms)
        self._filters = frozenset(filters)
        self._matches.clear()
        self._line_up()
        return gone

    def let_go(self) -> None:
        """The binding process has ended: what it had goes to the next one."""
        for kept in self._kept.values():
            kept.is_again |= kept.is_sent
            kept.is_sent = False
        self.bind(())

    def take(self) -> Kept | None:
        """The oldest input that the binding process is to get next, or none."""
        while self._ready:
            kept = self._kept.get(self._ready.popleft())
            if kept is not None and not kept.is_sent:
                kept.is_sent = True
                return kept
        return None

    @property
    def is_ready(self) -> bool:
        """Whether `take` may give one."""
        return bool(self._ready)

    def done(self, number: int) -> None:
        """Every binding is done with an input."""
        kept = self._kept.pop(number, None)
        if kept is not None:
            self._bytes -= len(kept.content)

    def give_back(self, number: int) -> None:
        """The binding process had nothing bound to an input any more."""
        kept = self._kept.get(number)
        if kept is not None:
            kept.is_sent = False
            if self._is_bound(kept):
                self._line_up()

    def _line_up(self) -> None:
        self._ready = deque(kept.number for kept in self._kept.values() if not kept.is_sent and self._is_bound(kept))

    def _is_bound(self, kept: Kept) -> bool:
        if kept.is_sent:
            return True
        if kept.name not in self._matches:
            if len(self._matches) >= _NAMES_COUNTED_MAX:
                self._matches.clear()  # names come from outside
            topic = INPUTS + kept.name
            self._matches[kept.name] = any(topic_matches(pattern, topic) for pattern in self._filters)
        return self._matches[kept.name]

    def _weakest(self) -> Kept | None:
        """What goes first: the oldest that no model is bound to, then the oldest that was not handed over."""
        waiting = [kept for kept in self._kept.values() if not kept.is_sent]
        return next((kept for kept in waiting if not self._is_bound(kept)), waiting[0] if waiting else None)

    def _expire(self, now_ms: int) -> int:
        """Drop what waited too long for a model; the oldest come first, so a look at those is enough."""
        late: list[Kept] = []
        for kept in self._kept.values():
            if now_ms - kept.came_ms <= self._parked_ms_max:
                break
            if not self._is_bound(kept):
                late.append(kept)
        for kept in late:
            self._drop(kept)
        return len(late)

    def _drop(self, kept: Kept) -> None:
        self.done(kept.number)
        self._count(kept)

    def _count(self, kept: Kept) -> None:
        is_known = kept.name in self.dropped or len(self.dropped) < _NAMES_COUNTED_MAX
        self.dropped[kept.name if is_known else ""] += 1
