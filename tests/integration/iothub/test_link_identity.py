"""The agent's link proves who it is in every way that a configuration may name, with Microsoft's SDK."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from azure.iot.device.provisioning.pipeline import constant

from device_sim.iothub import tls
from device_sim.iothub.running import Emulator
from edge_agent.config import IotHubConfig, ProvisioningConfig
from edge_agent.link.iothub import IotHubLink
from edge_agent.link.iothub_keys import derived_key
from edge_agent.link.iothub_sdk import AzureSdk
from edge_agent.ports import LinkInput
from edge_contract.errors import EdgeError
from tests.support.iothub import SDK_LEAKS
from tests.support.net import wait_until

pytestmark = [pytest.mark.system, pytest.mark.filterwarnings(SDK_LEAKS)]
_WAIT_S = 30.0


@pytest.fixture(autouse=True)
def _polls_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK waits two seconds before it asks whether a device is assigned."""
    monkeypatch.setattr(constant, "DEFAULT_POLLING_INTERVAL", 0.05)


@pytest.fixture
def ca(hub: Emulator, tmp_path: Path) -> Path:
    return kept(tmp_path / "ca.pem", hub.ca_pem)


def kept(file: Path, text: str) -> Path:
    file.write_text(text)
    file.chmod(0o600)
    return file


@contextmanager
def online(config: IotHubConfig, device: str, data: Path | None = None) -> Iterator[IotHubLink]:
    """A link that is up."""
    link = IotHubLink(AzureSdk(config, device, data), retry_ms_first=50, retry_ms_max=200)
    is_up = threading.Event()
    link.start(lambda _version: None, lambda _ack: None, lambda is_online: is_up.set() if is_online else None)
    try:
        assert is_up.wait(_WAIT_S), link.error
        yield link
    finally:
        link.stop()


def came(hub: Emulator, device: str, text: str) -> bool:
    """Whether the hub has this message of this device."""
    return any((event["device"], event.get("text")) == (device, text) for event in hub.admin.drain_telemetry())


def sends(hub: Emulator, link: IotHubLink, device: str) -> None:
    """Send something through, and see it arrive under the right name."""
    assert link.send_batch(b"hello")
    wait_until(lambda: came(hub, device, "hello"), _WAIT_S)


def test_by_a_symmetric_key(hub: Emulator, name: str, ca: Path, tmp_path: Path) -> None:
    hub.add_device(name)
    config = IotHubConfig(ca=ca, host=hub.host, key_file=kept(tmp_path / "key", f"{hub.key(name)}\n"))
    with online(config, name) as link:
        sends(hub, link, name)


@pytest.mark.parametrize("kind", ["self-signed", "of an authority"])
def test_by_a_certificate(hub: Emulator, name: str, ca: Path, tmp_path: Path, kind: str) -> None:
    if kind == "self-signed":
        certificate, key = tls.self_signed(name)
        hub.add_device(name, certificate=certificate)
    else:
        certificate, key = hub.authority.client(name)
        hub.add_device(name, authority=True)
    config = IotHubConfig(
        ca=ca,
        host=hub.host,
        device=name,
        certificate=kept(tmp_path / "device.pem", certificate),
        certificate_key=kept(tmp_path / "device.key", key),
    )
    with online(config, "another-name") as link:
        sends(hub, link, name)


def test_as_a_module_with_a_connection_string(hub: Emulator, name: str, ca: Path, tmp_path: Path) -> None:
    hub.add_device(name)
    config = IotHubConfig(kept(tmp_path / "hub", hub.add_module(name, "models")), ca)
    heard: list[LinkInput] = []
    link = IotHubLink(AzureSdk(config, name), retry_ms_first=50, retry_ms_max=200)
    link.listen(heard.append)
    is_up = threading.Event()
    link.start(lambda _version: None, lambda _ack: None, lambda is_online: is_up.set() if is_online else None)
    try:
        assert is_up.wait(_WAIT_S)
        hub.admin.input(device=name, module="models", input="digits", text="{}", properties={"camera": "7"})
        wait_until(lambda: heard, _WAIT_S)
        assert (heard[0].name, heard[0].content, heard[0].properties) == ("digits", b"{}", {"camera": "7"})
        assert link.send_output("digits", b"answer", {"a": "b"}, "application/json")
        wait_until(lambda: came(hub, name, "answer"), _WAIT_S)
    finally:
        link.stop()


def test_by_the_provisioning_service_and_its_answer_is_remembered(
    hub: Emulator, name: str, ca: Path, tmp_path: Path
) -> None:
    enrolment = hub.add_enrolment(name, {"attestation": {"type": "symmetricKey"}, "deviceId": f"{name}-device"})
    key = kept(tmp_path / "key", enrolment["attestation"]["symmetricKey"]["primaryKey"])
    config = IotHubConfig(ca=ca, key_file=key, provisioning=ProvisioningConfig(hub.dps.scope, name, hub.host))
    with online(config, "dev-1", tmp_path) as link:
        sends(hub, link, f"{name}-device")
    # Nobody asks again while the answer is good.
    hub.admin.fault(kind="refuse", operation="dps", device=name, code=5, count=100)
    with online(config, "dev-1", tmp_path) as link:
        sends(hub, link, f"{name}-device")


def test_by_the_provisioning_service_with_the_key_of_a_group(
    hub: Emulator, name: str, ca: Path, tmp_path: Path
) -> None:
    hub.add_enrolment(f"g-{name}", {"attestation": {"type": "symmetricKey"}}, kind="group")
    group = kept(tmp_path / "group", hub.group_key(f"g-{name}"))
    asked = ProvisioningConfig(hub.dps.scope, "", hub.host, group_key_file=group)
    with online(IotHubConfig(ca=ca, provisioning=asked), name, tmp_path) as link:
        sends(hub, link, name)
    own = kept(tmp_path / "own", derived_key(hub.group_key(f"g-{name}"), name))
    asked = ProvisioningConfig(hub.dps.scope, name, hub.host)
    with online(IotHubConfig(ca=ca, key_file=own, provisioning=asked), name) as link:
        sends(hub, link, name)


def test_by_the_provisioning_service_with_a_certificate(hub: Emulator, name: str, ca: Path, tmp_path: Path) -> None:
    certificate, key = tls.self_signed(name)
    x509 = {"type": "x509", "x509": {"clientCertificates": {"primary": {"certificate": certificate}}}}
    hub.add_enrolment(name, {"attestation": x509})
    config = IotHubConfig(
        ca=ca,
        certificate=kept(tmp_path / "device.pem", certificate),
        certificate_key=kept(tmp_path / "device.key", key),
        provisioning=ProvisioningConfig(hub.dps.scope, host=hub.host),
    )
    with online(config, name, tmp_path) as link:
        sends(hub, link, name)


def test_an_assignment_that_the_hub_does_not_know_any_more_is_asked_for_again(
    hub: Emulator, name: str, ca: Path, tmp_path: Path
) -> None:
    enrolment = hub.add_enrolment(name, {"attestation": {"type": "symmetricKey"}})
    key = kept(tmp_path / "key", enrolment["attestation"]["symmetricKey"]["primaryKey"])
    config = IotHubConfig(ca=ca, key_file=key, provisioning=ProvisioningConfig(hub.dps.scope, name, hub.host))
    with online(config, name, tmp_path):
        pass
    hub.admin.remove(device=name)
    with online(config, name, tmp_path) as link:
        sends(hub, link, name)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (IotHubConfig(Path("/absent")), "/absent cannot be read"),
        (IotHubConfig(host="h", key_file=Path("/absent")), "/absent cannot be read"),
        (
            IotHubConfig(host="h", certificate=Path("/absent"), certificate_key=Path("/absent")),
            "/absent cannot be read",
        ),
        (IotHubConfig(is_edge=True), "not started by IoT Edge"),
    ],
)
def test_an_identity_that_is_not_there_is_told_by_its_name(config: IotHubConfig, said: str) -> None:
    with pytest.raises(EdgeError, match=said) as caught:
        AzureSdk(config, "dev-1").client()
    assert caught.value.code.startswith("config.")


def test_a_secret_that_is_none_is_not_shown(tmp_path: Path) -> None:
    config = IotHubConfig(kept(tmp_path / "hub", "HostName=h;DeviceId=d;SharedAccessKey=not base64 s3cret"))
    with pytest.raises(EdgeError) as caught:
        AzureSdk(config, "dev-1").client()
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
