"""Decides what becomes of batches of telemetry. Pure: the shell hands it events and the time, and runs its commands.

Exactly once, from four rules:
1. A group of batches becomes one file, durable under a name that nothing refers to.
2. One transaction enters the file into the catalogue and moves the watermark of every boot in it, but only from the
   watermark the rows were chosen against. A crash before it leaves an orphan that no query reads; after it, everything.
3. When a transaction's result is unknown, the watermarks are read again: they say whether it happened.
4. Acknowledgements and releases follow the transaction, never precede it.

So a record is in exactly one catalogued file however often, by however many collectors, its batch is received. Nothing
has to be restored after a restart: what is not in the database was not acknowledged, and its device sends it again.
"""

import re
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from cloud_registry import limits
from cloud_registry.collect.inputs import (
    CommitFile,
    CommitRefused,
    FileCommitted,
    FileRefused,
    FileWritten,
    Key,
    LinkLost,
    MessageReceived,
    ReadWatermarks,
    RecordDrop,
    RecordTrouble,
    SendAck,
    StoreAnswer,
    TelemetryCommand,
    TelemetryEvent,
    WatermarksRead,
    WriteFile,
)
from cloud_registry.collect.release import Delivery, ReleaseOrder
from cloud_registry.ports import LakeFile, LakeRow, Watermark
from edge_contract.errors import ContractError
from edge_contract.limits import BATCH_BYTES_MAX
from edge_contract.telemetry import Batch, Sample
from edge_contract.topics import device_of, telemetry

_COMMIT_CONFLICTS_MAX: Final = 3
_BOOT: Final = re.compile(r"[0-9a-f]{1,32}")


@dataclass(frozen=True, slots=True)
class FlushRules:
    """When a group of batches is written.

    Attributes:
        age_ms: At the latest so long after its first batch.
        quiet_ms: Or when nothing came for so long …
        quiet_messages: … and at least so many messages are held: the broker's window is full then.
        rows_max: Or with so many records.
        bytes_max: Or with so many bytes of messages.
        messages_max: Or with so many messages.
    """

    age_ms: int = limits.FLUSH_MS
    quiet_ms: int = limits.FLUSH_QUIET_MS
    quiet_messages: int = limits.FLUSH_QUIET_MESSAGES
    rows_max: int = limits.FLUSH_ROWS_MAX
    bytes_max: int = limits.FLUSH_BYTES_MAX
    messages_max: int = limits.FLUSH_MESSAGES_MAX


@dataclass(slots=True)
class Totals:
    """What happened since the start, in samples unless said otherwise."""

    stored: int = 0
    duplicates: int = 0
    dropped_messages: int = 0
    files: int = 0
    conflicts: int = 0
    failures: int = 0


@dataclass(slots=True)
class _Part:
    """Records of one boot within a group, numbers rising."""

    samples: list[tuple[int, Sample]] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    last: int = 0


@dataclass(slots=True)
class _Group:
    """Batches that share one file."""

    opened_ms: int
    parts: dict[Key, _Part] = field(default_factory=dict)
    rows: int = 0
    bytes: int = 0
    messages: int = 0
    file: LakeFile | None = None


class CollectorCore:
    """The sans-I/O machine: `handle`, `deadline`, `is_accepting`, `totals`. One thread.

    Every command with an operation gets exactly one answering event; a late answer to a former operation is ignored.
    """

    def __init__(self, rules: FlushRules | None = None) -> None:
        """Start empty.

        Args:
            rules: When to write.
        """
        self.totals = Totals()
        self._rules = rules or FlushRules()
        self._order = ReleaseOrder()
        self._durable: OrderedDict[Key, int] = OrderedDict()
        self._open: _Group | None = None
        self._work: deque[_Group] = deque()
        self._operation = 0
        self._is_running = False
        self._retry_at: int | None = None
        self._failures = 0
        self._conflicts = 0
        self._arrived_ms = 0

    @property
    def is_accepting(self) -> bool:
        """Whether the shell may hand in more messages; not while a file waits for the disk or the database."""
        return not self._work

    @property
    def held(self) -> int:
        """Deliveries that the broker still waits for."""
        return len(self._order)

    @property
    def failures(self) -> int:
        """Failures of the disk or the database in a row."""
        return self._failures

    @property
    def deadline(self) -> int | None:
        """When to send `TimePassed` at the latest, in the clock of `handle`; none when nothing waits."""
        if self._work:
            return self._retry_at
        return None if self._open is None else self._due_at(self._open)

    def handle(self, event: TelemetryEvent, now: int) -> list[TelemetryCommand]:
        """Take one event and say what to do.

        Args:
            event: What happened.
            now: Milliseconds of a clock that never goes back; the deadline is in the same clock.

        Returns:
            Commands in the order to run them.
        """
        commands: list[TelemetryCommand] = []
        if isinstance(event, MessageReceived):
            commands += self._take(event, now)
        elif isinstance(event, LinkLost):
            self._order.forget()
        elif isinstance(event, StoreAnswer) and self._is_running and event.operation == self._operation:
            self._is_running = False
            commands += self._go_on(event, now)
        commands += self._start_what_is_due(now)
        return commands + self._order.ready()

    # --- Messages ---

    def _take(self, event: MessageReceived, now: int) -> Iterator[TelemetryCommand]:
        self._arrived_ms = now
        delivery = self._order.add(event.token)
        try:
            batch = _read(event)
        except ContractError as error:
            delivery.is_done = True
            yield self._drop(event.topic, error.code, error.detail)
            return
        key = (batch.device, batch.boot)
        durable = self._durable.get(key, 0)
        if batch.last <= durable:
            self.totals.duplicates += len(batch.samples)
            delivery.is_done = True
            yield SendAck(batch.device, batch.boot, durable)
            return
        group = self._open = self._open or _Group(opened_ms=now)
        part = group.parts.setdefault(key, _Part())
        floor = max(durable, part.last)
        fresh = [(event.received_ms, sample) for sample in batch.samples if sample.seq > floor]
        part.samples += fresh
        part.last = max(part.last, batch.last)
        part.deliveries.append(delivery)
        group.rows += len(fresh)
        group.bytes += len(event.content)
        group.messages += 1
        self.totals.duplicates += len(batch.samples) - len(fresh)

    def _drop(self, topic: str, code: str, detail: str) -> RecordDrop:
        self.totals.dropped_messages += 1
        return RecordDrop(topic[: limits.TOPIC_CHARS_MAX], code, detail)

    def _due_at(self, group: _Group) -> int:
        rules = self._rules
        if group.rows >= rules.rows_max or group.bytes >= rules.bytes_max or group.messages >= rules.messages_max:
            return group.opened_ms
        due = group.opened_ms + rules.age_ms
        if group.messages >= rules.quiet_messages:
            due = min(due, self._arrived_ms + rules.quiet_ms)
        return due

    # --- Groups ---

    def _start_what_is_due(self, now: int) -> Iterator[TelemetryCommand]:
        if self._is_running:
            return
        if self._work:
            if self._retry_at is not None and now >= self._retry_at:
                self._retry_at = None
                yield from self._begin(now)
        elif self._open is not None and now >= self._due_at(self._open):
            self._work.append(self._open)
            self._open = None
            yield from self._begin(now)

    def _begin(self, now: int) -> Iterator[TelemetryCommand]:
        """Start the first group, from wherever it has to start after what happened before."""
        if not self._work:
            return
        parts = self._work[0].parts
        unknown = tuple(key for key in parts if key not in self._durable)
        for key in parts.keys() - set(unknown):
            self._durable.move_to_end(key)  # what this group counts on must not be forgotten while it is at work
        if unknown:
            yield ReadWatermarks(self._next_operation(), unknown)
        else:
            yield from self._store(now)

    def _go_on(self, event: StoreAnswer, now: int) -> Iterator[TelemetryCommand]:
        group = self._work[0]
        if isinstance(event, WatermarksRead):
            yield from self._learn(event, group)
            yield from self._store(now)
        elif isinstance(event, FileWritten):
            group.file = event.file
            yield CommitFile(self._next_operation(), self._marks(group), event.file)
        elif isinstance(event, FileRefused):
            yield from self._isolate(event, now)
        elif isinstance(event, FileCommitted):
            self.totals.files += 1
            self.totals.stored += sum(len(part.samples) for part in group.parts.values())
            for mark in self._marks(group):
                self._remember((mark.device, mark.boot), mark.last)
            yield from self._finish(now)
        elif isinstance(event, CommitRefused):
            yield from self._conflict(group, now)
        else:
            # A commit that failed may have happened all the same; reading the watermarks again tells.
            self._forget(group)
            yield self._wait(event.code, event.detail, now)

    def _store(self, now: int) -> Iterator[TelemetryCommand]:
        """Write what the watermarks leave of the first group, or go on with its file if that still is what is left."""
        group = self._work[0]
        for key, part in group.parts.items():
            fresh = [item for item in part.samples if item[1].seq > self._durable[key]]
            if len(fresh) != len(part.samples):
                self.totals.duplicates += len(part.samples) - len(fresh)
                part.samples = fresh
                group.file = None
        rows = tuple(
            LakeRow(device, boot, received_ms, sample)
            for (device, boot), part in group.parts.items()
            for received_ms, sample in part.samples
        )
        if not rows:
            yield from self._finish(now)
        elif group.file is not None:
            yield CommitFile(self._next_operation(), self._marks(group), group.file)
        else:
            yield WriteFile(self._next_operation(), rows)

    def _finish(self, now: int) -> Iterator[TelemetryCommand]:
        """The first group is durable as a whole: tell the devices and the broker, go on with the next."""
        group = self._work.popleft()
        self._failures = self._conflicts = 0
        for (device, boot), part in group.parts.items():
            yield SendAck(device, boot, self._durable[device, boot])
            for delivery in part.deliveries:
                delivery.is_done = True
        yield from self._begin(now)

    def _learn(self, event: WatermarksRead, group: _Group) -> Iterator[RecordDrop]:
        for key, mark in event.marks.items():
            if mark is not None:
                self._remember(key, mark)
                continue
            part = group.parts.pop(key)
            group.file = None
            for delivery in part.deliveries:
                delivery.is_done = True
                yield self._drop(telemetry(key[0]), "cloud.not-found", f"the device {key[0]!r} is not enrolled")

    def _isolate(self, event: FileRefused, now: int) -> Iterator[TelemetryCommand]:
        """Some rows cannot be written: give each boot a file of its own, and give up the one that still fails alone."""
        group = self._work.popleft()
        if len(group.parts) > 1:
            self._work.extendleft(_Group(group.opened_ms, parts={key: part}) for key, part in group.parts.items())
        for (device, _), part in group.parts.items() if len(group.parts) == 1 else ():
            for delivery in part.deliveries:
                delivery.is_done = True
                yield self._drop(telemetry(device), "artifact.document-invalid", event.detail)
        yield from self._begin(now)

    def _conflict(self, group: _Group, now: int) -> Iterator[TelemetryCommand]:
        self.totals.conflicts += 1
        self._conflicts += 1
        self._forget(group)
        group.file = None
        if self._conflicts <= _COMMIT_CONFLICTS_MAX:
            yield from self._begin(now)
        else:
            yield self._wait("cloud.conflict", "other collectors keep moving the same watermarks", now)

    def _wait(self, code: str, detail: str, now: int) -> RecordTrouble:
        self.totals.failures += 1
        self._failures += 1
        delay = backoff_ms(self._failures)
        self._retry_at = now + delay
        return RecordTrouble(code, detail, self._failures, delay)

    def _marks(self, group: _Group) -> tuple[Watermark, ...]:
        return tuple(
            Watermark(key[0], key[1], previous=self._durable[key], last=part.samples[-1][1].seq)
            for key, part in group.parts.items()
            if part.samples
        )

    def _next_operation(self) -> int:
        self._operation += 1
        self._is_running = True
        return self._operation

    def _remember(self, key: Key, mark: int) -> None:
        self._durable[key] = mark
        self._durable.move_to_end(key)
        # Never one that the group at work counts on: a group has far fewer boots, all used just now.
        while len(self._durable) > limits.WATERMARKS_KEPT_MAX:
            self._durable.popitem(last=False)

    def _forget(self, group: _Group) -> None:
        for key in group.parts:
            self._durable.pop(key, None)


def backoff_ms(failures: int) -> int:
    """Wait before the next try, in milliseconds: doubles from `STORE_RETRY_MS`, at most `STORE_RETRY_MS_MAX`."""
    return min(limits.STORE_RETRY_MS_MAX, limits.STORE_RETRY_MS << min(failures - 1, 16))


def check_boot(boot: str) -> None:
    """Require a boot that any database can hold.

    Raises:
        ContractError: `artifact.document-invalid`.
    """
    if not _BOOT.fullmatch(boot):
        raise ContractError("artifact.document-invalid", f"{boot!r} does not name a boot: hexadecimal digits do")


def _read(event: MessageReceived) -> Batch:
    """Parse a batch, from the device that its topic belongs to.

    Raises:
        ContractError: What is wrong with it.
    """
    if len(event.content) > BATCH_BYTES_MAX:
        raise ContractError("artifact.document-too-large", f"a batch has {len(event.content)} bytes")
    device = device_of(event.topic)
    batch = Batch.parse(event.content)
    check_boot(batch.boot)
    if batch.device != device:
        raise ContractError("artifact.document-invalid", f"a batch of {batch.device!r} came on the topic of {device!r}")
    return batch
