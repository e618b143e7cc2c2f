"""The cloud's side as an operator would set it up, with one thing wrong: somebody else owns the broker too.

mosquitto runs with the configuration of `cloud-registry broker-config`: TLS, a certificate for everybody, rights by
name. Beside the cloud's own identities there is `cloud:eve`, who may read and write everything there is.
"""

from __future__ import annotations

import json
import os
import pwd
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cloud_registry.adapters.pki import LocalAuthority
from cloud_registry.assembly import SystemClock
from tests.attacks.keys import StolenKeys
from tests.e2e.stack import Stack
from tests.support.mosquitto import MosquittoBroker
from tests.support.mqttpeer import MqttPeer
from tests.support.net import LOOPBACK, free_low_port, is_listening, wait_until
from tests.support.processes import start_process
from tests.support.require import require_program

EVE = "cloud:eve"
_EVERYTHING = ("publishClientSend", "publishClientReceive", "subscribePattern", "unsubscribePattern")
_STARTS_MAX = 5
_START_S = 10.0


@dataclass
class SecureBroker(MosquittoBroker):
    """mosquitto with the product's own configuration. `port` is where the cloud connects."""

    device_port: int = 0

    @property
    def config(self) -> Path:
        """Folder of what `broker-config` wrote."""
        return self.directory / "secure"

    def start(self) -> None:
        """Start it on the ports it is configured for."""
        program = require_program("mosquitto")
        child = start_process([program, "-c", self.config / "mosquitto.conf"], log_path=self.log_path)
        ports = (self.port, self.device_port)
        try:
            wait_until(
                lambda: not child.is_running or all(is_listening(port) for port in ports), _START_S, what="mosquitto"
            )
            assert child.is_running, child.tail()
        except BaseException:
            child.stop()
            raise
        self.child = child


class Ground(Stack):
    """Registry, broker, keys; and what an attacker may get hold of. Used by one thread."""

    def __init__(self, folder: Path, broker: SecureBroker) -> None:
        """Use an empty folder and a broker that is not configured yet."""
        super().__init__(folder, broker)
        self.secure = broker
        self.stolen = StolenKeys(lambda: (folder / "keys", self.data / "keys"), lambda: self.passphrase)

    def set_up_broker(self) -> None:
        """Write the broker's configuration, let Eve in, start it."""
        for attempt in range(_STARTS_MAX):
            self.secure.port, self.secure.device_port = free_low_port(), free_low_port()
            self._configure_broker()
            try:
                self.secure.start()
            except AssertionError:
                # Somebody may have taken a port since we looked.
                if attempt == _STARTS_MAX - 1:
                    raise
            else:
                return

    def broker_options(self) -> list[str]:
        """See `Stack.broker_options`: what `broker-config` wrote for the registry."""
        return ["--config", str(self.secure.config / "cloud-registry.toml")]

    def tls(self, certificate: Path, key: Path) -> ssl.SSLContext:
        """TLS towards the broker with somebody's certificate."""
        context = ssl.create_default_context(cafile=str(self.secure.config / "ca.crt"))
        context.load_cert_chain(certificate, key)
        return context

    @contextmanager
    def eve(self) -> Iterator[MqttPeer]:
        """Eve's connection to the broker, over which she hears and says what she likes."""
        folder = self.secure.config / "eve"
        peer = MqttPeer(self.secure.port, self.tls(folder / "eve.crt", folder / "eve.key"))
        try:
            yield peer
        finally:
            peer.close()

    def _configure_broker(self) -> None:
        self.secure.directory.mkdir(exist_ok=True)
        done = self.run(
            "cloud-registry", "broker-config", str(self.secure.config), "--data-dir", str(self.data),
            "--name", LOOPBACK, "--device-port", str(self.secure.device_port), "--device-bind", LOOPBACK,
            "--cloud-port", str(self.secure.port), "--cloud-bind", LOOPBACK,
            "--user", pwd.getpwuid(os.geteuid()).pw_name, "--json",
        )  # fmt: skip
        assert done.exit_code == 0, done.stdout + done.stderr
        key, certificate = LocalAuthority(self.data / "pki", SystemClock()).issue_service(EVE)
        folder = self.secure.config / "eve"
        folder.mkdir(exist_ok=True)
        (folder / "eve.key").write_text(key)
        (folder / "eve.crt").write_text(certificate)
        path = self.secure.config / "state" / "dynamic-security.json"
        roster = json.loads(path.read_text())
        if all(client["username"] != EVE for client in roster["clients"]):
            acls = [{"acltype": kind, "topic": "#", "priority": 0, "allow": True} for kind in _EVERYTHING]
            roster["roles"].append({"rolename": EVE, "acls": acls})
            roster["clients"].append({"username": EVE, "roles": [{"rolename": EVE}]})
            path.write_text(json.dumps(roster))


@contextmanager
def running_ground(folder: Path) -> Iterator[Ground]:
    """The ground for the length of a block; skips where mosquitto is not installed."""
    require_program("mosquitto")
    with ExitStack() as parts:
        ground = Ground(folder, SecureBroker(folder / "broker"))
        ground.set_up_broker()
        parts.callback(ground.secure.stop)
        for attempt in range(_STARTS_MAX):
            try:
                ground.start_registry()
                break
            except AssertionError:
                if attempt == _STARTS_MAX - 1:
                    raise
                ground.port = free_low_port()
        parts.callback(ground.stop_registry)
        parts.enter_context(ground.ending_devices())
        ground.set_up()
        yield ground
