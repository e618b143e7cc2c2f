"""An installation as docs/operations.md has it: https, PostgreSQL, a broker with client certificates, roles."""

import datetime
import ipaddress
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from onnx import TensorProto, helper

from tests.support.net import free_low_port, free_port, is_listening, wait_until
from tests.support.processes import child_process
from tests.support.require import require_program

pytestmark = [pytest.mark.e2e, pytest.mark.system, pytest.mark.timeout(240)]

_BIN = Path(sys.executable).parent
_HOST = "127.0.0.1"
_START_S = 60.0


class Site:
    """The processes of one installation and the operator's shell."""

    def __init__(self, folder: Path, database_url: str, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self.environment = {
            **os.environ,
            "LIGHTERMAN_DATABASE_URL": database_url,
            "LIGHTERMAN_KEY_PASSPHRASE": "correct horse battery staple",
        }
        self.port = free_port()
        self.url = f"https://{_HOST}:{self.port}"

    def start(self) -> None:
        """Certificates, broker, registry: in the order an operator does it."""
        _write_certificate(self.folder)
        mqtt_port, cloud_port = free_low_port(), free_low_port()
        self.tool(
            "cloud-registry", "broker-config", "broker", "--data-dir", "cloud", "--name", _HOST,
            "--device-bind", _HOST, "--device-port", str(mqtt_port), "--cloud-port", str(cloud_port), "--user", "root",
        )  # fmt: skip
        config = self.folder / "broker" / "cloud-registry.toml"
        settings = [
            f'data_dir = "{self.folder / "cloud"}"', f"port = {self.port}", f'public_url = "{self.url}"',
            f'tls_cert = "{self.folder / "registry.crt"}"', f'tls_key = "{self.folder / "registry.key"}"',
        ]  # fmt: skip
        kept = [line for line in config.read_text().splitlines() if not line.startswith("data_dir")]
        (self.folder / "cloud-registry.toml").write_text("\n".join(settings + kept))
        broker = [require_program("mosquitto"), "-c", str(self.folder / "broker" / "mosquitto.conf")]
        self._child("broker", broker)
        wait_until(lambda: is_listening(mqtt_port), _START_S, what="the broker")
        serve = ["serve", "--config", "cloud-registry.toml", "--admin-token-file", "admin.token"]
        registry = self._child("registry", [str(_BIN / "cloud-registry"), *serve])
        wait_until(lambda: "listening on https://" in registry.output(), _START_S, what="the registry")
        self.environment |= {"LIGHTERMAN_URL": self.url, "SSL_CERT_FILE": str(self.folder / "registry.crt")}
        self.environment["LIGHTERMAN_TOKEN"] = (self.folder / "admin.token").read_text().strip()

    def start_device(self, name: str) -> None:
        """Enrol a device with a one-time token and start its agent."""
        token = self.tool("cloud-registry", "devices", "enrol-token", name, "--tag", "site=north")["token"]
        ca = str(self.folder / "registry.crt")
        enroll = ["enroll", "--url", self.url, "--token-file", "-", "--data", name, "--ca", ca]
        self.tool("edge-agent", *enroll, given=token)
        self._child(name, [str(_BIN / "edge-agent"), "run", "--data", name])
        wait_until(lambda: (self.folder / name / "run" / "agent.sock").exists(), _START_S, what="the agent")

    def tool(self, name: str, *arguments: str, given: str = "", code: int = 0) -> Any:
        """Run a command with `--json` and give what it printed; it has to end with `code`."""
        done = subprocess.run(
            [_BIN / name, *arguments, "--json"], input=given, capture_output=True, text=True, check=False,
            cwd=self.folder, env=self.environment, timeout=120,
        )  # fmt: skip
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        return json.loads(done.stdout) if done.stdout.strip() else {}

    def _child(self, name: str, argv: list[str]) -> Any:
        log = self.folder / f"{name}.log"
        return self._stack.enter_context(child_process(argv, log_path=log, env=self.environment, cwd=self.folder))


@pytest.fixture
def site(tmp_path: Path, postgres_url: str) -> Iterator[Site]:
    with ExitStack() as stack:
        site = Site(tmp_path, postgres_url, stack)
        site.start()
        yield site


def test_an_installation_serves_its_devices_and_keeps_roles_apart(site: Site) -> None:
    site.tool("packager", "keys", "init", "keys", "--root-keys", "3", "--root-threshold", "2")
    site.start_device("press-07")
    for version, factor in ((1, 2.0), (2, 3.0)):
        _write_model(site.folder / f"m{version}.onnx", factor)
    publisher = site.tool("cloud-registry", "tokens", "create", "ci", "--role", "publisher")["token"]
    admin = site.environment["LIGHTERMAN_TOKEN"]

    # A publisher may publish, and not deploy.
    site.environment["LIGHTERMAN_TOKEN"] = publisher
    golden = _write_inputs(site.folder / "golden.npz")
    ship = ["--name", "scale", "--keys", "keys", "--golden", golden, "--probation-ms", "0"]
    site.tool("packager", "ship", "m1.onnx", *ship)
    refused = site.tool("packager", "deploy", "scale:1", "--condition", "*", code=8)
    assert refused["error"]["code"] == "cloud.forbidden"

    site.environment["LIGHTERMAN_TOKEN"] = admin
    site.tool("packager", "deploy", "scale:1", "--condition", "tags.site = 'north'", "--wait")
    assert _answer(site) == [2.0, 4.0]
    site.tool("packager", "ship", "m2.onnx", *ship, "--condition", "tags.site = 'north'", "--wait")
    assert _answer(site) == [3.0, 6.0]

    # On the device itself, the fallback is one command away.
    site.tool("edge-agent", "rollback", "scale", "--data", "press-07")
    wait_until(lambda: _answer(site) == [2.0, 4.0], 30, what="the fallback")

    # Rotated keys sign the next version, and devices follow.
    site.tool("packager", "keys", "rotate", "--keys", "keys")
    _write_model(site.folder / "m3.onnx", 5.0)
    site.tool("packager", "ship", "m3.onnx", *ship, "--condition", "tags.site = 'north'", "--wait")
    assert _answer(site) == [5.0, 10.0]
    wait_until(lambda: _predictions(site) >= 4, 60, what="predictions in the lake")
    assert site.tool("edge-agent", "verify", "--all", "--data", "press-07") is not None
    (device,) = site.tool("cloud-registry", "devices", "list")
    assert device["desired"]["scale"]["version"] == 3


def _answer(site: Site) -> list[float]:
    given = json.dumps({"x": [[1.0, 2.0]]})
    arguments = ("infer", "--data", "press-07", "--module", "scale", "--input", "-")
    answer = site.tool("edge-agent", *arguments, given=given)["outputs"]["y"]
    assert (answer["datatype"], answer["shape"]) == ("FP32", [1, 2])
    return [float(value) for value in answer["data"]]


def _predictions(site: Site) -> int:
    found = site.tool("cloud-registry", "query", "SELECT count(*) FROM predictions WHERE device = 'press-07'")
    return int(found["rows"][0][0])


def _write_model(path: Path, factor: float) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [-1, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [-1, 2])
    scale = helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])
    graph = helper.make_graph([helper.make_node("Mul", ["x", "factor"], ["y"])], "scale", [x], [y], [scale])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)


def _write_inputs(path: Path) -> str:
    np.savez(path, x=np.array([[1, 2], [3, 4]], dtype=np.float32))
    return str(path)


def _write_certificate(folder: Path) -> None:
    """A server certificate as an operator's own authority would issue it; here it signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "registry")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(_HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "registry.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "registry.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
