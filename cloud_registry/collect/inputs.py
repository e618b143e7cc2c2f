"""What goes into the collector's cores (events, past tense) and what comes out (commands, imperative)."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from cloud_registry.ports import LakeFile, LakeRow, ReportMessage, ReportVerdict, Watermark

Token = Hashable
"""Names one delivery on one connection, so that the shell can release it; the cores only hand it back."""

Key = tuple[str, str]
"""(device, boot): what has one watermark."""

# --- Events ---


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A message came from the broker.

    Attributes:
        token: Its delivery; none when it asks for no acknowledgement.
        topic: Topic it was published to.
        content: Its bytes, from whoever was let in: nothing about them is known.
        received_ms: When, in milliseconds since 1970.
    """

    token: Token | None
    topic: str
    content: bytes
    received_ms: int


@dataclass(frozen=True, slots=True)
class LinkLost:
    """The connection ended: its deliveries can no longer be released, and what was stored of them stays stored."""


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Nothing happened but the deadline came."""


@dataclass(frozen=True, slots=True)
class WatermarksRead:
    """Answers `ReadWatermarks`.

    Attributes:
        operation: That of the command.
        marks: Watermark by key; none for a device that is not enrolled.
    """

    operation: int
    marks: Mapping[Key, int | None]


@dataclass(frozen=True, slots=True)
class FileWritten:
    """Answers `WriteFile`: the file is durable, and nobody knows of it yet."""

    operation: int
    file: LakeFile


@dataclass(frozen=True, slots=True)
class FileRefused:
    """Answers `WriteFile`: some of these rows can never be written."""

    operation: int
    detail: str


@dataclass(frozen=True, slots=True)
class FileCommitted:
    """Answers `CommitFile`: watermarks and catalogue are durable."""

    operation: int


@dataclass(frozen=True, slots=True)
class CommitRefused:
    """Answers `CommitFile`: a watermark had moved, or a device is gone; nothing changed."""

    operation: int


@dataclass(frozen=True, slots=True)
class ReportsTaken:
    """Answers `TakeReports`: what they said is durable, and so is that some of them were not believed.

    Attributes:
        operation: That of the command.
        verdicts: One for each message, in their order.
    """

    operation: int
    verdicts: tuple[ReportVerdict, ...]


@dataclass(frozen=True, slots=True)
class ReportsFailed:
    """Answers `TakeReports`: these messages can never be taken."""

    operation: int
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """Answers any command to the disk or the database that may work later. Whether it took effect is unknown."""

    operation: int
    code: str
    detail: str


StoreAnswer = WatermarksRead | FileWritten | FileRefused | FileCommitted | CommitRefused | StoreFailed
TelemetryEvent = MessageReceived | LinkLost | TimePassed | StoreAnswer
ReportEvent = MessageReceived | LinkLost | TimePassed | ReportsTaken | ReportsFailed | StoreFailed

# --- Commands ---


@dataclass(frozen=True, slots=True)
class ReadWatermarks:
    """Look up how far these boots are durable."""

    operation: int
    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class WriteFile:
    """Make one durable file of these rows."""

    operation: int
    rows: tuple[LakeRow, ...]


@dataclass(frozen=True, slots=True)
class CommitFile:
    """Enter the file and advance the watermarks in one transaction."""

    operation: int
    marks: tuple[Watermark, ...]
    file: LakeFile


@dataclass(frozen=True, slots=True)
class TakeReports:
    """Verify what came on a device's topic, and take the newest of what is its own."""

    operation: int
    device: str
    messages: tuple[ReportMessage, ...]


@dataclass(frozen=True, slots=True)
class SendAck:
    """Tell a device that everything of a boot up to a number is durable."""

    device: str
    boot: str
    upto: int


@dataclass(frozen=True, slots=True)
class ReleaseMessage:
    """Acknowledge a delivery to the broker; releases come in the order of receipt, as MQTT demands."""

    token: Token


@dataclass(frozen=True, slots=True)
class RecordDrop:
    """A message is given up: count it and say why.

    Attributes:
        topic: Where it came from, shortened.
        code: Stable code.
        detail: What is wrong with it.
    """

    topic: str
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class RecordTrouble:
    """The disk or the database failed: say so once a try.

    Attributes:
        code: Stable code.
        detail: What failed.
        attempts: Failures in a row.
        retry_ms: Wait until the next try.
    """

    code: str
    detail: str
    attempts: int
    retry_ms: int


TelemetryCommand = ReadWatermarks | WriteFile | CommitFile | SendAck | ReleaseMessage | RecordDrop | RecordTrouble
ReportCommand = TakeReports | ReleaseMessage | RecordDrop | RecordTrouble
