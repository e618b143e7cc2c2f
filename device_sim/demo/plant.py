"""Everything that runs during a demonstration, on this machine, in one folder: broker, registry, one agent, a fleet."""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Final

from cloud_registry.client import RegistryClient
from device_sim import broker
from device_sim.demo.tools import Ran, program, run_tool, shown
from device_sim.demo.view import View
from device_sim.processes import LOOPBACK, Child, free_port, spawn, wait_until
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

AGENT: Final = "press-07"
"""Name of the real device."""

TAG: Final = "fleet"
FLEET: Final = "demo"
CONDITION: Final = f"tags.{TAG} = '{FLEET}'"
_START_S: Final = 60.0
# The path of a unix socket holds 107 bytes; this leaves room for `/run/digits.sock`.
_AGENT_PATH_BYTES_MAX: Final = 85
_LISTENING: Final = re.compile(r"^listening on (http://\S+)$", re.MULTILINE)


class Plant:
    """Starts and stops processes. Used by one thread."""

    def __init__(self, folder: Path, view: View) -> None:
        """Use a folder that exists and is empty; `stop` ends whatever was started."""
        self.folder = folder
        self.url = ""
        self.broker_kind = ""
        self.is_tls = False
        self._view = view
        self._children: list[Child] = []
        self._environment: dict[str, str] = {}
        self._mqtt: dict[str, str] = {}
        self._config: list[str] = []
        self.token_file = folder / "admin-token"
        self.keys = folder / "keys"
        self.agent_data = folder / "device"
        self._run_dir: Path | None = None

    # -- processes -------------------------------------------------------------------------------------------------

    def start_broker(self, wish: str) -> None:
        """Start mosquitto with TLS and rights by device, or the embedded broker.

        Raises:
            EdgeError: `config.dependency-missing`, `network.timeout`.
        """
        self.broker_kind = broker.choose_kind(wish)
        log = self.folder / "broker.log"
        if self.broker_kind == "mosquitto":
            running = broker.start_mosquitto(log, self._configure_mosquitto, self._children)
            self.is_tls = True
        else:
            running = broker.start_embedded(log, self._children)
            self._mqtt = {
                "LIGHTERMAN_MQTT_HOST": LOOPBACK,
                "LIGHTERMAN_MQTT_PORT": str(running.port),
            }

    def _configure_mosquitto(self, port: int) -> Path:
        """Let the registry write its broker's configuration, for devices on this port."""
        out = self.folder / "broker"
        cloud_port = free_port()
        while cloud_port == port:
            cloud_port = free_port()
        arguments = ["broker-config", str(out), "--name", LOOPBACK, "--device-bind", LOOPBACK]
        arguments += ["--device-port", str(port), "--cloud-port", str(cloud_port), "--user", _own_name()]
        self.tool("cloud-registry", *arguments, "--data-dir", str(self.folder / "cloud"))
        self._config = ["--config", str(out / "cloud-registry.toml")]
        return out / "mosquitto.conf"

    def start_registry(self) -> None:
        """Start the registry with its collector and wait until it is ready.

        Raises:
            EdgeError: `network.timeout` with the end of its log.
        """
        environment = {**self._mqtt, "LIGHTERMAN_DATA_DIR": str(self.folder / "cloud")}
        arguments = ["serve", "--port", "0", "--admin-token-file", str(self.token_file), *self._config]
        self._view.command(shown("cloud-registry", [self._short(item) for item in arguments]) + " &")
        log = self.folder / "registry.log"
        child = spawn("the registry", [program("cloud-registry"), *arguments], log, environment, self._children)
        wait_until(lambda: _LISTENING.search(child.tail()) is not None, _START_S, "the registry", child)
        listening = _LISTENING.search(child.tail())
        if listening is None:
            raise EdgeError("network.unreachable", f"the registry does not say where it listens; see {log}")
        self.url = listening[1]
        self._environment = {
            "LIGHTERMAN_URL": self.url,
            "LIGHTERMAN_TOKEN": self.token_file.read_text(encoding="utf-8").strip(),
            "LIGHTERMAN_KEYS": str(self.keys),
            "LIGHTERMAN_KEY_PASSPHRASE": secrets.token_urlsafe(24),
        }

    def start_agent(self) -> None:
        """Enrol and start the one real device, as its owner would.

        Raises:
            EdgeError: What enrolment raises; `network.timeout` when the agent does not come up.
        """
        made = self.tool("cloud-registry", "devices", "enrol-token", AGENT, "--tag", f"{TAG}={FLEET}")
        token, data = made.document["token"], ["--data", str(self.agent_data)]
        self.tool("edge-agent", "enroll", "--url", self.url, "--token-file", "-", *data, stdin=str(token))
        if len(os.fsencode(self.agent_data)) > _AGENT_PATH_BYTES_MAX:
            self._run_dir = Path(tempfile.mkdtemp(prefix="lighterman-run-", dir="/tmp"))
        arguments = ["run", *self._agent_folders()]
        self._view.command(shown("edge-agent", [self._short(item) for item in arguments]) + " &")
        child = spawn("the agent", [program("edge-agent"), *arguments], self.folder / "agent.log", None, self._children)
        wait_until(lambda: self.agent_status() is not None, _START_S, "the agent", child)

    def start_fleet(self, devices: int, seed: int) -> None:
        """Start the simulated devices, all in one process.

        Raises:
            EdgeError: `network.timeout` when they do not enrol.
        """
        arguments = ["run", "--devices", str(devices), "--seed", str(seed), "--tags", f"{TAG}={FLEET}"]
        self._view.command(shown("device-sim", arguments) + " &")
        argv = [program("device-sim"), *arguments, "--data", str(self.folder / "fleet")]
        spawn("the fleet", argv, self.folder / "fleet.log", self._environment, self._children)

    def ended_early(self) -> list[str]:
        """Processes that have ended by themselves."""
        return [child.name for child in self._children if not child.is_running]

    def stop(self) -> None:
        """End every process, the youngest first."""
        while self._children:
            child = self._children.pop()
            try:
                child.stop()
            except KeyboardInterrupt:
                child.stop(0.0)  # whoever is impatient still gets everything ended
        if self._run_dir is not None:
            shutil.rmtree(self._run_dir, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """What our commands need to find the registry and the keys; secrets among it."""
        return dict(self._environment)

    # -- asking ----------------------------------------------------------------------------------------------------

    def tool(self, name: str, *arguments: str, stdin: str = "", may_deny: bool = False) -> Ran:
        """Run one of our commands as a user would, and show it.

        Raises:
            EdgeError: See `tools.run_tool`.
        """
        self._view.command(shown(name, [self._short(item) for item in arguments]))
        return run_tool(name, arguments, self._environment, stdin, may_deny)

    def tool_quietly(self, name: str, *arguments: str) -> JsonObject:
        """Run one of our commands without showing it.

        Raises:
            EdgeError: See `tools.run_tool`.
        """
        return run_tool(name, arguments, self._environment).document

    def client(self) -> RegistryClient:
        """A client with the operator's token; close it."""
        return RegistryClient(self.url, self._environment["LIGHTERMAN_TOKEN"])

    def infer(self, module: str, data: str) -> JsonObject:
        """Ask the agent for one prediction, as a user on the device would.

        Raises:
            EdgeError: See `tools.run_tool`.
        """
        arguments = ["infer", "--module", module, "--input", "-", *self._agent_folders()]
        return self.tool("edge-agent", *arguments, stdin=data).document

    def agent_status(self) -> JsonObject | None:
        """What `edge-agent status` says, or none while the agent does not answer."""
        try:
            return run_tool("edge-agent", ["status", *self._agent_folders()], {}).document
        except EdgeError:
            return None

    def _agent_folders(self) -> list[str]:
        more = [] if self._run_dir is None else ["--run-dir", str(self._run_dir)]
        return ["--data", str(self.agent_data), *more]

    def _short(self, argument: str) -> str:
        """A path of the demonstration's folder without that folder, which is only noise."""
        return argument.replace(f"{self.folder}{os.sep}", "")


def _own_name() -> str:
    """The user who runs this; a broker that root starts would drop to another, who may not enter our folder."""
    return pwd.getpwuid(os.geteuid()).pw_name
