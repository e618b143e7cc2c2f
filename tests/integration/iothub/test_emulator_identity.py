"""Microsoft's device SDK proves to the emulator who it is, in every way that it knows, or is refused."""

from __future__ import annotations

import base64
import threading
import time
from pathlib import Path

import pytest
from azure.iot.device.exceptions import ClientError, CredentialError
from azure.iot.device.provisioning.pipeline import constant

from device_sim.iothub import codec, tls
from device_sim.iothub.dps import derived_key
from device_sim.iothub.running import Emulator
from edge_contract.hub import HubAddress
from edge_contract.jsonio import JsonObject
from tests.integration.iothub.clients import (
    WAIT_S,
    X509,
    IoTHubDeviceClient,
    IoTHubModuleClient,
    ProvisioningDeviceClient,
    closing,
    device,
    module,
)
from tests.integration.iothub.raw import RawClient
from tests.support.iothub import SDK_LEAKS, running_hub

_OTHER_KEY = base64.b64encode(b"k" * 32).decode()


def test_a_device_connects_by_its_symmetric_key(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    sdk = IoTHubDeviceClient.create_from_symmetric_key(
        hub.key(name), hub.host, name, server_verification_cert=hub.ca_pem
    )
    with closing(sdk) as client:
        client.sdk.connect()
        assert client.sdk.connected


def test_the_secondary_key_is_as_good(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    key = hub.call(lambda: hub.hub.identity(HubAddress(name)).authentication.secondary)
    sdk = IoTHubDeviceClient.create_from_symmetric_key(key, hub.host, name, server_verification_cert=hub.ca_pem)
    with closing(sdk) as client:
        client.sdk.connect()
        assert client.sdk.connected


@pytest.mark.parametrize("why", ["another key", "not registered", "disabled", "another device's token"])
def test_who_cannot_prove_it_is_refused(hub: Emulator, name: str, why: str) -> None:
    connection_string = hub.add_device(name)
    if why == "another key":
        connection_string = f"HostName={hub.host};DeviceId={name};SharedAccessKey={_OTHER_KEY}"
    elif why == "not registered":
        hub.admin.remove(device=name)
    elif why == "disabled":
        hub.call(lambda: hub.hub.update(HubAddress(name), {"status": "disabled"}))
    else:
        hub.add_device(f"{name}-2")
        connection_string = connection_string.replace(f"DeviceId={name}", f"DeviceId={name}-2")
    with device(connection_string, hub.ca_pem, connection_retry=False) as client, pytest.raises(CredentialError):
        client.sdk.connect()


# The SDK leaves the socket of a handshake that failed to the garbage collector.
@pytest.mark.filterwarnings(SDK_LEAKS)
def test_a_client_that_trusts_others_does_not_connect(hub: Emulator, name: str) -> None:
    other, _key = tls.self_signed("somebody")
    with device(hub.add_device(name), other, connection_retry=False) as client, pytest.raises(ClientError):
        client.sdk.connect()


def test_a_token_that_has_expired_is_refused(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    with RawClient(hub) as client:
        assert client.connect(name, client.token(name, int(time.time()) - 1)) == codec.REFUSED_UNAUTHORIZED


def test_a_token_that_expires_ends_its_connection(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    with RawClient(hub) as client:
        assert client.connect(name, client.token(name, int(time.time()) + 2)) == codec.ACCEPTED
        assert client.receive() == (0, b"")


def test_a_device_connects_by_a_certificate_that_it_made_itself(hub: Emulator, name: str, tmp_path: Path) -> None:
    certificate, key = tls.self_signed(name)
    hub.add_device(name, certificate=certificate)
    with closing(_by_certificate(hub, name, tmp_path, certificate, key)) as client:
        client.sdk.connect()
        client.sdk.send_message("x")
        assert client.sdk.connected


def test_another_certificate_than_the_one_that_was_told_is_refused(hub: Emulator, name: str, tmp_path: Path) -> None:
    hub.add_device(name, certificate=tls.self_signed(name)[0])
    certificate, key = hub.authority.client(name)
    sdk = _by_certificate(hub, name, tmp_path, certificate, key)
    with closing(sdk) as client, pytest.raises(CredentialError):
        client.sdk.connect()


def test_a_device_connects_by_a_certificate_of_a_trusted_authority(hub: Emulator, name: str, tmp_path: Path) -> None:
    hub.add_device(name, authority=True)
    with closing(_by_certificate(hub, name, tmp_path, *hub.authority.client(name))) as client:
        client.sdk.connect()
        assert client.sdk.connected
    other = _by_certificate(hub, name, tmp_path, *hub.authority.client("somebody-else"))
    with closing(other) as client, pytest.raises(CredentialError):
        client.sdk.connect()


def _files(certificate: Path, key: Path) -> X509:
    return X509(str(certificate), str(key))  # type: ignore[no-untyped-call]


def _by_certificate(hub: Emulator, name: str, folder: Path, certificate: str, key: str) -> IoTHubDeviceClient:
    files = folder / f"{name}.pem", folder / f"{name}.key"
    files[0].write_text(certificate)
    files[1].write_text(key)
    made: IoTHubDeviceClient = IoTHubDeviceClient.create_from_x509_certificate(
        _files(files[0], files[1]),
        hub.host,
        name,
        server_verification_cert=hub.ca_pem,
        connection_retry=False,
    )
    return made


def test_a_module_connects_with_a_key_of_its_own(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    with module(hub.add_module(name, "models"), hub.ca_pem) as client:
        client.sdk.connect()
        assert hub.admin.twin(device=name, module="models")["connectionState"] == "Connected"
        assert hub.admin.twin(device=name)["connectionState"] == "Disconnected"


def test_the_key_of_its_device_does_not_do_for_a_module(hub: Emulator, name: str) -> None:
    hub.add_device(name)
    hub.add_module(name, "models")
    text = f"HostName={hub.host};DeviceId={name};ModuleId=models;SharedAccessKey={hub.key(name)}"
    sdk = IoTHubModuleClient.create_from_connection_string(
        text, server_verification_cert=hub.ca_pem, connection_retry=False
    )
    with closing(sdk) as client, pytest.raises(CredentialError):
        client.sdk.connect()


def test_a_hub_with_a_name_of_its_own_is_reached_through_a_gateway(name: str) -> None:
    with running_hub(name="plant.example") as other:
        connection_string = other.add_device(name)
        assert "HostName=plant.example" in connection_string
        assert f"GatewayHostName={other.host}" in connection_string
        with device(connection_string, other.ca_pem) as client:
            client.sdk.connect()
            assert client.sdk.connected


# Provisioning


@pytest.fixture(autouse=True)
def _polls_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK waits two seconds before it asks whether a device is assigned."""
    monkeypatch.setattr(constant, "DEFAULT_POLLING_INTERVAL", 0.05)


def _symmetric() -> JsonObject:
    return {"attestation": {"type": "symmetricKey"}}


def _register(hub: Emulator, name: str, key: str) -> ProvisioningDeviceClient:
    made: ProvisioningDeviceClient = ProvisioningDeviceClient.create_from_symmetric_key(
        provisioning_host=hub.host,
        registration_id=name,
        id_scope=hub.dps.scope,
        symmetric_key=key,
        server_verification_cert=hub.ca_pem,
    )
    return made


def test_a_device_is_provisioned_by_an_enrolment_of_its_own(hub: Emulator, name: str) -> None:
    twin = {"tags": {"site": "north"}, "properties": {"desired": {"period": 5}}}
    enrolment = hub.add_enrolment(name, {**_symmetric(), "deviceId": f"{name}-device", "initialTwin": twin})
    key = enrolment["attestation"]["symmetricKey"]["primaryKey"]
    client = _register(hub, name, key)
    client.provisioning_payload = {"model": "M1"}
    result = client.register()
    state = result.registration_state
    assert state is not None
    assert (result.status, state.assigned_hub, state.device_id) == ("assigned", hub.host, f"{name}-device")
    assert hub.admin.twin(device=f"{name}-device")["tags"] == {"site": "north"}
    sdk = IoTHubDeviceClient.create_from_symmetric_key(
        key, hub.host, f"{name}-device", server_verification_cert=hub.ca_pem
    )
    with closing(sdk) as device_client:
        assert device_client.sdk.get_twin()["desired"] == {"period": 5, "$version": 2}


def test_a_device_is_provisioned_by_a_group_with_a_key_derived_from_its(hub: Emulator, name: str) -> None:
    hub.add_enrolment("plant", _symmetric(), kind="group")
    key = derived_key(hub.group_key("plant"), name)
    state = _register(hub, name, key).register().registration_state
    assert state is not None
    assert state.device_id == name
    with device(f"HostName={hub.host};DeviceId={name};SharedAccessKey={key}", hub.ca_pem) as client:
        client.sdk.connect()
        assert client.sdk.connected


@pytest.mark.parametrize("kind", ["single", "group"])
def test_a_device_is_provisioned_by_its_certificate(hub: Emulator, name: str, tmp_path: Path, kind: str) -> None:
    certificate, key = hub.authority.client(name) if kind == "group" else tls.self_signed(name)
    shown = hub.ca_pem if kind == "group" else certificate
    slot = "signingCertificates" if kind == "group" else "clientCertificates"
    x509: JsonObject = {"type": "x509", "x509": {slot: {"primary": {"certificate": shown}}}}
    hub.add_enrolment(f"x-{name}" if kind == "group" else name, {"attestation": x509}, kind=kind)
    files = tmp_path / "device.pem", tmp_path / "device.key"
    files[0].write_text(certificate)
    files[1].write_text(key)
    result = ProvisioningDeviceClient.create_from_x509_certificate(
        provisioning_host=hub.host,
        registration_id=name,
        id_scope=hub.dps.scope,
        x509=_files(files[0], files[1]),
        server_verification_cert=hub.ca_pem,
    ).register()
    assert result.status == "assigned"
    with closing(_by_certificate(hub, name, tmp_path, certificate, key)) as client:
        client.sdk.connect()
        assert client.sdk.connected


def test_a_device_that_no_enrolment_knows_is_refused(hub: Emulator, name: str) -> None:
    with pytest.raises(CredentialError):
        _register(hub, name, _OTHER_KEY).register()


def test_a_disabled_enrolment_assigns_nothing(hub: Emulator, name: str) -> None:
    made = hub.add_enrolment(name, {**_symmetric(), "provisioningStatus": "disabled"})
    client = _register(hub, name, made["attestation"]["symmetricKey"]["primaryKey"])
    with pytest.raises(ClientError) as refused:
        client.register()
    assert "invalid registration status disabled" in str(refused.value.__cause__)
    # The SDK stays connected then, and has no word to make it leave.
    is_down = threading.Event()
    client._pipeline.shutdown(callback=lambda error=None: is_down.set())  # type: ignore[no-untyped-call]
    assert is_down.wait(WAIT_S)


def test_a_device_hears_assigning_while_it_is_assigned(hub: Emulator, name: str) -> None:
    made = hub.add_enrolment(name, _symmetric())
    hub.call(lambda: setattr(hub.dps, "polls", 1))
    try:
        result = _register(hub, name, made["attestation"]["symmetricKey"]["primaryKey"]).register()
    finally:
        hub.call(lambda: setattr(hub.dps, "polls", 0))
    assert result.status == "assigned"


def test_provisioning_that_is_throttled_is_tried_again(hub: Emulator, name: str) -> None:
    made = hub.add_enrolment(name, _symmetric())
    hub.admin.fault(kind="throttle", operation="dps", device=name)
    result = _register(hub, name, made["attestation"]["symmetricKey"]["primaryKey"]).register()
    assert result.status == "assigned"
