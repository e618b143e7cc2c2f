"""A store in memory that obeys the ports' promises, and one collector's core with its commands run one at a time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from cloud_registry.collect.core import CollectorCore, FlushRules
from cloud_registry.collect.inputs import (
    CommitFile,
    CommitRefused,
    FileCommitted,
    FileRefused,
    FileWritten,
    MessageReceived,
    ReadWatermarks,
    RecordDrop,
    RecordTrouble,
    ReleaseMessage,
    SendAck,
    StoreFailed,
    TelemetryCommand,
    TelemetryEvent,
    TimePassed,
    WatermarksRead,
    WriteFile,
)
from cloud_registry.ports import LakeFile, LakeRow, Watermark
from edge_contract import topics
from tests.unit.cloud_telemetry.making import T0_MS, batch

Record = tuple[str, str, int]


@dataclass
class MemoryStore:
    """The disk and the database."""

    enrolled: set[str] = field(default_factory=set)
    files: dict[str, tuple[LakeRow, ...]] = field(default_factory=dict)
    catalogue: list[LakeFile] = field(default_factory=list)
    marks: dict[tuple[str, str], int] = field(default_factory=dict)

    def write(self, rows: tuple[LakeRow, ...]) -> LakeFile:
        """Make a file durable that nobody knows of."""
        path = f"file-{len(self.files)}"
        self.files[path] = rows
        return LakeFile(path, len(rows), 1, T0_MS, T0_MS)

    def commit(self, marks: tuple[Watermark, ...], file: LakeFile) -> bool:
        """One transaction; false when it is refused."""
        for mark in marks:
            if mark.device not in self.enrolled or self.marks.get((mark.device, mark.boot), 0) != mark.previous:
                return False
        if file.path in {known.path for known in self.catalogue}:
            return False
        self.marks |= {(mark.device, mark.boot): mark.last for mark in marks}
        self.catalogue.append(file)
        return True

    def records(self) -> list[Record]:
        """Every record a query would see, as often as it would."""
        return [(row.device, row.boot, row.sample.seq) for file in self.catalogue for row in self.files[file.path]]


class Bench:
    """One collector over a store. Commands wait until `step` runs them; `settle` runs them all."""

    def __init__(self, store: MemoryStore, rules: FlushRules | None = None) -> None:
        self.store = store
        self.core = CollectorCore(rules or FlushRules(age_ms=100))
        self.now = 0
        self.waiting: deque[TelemetryCommand] = deque()
        self.acks: list[SendAck] = []
        self.released: list[int] = []
        self.drops: list[RecordDrop] = []
        self.troubles: list[RecordTrouble] = []
        self.writes = 0
        self.tokens = 0
        self.bad_seq = -1  # a record that no file can hold

    def feed(self, event: TelemetryEvent) -> None:
        """Hand an event in."""
        self.waiting.extend(self.core.handle(event, self.now))

    def receive(self, device: str, first: int, last: int, boot: str = "aa") -> int:
        """A batch arrives; its token."""
        return self.receive_bytes(topics.telemetry(device), batch(device, first, last, boot).to_bytes())

    def receive_bytes(self, topic: str, content: bytes) -> int:
        """Anything arrives; its token."""
        self.tokens += 1
        self.feed(MessageReceived(self.tokens, topic, content, T0_MS))
        return self.tokens

    def step(self, fault: str = "") -> None:
        """Run the next command; `before` fails without effect, `after` takes effect and fails."""
        command = self.waiting.popleft()
        if isinstance(command, SendAck):
            self.acks.append(command)
        elif isinstance(command, ReleaseMessage):
            assert isinstance(command.token, int)
            self.released.append(command.token)
        elif isinstance(command, RecordDrop):
            self.drops.append(command)
        elif isinstance(command, RecordTrouble):
            self.troubles.append(command)
        else:
            answer = self._answer(command) if fault != "before" else None
            if fault:
                answer = StoreFailed(command.operation, "device.disk-error", fault)
            assert answer is not None
            self.feed(answer)

    def settle(self) -> None:
        """Run every command that waits."""
        while self.waiting:
            self.step()

    def pass_time(self, ms: int) -> None:
        """Let time go by and tell the core."""
        self.now += ms
        self.feed(TimePassed())

    def flush(self) -> None:
        """Go to the deadline and run everything."""
        self.settle()
        while self.core.deadline is not None:
            self.pass_time(max(0, self.core.deadline - self.now))
            self.settle()

    def _answer(self, command: ReadWatermarks | WriteFile | CommitFile) -> TelemetryEvent:
        if isinstance(command, ReadWatermarks):
            marks = {
                key: self.store.marks.get(key, 0) if key[0] in self.store.enrolled else None for key in command.keys
            }
            return WatermarksRead(command.operation, marks)
        if isinstance(command, WriteFile):
            self.writes += 1
            if any(row.sample.seq == self.bad_seq for row in command.rows):
                return FileRefused(command.operation, "cannot be written")
            return FileWritten(command.operation, self.store.write(command.rows))
        if self.store.commit(command.marks, command.file):
            return FileCommitted(command.operation)
        return CommitRefused(command.operation)
