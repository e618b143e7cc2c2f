"""What the process that decodes is told, and what it tells: plain bytes over its standard input and output.

It gets one line of JSON and nothing after it: the end of its input is the end of the agent. It answers with frames.
"""

import struct
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Final

from edge_agent.delta.limits import STATE_BYTES_MAX
from edge_contract.codes import CODES
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import JsonObject, dump, parse_object
from edge_contract.limits import KIB

HEAD: Final = struct.Struct("<BQQI")
ORDER_BYTES_MAX: Final = 4 * KIB
_CODE: Final = "internal.bug"


class Kind(IntEnum):
    """Of a frame."""

    CHECKPOINT = 1
    DONE = 2
    ERROR = 3


@dataclass(frozen=True, slots=True)
class Frame:
    """One message of the decoding process.

    Attributes:
        kind: What it says.
        output_bytes: Output written and flushed so far.
        verified_bytes: How much of it the delta vouches for.
        data: The decoder's state, or an error as JSON.
    """

    kind: Kind
    output_bytes: int = 0
    verified_bytes: int = 0
    data: bytes = b""

    def to_bytes(self) -> bytes:
        """As it is written."""
        return HEAD.pack(self.kind, self.output_bytes, self.verified_bytes, len(self.data)) + self.data

    @classmethod
    def of_error(cls, error: EdgeError) -> "Frame":
        """The last word of a decoding that failed."""
        return cls(Kind.ERROR, data=dump(error.to_json()))

    def error(self) -> EdgeError:
        """The error that a frame of that kind carries.

        Raises:
            ContractError: For what is none.
        """
        document = parse_object(self.data, "the decoder's error", STATE_BYTES_MAX)
        code = str(document.get("code"))
        return EdgeError(code if code in CODES else _CODE, str(document.get("detail")), str(document.get("hint", "")))


class FrameReader:
    """Puts frames together from what came. Used by one thread."""

    def __init__(self) -> None:
        """Nothing has come."""
        self._held = bytearray()

    def feed(self, data: bytes) -> None:
        """Take what came."""
        self._held += data

    def next(self) -> Frame | None:
        """The next whole frame, or none yet.

        Raises:
            ContractError: `internal.bug` for what no decoder writes.
        """
        if len(self._held) < HEAD.size:
            return None
        kind, output_bytes, verified_bytes, length = HEAD.unpack_from(self._held)
        if kind not in set(Kind) or length > STATE_BYTES_MAX:
            raise ContractError(_CODE, "the process that decodes a delta writes something else than frames")
        if len(self._held) < HEAD.size + length:
            return None
        data = bytes(self._held[HEAD.size : HEAD.size + length])
        del self._held[: HEAD.size + length]
        return Frame(Kind(kind), output_bytes, verified_bytes, data)


@dataclass(frozen=True, slots=True)
class Order:
    """What the process is to do; the descriptors are open in it.

    Attributes:
        base_fd: The blob to start from, verified through this very descriptor.
        delta_fd: The delta, likewise.
        output_fd: What has been made so far, for reading and writing.
        state_fd: The decoder's state to go on from; nothing in it at the beginning.
        base_bytes: Length of the base.
        new_bytes: Length of the output.
        peak_bytes: Memory that decoding may take.
    """

    base_fd: int
    delta_fd: int
    output_fd: int
    state_fd: int
    base_bytes: int
    new_bytes: int
    peak_bytes: int

    @property
    def descriptors(self) -> tuple[int, int, int, int]:
        """Those that the process gets."""
        return self.base_fd, self.delta_fd, self.output_fd, self.state_fd

    def to_json(self) -> JsonObject:
        """The line without its end."""
        return asdict(self)
