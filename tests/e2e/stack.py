"""Everything of the cloud's side for one test run: a broker, a registry with its collector, keys, and ways to publish.

All of it is real: `cloud-registry serve` and mosquitto in processes of their own, both on ports that stay the same when
they are stopped, killed and started again.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from cloud_registry.client import RegistryClient
from edge_agent.platforms import detect_platform
from edge_contract.digest import Digest
from packager.keys import RingMaker
from packager.progress import QuietReporter
from packager.ship import Voyage, ship
from packager.spec import Flags
from packager.specload import load_spec
from tests.e2e.device import Device
from tests.e2e.models import adder, write_golden
from tests.support.mosquitto import MosquittoBroker, mosquitto
from tests.support.net import LOOPBACK, free_low_port, wait_until
from tests.support.processes import Child, start_process

_D = TypeVar("_D", bound=Device)
_START_S = 60.0
_STOP_S = 20.0
_TOOL_S = 100.0
_SETTLE_S = 60.0
_EXPIRES_DAYS = 30
_START_ATTEMPTS_MAX = 5


@dataclass(frozen=True)
class Ran:
    """A command that ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """What it printed as JSON."""
        return json.loads(self.stdout)

    @property
    def error_code(self) -> str:
        """The code of the error it printed as JSON."""
        return str(self.document["error"]["code"])


@dataclass(frozen=True)
class Shipment:
    """A version that was published, and perhaps deployed.

    Attributes:
        model: Its model.
        version: Its number.
        deployment: Identifier of the deployment, or empty.
        manifest: Digest of its bundle.
        blob: Digest of the model's file.
        size: Its length in bytes.
    """

    model: str
    version: int
    deployment: str
    manifest: Digest
    blob: Digest
    size: int


class Stack:
    """The cloud's side. Used by one thread."""

    def __init__(self, folder: Path, broker: MosquittoBroker) -> None:
        """Use an empty folder and a broker that runs; `start_registry` comes next."""
        self.folder = folder
        self.broker = broker
        self.data = folder / "cloud"
        self.port = free_low_port()
        self.registry: Child | None = None
        self.variables: dict[str, str] = {}
        self.passphrase = secrets.token_urlsafe(24)
        self._keys = folder / "keys"
        self._devices: list[Device] = []

    @property
    def url(self) -> str:
        """Base URL of the registry, the same over restarts."""
        return f"http://{LOOPBACK}:{self.port}"

    # -- processes -------------------------------------------------------------------------------------------------

    def start_registry(self) -> None:
        """Start `cloud-registry serve` and wait until it says that it listens."""
        argv = [_program("cloud-registry"), "serve", "--data-dir", str(self.data), "--port", str(self.port)]
        argv += self.broker_options()
        argv += ["--admin-token-file", str(self.folder / "admin-token"), "--log-level", "warning"]
        log = self.folder / "registry.log"
        before = log.stat().st_size if log.exists() else 0
        child = start_process(argv, log_path=log, env=_environment({}), cwd=self.folder)

        def is_up() -> bool:
            return not child.is_running or b"listening on" in log.read_bytes()[before:]

        try:
            wait_until(is_up, _START_S, what="the registry to listen")
            assert child.is_running, child.tail()
        except BaseException:
            child.stop()
            raise
        self.registry = child

    def broker_options(self) -> list[str]:
        """How the registry is told of the broker."""
        return ["--mqtt-host", LOOPBACK, "--mqtt-port", str(self.broker.port)]

    def stop_registry(self) -> None:
        """Ask the registry to end."""
        if self.registry is not None:
            self.registry.stop(deadline_s=_STOP_S)
            self.registry = None

    def kill_registry(self) -> None:
        """End the registry as a power cut would."""
        if self.registry is not None:
            self.registry.kill()
            self.registry = None

    def set_up(self) -> None:
        """Make the author's keys and found the registry's trust on them."""
        self.variables = {
            "LIGHTERMAN_URL": self.url,
            "LIGHTERMAN_TOKEN": (self.folder / "admin-token").read_text(encoding="utf-8").strip(),
            "LIGHTERMAN_KEYS": str(self._keys),
            "LIGHTERMAN_KEY_PASSPHRASE": self.passphrase,
        }
        made = self.run("packager", "keys", "init", str(self._keys), "--json")
        assert made.exit_code == 0, made.stderr

    def heal(self) -> None:
        """Bring back whatever a test left down."""
        if self.broker.child is None:
            self.broker.start()
        if self.registry is None or not self.registry.is_running:
            self.start_registry()

    @contextmanager
    def ending_devices(self) -> Iterator[None]:
        """End, behind the block, the agents of devices that were made within it."""
        before = len(self._devices)
        try:
            yield
        finally:
            while len(self._devices) > before:
                self._devices.pop().stop()

    # -- tools -----------------------------------------------------------------------------------------------------

    def run(self, program: str, *arguments: str, secret_input: str = "") -> Ran:
        """Run one of the command lines to its end, as an operator with all rights."""
        done = subprocess.run(
            [_program(program), *arguments],
            input=secret_input,
            capture_output=True,
            text=True,
            env=_environment(self.variables),
            cwd=self.folder,
            timeout=_TOOL_S,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def client(self) -> Iterator[RegistryClient]:
        """The registry's own client, with all rights."""
        with RegistryClient(self.url, self.variables["LIGHTERMAN_TOKEN"]) as client:
            yield client

    def model_files(
        self,
        offset: int,
        padding_bytes: int = 0,
        golden: float | None = None,
        weights: NDArray[np.float32] | None = None,
    ) -> tuple[Path, Path]:
        """Write a model that adds `offset`, and golden vectors for what it should add (the same unless given)."""
        folder = self.folder / "models" / secrets.token_hex(4)
        folder.mkdir(parents=True)
        model = folder / "model.onnx"
        model.write_bytes(adder(offset, padding_bytes, weights))
        return model, write_golden(folder / "golden.npz", offset if golden is None else golden)

    def ship(
        self,
        model: str,
        offset: int,
        *devices: str,
        padding_bytes: int = 0,
        golden: float | None = None,
        probation_ms: int = 0,
        platform: str = "",
        hardware_ids: tuple[str, ...] = (),
        weights: NDArray[np.float32] | None = None,
    ) -> Shipment:
        """Publish the next version of a model and assign it to devices by name.

        The steps of `packager ship`, in this process because there are many of them. Nothing is run here first.
        """
        path, vectors = self.model_files(offset, padding_bytes, golden, weights)
        flags = Flags(
            name=model,
            members=(("", path),),
            golden=vectors,
            is_golden_trusted=True,
            is_peak_measured=False,
            probation_ms=probation_ms,
            sampling_ratio=1.0,
            platforms=(platform or detect_platform(),),
            hardware_ids=hardware_ids,
        )
        ring = RingMaker(lambda _: self.passphrase)(self._keys)
        voyage = Voyage(condition(*devices), "", {}, "", 0, None, _EXPIRES_DAYS, None, None)
        with self.client() as client:
            done = ship(client, load_spec(None, flags), ring, voyage, QuietReporter())
        (manifest,) = done["push"]["manifests"].values()
        return Shipment(
            model=model,
            version=int(done["version"]),
            deployment=done["deployment"]["id"] if done["deployment"] else "",
            manifest=Digest(manifest),
            blob=Digest.of(path.read_bytes()),
            size=path.stat().st_size,
        )

    def standing(self, shipment: Shipment, device: str) -> dict[str, Any]:
        """How a deployment stands on a device, as the registry has heard."""
        with self.client() as client:
            items = client.deployment_devices(shipment.deployment)
        return next((item for item in items if item["device"] == device), {"standing": None, "error": None})

    def wait_standing(self, shipment: Shipment, device: str, standing: str) -> dict[str, Any]:
        """Wait until the registry has heard that."""

        def is_so() -> dict[str, Any] | None:
            item = self.standing(shipment, device)
            return item if item["standing"] == standing else None

        return wait_until(is_so, _SETTLE_S, what=f"{device} to be {standing}", poll_s=0.1) or {}

    def query(self, sql: str) -> list[list[Any]]:
        """Rows of the telemetry lake, by the command line."""
        done = self.run("cloud-registry", "query", sql, "--json", "--rows", "10000")
        assert done.exit_code == 0, done.stderr
        rows: list[list[Any]] = done.document["rows"]
        return rows

    def device(self, name: str, model: str, url: str = "", **more: Any) -> Device:
        """A device that is enrolled and not running yet.

        Args:
            name: Its name.
            model: The model it is going to serve.
            url: Base URL of the registry as the device sees it; the true one when empty.
            more: See `Device`.
        """
        return self.enrol(Device(self.folder / name, name, model, **more), url)

    def enrol(self, device: _D, url: str = "", *options: str) -> _D:
        """Enrol a device that was made by the caller; its agent ends with those of the others.

        Args:
            device: Any device.
            url: See `device`.
            options: Further options of `edge-agent enroll`.
        """
        with self.client() as client:
            token = client.create_enrolment_token(device.name)["token"]
        done = self.run(
            "edge-agent", "enroll", "--url", url or self.url, "--token-file", "-", "--data", str(device.data), *options,
            secret_input=token,
        )  # fmt: skip
        assert done.exit_code == 0, done.stderr
        if device not in self._devices:
            self._devices.append(device)
        return device

    def live_device(self, name: str, model: str, url: str = "", **more: Any) -> tuple[Device, Shipment]:
        """A running device on which version 1 of its model, shipped here, is live and confirmed."""
        device = self.device(name, model, url, **more)
        shipment = self.ship(model, 1, name)
        device.start()
        device.wait_confirmed(shipment.manifest)
        return device, shipment


def condition(*devices: str) -> str:
    """The target condition that names devices; empty for none."""
    return " OR ".join(f"deviceId = '{name}'" for name in devices)


def exactly_once(stack: Stack, device: Device, wanted: set[str]) -> None:
    """Require that the lake holds every one of the requests and no record of the device twice, soon."""
    device.wait(lambda: device.status()["spool"]["records"] == 0, "the collector to acknowledge everything")
    sql = f"SELECT request_id, count(*) FROM predictions WHERE device = '{device.name}' GROUP BY request_id"

    def missing() -> set[str]:
        with stack.client() as client:
            return wanted - {row[0] for row in client.query(sql)["rows"]}

    wait_until(lambda: not missing(), _SETTLE_S, what="the lake to hold every record", poll_s=0.5)
    found = dict(stack.query(sql))
    assert wanted <= found.keys()
    assert {name: count for name, count in found.items() if count != 1} == {}
    sql = f"SELECT count(*), count(DISTINCT (boot, seq)) FROM telemetry WHERE device = '{device.name}'"
    ((records, different),) = stack.query(sql)
    assert records == different


@contextmanager
def running_stack(folder: Path) -> Iterator[Stack]:
    """A stack for the length of a block; skips where mosquitto is not installed."""
    (folder / "broker").mkdir()
    with ExitStack() as parts:
        broker = parts.enter_context(mosquitto(folder / "broker"))
        stack = Stack(folder, broker)
        for attempt in range(_START_ATTEMPTS_MAX):
            try:
                stack.start_registry()
                break
            except AssertionError:
                # Somebody may have taken the port since we looked.
                if attempt == _START_ATTEMPTS_MAX - 1:
                    raise
                stack.port = free_low_port()
        parts.callback(stack.stop_registry)
        parts.enter_context(stack.ending_devices())
        stack.set_up()
        yield stack


def _program(name: str) -> str:
    path = Path(sys.executable).with_name(name)
    if not path.is_file():
        pytest.fail(f"the command {name} is not installed beside {sys.executable}")
    return str(path)


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("LIGHTERMAN_")} | more
