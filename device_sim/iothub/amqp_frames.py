"""Frames of AMQP 1.0 with all their fields. Pure.

AMQP lets a sender leave out null fields at the end of a list, and Proton does; Microsoft's pure Python client counts on
all of them, as their service sends them. So what Proton writes is filled up on its way out.
Source: OASIS AMQP Version 1.0, part 1 (lists) and part 2, 2.7 (performatives).
"""

from typing import Final

_HEAD: Final = 8
_HEADERS: Final = (b"AMQP\x00\x01\x00\x00", b"AMQP\x03\x01\x00\x00")
_NULL: Final = b"\x40"
# descriptor: number of fields of open, begin, attach, flow, transfer, disposition, detach, end, close
_FIELDS: Final = {0x10: 10, 0x11: 8, 0x12: 14, 0x13: 11, 0x14: 11, 0x15: 6, 0x16: 3, 0x17: 1, 0x18: 1}


class Filler:
    """Takes bytes as they come and gives whole frames. One thread."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._data = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Add bytes; gives the frames that are whole now, filled up."""
        self._data += data
        result = bytearray()
        while len(self._data) >= _HEAD:
            if bytes(self._data[:_HEAD]) in _HEADERS:
                length = _HEAD
            else:
                length = int.from_bytes(self._data[:4], "big")
                if len(self._data) < length:
                    break
            result += filled(bytes(self._data[:length]))
            del self._data[:length]
        return bytes(result)


def filled(frame: bytes) -> bytes:
    """One frame with all fields of its performative; a frame that is none of these stays as it is."""
    body = frame[_HEAD:]
    if frame in _HEADERS or len(body) < 4 or body[:2] != b"\x00\x53":
        return frame
    wanted = _FIELDS.get(body[2])
    if wanted is None:
        return frame
    kind = body[3]
    if kind == 0x45:  # an empty list
        count, start, end = 0, 4, 4
    elif kind == 0xC0:
        count, start, end = body[5], 6, 5 + body[4]
    elif kind == 0xD0:
        count, start, end = int.from_bytes(body[8:12], "big"), 12, 8 + int.from_bytes(body[4:8], "big")
    else:
        return frame
    if count >= wanted:
        return frame
    fields = body[start:end] + _NULL * (wanted - count)
    written = (
        body[:3] + b"\xd0" + (len(fields) + 4).to_bytes(4, "big") + wanted.to_bytes(4, "big") + fields + body[end:]
    )
    return (_HEAD + len(written)).to_bytes(4, "big") + frame[4:_HEAD] + written
