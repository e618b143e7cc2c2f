"""What goes wrong with a hub goes wrong with the emulator, on order; the SDK does what it does with a hub."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

import pytest
from azure.iot.device.exceptions import ClientError, CredentialError

from device_sim.iothub import codec
from device_sim.iothub.identities import HubError
from device_sim.iothub.running import Emulator
from tests.integration.iothub.clients import WAIT_S, Client, device
from tests.integration.iothub.raw import RawClient
from tests.support.iothub import SDK_LEAKS, running_hub
from tests.support.net import wait_until

pytestmark = pytest.mark.filterwarnings(SDK_LEAKS)

_QUICK = {"connection_retry_interval": 1}


def test_subscriptions_outlive_a_dropped_connection(hub: Emulator, name: str) -> None:
    with device(hub.add_device(name), hub.ca_pem, **_QUICK) as client:
        client.sdk.connect()
        client.until_state(True)
        client.hear_patches()
        client.hear_messages()
        client.answer_methods()
        assert hub.admin.disconnect(device=name) == 1
        client.until_state(False)
        client.until_state(True)
        hub.admin.desired(device=name, desired={"a": 1})
        hub.admin.c2d(device=name, text="still there?")
        assert _patch_with(client, "a")["a"] == 1
        assert client.heard(client.messages).data == b"still there?"
        assert hub.admin.method(device=name, name="ping", response_s=20)["status"] == 200


def _patch_with(client: Client, key: str) -> Any:
    while key not in (patch := client.heard(client.patches)):
        pass
    return patch


def test_everything_outlives_the_emulator(tmp_path: Path, name: str) -> None:
    with running_hub(data=tmp_path) as first:
        host = first.host
        connection_string = first.add_device(name)
        with device(connection_string, first.ca_pem) as client:
            client.sdk.connect()
            client.hear_messages()
            client.sdk.patch_twin_reported_properties({"model": "digits"})
            client.sdk.send_message("kept")
        first.admin.desired(device=name, desired={"period": 5})
        first.admin.c2d(device=name, text="waits")
        pem, keys = first.ca_pem, dict(first.hub.policies)
    with Emulator(host, data=tmp_path) as second:
        assert (second.ca_pem, second.hub.policies) == (pem, keys)
        # The raw client never subscribes: the hub remembers what the SDK did.
        with RawClient(second) as client_of_old:
            assert client_of_old.connect_device(name, is_clean=False) == codec.ACCEPTED
            kind, content = client_of_old.receive()
            assert kind & 0xF0 == 0x30
            assert content.endswith(b"waits")
        twin = second.admin.twin(device=name)["properties"]
        assert (twin["desired"]["period"], twin["desired"]["$version"]) == (5, 2)
        assert (twin["reported"]["model"], twin["reported"]["$version"]) == ("digits", 2)
        assert [event.body for event in second.call(lambda: second.hub.telemetry.since(0, 10))] == [b"kept"]


def test_a_message_whose_acknowledgement_is_lost_is_sent_again(hub: Emulator, name: str) -> None:
    hub.admin.drain_telemetry()
    with device(hub.add_device(name), hub.ca_pem, **_QUICK) as client:
        client.sdk.connect()
        hub.admin.fault(kind="lose-puback", operation="d2c", device=name)
        sender = threading.Thread(target=client.sdk.send_message, args=("once or twice",), daemon=True)
        sender.start()
        assert wait_until(lambda: hub.call(lambda: hub.faults.met and hub.hub.telemetry.total), WAIT_S)
        assert wait_until(lambda: hub.call(lambda: not hub.faults.shown()), WAIT_S)
        hub.admin.disconnect(device=name)
        sender.join(WAIT_S)
        assert not sender.is_alive()
    assert [got["text"] for got in hub.admin.drain_telemetry()] == ["once or twice"] * 2


def test_a_hub_that_is_unavailable_is_tried_again(hub: Emulator, name: str) -> None:
    with device(hub.add_device(name), hub.ca_pem, **_QUICK) as client:
        client.sdk.connect()
        client.until_state(True)
        hub.admin.fault(kind="refuse", operation="connect", device=name, code=codec.REFUSED_UNAVAILABLE)
        hub.admin.disconnect(device=name)
        client.until_state(True)
        assert hub.admin.clear_faults()["faults"] == []


def test_the_sdk_stays_away_after_one_refusal(hub: Emulator, name: str) -> None:
    with device(hub.add_device(name), hub.ca_pem, **_QUICK) as client:
        client.sdk.connect()
        errors: list[BaseException] = []
        client.sdk.on_background_exception = errors.append
        hub.admin.fault(kind="refuse", operation="connect", device=name, code=codec.REFUSED_UNAUTHORIZED)
        hub.admin.disconnect(device=name)
        assert wait_until(lambda: any("authorised" in str(error) for error in _causes(errors)), WAIT_S)
        connects = hub.admin.state()["connects"]
        client.sdk.connect()
        assert client.sdk.connected
        assert hub.admin.state()["connects"] == connects + 1


def _causes(errors: list[BaseException]) -> list[BaseException]:
    return [cause for error in list(errors) for cause in (error, error.__cause__) if cause is not None]


def test_a_first_connect_may_be_refused_dropped_or_delayed(hub: Emulator, name: str) -> None:
    connection_string = hub.add_device(name)
    for kind, code in (("refuse", codec.REFUSED_CREDENTIALS), ("throttle", 0), ("drop", 0)):
        hub.admin.fault(kind=kind, operation="connect", device=name, code=code)
        with (
            device(connection_string, hub.ca_pem, connection_retry=False) as client,
            pytest.raises((ClientError, CredentialError)),
        ):
            client.sdk.connect()
    hub.admin.fault(kind="delay", operation="connect", device=name, delay_ms=100)
    with device(connection_string, hub.ca_pem, connection_retry=False) as client:
        client.sdk.connect()
        assert client.sdk.connected


@pytest.mark.parametrize(("kind", "code"), [("throttle", 0), ("refuse", 500)])
def test_twins_may_be_refused(hub: Emulator, name: str, kind: str, code: int) -> None:
    with device(hub.add_device(name), hub.ca_pem) as client:
        client.sdk.get_twin()
        requests = {
            "twin-get": client.sdk.get_twin,
            "reported": functools.partial(client.sdk.patch_twin_reported_properties, {"a": 1}),
        }
        for operation, request in requests.items():
            hub.admin.fault(kind=kind, operation=operation, device=name, code=code)
            with pytest.raises(ClientError) as refused:
                request()
            assert str(code or 429) in str(refused.value.__cause__)
        assert client.sdk.get_twin()["reported"] == {"$version": 1}


def test_a_patch_of_desired_properties_may_be_lost(hub: Emulator, name: str) -> None:
    with device(hub.add_device(name), hub.ca_pem) as client:
        client.sdk.connect()
        client.hear_patches()
        hub.admin.fault(kind="lose", operation="desired", device=name)
        hub.admin.desired(device=name, desired={"a": 1})
        hub.admin.desired(device=name, desired={"b": 1})
        assert client.heard(client.patches) == {"b": 1, "$version": 3}
        assert client.sdk.get_twin()["desired"] == {"a": 1, "b": 1, "$version": 3}


def test_a_method_may_be_refused_lost_or_delayed(hub: Emulator, name: str) -> None:
    with device(hub.add_device(name), hub.ca_pem) as client:
        client.sdk.connect()
        client.answer_methods()
        for kind, code in (("throttle", 429001), ("refuse", 503000), ("lose", 504101)):
            hub.admin.fault(kind=kind, operation="method", device=name, code=code // 1000)
            with pytest.raises(HubError) as refused:
                hub.admin.method(device=name, name="ping", response_s=0.3)
            assert refused.value.code == code
        hub.admin.fault(kind="delay", operation="method", device=name, delay_ms=50)
        assert hub.admin.method(device=name, name="ping", response_s=20)["status"] == 200


def test_faults_meet_only_whom_they_are_for(hub: Emulator, name: str) -> None:
    hub.admin.fault(kind="refuse", operation="twin-get", device="somebody-else", code=500)
    with device(hub.add_device(name), hub.ca_pem) as client:
        assert client.sdk.get_twin()["desired"]["$version"] == 1
    assert len(hub.admin.fault(kind="drop", operation="d2c", device="nobody")["faults"]) == 2


def test_a_hub_of_one_unit_throttles(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    hub.admin.rates(units=1)
    try:
        with RawClient(hub) as client:
            assert client.connect_device(name) == codec.ACCEPTED
            client.subscribe("$iothub/twin/res/#")
            for number in range(200):
                client.publish(f"$iothub/twin/PATCH/properties/reported/?$rid={number}", b"{}", qos=0)
            answers = [client.receive()[1] for _ in range(200)]
        refused = sum(answer[2:].startswith(b"$iothub/twin/res/429/") for answer in answers)
        taken = sum(answer[2:].startswith(b"$iothub/twin/res/204/") for answer in answers)
        assert refused > 0
        assert taken >= 50
        assert refused + taken == 200
    finally:
        hub.admin.rates(units=0)


def test_an_outage_ends_every_connection_and_then_everybody_comes_back(hub: Emulator, name: str) -> None:
    with device(hub.add_device(name), hub.ca_pem, **_QUICK) as client:
        client.sdk.connect()
        client.until_state(True)
        with hub.outage():
            client.until_state(False)
        client.until_state(True)
        client.sdk.send_message("back")


def test_a_client_that_connects_too_often_is_told_of(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    before = hub.admin.state()["storms"]
    for _ in range(11):
        with RawClient(hub) as client:
            assert client.connect_device(name) == codec.ACCEPTED
    assert hub.admin.state()["storms"] == before + 1
