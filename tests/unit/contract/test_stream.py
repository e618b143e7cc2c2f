"""Bytes are verified while they stream by."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_contract.digest import Digest
from edge_contract.errors import ContractError
from edge_contract.stream import VerifyingStream, verified, verify_bytes

chunks = st.lists(st.binary(max_size=20), max_size=6)


@given(chunks)
def test_genuine_bytes_pass_however_they_are_cut(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    assert list(verified(parts, Digest.of(whole), len(whole))) == parts
    assert verify_bytes(whole, Digest.of(whole), len(whole)) == whole


@given(chunks, st.integers(0, 200), st.integers(0, 7))
def test_one_flipped_bit_is_noticed(parts: list[bytes], place: int, bit: int) -> None:
    whole = bytearray(b"".join(parts))
    if not whole:
        return
    digest = Digest.of(bytes(whole))
    whole[place % len(whole)] ^= 1 << bit
    with pytest.raises(ContractError) as caught:
        verify_bytes(bytes(whole), digest, len(whole))
    assert caught.value.code == "artifact.digest-mismatch"


@given(st.binary(max_size=50), st.integers(0, 60))
def test_any_other_length_is_refused(data: bytes, size: int) -> None:
    if size == len(data):
        return
    with pytest.raises(ContractError) as caught:
        verify_bytes(data, Digest.of(data), size)
    assert caught.value.code == "artifact.size-mismatch"


def test_a_byte_too_many_is_refused_before_it_counts_and_what_follows_cannot_mend_it() -> None:
    stream = VerifyingStream(Digest.of(b"abc"), 3)
    stream.feed(b"ab")
    with pytest.raises(ContractError):
        stream.feed(b"cd")
    assert (stream.count, stream.remaining) == (2, 1)
    stream.feed(b"c")
    stream.finish()


def test_a_view_of_wider_items_is_counted_in_bytes() -> None:
    items = array("I", [1, 2, 3])
    data = items.tobytes()
    stream = VerifyingStream(Digest.of(data), len(data))
    stream.feed(memoryview(items))
    assert stream.remaining == 0
    stream.finish()
    with pytest.raises(ContractError):
        VerifyingStream(Digest.of(data), len(items)).feed(memoryview(items))
