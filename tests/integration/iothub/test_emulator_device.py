"""Microsoft's device SDK does with the emulator what it does with a hub: a device that is connected."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from azure.iot.device.exceptions import ClientError

from device_sim.iothub.identities import HubError
from device_sim.iothub.running import Emulator, client_context
from tests.integration.iothub.clients import WAIT_S, device, message
from tests.support.net import wait_until


def test_a_device_connects_by_its_connection_string(hub: Emulator, name: str) -> None:
    with device(hub.add_device(name), hub.ca_pem) as client:
        client.sdk.connect()
        assert client.sdk.connected
        assert hub.admin.twin(device=name)["connectionState"] == "Connected"
    assert wait_until(lambda: hub.admin.twin(device=name)["connectionState"] == "Disconnected", WAIT_S)


def test_telemetry_arrives_with_its_properties(hub: Emulator, name: str) -> None:
    hub.admin.drain_telemetry()
    with device(hub.add_device(name), hub.ca_pem) as client:
        sent = message("22.5 °C", kind="batch", odd="a=b&c/ü")
        sent.message_id, sent.correlation_id, sent.user_id = "m-1", "c-1", "me"
        sent.content_type, sent.content_encoding = "application/json", "utf-8"
        client.sdk.send_message(sent)
    (got,) = hub.admin.drain_telemetry()
    assert (got["device"], got["text"]) == (name, "22.5 °C")
    assert got["properties"] == {"kind": "batch", "odd": "a=b&c/ü"}
    assert got["system"] == {
        "message-id": "m-1",
        "correlation-id": "c-1",
        "user-id": "me",
        "content-type": "application/json",
        "content-encoding": "utf-8",
    }


def test_telemetry_of_nearly_a_quarter_megabyte_is_taken(hub: Emulator, name: str) -> None:
    hub.admin.drain_telemetry()
    with device(hub.add_device(name), hub.ca_pem) as client:
        client.sdk.send_message("x" * 255 * 1024)
    assert len(hub.admin.drain_telemetry()[0]["text"]) == 255 * 1024


def test_the_twin_is_read_and_reported_properties_are_merged(hub: Emulator, name: str) -> None:
    connection_string = hub.add_device(name)
    hub.admin.desired(device=name, desired={"period": 5, "nested": {"a": 1, "b": 2}})
    hub.admin.drain_reported()
    with device(connection_string, hub.ca_pem) as client:
        assert client.sdk.get_twin() == {
            "desired": {"period": 5, "nested": {"a": 1, "b": 2}, "$version": 2},
            "reported": {"$version": 1},
        }
        client.sdk.patch_twin_reported_properties({"model": {"name": "digits", "version": "1.0"}, "old": True})
        client.sdk.patch_twin_reported_properties({"model": {"version": "1.1"}, "old": None})
        reported = client.sdk.get_twin()["reported"]
    assert reported == {"model": {"name": "digits", "version": "1.1"}, "$version": 3}
    patches = hub.admin.drain_reported()
    assert [patch["patch"] for patch in patches if patch["device"] == name] == [
        {"model": {"name": "digits", "version": "1.0"}, "old": True},
        {"model": {"version": "1.1"}, "old": None},
    ]


@pytest.mark.parametrize(
    "patch",
    [
        {"a.b": 1},
        {"text": "x" * 4097},
        {"deep": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": {"j": {"k": 1}}}}}}}}}}},
    ],
    ids=["a dot in a key", "a long text", "too deep"],
)
def test_a_patch_that_no_twin_can_hold_is_refused(hub: Emulator, name: str, patch: dict[str, Any]) -> None:
    with device(hub.add_device(name), hub.ca_pem) as client:
        with pytest.raises(ClientError):
            client.sdk.patch_twin_reported_properties(patch)
        assert client.sdk.get_twin()["reported"] == {"$version": 1}


def test_more_than_a_twin_holds_is_refused(hub: Emulator, name: str) -> None:
    with device(hub.add_device(name), hub.ca_pem) as client:
        client.sdk.patch_twin_reported_properties({str(number): "x" * 4000 for number in range(8)})
        with pytest.raises(ClientError):
            client.sdk.patch_twin_reported_properties({"more": "x" * 1000})


def test_desired_properties_reach_a_connected_device_with_their_version(hub: Emulator, name: str) -> None:
    with device(hub.add_device(name), hub.ca_pem) as client:
        client.sdk.connect()
        client.hear_patches()
        hub.admin.desired(device=name, desired={"period": 5})
        hub.admin.desired(device=name, desired={"period": None, "other": [1, 2]})
        assert client.heard(client.patches) == {"period": 5, "$version": 2}
        assert client.heard(client.patches) == {"period": None, "other": [1, 2], "$version": 3}
        assert client.sdk.get_twin()["desired"] == {"other": [1, 2], "$version": 3}


def test_a_method_is_answered(hub: Emulator, name: str) -> None:
    with device(hub.add_device(name), hub.ca_pem) as client:
        client.sdk.connect()
        client.answer_methods(status=207)
        answer = hub.admin.method(device=name, name="ping", payload={"n": [1, None]}, response_s=20)
        assert answer == {"status": 207, "payload": {"echo": {"n": [1, None]}}}
        assert client.heard(client.calls).name == "ping"


def test_a_method_of_a_device_that_is_not_there_is_refused(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    with pytest.raises(HubError) as refused:
        hub.admin.method(device=name, name="ping")
    assert refused.value.code == 404103


def test_a_method_that_nobody_answers_ends_in_time(hub: Emulator, name: str) -> None:
    with device(hub.add_device(name), hub.ca_pem) as client:
        client.sdk.connect()
        client.sdk.on_method_request_received = client.calls.put
        with pytest.raises(HubError) as refused:
            hub.admin.method(device=name, name="ping", response_s=0.3)
        assert refused.value.code == 504101


def test_messages_to_a_device_wait_for_it_and_go_once(hub: Emulator, name: str) -> None:
    connection_string = hub.add_device(name)
    hub.admin.c2d(device=name, text="first", properties={"kind": "ack"}, system={"$.mid": "7"})
    with device(connection_string, hub.ca_pem) as client:
        client.sdk.connect()
        client.hear_messages()
        first = client.heard(client.messages)
        assert (first.data, first.custom_properties, first.message_id) == (b"first", {"kind": "ack"}, "7")
        hub.admin.c2d(device=name, base64="AAH/")
        assert client.heard(client.messages).data == b"\x00\x01\xff"
        assert wait_until(lambda: hub.admin.twin(device=name)["cloudToDeviceMessageCount"] == 0, WAIT_S)
        assert client.messages.empty()


def test_no_more_than_fifty_messages_wait(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    for number in range(50):
        hub.admin.c2d(device=name, text=str(number))
    with pytest.raises(HubError) as refused:
        hub.admin.c2d(device=name, text="one more")
    assert refused.value.status == 403


def test_a_second_connection_takes_over_from_the_first(hub: Emulator, name: str) -> None:
    connection_string = hub.add_device(name)
    with device(connection_string, hub.ca_pem, connection_retry=False) as first:
        first.sdk.connect()
        first.until_state(True)
        with device(connection_string, hub.ca_pem) as second:
            second.sdk.connect()
            first.until_state(False)
            assert second.sdk.connected
            second.sdk.send_message("from the second")


def test_the_administration_speaks_http(hub: Emulator, name: str) -> None:
    context = client_context(hub.ca_file)

    def order(verb: str, path: str, document: Any = None) -> Any:
        data = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(f"{hub.url}/admin/{path}", data, method=verb)
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            return json.load(answer)

    made = order("POST", "devices", {"device": name})
    assert made["connection_string"].startswith(f"HostName={hub.host};DeviceId={name};SharedAccessKey=")
    assert order("POST", "desired", {"device": name, "desired": {"a": 1}}) == {"version": 2}
    assert order("GET", f"twin?device={name}")["properties"]["desired"]["a"] == 1
    assert order("POST", "faults", {"kind": "drop", "operation": "d2c", "device": "nobody"})["faults"]
    assert order("DELETE", "faults")["faults"] == []
    assert order("GET", "state")["host"] == hub.host
    with pytest.raises(urllib.error.HTTPError) as refused:
        order("POST", "c2d", {"device": "nobody", "text": "x"})
    with refused.value as answer:
        assert (answer.code, json.load(answer)["error"]["name"]) == (404, "DeviceNotFound")
