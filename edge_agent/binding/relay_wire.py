"""What the agent and the binding process say to each other over the relay: frames of a JSON head and bytes behind it.

A frame is two lengths of four bytes, most significant first, then the head and the content. Both sides are one program
in one version, so the heads carry no version: the agent starts the process itself and gives it the socket.

From the agent: `input` (number, name, hops, correlation, again) with the content; `confirmed` (number, refused).
From the process: `bound` (filters); `output` (number, name, properties, content_type, qos) with the content; `done`
(number) when every binding of an input is done with it; `unbound` (number) when none was there for it any more.
"""

import socket
import struct
from typing import Final

from edge_agent.binding.limits import MESSAGE_BYTES_MAX, RELAY_HEAD_BYTES_MAX
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import Fields, JsonObject, dump, parse_object

CORRELATION_FACT: Final = "correlation-id"
"""Application property of an input that comes back with its answer."""

_LENGTHS: Final = struct.Struct(">II")
_READ_BYTES_MAX: Final = 1 << 20


def frame(head: JsonObject, content: bytes = b"") -> bytes:
    """The bytes of one frame."""
    text = dump(head)
    return _LENGTHS.pack(len(text), len(content)) + text + content


def read_frame(source: socket.socket) -> tuple[Fields, bytes] | None:
    """Wait for the next frame.

    Returns:
        Its head and content, or none when the other side has ended the connection.

    Raises:
        EdgeError: `internal.bug` for a frame that the other side cannot have meant.
        OSError: The connection broke.
    """
    lengths = _read(source, _LENGTHS.size)
    if lengths is None:
        return None
    head_bytes, content_bytes = _LENGTHS.unpack(lengths)
    if head_bytes > RELAY_HEAD_BYTES_MAX or content_bytes > MESSAGE_BYTES_MAX:
        raise EdgeError("internal.bug", f"a frame of the relay claims {head_bytes} and {content_bytes} bytes")
    head, content = _read(source, head_bytes), _read(source, content_bytes)
    if head is None or content is None:
        return None
    try:
        what = "a frame of the relay"
        return Fields(parse_object(head, what, RELAY_HEAD_BYTES_MAX), what, "internal.bug"), content
    except ContractError as error:
        raise EdgeError("internal.bug", error.detail) from None


def _read(source: socket.socket, count: int) -> bytes | None:
    parts: list[bytes] = []
    while count:
        part = source.recv(min(count, _READ_BYTES_MAX))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
