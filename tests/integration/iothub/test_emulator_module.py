"""Microsoft's module client against the emulator: inputs, outputs and the routes between them."""

from __future__ import annotations

from device_sim.iothub.running import Emulator
from tests.integration.iothub.clients import WAIT_S, message, module
from tests.support.net import wait_until


def test_a_module_hears_its_inputs(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    with module(hub.add_module(name, "models"), hub.ca_pem) as client:
        client.sdk.connect()
        client.hear_messages()
        hub.admin.input(device=name, module="models", input="images", base64="/9g=", properties={"camera": "left"})
        got = client.heard(client.messages)
        assert (got.input_name, got.data, got.custom_properties) == ("images", b"\xff\xd8", {"camera": "left"})


def test_a_message_waits_for_a_module_that_is_away(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    connection_string = hub.add_module(name, "models")
    hub.admin.input(device=name, module="models", input="images", text="early")
    with module(connection_string, hub.ca_pem) as client:
        client.sdk.connect()
        client.hear_messages()
        assert client.heard(client.messages).data == b"early"


def test_an_output_goes_upstream_where_no_route_says_otherwise(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    hub.admin.drain_telemetry()
    with module(hub.add_module(name, "models"), hub.ca_pem) as client:
        client.sdk.send_message_to_output(message("7", kind="prediction"), "digits")
        client.sdk.send_message(message("plain"))
    first, second = hub.admin.drain_telemetry()
    assert (first["module"], first["system"]["output-name"], first["properties"]) == (
        "models",
        "digits",
        {"kind": "prediction"},
    )
    assert (second["text"], second["system"]) == ("plain", {})


def test_a_route_leads_from_an_output_to_an_input(hub: Emulator, name: str) -> None:
    hub.add_device(name, edge=True)
    route = 'FROM /messages/modules/camera/outputs/images INTO BrokeredEndpoint("/modules/models/inputs/digits")'
    hub.admin.desired(device=name, module="$edgeHub", desired={"routes": {"r": route}})
    hub.admin.drain_telemetry()
    camera, models = hub.add_module(name, "camera"), hub.add_module(name, "models")
    with module(camera, hub.ca_pem) as sender, module(models, hub.ca_pem) as receiver:
        receiver.sdk.connect()
        receiver.hear_messages()
        sender.sdk.send_message_to_output(message("image", exposure="3"), "images")
        sender.sdk.send_message_to_output(message("lost"), "elsewhere")
        got = receiver.heard(receiver.messages)
        assert (got.data, got.input_name) == (b"image", "digits")
        assert got.custom_properties["exposure"] == "3"
    assert hub.admin.drain_telemetry() == []


def test_a_module_has_a_twin_and_methods(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    with module(hub.add_module(name, "models"), hub.ca_pem) as client:
        client.sdk.connect()
        client.hear_patches()
        client.answer_methods()
        hub.admin.desired(device=name, module="models", desired={"lighterman": {"director_version": 3}})
        assert client.heard(client.patches)["lighterman"] == {"director_version": 3}
        client.sdk.patch_twin_reported_properties({"lighterman": {"live": True}})
        assert hub.admin.twin(device=name, module="models")["properties"]["reported"]["lighterman"] == {"live": True}
        assert hub.admin.twin(device=name)["properties"]["reported"]["$version"] == 1
        assert hub.admin.method(device=name, module="models", name="ping", response_s=20)["status"] == 200


def test_who_sees_the_module_is_connected(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    with module(hub.add_module(name, "models"), hub.ca_pem) as client:
        client.sdk.connect()
        assert f"{name}/models" in hub.admin.state()["connected"]
    assert wait_until(lambda: f"{name}/models" not in hub.admin.state()["connected"], WAIT_S)
