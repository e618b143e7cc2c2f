"""Messages of a module over the link to the hub: outputs outlive connections, inputs keep their order."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from edge_agent.limits import HUB_MESSAGE_BYTES_MAX, HUB_OUTPUT_TRIES_MAX, HUB_OUTPUTS_MAX
from edge_agent.ports import LinkInput
from tests.support.fakehub import FakeClient
from tests.support.net import wait_until
from tests.unit.agent.test_iothub_link import Bench

_WAIT_S = 20.0


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.hub.release.set()
    made.link.stop()


def output(bench: Bench, number: int) -> bool:
    return bench.link.send_output("o", str(number).encode(), {}, "text/plain")


def test_an_output_that_was_taken_is_sent_on_the_next_connection(bench: Bench) -> None:
    bench.start()
    bench.hub.is_mute = True
    assert all(output(bench, number) for number in range(20))
    bench.hub.drop()
    bench.hub.is_mute = False
    bench.hub.release.set()
    wait_until(lambda: len(bench.hub.sent) == 20, _WAIT_S, what="every output to be sent")
    assert [content for _, content in bench.hub.sent] == [str(number).encode() for number in range(20)]
    assert len(bench.hub.clients) > 1


def test_outputs_are_bounded(bench: Bench) -> None:
    bench.start()
    bench.hub.is_mute = True
    wait_until(lambda: not output(bench, 0), _WAIT_S, what="the link to take no more")
    assert not bench.link.send_output("o", bytes(HUB_MESSAGE_BYTES_MAX + 1), {}, "text/plain")
    assert len(bench.link._outputs) <= HUB_OUTPUTS_MAX + 1


def test_an_output_that_ends_every_connection_is_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench.start()
    tried: list[bytes] = []

    def send(_: FakeClient, message: tuple[str, bytes], name: str) -> None:
        tried.append(message[1])
        if message[1] == b"0":
            raise ConnectionError(name)

    monkeypatch.setattr(FakeClient, "send_message_to_output", send)
    assert output(bench, 0)
    assert output(bench, 1)
    wait_until(lambda: tried[-1:] == [b"1"], _WAIT_S, what="the next output to be sent")
    assert tried.count(b"0") == HUB_OUTPUT_TRIES_MAX + 1
    assert "given up" in caplog.text


def test_inputs_are_taken_where_the_sdk_gives_them_out_before_it_connects(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[LinkInput] = []
    bench.link.listen(came.append)
    plain = FakeClient.connect

    def connect(client: Any) -> None:
        plain(client)
        # The hub remembers the subscription: nobody has set a handler on this client yet.
        for number in range(3):
            message = SimpleNamespace(input_name="i", data=str(number), custom_properties={"n": number})
            message.content_type = None
            client._mqtt_pipeline.on_input_message_received(message)

    pipeline = property(
        lambda client: client.__dict__.setdefault("inside", SimpleNamespace(on_input_message_received=0))
    )
    monkeypatch.setattr(FakeClient, "_mqtt_pipeline", pipeline, raising=False)
    monkeypatch.setattr(FakeClient, "connect", connect)
    bench.start()
    assert came == [LinkInput("i", str(number).encode(), {"n": str(number)}) for number in range(3)]
