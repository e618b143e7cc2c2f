"""The wire of the hub emulator: whole packets come out of any division of the bytes, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.iothub import codec
from device_sim.iothub.limits import PACKET_BYTES_MAX

_CONNECT = bytes.fromhex(
    "10 1f 0004 4d515454 04 c2 003c 0003 702d31 0004 75736572 0008 70617373776f7264".replace(" ", "")
)


def _decoded(*parts: bytes) -> list[codec.Packet]:
    decoder = codec.Decoder()
    return [packet for part in parts for packet in decoder.feed(part)]


def test_connect_is_read() -> None:
    assert _decoded(_CONNECT) == [codec.Connect("p-1", True, 60, "user", "password")]


@given(
    st.lists(
        st.builds(
            codec.Publish,
            topic=st.text(st.characters(codec="utf-8", exclude_characters="\0+#"), min_size=1, max_size=40),
            content=st.binary(max_size=400),
            qos=st.just(1),
            packet=st.integers(1, 0xFFFF),
            is_repeated=st.booleans(),
        ),
        max_size=6,
    ),
    st.integers(1, 50),
)
def test_messages_come_back_however_their_bytes_were_divided(messages: list[codec.Publish], size: int) -> None:
    data = b"".join(codec.publish(message) for message in messages)
    assert _decoded(*(data[at : at + size] for at in range(0, len(data), size))) == messages


@given(st.binary(max_size=200))
def test_any_bytes_give_packets_or_a_refusal(data: bytes) -> None:
    try:
        packets = _decoded(data)
    except codec.ProtocolError:
        return
    assert len(packets) <= len(data) // 2


@given(st.integers(0, len(_CONNECT) - 3), st.integers(0, 255))
def test_a_damaged_connect_gives_a_packet_or_a_refusal(place: int, byte: int) -> None:
    damaged = bytearray(_CONNECT)
    damaged[2 + place] = byte
    try:
        packets = _decoded(bytes(damaged))
    except codec.ProtocolError:
        return
    assert all(isinstance(packet, codec.Connect) for packet in packets)


@pytest.mark.parametrize(
    "data",
    [
        b"\x30\xff\xff\xff\xff\x01",
        codec.publish(codec.Publish("a", b"x" * PACKET_BYTES_MAX))[:8],
        b"\x36\x05\x00\x01a\x00\x01",
        b"\x32\x05\x00\x01a\x00\x00",
        b"\x30\x03\x00\x01#",
        b"\x80\x06\x00\x01\x00\x01a\x00",
        b"\x82\x02\x00\x01",
        b"\x30\x04\x00\x02a\x00",
        b"\x30\x04\x00\x02\xff\xff",
    ],
    ids=[
        "a length of five bytes",
        "too long a packet",
        "QoS 3",
        "packet 0",
        "a message to a filter",
        "wrong flags",
        "no topics",
        "a zero character",
        "no UTF-8",
    ],
)
def test_what_the_standard_forbids_is_refused(data: bytes) -> None:
    with pytest.raises(codec.ProtocolError):
        _decoded(data)


def test_answers_have_the_bytes_of_the_standard() -> None:
    assert codec.connack(codec.ACCEPTED, True) == b"\x20\x02\x01\x00"
    assert codec.connack(codec.REFUSED_UNAUTHORIZED, True) == b"\x20\x02\x00\x05"
    assert codec.puback(0x1234) == b"\x40\x02\x12\x34"
    assert codec.suback(7, (1, codec.FAILURE)) == b"\x90\x04\x00\x07\x01\x80"
    assert codec.unsuback(7) == b"\xb0\x02\x00\x07"
    assert codec.pingresp() == b"\xd0\x00"
