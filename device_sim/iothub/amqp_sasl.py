"""The SASL layer of AMQP 1.0, as the hub speaks it: whoever comes is let in, and proves who it is by tokens later.

Done by hand because the mechanism that Microsoft's C library insists on, MSSBCBS, is none that an AMQP library offers.
Source: OASIS AMQP Version 1.0, part 5; claims-based security draft.
"""

import asyncio
from typing import Final

HEADER: Final = b"AMQP\x03\x01\x00\x00"
MECHANISMS: Final = (b"MSSBCBS", b"ANONYMOUS")
_FRAME_BYTES_MAX: Final = 512  # part 5, 5.3.2
_HEAD: Final = 8


class SaslError(Exception):
    """The peer speaks no SASL that is known here."""


async def let_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry out the exchange.

    Raises:
        SaslError: the peer said something else.
        asyncio.IncompleteReadError: the peer went away.
    """
    if await reader.readexactly(_HEAD) != HEADER:
        writer.write(HEADER)  # part 2, 2.2: an unacceptable header is answered with an acceptable one
        raise SaslError("the peer did not begin with SASL")
    writer.write(HEADER + _frame(_mechanisms()))
    await writer.drain()
    head = await reader.readexactly(_HEAD)
    length = int.from_bytes(head[:4], "big")
    if head[5] != 1 or not _HEAD < length <= _FRAME_BYTES_MAX:
        raise SaslError("a frame that is none of SASL")
    body = await reader.readexactly(length - _HEAD)
    # sasl-init begins with the mechanism as a symbol, within the first bytes of the list
    if not body.startswith(b"\x00\x53\x41") or not any(name in body[:32] for name in MECHANISMS):
        raise SaslError("a mechanism that was not offered")
    writer.write(_frame(b"\x00\x53\x44\xc0\x03\x01\x50\x00"))  # sasl-outcome: ok
    await writer.drain()


def _frame(body: bytes) -> bytes:
    return (_HEAD + len(body)).to_bytes(4, "big") + b"\x02\x01\x00\x00" + body


def _mechanisms() -> bytes:
    symbols = b"".join(bytes((len(name),)) + name for name in MECHANISMS)
    array = bytes((0xE0, 2 + len(symbols), len(MECHANISMS), 0xA3)) + symbols
    return b"\x00\x53\x40\xc0" + bytes((1 + len(array), 1)) + array
