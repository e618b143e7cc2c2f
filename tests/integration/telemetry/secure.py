"""A real broker as `broker-config` writes it, with the certificates of devices and cloud."""

from __future__ import annotations

import contextlib
import os
import pwd
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from paho.mqtt.enums import MQTTProtocolVersion

from cloud_registry.adapters.pki import LocalAuthority
from cloud_registry.assembly import SystemClock
from cloud_registry.broker import BrokerFiles, BrokerPlan, write_broker_config
from cloud_registry.config import MqttConfig, load_config
from tests.integration.telemetry.parts import Peer
from tests.support.devicekey import TestKey
from tests.support.net import LOOPBACK, free_low_port, is_listening, wait_until
from tests.support.processes import Child, start_process
from tests.support.require import require_program

V5, V311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
UNTIL_MS = 4_000_000_000_000
_STARTS_MAX = 5


@dataclass
class SecureBroker:
    """A broker with its configuration, its authority, and the certificates of some devices."""

    folder: Path
    authority: LocalAuthority
    files: BrokerFiles
    device_port: int
    cloud_port: int
    child: Child | None = field(default=None, repr=False)

    def start(self) -> bool:
        """Start it; false if somebody took one of its ports."""
        program = require_program("mosquitto")
        child = start_process([program, "-c", self.files.config], log_path=self.folder / "mosquitto.log")
        self.child = child
        ports = (self.device_port, self.cloud_port)
        wait_until(lambda: not child.is_running or all(is_listening(port) for port in ports), 10, what="mosquitto")
        return child.is_running

    def stop(self) -> None:
        """End it."""
        if self.child is not None:
            self.child.stop()
            self.child = None

    def tls(self, name: str, signer: LocalAuthority | None = None) -> ssl.SSLContext:
        """The context of a device with a certificate of its own, as enrolment gives it."""
        key = TestKey.make()
        return self.tls_with(key, (signer or self.authority).issue(name, key.csr(), UNTIL_MS))

    def tls_with(self, key: TestKey, certificate: str) -> ssl.SSLContext:
        """The context of whoever holds this key and certificate."""
        path = self.folder / f"{key.public.keyid}.pem"
        path.write_bytes(key.pem + certificate.encode())
        context = ssl.create_default_context(cafile=str(self.files.ca))
        context.load_cert_chain(path)
        return context

    def cloud_config(self, identity: str = "registry") -> MqttConfig:
        """How a part of the cloud connects; the registry's is read from what was written for it."""
        config = load_config(self.files.registry_config, environ={}).mqtt
        folder = self.files.config.parent / "cloud"
        return replace(config, tls_cert=folder / f"{identity}.crt", tls_key=folder / f"{identity}.key")

    def cloud_tls(self, identity: str) -> ssl.SSLContext:
        """The context of a part of the cloud."""
        context = ssl.create_default_context(cafile=str(self.files.ca))
        folder = self.files.config.parent / "cloud"
        context.load_cert_chain(folder / f"{identity}.crt", folder / f"{identity}.key")
        return context


@contextlib.contextmanager
def device_peer(secure: SecureBroker, name: str, protocol: MQTTProtocolVersion = V311) -> Iterator[Peer]:
    """A device's connection."""
    peer = Peer(secure.device_port, name, tls=secure.tls(name), protocol=protocol)
    try:
        yield peer
    finally:
        peer.close()


@contextlib.contextmanager
def cloud_peer(secure: SecureBroker, identity: str) -> Iterator[Peer]:
    """A connection of a part of the cloud."""
    peer = Peer(secure.cloud_port, f"test-{identity}", tls=secure.cloud_tls(identity), protocol=V5)
    try:
        yield peer
    finally:
        peer.close()


@contextlib.contextmanager
def running_broker(folder: Path) -> Iterator[SecureBroker]:
    """A running broker that lets identities d1 and d2 in."""
    require_program("mosquitto")
    authority = LocalAuthority(folder / "data" / "pki", SystemClock())
    user = pwd.getpwuid(os.geteuid()).pw_name
    for attempt in range(_STARTS_MAX):
        ports = free_low_port(), free_low_port()
        plan = BrokerPlan([LOOPBACK, "localhost"], ports[0], LOOPBACK, ports[1], LOOPBACK, user=user)
        files = write_broker_config(folder / f"broker-{attempt}", authority, plan, {"d1": "d1", "d2": "d2"})
        made = SecureBroker(folder, authority, files, *ports)
        if made.start():
            break
        made.stop()
    else:
        raise AssertionError((folder / "mosquitto.log").read_text()[-2_000:])
    try:
        yield made
    finally:
        made.stop()
