"""One registry, one deployment, a device on MQTT and a device on Azure IoT Hub: the same happens on both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from device_sim.iothub.running import Emulator
from edge_contract.hub import TWIN_KEY, join_report
from edge_contract.signed import Envelope
from edge_contract.telemetry import Batch, Sample
from edge_contract.twin import Report
from tests.e2e.device import Device
from tests.e2e.stack import Stack
from tests.integration.iothub.clients import device as sdk_device
from tests.integration.iothub.clients import message
from tests.support.iothub import running_hub
from tests.support.mosquitto import mosquitto
from tests.support.net import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.system, pytest.mark.timeout(180)]
_WAIT_S = 60.0


class HubStack(Stack):
    """The cloud's side with a hub beside its broker."""

    hub: Emulator

    def broker_options(self) -> list[str]:
        """The broker as ever, and a configuration that names the hub."""
        service, events = self.folder / "hub-service", self.folder / "hub-events"
        service.write_text(self.hub.service_connection_string)
        events.write_text(self.hub.eventhub_connection_string)
        config = self.folder / "cloud-registry.toml"  # found in the folder that the registry starts in
        config.write_text(
            f'[iothub]\nconnection_string_file = "{service}"\neventhub_connection_string_file = "{events}"\n'
            f'eventhub_address = "{self.hub.eventhub_address}"\nca = "{self.hub.ca_file}"\ntwins_s = 2\n'
            'consumer_group = "lighterman"\n'
        )
        return super().broker_options()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubStack]:
    folder = tmp_path_factory.mktemp("either")
    (folder / "broker").mkdir()
    with running_hub() as hub, mosquitto(folder / "broker") as broker:
        stack = HubStack(folder, broker)
        stack.hub = hub
        stack.start_registry()
        try:
            stack.set_up()
            yield stack
        finally:
            stack.stop_registry()


class HubDevice(Device):
    """A device whose link is Azure IoT Hub."""

    def join(self, hub: Emulator, address: str) -> None:
        """Give it an identity at the hub."""
        secret, ca = self._folder / "hub", self._folder / "hub-ca.pem"
        device, _, module = address.partition("/")
        secret.write_text(hub.add_device(device))
        if module:
            secret.write_text(hub.add_module(device, module))
        secret.chmod(0o600)
        ca.write_text(hub.ca_pem)
        with self.config.open("a") as file:
            file.write(f'[iothub]\nconnection_string_file = "{secret}"\nca = "{ca}"\n')


@contextmanager
def on_the_hub(stack: HubStack, name: str, model: str, address: str) -> Iterator[HubDevice]:
    """An enrolled device on the hub; its tag says so."""
    device = HubDevice(stack.folder / name, name, model)
    device.join(stack.hub, address)
    with stack.client() as client:
        token = client.create_enrolment_token(name, {"iothub": address})["token"]
    enrolled = stack.run(
        "edge-agent", "enroll", "--url", stack.url, "--token-file", "-", "--data", str(device.data), secret_input=token
    )
    assert enrolled.exit_code == 0, enrolled.stderr
    device.start()
    try:
        yield device
    finally:
        device.stop()


def reported(hub: Emulator, address: str) -> dict[str, Any]:
    """What a device's twin says of it."""
    device, _, module = address.partition("/")
    twin = hub.admin.twin(device=device, module=module) if module else hub.admin.twin(device=device)
    said: dict[str, Any] = twin["properties"]["reported"].get(TWIN_KEY, {})
    return said


def test_the_same_deployment_works_over_either_link(both: HubStack) -> None:
    model, address = "adder", "edge-1/models"
    with both.ending_devices(), on_the_hub(both, "on-hub", model, address) as on_hub:
        on_mqtt = both.device("on-mqtt", model)
        on_mqtt.start()
        first = both.ship(model, 1, "on-hub", "on-mqtt")
        for name in ("on-hub", "on-mqtt"):
            both.wait_standing(first, name, "confirmed")
        second = both.ship(model, 2, "on-hub", "on-mqtt")
        for device in (on_hub, on_mqtt):
            both.wait_standing(second, device.name, "confirmed")
            assert device.module()["version"] == 2
        for device in (on_hub, on_mqtt):
            with device.asker() as asker:
                asker.wait_for(2)

        def collected() -> set[str]:
            rows = both.query("SELECT DISTINCT device FROM predictions")
            return {row[0] for row in rows}

        wait_until(lambda: collected() == {"on-hub", "on-mqtt"}, _WAIT_S, what="predictions of both", poll_s=0.3)
        on_hub.wait(lambda: on_hub.status()["spool"]["records"] == 0, "the acknowledgement over the twin")
        wait_until(lambda: reported(both.hub, address).get("modules", {}).get(model, {}).get("version") == 2, _WAIT_S)
        envelope = Envelope.parse(join_report(reported(both.hub, address)["report"]["parts"]))
        assert Report.parse(envelope.payload).device == "on-hub"


def test_an_operator_asks_a_device_through_the_hub(both: HubStack) -> None:
    hub = both.hub
    with on_the_hub(both, "asked", "other", "asked") as device:
        device.wait(lambda: device.status().get("online"), "the link")

        def call(name: str, payload: Any = None) -> tuple[int, Any]:
            answer = hub.admin.method(device="asked", name=name, payload=payload)
            return answer["status"], answer["payload"]

        status, answer = call("ping")
        assert (status, answer["device"]) == (200, "asked")
        assert call("hold")[0] == 200
        assert device.status()["held"] is True
        assert call("resume")[0] == 200
        assert device.status()["held"] is False
        assert call("report")[1]["status"]["device"] == "asked"
        assert call("rollback", {"module": "nothing"})[0] == 400
        logs = call("collect-logs", {"source": "agent"})[1]["logs"]["agent"]
        assert "SharedAccessKey=" not in logs
        hub.admin.desired(device="asked", desired={TWIN_KEY: {"settings": {"report_ms": 1_000, "log_level": "debug"}}})
        wait_until(lambda: reported(hub, "asked").get("settings") == {"report_ms": 1_000, "log_level": "debug"}, 30)


def test_a_message_that_names_another_device_than_the_one_that_sent_it_counts_for_nobody(both: HubStack) -> None:
    hub = both.hub
    before = both.query("SELECT count(*) FROM telemetry")
    forged = Batch("on-hub", "00" * 8, (Sample(1, "event", "", "", 0, None, 0, {}),)).to_bytes()
    with sdk_device(hub.add_device("stranger"), hub.ca_pem) as client:
        client.sdk.connect()
        client.sdk.send_message(message(forged.decode(), kind="batch"))

    def dropped() -> bool:
        return "dropped a message" in (both.folder / "registry.log").read_text()

    wait_until(dropped, _WAIT_S, what="the message to be dropped")
    assert both.query("SELECT count(*) FROM telemetry") == before
