"""The emulator's AMQP below its links: frames that are filled up, the exchange of SASL, tokens of policies."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.iothub import amqp_sasl, policies, sas
from device_sim.iothub.amqp_frames import Filler, filled

_KEY = base64.b64encode(b"k" * 32).decode()
_KEYS = {"iothubowner": _KEY, "device": _KEY}
_NOW_MS = 1_700_000_000_000
_LATER_S = 1_700_000_600

# detach with handle 5 and "closed", as a list of two fields of three; the same with all three
_SHORT = b"\x00\x53\x16\xc0\x04\x02\x52\x05\x41"
_WHOLE = b"\x00\x53\x16\xd0\x00\x00\x00\x08\x00\x00\x00\x03\x52\x05\x41\x40"


def _frame(body: bytes) -> bytes:
    return (8 + len(body)).to_bytes(4, "big") + b"\x02\x00\x00\x01" + body


def test_a_short_list_gets_its_missing_fields_as_nulls() -> None:
    assert filled(_frame(_SHORT)) == _frame(_WHOLE)


def test_an_empty_list_and_a_long_form_are_filled_too() -> None:
    assert filled(_frame(b"\x00\x53\x18\x45")) == _frame(b"\x00\x53\x18\xd0\x00\x00\x00\x05\x00\x00\x00\x01\x40")
    long_form = b"\x00\x53\x16\xd0\x00\x00\x00\x07\x00\x00\x00\x02\x52\x05\x41"
    assert filled(_frame(long_form)) == _frame(_WHOLE)


def test_what_follows_the_list_stays_behind_it() -> None:
    transfer = b"\x00\x53\x14\xc0\x03\x01\x52\x05" + b"the message"
    found = filled(_frame(transfer))
    assert found.endswith(b"\x52\x05" + b"\x40" * 10 + b"the message")
    assert int.from_bytes(found[:4], "big") == len(found)


@pytest.mark.parametrize(
    "frame",
    [b"AMQP\x00\x01\x00\x00", _frame(b""), _frame(_WHOLE), _frame(b"\x00\x53\x99\x45"), _frame(b"\x00\x80junk")],
    ids=["header", "heartbeat", "whole", "unknown", "descriptor"],
)
def test_everything_else_stays_as_it_is(frame: bytes) -> None:
    assert filled(frame) == frame


@given(st.lists(st.integers(1, 40), max_size=30))
def test_any_division_of_the_bytes_gives_the_same_frames(sizes: list[int]) -> None:
    data = b"AMQP\x00\x01\x00\x00" + _frame(_SHORT) + _frame(b"") + _frame(_SHORT)
    wanted = b"AMQP\x00\x01\x00\x00" + _frame(_WHOLE) + _frame(b"") + _frame(_WHOLE)
    filler, found, rest = Filler(), b"", data
    for size in [*sizes, len(data)]:
        found += filler.feed(rest[:size])
        rest = rest[size:]
    assert found == wanted


class _Writer:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data

    async def drain(self) -> None:
        """Nothing waits."""


def _exchange(said: bytes) -> bytes:
    async def run() -> bytes:
        reader, writer = asyncio.StreamReader(), _Writer()
        reader.feed_data(said)
        reader.feed_eof()
        anything: Any = writer
        await amqp_sasl.let_in(reader, anything)
        return writer.data

    return asyncio.run(run())


def _init(mechanism: bytes) -> bytes:
    fields = b"\xa3" + bytes((len(mechanism),)) + mechanism
    body = b"\x00\x53\x41\xc0" + bytes((len(fields) + 1, 1)) + fields
    return (8 + len(body)).to_bytes(4, "big") + b"\x02\x01\x00\x00" + body


@pytest.mark.parametrize("mechanism", [b"ANONYMOUS", b"MSSBCBS"])
def test_both_mechanisms_of_microsofts_clients_are_let_in(mechanism: bytes) -> None:
    told = _exchange(amqp_sasl.HEADER + _init(mechanism))
    assert told.startswith(amqp_sasl.HEADER)
    assert mechanism in told
    assert told.endswith(b"\x00\x53\x44\xc0\x03\x01\x50\x00")


@pytest.mark.parametrize(
    "said",
    [
        b"AMQP\x00\x01\x00\x00",
        amqp_sasl.HEADER + _init(b"PLAIN"),
        amqp_sasl.HEADER + b"\x00\x00\x00\x04\x02\x01\x00\x00",
        amqp_sasl.HEADER + b"\xff\xff\xff\xff\x02\x01\x00\x00",
        amqp_sasl.HEADER + b"\x00\x00\x00\x0c\x02\x00\x00\x00\x00\x53\x41\x45",
    ],
    ids=["no-sasl", "plain", "short", "long", "kind"],
)
def test_any_other_beginning_is_refused(said: bytes) -> None:
    with pytest.raises(amqp_sasl.SaslError):
        _exchange(said)


def test_a_peer_that_goes_away_is_no_peer() -> None:
    with pytest.raises(asyncio.IncompleteReadError):
        _exchange(amqp_sasl.HEADER)


def _judge(token: str, *resources: str) -> frozenset[str]:
    return policies.judge(_KEYS, token, resources or ("hub.test", "hub.test/events"), _NOW_MS)[0]


@pytest.mark.parametrize("resource", ["hub.test", "HUB.test", "sb://hub.test/events", "https://hub.test/events/x/y"])
def test_a_token_is_good_for_the_hub_and_what_is_in_it(resource: str) -> None:
    assert policies.SERVICE in _judge(sas.make(_KEY, resource, _LATER_S, "iothubowner"))


def test_a_token_signed_with_the_text_of_the_key_is_good() -> None:
    text = base64.b64encode(_KEY.encode()).decode()
    assert policies.SERVICE in _judge(sas.make(text, "sb://hub.test/events", _LATER_S, "iothubowner"))


@pytest.mark.parametrize(
    "token",
    [
        "",
        "SharedAccessSignature nonsense",
        sas.make(_KEY, "hub.test.evil", _LATER_S, "iothubowner"),
        sas.make(_KEY, "other", _LATER_S, "iothubowner"),
        sas.make(_KEY, "hub.test", _NOW_MS // 1000, "iothubowner"),
        sas.make(_KEY, "hub.test", _LATER_S, "nobody"),
        sas.make(_KEY, "hub.test", _LATER_S),
        sas.make(base64.b64encode(b"z" * 32).decode(), "hub.test", _LATER_S, "iothubowner"),
    ],
    ids=["empty", "nonsense", "prefix", "other", "expired", "policy", "no-policy", "key"],
)
def test_any_other_token_gives_nothing(token: str) -> None:
    assert _judge(token) == frozenset()


def test_a_policy_gives_its_own_rights_alone() -> None:
    assert _judge(sas.make(_KEY, "hub.test", _LATER_S, "device")) == {policies.DEVICE}
