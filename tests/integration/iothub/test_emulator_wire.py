"""The hub's dialect of MQTT where the SDK never goes: what ends a connection, what is granted, what is repeated."""

from __future__ import annotations

import pytest

from device_sim.iothub import codec
from device_sim.iothub.running import Emulator
from tests.integration.iothub.raw import WAIT_S, RawClient
from tests.support.net import wait_until

_CLOSED = (0, b"")


def test_qos_2_is_granted_as_1_and_unknown_topics_are_not(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    with RawClient(hub) as client:
        client.connect_device(name)
        assert client.subscribe(f"devices/{name}/messages/devicebound/#", 2) == 1
        assert client.subscribe("$iothub/twin/res/#", 0) == 0
        for topic in ("#", "devices/other/messages/devicebound/#", f"devices/{name}/modules/m/inputs/#"):
            assert client.subscribe(topic) == codec.FAILURE


@pytest.mark.parametrize("topic", ["devices/other/messages/events/", "anything", "$iothub/twin/DELETE/?$rid=1"])
def test_a_message_to_where_a_client_may_not_send_ends_its_connection(hub: Emulator, name: str, topic: str) -> None:
    hub.add_device(name)
    with RawClient(hub) as client:
        client.connect_device(name)
        client.publish(topic, b"x")
        assert client.receive() == _CLOSED


def test_a_message_of_qos_2_ends_the_connection(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    with RawClient(hub) as client:
        client.connect_device(name)
        client.publish(f"devices/{name}/messages/events/", b"x", qos=2)
        assert client.receive() == _CLOSED


def test_a_message_beyond_its_size_ends_the_connection(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    hub.admin.drain_telemetry()
    with RawClient(hub) as client:
        client.connect_device(name)
        client.publish(f"devices/{name}/messages/events/", b"x" * (256 * 1024 + 1))
        assert client.receive() == _CLOSED
    assert hub.admin.drain_telemetry() == []


def test_a_retained_message_says_so_in_a_property(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    hub.admin.drain_telemetry()
    with RawClient(hub) as client:
        client.connect_device(name)
        client.publish(f"devices/{name}/messages/events/a=1", b"x", is_retained=True)
        assert client.receive()[0] == 0x40
    assert hub.admin.drain_telemetry()[0]["properties"] == {"a": "1", "mqtt-retain": "true"}


def test_last_words_become_telemetry_unless_the_client_takes_its_leave(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    hub.admin.drain_telemetry()
    will = (f"devices/{name}/messages/events/", b"gone")
    with RawClient(hub) as client:
        client.connect_device(name, will=will)
        client.send(0xE0, b"")
        assert client.receive() == _CLOSED
    assert hub.admin.drain_telemetry() == []
    with RawClient(hub) as client:
        client.connect_device(name, will=will)
    (got,) = wait_until(hub.admin.drain_telemetry, WAIT_S)
    assert (got["text"], got["system"]) == ("gone", {"iothub-message-type": "Will"})


def test_a_message_that_was_not_acknowledged_comes_again(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    with RawClient(hub) as client:
        client.connect_device(name, is_clean=False)
        client.subscribe(f"devices/{name}/messages/devicebound/#")
        hub.admin.c2d(device=name, text="take it")
        assert client.receive()[0] == 0x32
    with RawClient(hub) as client:
        client.connect_device(name, is_clean=False)
        kind, content = client.receive()
        assert kind == 0x3A, "the packet says that it is sent again"
        start = 2 + int.from_bytes(content[:2], "big")
        client.send(0x40, content[start : start + 2])
        assert wait_until(lambda: hub.admin.twin(device=name)["cloudToDeviceMessageCount"] == 0, WAIT_S)


def test_a_clean_session_forgets_subscriptions(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    with RawClient(hub) as client:
        client.connect_device(name, is_clean=False)
        client.subscribe("$iothub/methods/POST/#")
    with RawClient(hub) as client:
        client.connect_device(name, is_clean=True)
    assert hub.call(lambda: [topics for address, topics in hub.hub.subscriptions.items() if str(address) == name]) == []


@pytest.mark.parametrize(
    ("head", "body"),
    [(0x30, b"\x00\x01a"), (0x10, b"\x00\x04HTTP\x04\x02\x00\x3c\x00\x01a"), (0x10, b"\x00\x04MQ"), (0xF0, b"")],
    ids=["a message first", "another protocol", "cut off", "an unknown packet"],
)
def test_what_is_no_mqtt_ends_its_connection_alone(hub: Emulator, name: str, head: int, body: bytes) -> None:
    hub.add_device(name)
    with RawClient(hub) as other, RawClient(hub) as odd:
        other.connect_device(name)
        odd.send(head, body)
        assert odd.receive() == _CLOSED
        other.send(0xC0, b"")
        assert other.receive() == (0xD0, b"")
